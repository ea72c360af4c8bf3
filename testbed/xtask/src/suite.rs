//! Test programs: built once by cargo, then run one by one, each within a deadline, and counted.
//!
//! Running them ourselves gives one order (cheap first), one count and one deadline whether or not
//! cargo-nextest is installed.

use crate::{
    Result,
    command::Run,
    report::say,
    workspace::{Workspace, array, parse, string},
};
use std::ops::AddAssign;
use std::path::PathBuf;

/// After this many seconds a test program hangs, and is killed.
const DEADLINE: &str = "1800";

/// One built test program.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) package: String,
    pub(crate) name: String,
    /// From a `tests/` folder, as opposed to the tests inside a crate.
    pub(crate) integration: bool,
    dir: PathBuf,
    program: PathBuf,
}

/// How many tests ran, and how they ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    /// What those that failed said, for the end of the run: in the middle of thousands of lines nobody finds it.
    pub(crate) why: Vec<String>,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.why.extend(other.why);
    }
}

/// Builds every test program of the workspace.
pub(crate) fn build(workspace: &Workspace) -> Result<Vec<Suite>> {
    let mut suites = Vec::new();
    let mut garbled = None;
    let arguments =
        ["test", "--workspace", "--no-run", "--locked", "--message-format=json-render-diagnostics"];
    Run::cargo().args(arguments).args(workspace.features()).lines(|line| match parse(line) {
        Ok(message) => suites.extend(suite(workspace, &message)),
        Err(sentence) => garbled = Some(sentence),
    })?;
    suites.sort_by(|a, b| (&a.package, a.integration, &a.name).cmp(&(&b.package, b.integration, &b.name)));
    garbled.map_or(Ok(suites), Err)
}

fn suite(workspace: &Workspace, message: &serde_json::Value) -> Option<Suite> {
    let program = message.get("executable")?.as_str()?;
    if message.pointer("/profile/test")?.as_bool() != Some(true) {
        return None;
    }
    let package = workspace.packages.iter().find(|p| p.id == string(message, "package_id"))?;
    let target = message.get("target")?;
    Some(Suite {
        package: package.name.clone(),
        name: string(target, "name").into(),
        integration: array(target, "kind").iter().any(|kind| kind == "test"),
        dir: workspace.root.join(&package.dir),
        program: program.into(),
    })
}

impl Suite {
    /// Runs it, its output passed through.
    pub(crate) fn run(&self, environment: &[(&str, PathBuf)]) -> Result<Counts> {
        self.run_below(Run::new("timeout").args(["--foreground", "--kill-after=10", DEADLINE]), environment)
    }

    /// The same below something that runs programs, such as a guest.
    pub(crate) fn run_below(&self, runner: Run, environment: &[(&str, PathBuf)]) -> Result<Counts> {
        say(&format!("-- {} {}", self.package, self.name));
        let program = runner.args([&self.program]).dir(&self.dir).env("CARGO_MANIFEST_DIR", &self.dir);
        let counts = counted(environment.iter().fold(program, |run, (key, value)| run.env(key, value)))?;
        if self.integration && counts.passed + counts.failed == 0 {
            return Err(format!("{} {} ran no test.", self.package, self.name));
        }
        Ok(counts)
    }

    /// The program itself, for a run by other means.
    pub(crate) fn program(&self) -> &PathBuf {
        &self.program
    }
}

/// Runs something that ends like a Rust test program does, and reads the counts off its output.
/// Failed tests are counted; a program that dies without a count is an error.
pub(crate) fn counted(program: Run) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut said = false;
    let mut why = Why::default();
    let outcome = program.lines(|line| {
        say(line);
        why.hear(line);
        if let Some(more) = closing_line(line) {
            said = true;
            counts += more;
        }
    });
    counts.why = why.heard;
    match outcome {
        Err(sentence) if counts.failed == 0 => Err(sentence),
        _ if !said => Err("the program ended well but never said how many tests it ran.".into()),
        _ => Ok(counts),
    }
}

/// Picks out what a Rust test program says about the tests that failed: what follows `---- name ----`, up to so many
/// lines.
#[derive(Debug, Default)]
struct Why {
    heard: Vec<String>,
    room: usize,
}

impl Why {
    const LINES: usize = 30;

    fn hear(&mut self, line: &str) {
        if line.starts_with("---- ") && line.contains(" ----") {
            self.heard.push(line.to_owned());
            self.room = Self::LINES;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.room = 0;
        } else if self.room > 0
            && let Some(last) = self.heard.last_mut()
        {
            last.push('\n');
            last.push_str(line);
            self.room -= 1;
        }
    }
}

fn closing_line(line: &str) -> Option<Counts> {
    let (_, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = numbers.split(';').find(|part| part.trim_end().ends_with(word))?;
        part.split_whitespace().next()?.parse().ok()
    };
    let (passed, failed, ignored) = (number(" passed")?, number(" failed")?, number(" ignored")?);
    Some(Counts { passed, failed, ignored, why: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_read() {
        let line = "test result: FAILED. 12 passed; 3 failed; 2 ignored; 0 measured; 1 filtered out; finished in 0.1s";
        assert_eq!(closing_line(line), Some(Counts { passed: 12, failed: 3, ignored: 2, why: Vec::new() }));
        assert_eq!(closing_line("test a ... ok"), None);
    }

    #[test]
    fn what_failed_is_told_again() {
        let mut why = Why::default();
        let said = "failures:\n\n---- a ----\nleft: 1\n\n---- b stdout ----\nno\n\nfailures:\n    a\ntest result: FAILED.";
        said.lines().for_each(|line| why.hear(line));
        assert_eq!(why.heard, ["---- a ----\nleft: 1\n", "---- b stdout ----\nno\n"]);
    }
}
