//! The programs that the tests call, and how they get onto a Debian machine.

use crate::{Result, command::Run};
use std::path::{Path, PathBuf};

/// A program the tests call, and the Debian package that has it.
const TOOLS: &[(&str, &str)] = &[
    ("git", "git"),
    ("rsync", "rsync"),
    ("getfattr", "attr"),
    ("getfacl", "acl"),
    ("setpriv", "util-linux"),
    ("timeout", "coreutils"),
    ("python3", "python3"),
];

/// Installs what is missing when we may, and otherwise says what to type.
pub(crate) fn prepare() -> Result<String> {
    let missing = missing();
    if missing.is_empty() {
        return Ok("nothing was missing".into());
    }
    let list = missing.join(" ");
    if !is_root() {
        return Err(format!("some packages are missing; type: sudo apt-get install {list}"));
    }
    let apt = || Run::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    apt().args(["-qq", "update"]).run()?;
    apt().args(["-qq", "install", "--yes", "--no-install-recommends"]).args(&missing).run()?;
    match self::missing() {
        still if still.is_empty() => Ok(format!("installed {list}")),
        still => Err(format!("{} are still missing after they were installed.", still.join(" "))),
    }
}

fn missing() -> Vec<&'static str> {
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| find(tool).is_none()).map(|(_, package)| *package).collect();
    // Debian's python3 has the module `venv` but not what it needs.
    if !Run::new(python()).args(["-c", "import venv, ensurepip"]).succeeds() {
        packages.push("python3-venv");
    }
    packages
}

/// The distribution's own Python where there is one: an unprivileged user can run it too.
pub(crate) fn python() -> PathBuf {
    let own = Path::new("/usr/bin/python3");
    if own.exists() { own.into() } else { "python3".into() }
}

/// Whether we are root; then packages are installed and the walk is repeated under an unprivileged user.
pub(crate) fn is_root() -> bool {
    Run::new("id").args(["-u"]).output().is_ok_and(|id| id.trim() == "0")
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|file| file.is_file())
}

/// Where things that take long to fetch are kept between runs, outside of the repository.
pub(crate) fn cache() -> Result<PathBuf> {
    let folder = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => {
            return Err("neither XDG_CACHE_HOME nor HOME is set, so there is no folder for the cache.".into());
        }
    };
    let folder = folder.join("tandem");
    std::fs::create_dir_all(&folder).map_err(|error| format!("creating {}: {error}.", folder.display()))?;
    Ok(folder)
}
