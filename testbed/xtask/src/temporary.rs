//! What is there for as long as a command of ours runs: a folder, or a file, removed however that ends.
//!
//! A process of its own beside us does it. It reads from a pipe that nobody writes to, and of which we have the other end:
//! whatever becomes of us (an error, Ctrl-C, SIGKILL), that closes. It is in a process group of its own, so that a
//! terminal's Ctrl-C does not reach it.

use crate::{Result, command::Run};
use std::io::PipeWriter;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// Not for people: the process that removes it is started with this.
pub(crate) const COMMAND: &str = "remove-after";
/// What Ctrl-C ends beside us may write for a moment yet.
const ATTEMPTS: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// A path that goes when this does.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    /// Our end of the pipe.
    held: Option<PipeWriter>,
    process: Child,
}

impl Temporary {
    /// A new folder among the temporary files, whose name begins with this.
    pub(crate) fn folder(name: &str) -> Result<Self> {
        Self::made(Run::new("mktemp").args(["--directory", "--tmpdir", &format!("{name}-XXXXXXXX")]))
    }

    /// A new folder in another one.
    pub(crate) fn folder_in(parent: &Path, name: &str) -> Result<Self> {
        Self::made(Run::new("mktemp").args(["--directory"]).args([parent.join(format!("{name}-XXXXXXXX"))]))
    }

    fn made(mktemp: Run) -> Result<Self> {
        Self::of(PathBuf::from(mktemp.output()?.trim()))
    }

    /// What is there from now on, or will be, goes with us.
    pub(crate) fn of(path: PathBuf) -> Result<Self> {
        let said = |error: std::io::Error| format!("watching over {}: {error}.", path.display());
        let (read, held) = std::io::pipe().map_err(said)?;
        // Our own program, also where its file has been built anew since we were started.
        let mut program = Command::new("/proc/self/exe");
        let process = program.arg(COMMAND).arg(&path).stdin(read).process_group(0).spawn().map_err(said)?;
        Ok(Self { path, held: Some(held), process })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A program that goes on for a while when we are killed, and needs it until its end. It has nothing to read.
    pub(crate) fn needed_by(&self, run: Run) -> Result<Run> {
        let held = self.held.as_ref().map(PipeWriter::try_clone).transpose();
        let held = held.map_err(|error| format!("watching over {}: {error}.", self.path.display()))?;
        Ok(match held {
            Some(held) => run.stdin(held),
            None => run,
        })
    }

    /// Removes it now, and says so when that fails.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.held.take().is_none() {
            return Ok(());
        }
        match self.process.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(format!("{} could not be removed; remove it.", self.path.display())),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The sentence of what went wrong before matters more.
        let _ = self.end();
    }
}

/// The process beside us.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [path] = arguments else {
        return Err(format!("{COMMAND} is not meant to be typed."));
    };
    // Comes to an end when the last who has the other end of it is gone.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        .map_err(|error| format!("waiting to remove {path}: {error}."))?;
    let mut attempt = 1;
    while let Err(sentence) = remove(Path::new(path)) {
        if attempt == ATTEMPTS {
            return Err(sentence);
        }
        attempt += 1;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        // What a driver leaves may have modes that keep even its owner out.
        Run::new("chmod").args(["-R", "u+rwX"]).args([path]).output()?;
    }
    Run::new("rm").args(["-rf"]).args([path]).output().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_folder_goes_with_all_that_is_in_it() {
        let folder = Run::new("mktemp").args(["--directory"]).output().unwrap();
        let folder = PathBuf::from(folder.trim());
        std::fs::create_dir(folder.join("inner")).unwrap();
        std::fs::write(folder.join("inner/file"), "x").unwrap();
        std::fs::set_permissions(folder.join("inner"), std::fs::Permissions::from_mode(0o000)).unwrap();
        remove(&folder).unwrap();
        assert!(!folder.exists());
        remove(&folder).unwrap();
    }

    #[test]
    fn it_is_not_for_people() {
        assert!(run(&[]).unwrap_err().contains("not meant to be typed"));
    }
}
