//! `cargo xtask testbed`: guests with real kernels, for people and for the tests.

mod modules;
mod packages;
mod setup;
mod symvers;

pub(crate) use packages::prepare as packages;
pub(crate) use setup::prepare;

use crate::{Result, command::Run, test, workspace::Workspace};

const HELP: &str = "\
cargo xtask testbed setup              install what is missing, build the kernel modules once
cargo xtask testbed run KIND -- ARGV   run a command in a guest; this repository is at the same path in it
cargo xtask testbed shell KIND         be in a guest
cargo xtask testbed --long [SUITE]...  every scenario in guests, and what is random more often: hours; or only these suites
KIND is plain, zfs or lvm; each has the disks alpha, beta and gamma, and pools of them where it has a technology.";

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup"] => setup::prepare().map(|remark| println!("{remark}")),
        ["run", kind, "--", argv @ ..] if !argv.is_empty() => guest("run", kind, argv),
        ["--long", suites @ ..] => test::long(suites),
        ["shell", kind] => guest("shell", kind, &[]),
        _ => Err(format!("testbed does not know {arguments:?}.\n{HELP}")),
    }
}

/// Becomes the program that boots guests, so that its exit status is ours.
fn guest(verb: &str, kind: &str, argv: &[&str]) -> Result<()> {
    let workspace = Workspace::load()?;
    // A moment where all is there, and then without a word.
    setup::prepare_for(kind)?;
    Run::cargo().args(["build", "--quiet", "--locked", "--package", "tandem-guests"]).run()?;
    let run = Run::new(workspace.artifacts(false).join("tandem-guest")).args([verb, kind]);
    Err(share(run, &workspace).args(["--"]).args(argv).become_it())
}

/// The beginning of a command that runs in a fresh guest.
pub(crate) fn inside(workspace: &Workspace, kind: &str) -> Run {
    share(Run::new(workspace.artifacts(false).join("tandem-guest")).args(["run", kind]), workspace)
        .args(["--"])
}

/// With the repository and what is built of it at the same paths.
fn share(run: Run, workspace: &Workspace) -> Run {
    let run = run.args(["--share"]).args([&workspace.root]);
    if workspace.target.starts_with(&workspace.root) {
        return run;
    }
    run.args(["--share"]).args([&workspace.target])
}
