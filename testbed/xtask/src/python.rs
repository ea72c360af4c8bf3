//! Programs from PyPI, each in a virtual environment that is kept between runs.

use crate::{Result, command::Run, system};
use std::path::{Path, PathBuf};

/// How often an installation is begun anew: the network may be shaky.
const ATTEMPTS: usize = 3;

/// A virtual environment with something in it.
#[derive(Debug)]
pub(crate) struct Environment<'a> {
    /// Its folder in the cache.
    pub(crate) name: &'a str,
    /// What `pip install` is told.
    pub(crate) arguments: Vec<String>,
    /// What decides whether an environment made earlier will do: a changed text makes a new one.
    pub(crate) wanted: String,
}

impl Environment<'_> {
    /// The folder; made when it is not there, was left half made, or does not pass the check.
    pub(crate) fn prepare(&self, works: impl Fn(&Path) -> Result<String>) -> Result<PathBuf> {
        let folder = system::cache()?.join(self.name);
        let complete = folder.join("complete");
        if std::fs::read_to_string(&complete).is_ok_and(|had| had == self.wanted) && works(&folder).is_ok() {
            return Ok(folder);
        }
        println!("Installing {} from PyPI into {}", self.name, folder.display());
        let mut attempt = 1;
        while let Err(sentence) = self.install(&folder) {
            if attempt == ATTEMPTS {
                return Err(sentence);
            }
            attempt += 1;
            println!("{sentence} Trying again.");
        }
        works(&folder)?;
        std::fs::write(&complete, &self.wanted)
            .map_err(|error| format!("writing {}: {error}.", complete.display()))?;
        Ok(folder)
    }

    fn install(&self, folder: &Path) -> Result<()> {
        Run::new(system::python()).args(["-m", "venv", "--clear"]).args([folder]).run()?;
        let pip = Run::new(folder.join("bin/python3")).args(["-m", "pip", "--disable-pip-version-check"]);
        pip.args(["install", "--quiet"]).args(&self.arguments).run()
    }
}
