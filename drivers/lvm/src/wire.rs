//! What the driver and its worker say to each other: one JSON document a line, a question and its answer.
//!
//! Both the library and the worker's program are built with this file.

use serde::{Deserialize, Serialize};

/// The version of these messages; the worker's first argument. Another one is refused.
pub(crate) const WIRE: &str = "2";

/// A command of LVM.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// The command and its arguments. Words of LVM's own command line: see [`is_word`].
    pub(crate) words: Vec<String>,
    /// So long it waits for locks that somebody else holds, in milliseconds. Nothing is changed until it has them.
    pub(crate) wait_ms: u64,
    /// The worker ends itself when the command, once it has its locks, takes longer. Milliseconds.
    pub(crate) within_ms: u64,
}

/// How it ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Said {
    /// LVM's own status (`LVM2_COMMAND_SUCCEEDED` is 1); 0 when it was not even begun.
    pub(crate) status: i32,
    /// What it printed: a report.
    pub(crate) printed: Vec<String>,
    /// What it complained of.
    pub(crate) errors: Vec<String>,
}

impl Said {
    /// Whether it did nothing, since somebody else holds a lock of the volume group.
    pub(crate) fn is_locked_out(&self) -> bool {
        self.status != SUCCEEDED && self.errors.iter().any(|line| line.contains("Can't get lock for"))
    }
}

/// `LVM2_COMMAND_SUCCEEDED`.
pub(crate) const SUCCEEDED: i32 = 1;

/// The most words of a command, with a few to spare: LVM takes 64.
pub(crate) const MOST_WORDS: usize = 60;

/// Whether LVM takes this for one word, and for no comment. Its command line is split at blanks, so that nothing else may
/// come near it.
pub(crate) fn is_word(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_+./=:!&,@".contains(c);
    !word.is_empty() && word.chars().all(plain)
}
