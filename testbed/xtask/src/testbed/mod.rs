//! `cargo xtask testbed`: guests with real kernels, for people and for the tests.

mod modules;
mod packages;
mod setup;
mod symvers;

pub(crate) use setup::prepare;

use crate::{Result, command::Run, workspace::Workspace};

const HELP: &str = "\
cargo xtask testbed setup              install what is missing, build the kernel modules once
cargo xtask testbed run KIND -- ARGV   run a command in a guest; this repository is at the same path in it
cargo xtask testbed shell KIND         be in a guest
KIND is plain, zfs or lvm; each has the disks alpha, beta and gamma, and pools of them where it has a technology.";

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup"] => setup::prepare().map(|remark| println!("{remark}")),
        ["run", kind, "--", argv @ ..] if !argv.is_empty() => guest("run", kind, argv),
        ["shell", kind] => guest("shell", kind, &[]),
        _ => Err(format!("testbed does not know {arguments:?}.\n{HELP}")),
    }
}

/// Becomes the program that boots guests, so that its exit status is ours.
fn guest(verb: &str, kind: &str, argv: &[&str]) -> Result<()> {
    let workspace = Workspace::load()?;
    Run::cargo().args(["build", "--quiet", "--locked", "--package", "tandem-guests"]).run()?;
    let mut guest = Run::new(workspace.artifacts(false).join("tandem-guest")).args([verb, kind]);
    guest = guest.args(["--share"]).args([&workspace.root]);
    if !workspace.target.starts_with(&workspace.root) {
        guest = guest.args(["--share"]).args([&workspace.target]);
    }
    Err(guest.args(["--"]).args(argv).become_it())
}
