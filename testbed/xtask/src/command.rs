//! One way to start other programs: no shell, and a sentence when something fails.

use crate::Result;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program with its arguments, about to be run.
#[derive(Debug)]
pub(crate) struct Run {
    command: Command,
    shown: String,
}

impl Run {
    /// A program by name or path.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let shown = program.as_ref().to_string_lossy().into_owned();
        Self { command: Command::new(program), shown }
    }

    /// The cargo that started us.
    pub(crate) fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        for argument in arguments {
            self.shown.push(' ');
            self.shown.push_str(&argument.as_ref().to_string_lossy());
            self.command.arg(argument);
        }
        self
    }

    /// The other program becomes an argument of this one, with its own arguments.
    pub(crate) fn then(self, other: Self) -> Self {
        let program = other.command.get_program().to_owned();
        let arguments: Vec<_> = other.command.get_args().map(ToOwned::to_owned).collect();
        self.args([program]).args(arguments)
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// What it reads.
    pub(crate) fn stdin(mut self, from: impl Into<Stdio>) -> Self {
        self.command.stdin(from);
        self
    }

    /// Runs it with our standard streams.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self.command.status().map_err(|error| self.not_started(&error))?;
        if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}.", self.shown)) }
    }

    /// Runs it and returns its standard output; what it says on standard error goes into the sentence of a failure.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.command.output().map_err(|error| self.not_started(&error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("`{}` ended with {}: {}", self.shown, output.status, said.trim()))
    }

    /// Whether it starts and succeeds, with nothing printed.
    pub(crate) fn succeeds(mut self) -> bool {
        self.command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Runs it and hands over each line of its standard output while it is printed.
    pub(crate) fn lines(mut self, mut line: impl FnMut(&str)) -> Result<()> {
        self.command.stdout(Stdio::piped());
        let mut child = self.command.spawn().map_err(|error| self.not_started(&error))?;
        if let Some(stdout) = child.stdout.take() {
            let mut reader = BufReader::new(stdout);
            let mut buffer = Vec::new();
            while reader.read_until(b'\n', &mut buffer).is_ok_and(|n| n > 0) {
                line(String::from_utf8_lossy(&buffer).trim_end_matches('\n'));
                buffer.clear();
            }
        }
        let status = child.wait().map_err(|error| format!("waiting for `{}`: {error}.", self.shown))?;
        if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}.", self.shown)) }
    }

    /// Becomes that program; returns only when it could not be started.
    pub(crate) fn become_it(mut self) -> String {
        use std::os::unix::process::CommandExt as _;
        let error = self.command.exec();
        self.not_started(&error)
    }

    fn not_started(&self, error: &std::io::Error) -> String {
        format!("`{}` could not be started: {error}.", self.shown)
    }
}
