//! `cargo xtask tidy`: rules that are executed, not remembered. `docs/architecture.md` says why each exists.

mod bindings;
mod files;
mod layers;
mod links;
mod third_party;

use crate::{Result, command::Run, report::Report, workspace::Workspace};

/// All rules; `--fast` keeps to those that compile nothing.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let fast = match arguments {
        [] => false,
        [flag] if flag == "--fast" => true,
        _ => return Err(format!("tidy takes --fast or nothing, not {arguments:?}.")),
    };
    let workspace = Workspace::load()?;
    let mut report = Report::new();
    rules(&workspace, &mut report);
    if !fast {
        compiled(&mut report);
    }
    report.finish()
}

/// What is read from the files and from cargo's metadata.
pub(crate) fn rules(workspace: &Workspace, report: &mut Report) {
    report.step("tidy: layout", || verdict(files::check(workspace)?));
    report.step("tidy: layers", || verdict(layers::check(workspace)?));
    report.step("tidy: bindings", || bindings::check(workspace));
    report.step("tidy: links", || verdict(links::check(workspace)?));
    report.step("tidy: third party", || {
        let remark = third_party::check(workspace)?;
        if !Run::new("cargo-deny").args(["--version"]).succeeds() {
            return Ok(format!("{remark}; cargo-deny is not installed"));
        }
        // The advisories need the network and change without us; they have their own run.
        let config = workspace.root.join(".deny.toml");
        let deny = Run::new("cargo-deny").args(["check", "--config"]).args([config]);
        deny.args(["licenses", "bans", "sources"]).run()?;
        Ok(format!("{remark}; cargo-deny agrees"))
    });
    report.step("tidy: format", || {
        Run::cargo().args(["fmt", "--all", "--", "--check", "-l"]).run().map(|()| String::new())
    });
}

/// What the compiler has to look at.
pub(crate) fn compiled(report: &mut Report) {
    report.step("clippy", || {
        let clippy =
            ["clippy", "--quiet", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        Run::cargo().args(clippy).run().map(|()| String::new())
    });
    report.step("documentation", || {
        let doc = ["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items", "--locked"];
        Run::cargo().args(doc).env("RUSTDOCFLAGS", "-D warnings").run().map(|()| String::new())
    });
}

fn verdict(findings: Vec<String>) -> Result<String> {
    match findings.len() {
        0 => Ok(String::new()),
        n => Err(format!("{}\n{n} to mend", findings.join("\n"))),
    }
}
