//! The stock OpenStack client from PyPI, in a virtual environment that is kept between runs.

use crate::{Result, command::Run, python::Environment};
use std::path::{Path, PathBuf};

/// Exactly what the README tells people to install.
const PACKAGES: &[&str] = &["python-openstackclient", "python-manilaclient"];

/// The folder of the virtual environment; made when it is not there or was left half made.
pub(crate) fn prepare() -> Result<PathBuf> {
    let arguments = PACKAGES.iter().map(|package| (*package).to_owned()).collect();
    Environment { name: "client", arguments, wanted: PACKAGES.join("\n") }.prepare(version)
}

/// What the client says its version is.
pub(crate) fn version(folder: &Path) -> Result<String> {
    let said = Run::new(folder.join("bin/openstack")).args(["--version"]).output()?;
    Ok(said.trim().to_string())
}

/// Copies the environment to where another user may read it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    Run::new("cp").args(["-a"]).args([from, to]).run()?;
    // The first line of the program names the interpreter by its full path.
    let program = to.join("bin/openstack");
    let text = std::fs::read_to_string(&program)
        .map_err(|error| format!("reading {}: {error}.", program.display()))?;
    let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    std::fs::write(&program, format!("#!{}\n{rest}", to.join("bin/python3").display()))
        .map_err(|error| format!("writing {}: {error}.", program.display()))
}
