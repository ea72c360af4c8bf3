//! What can go wrong while a tree is read, carried or built.

use std::io;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with the path it happened to; each is a sentence for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("could not {action} `{path}`: {source}")]
    Io {
        /// What was being done, as a verb (`read`, `create`).
        action: &'static str,
        /// To what; escaped, relative to the tree where it lies in one.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The caller asked for an end.
    #[error("the copy was cancelled")]
    Cancelled,
    /// The stream ended before its end record: the other side went away.
    #[error(
        "the stream was cut before its end; what arrived is kept, and the next transfer goes on from there"
    )]
    Cut,
    /// A stream or a manifest that this code cannot have written, or that was damaged.
    #[error("{what} is damaged or foreign: {why}")]
    Malformed {
        /// Which stream or file.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// What arrived or was built is not what the manifest says.
    #[error("`{path}` is not what the manifest says: {why}")]
    Mismatch {
        /// The path within the tree.
        path: String,
        /// How it differs.
        why: String,
    },
    /// The tree that an increment builds upon was altered behind our back.
    #[error(
        "`{path}` was changed on the receiving side ({why}), so the increment does not fit; a full copy is needed"
    )]
    BaseChanged {
        /// The path within the tree.
        path: String,
        /// How it differs.
        why: String,
    },
    /// The stream does not continue what lies here.
    #[error("the stream does not fit what lies here: {0}")]
    OutOfStep(String),
    /// The stream continues this very transfer, from another place than it has come to: whoever asked where to go on was
    /// answered while an earlier, cut stream was still being taken in. Nothing is lost; ask again.
    #[error(
        "what lies here of this transfer is not where the stream continues; it is kept, and goes on once it is looked at again"
    )]
    MovedOn,
}

impl Error {
    /// Whether the file system (or a quota) is full.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    /// A damaged manifest or stream.
    pub(crate) fn malformed(what: &'static str, why: impl Into<String>) -> Self {
        Self::Malformed { what, why: why.into() }
    }
}

/// Whether this is `ENOSPC` or `EDQUOT`.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A thread of ours died.
pub(crate) fn lost() -> Error {
    Error::Io { action: "run", path: "a worker thread".into(), source: io::Error::other("it panicked") }
}

/// Names what was being done, and to what, in an error of the system.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: &[u8]) -> Result<T>;
}

impl<T, E: Into<io::Error>> At<T> for std::result::Result<T, E> {
    fn at(self, action: &'static str, path: &[u8]) -> Result<T> {
        self.map_err(|e| Error::Io { action, path: show(path), source: e.into() })
    }
}

/// A path for a person: lossy where it is not UTF-8, control characters escaped, long ones shortened in the middle.
pub fn show(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path)
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect();
    if text.is_empty() {
        return ".".to_owned();
    }
    let chars = text.chars().count();
    if chars <= 400 {
        return text;
    }
    let head: String = text.chars().take(200).collect();
    let tail: String = text.chars().skip(chars - 180).collect();
    format!("{head}…{tail}")
}
