//! What each file of the repository has to look like.

use crate::{Result, workspace::Workspace};

/// All that a visitor sees at the top; settings of tools are dot-files.
const ROOT: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "api",
    "core",
    "docs",
    "drivers",
    "plugin-sdk",
    "testbed",
];

/// Beyond this a file does too many things.
const LONGEST: usize = 800;

/// Spelt in two halves, so that this table does not find itself.
const UNFINISHED: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
    concat!("dbg", "!("),
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X:"),
    concat!("HA", "CK:"),
];

/// Beginnings of paths that exist on one machine only.
const MACHINE: &[&str] =
    &[concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

/// One sentence for each thing to mend.
pub(super) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let files = workspace.files()?;
    let mut findings = Vec::new();
    root(&files, &mut findings);
    for file in &files {
        let path = workspace.root.join(file);
        if path.is_symlink() {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(|error| format!("reading {file}: {error}."))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if file.ends_with(".rs") {
            source(file, &text, &mut findings);
        }
        machine(file, &text, &mut findings);
    }
    Ok(findings)
}

fn root(files: &[String], findings: &mut Vec<String>) {
    let mut tops: Vec<&str> = files.iter().filter_map(|file| file.split('/').next()).collect();
    tops.dedup();
    for top in &tops {
        if !top.starts_with('.') && !ROOT.contains(top) {
            findings.push(format!("{top}: the visible root is fixed; it belongs into one of the folders."));
        }
    }
    for expected in ROOT {
        if !tops.contains(expected) {
            findings.push(format!("{expected}: missing from the root."));
        }
    }
}

fn source(file: &str, text: &str, findings: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LONGEST {
        findings
            .push(format!("{file}: {lines} lines, and {LONGEST} is the limit. Which two things does it do?"));
    }
    let documented = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
    if !documented.is_some_and(|line| line.starts_with("//!")) {
        findings.push(format!("{file}: the first line has to say what the module is for (`//! …`)."));
    }
    for (number, line) in text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(*word)) {
            findings.push(format!("{file}:{}: {word} is unfinished work.", number + 1));
        }
    }
}

fn machine(file: &str, text: &str, findings: &mut Vec<String>) {
    for (number, line) in text.lines().enumerate() {
        for prefix in MACHINE {
            let names_it = line.match_indices(prefix).any(|(at, _)| {
                // `https://host/home/` or `docs/work/` is not an absolute path.
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || "/.-_}>$".contains(c))
            });
            if names_it {
                findings.push(format!("{file}:{}: {prefix}… is a path of one machine.", number + 1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(check: impl FnOnce(&mut Vec<String>)) -> Vec<String> {
        let mut findings = Vec::new();
        check(&mut findings);
        findings
    }

    #[test]
    fn a_file_without_module_docs_is_found() {
        assert_eq!(of(|f| source("a.rs", "use std::fs;\n", f)).len(), 1);
        assert!(of(|f| source("a.rs", "//! Says what it is.\nuse std::fs;\n", f)).is_empty());
        assert!(of(|f| source("a.rs", "#![allow(x)]\n//! Says what it is.\n", f)).is_empty());
    }

    #[test]
    fn unfinished_work_and_long_files_are_found() {
        let unfinished = format!("//! A.\nfn f() {{ {}) }}\n", UNFINISHED[0]);
        assert_eq!(of(|f| source("a.rs", &unfinished, f)).len(), 1);
        let long = format!("//! A.\n{}", "\n".repeat(LONGEST));
        assert_eq!(of(|f| source("a.rs", &long, f)).len(), 1);
    }

    #[test]
    fn paths_of_one_machine_are_found_and_addresses_are_not() {
        let line = format!("see {}me/notes", MACHINE[1]);
        assert_eq!(of(|f| machine("a.md", &line, f)).len(), 1);
        let address = format!("https://example.org{}page", MACHINE[1]);
        assert!(of(|f| machine("a.md", &address, f)).is_empty());
    }

    #[test]
    fn strangers_in_the_root_and_gaps_are_found() {
        let mut files: Vec<String> = ROOT.iter().map(|r| (*r).to_string()).collect();
        files.push(".clippy.toml".into());
        assert!(of(|f| root(&files, f)).is_empty());
        files.push("scripts/run".into());
        files.remove(0);
        assert_eq!(of(|f| root(&files, f)).len(), 2);
    }
}
