//! A real Keystone from PyPI for the tests; `testbed/tests/keystone` starts it.

use crate::{Result, command::Run, python::Environment};
use std::path::{Path, PathBuf};

/// The folder of the virtual environment, with exactly the versions that the repository names.
pub(crate) fn prepare(root: &Path) -> Result<PathBuf> {
    let list = root.join("testbed/tests/keystone/requirements.txt");
    let wanted =
        std::fs::read_to_string(&list).map_err(|error| format!("reading {}: {error}.", list.display()))?;
    let arguments = vec!["--requirement".into(), list.to_string_lossy().into_owned()];
    Environment { name: "keystone", arguments, wanted }.prepare(version)
}

/// What it says its version is.
pub(crate) fn version(folder: &Path) -> Result<String> {
    let ask = "from importlib.metadata import version; print('keystone', version('keystone'))";
    let said = Run::new(folder.join("bin/python3")).args(["-c", ask]).output()?;
    Ok(said.trim().to_string())
}
