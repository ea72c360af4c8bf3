//! Files that are read again when they change.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// More than this is no policy and no list of tokens, in bytes.
const MAX_SIZE: u64 = 16 << 20;

/// A file, and how it looked when it was last read.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    seen: Mutex<Option<Mark>>,
}

/// What tells one content of a file from the next: device, inode, size, times of change (seconds and nanoseconds).
type Mark = (u64, u64, u64, (i64, i64), (i64, i64));

/// What came of looking at a file again.
pub(crate) enum Change {
    /// It is as it was.
    None,
    /// It has a new content.
    Text(String),
    /// It was replaced by something that cannot be read. Said once for each such state.
    Unreadable(io::Error),
}

impl Watched {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, seen: Mutex::new(None) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file now.
    pub(crate) fn read(&self) -> io::Result<String> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = mark(&self.path);
        let size = std::fs::metadata(&self.path)?.len();
        if size > MAX_SIZE {
            return Err(io::Error::other(format!("it has {size} bytes, more than {MAX_SIZE}")));
        }
        std::fs::read_to_string(&self.path)
    }

    /// Reads the file if it changed since it was last read.
    pub(crate) fn change(&self) -> Change {
        if *self.seen.lock().unwrap_or_else(PoisonError::into_inner) == mark(&self.path) {
            return Change::None;
        }
        match self.read() {
            Ok(text) => Change::Text(text),
            Err(error) => Change::Unreadable(error),
        }
    }
}

fn mark(path: &Path) -> Option<Mark> {
    let meta = std::fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        meta.len(),
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    ))
}
