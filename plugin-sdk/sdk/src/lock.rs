//! The lock of one instance against a second changing call, in this process or another.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tandem_contract::{Error, ErrorKind, InstanceId, Result};

use crate::OpContext;

/// Between two looks at a lock that somebody has.
const PAUSE: Duration = Duration::from_millis(100);

/// Held until dropped; and lost with the process that held it.
#[derive(Debug)]
pub struct Lock(File);

impl Lock {
    /// Takes the lock that belongs to `file`.
    ///
    /// # Errors
    /// `Busy` while another call holds it, with a sentence; otherwise what the file system says.
    pub fn take(file: File, instance: InstanceId) -> Result<Self> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => {
                Err(Error::busy(format!("another call is changing instance {instance}; it must end first")))
            }
            Err(errno) => Err(Error::unavailable(format!("instance {instance} cannot be locked: {errno}"))),
        }
    }

    /// Takes the lock of an instance that has no file of its own: a file in `folder`, which is made where it is missing.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn at(folder: &Path, instance: InstanceId) -> Result<Self> {
        let path = Self::path(folder, instance);
        let failed = |e: io::Error| Error::unavailable(format!("cannot lock by `{}`: {e}", path.display()));
        fs::create_dir_all(folder).map_err(failed)?;
        loop {
            let file =
                File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
            let lock = Self::take(file, instance)?;
            // A deletion may have removed the file between the two.
            let same = rustix::fs::fstat(&lock.0).ok().zip(rustix::fs::stat(&path).ok());
            if same.is_some_and(|(ours, there)| (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)) {
                return Ok(lock);
            }
        }
    }

    /// [`at`](Self::at), waiting for whoever has the lock no longer than `patience`: for a lock that looks take for moments.
    ///
    /// # Errors
    /// As [`take`](Self::take); `Cancelled` when the call is to stop.
    pub async fn within(
        cx: &OpContext,
        folder: &Path,
        instance: InstanceId,
        patience: Duration,
    ) -> Result<Self> {
        let until = Instant::now() + patience;
        loop {
            match Self::at(folder, instance) {
                Err(e) if e.kind == ErrorKind::Busy && Instant::now() < until => cx.sleep(PAUSE).await?,
                other => return other,
            }
        }
    }

    /// Removes the file that [`at`](Self::at) made, once its instance is gone.
    pub fn remove(folder: &Path, instance: InstanceId) {
        let _ = fs::remove_file(Self::path(folder, instance));
    }

    fn path(folder: &Path, instance: InstanceId) -> PathBuf {
        folder.join(format!("{instance}.lock"))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a tool that another call is starting holds the file too, until it runs.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_file_does_not_keep_it() {
        let folder = tempfile::tempdir().unwrap();
        let id: InstanceId = "6e1f0d6e-52a3-4d0c-8f0b-6a5f2c1d7b11".parse().unwrap();
        let open = || File::open(folder.path()).unwrap();
        let lock = Lock::take(open(), id).unwrap();
        // What a child has of it between fork and exec.
        let copy = lock.0.try_clone().unwrap();
        assert!(Lock::take(open(), id).unwrap_err().to_string().contains("another call"));
        drop(lock);
        drop(Lock::take(open(), id).unwrap());
        drop(copy);
    }

    #[test]
    fn a_removed_file_locks_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        let id: InstanceId = "6e1f0d6e-52a3-4d0c-8f0b-6a5f2c1d7b11".parse().unwrap();
        let lock = Lock::at(&run, id).unwrap();
        assert_eq!(Lock::at(&run, id).unwrap_err().kind, tandem_contract::ErrorKind::Busy);
        Lock::remove(&run, id);
        drop(lock);
        drop(Lock::at(&run, id).unwrap());
        Lock::remove(&run, id);
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
    }
}
