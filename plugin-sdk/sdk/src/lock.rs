//! The lock of one instance against a second changing call, in this process or another.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tandem_contract::{Error, InstanceId, Result};

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

    /// The file it lies on.
    pub fn file(&self) -> &File {
        &self.0
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
        let copy = lock.file().try_clone().unwrap();
        assert!(Lock::take(open(), id).unwrap_err().to_string().contains("another call"));
        drop(lock);
        drop(Lock::take(open(), id).unwrap());
        drop(copy);
    }
}
