//! How an instance is attached for a copy from host to host.

use tandem_contract::{Attach, Error, Result};

/// How an instance is attached for a copy from host to host, as a driver keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It is read.
    ReadOnly,
    /// It is written to.
    ReadWrite,
}

impl Attached {
    /// How the instance is attached after the call, and whether it was not before.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`](crate::ErrorKind::Conflict) where it `was` attached in another way.
    pub fn after(was: Option<Self>, call: &Attach) -> Result<(Self, bool)> {
        let wanted = if call.read_only { Self::ReadOnly } else { Self::ReadWrite };
        if was.is_some_and(|was| was != wanted) {
            return Err(Error::conflict(format!(
                "instance {} is attached {}; detach it before it is attached {}",
                call.instance,
                Self::word(was),
                Self::word(Some(wanted))
            )));
        }
        Ok((wanted, was.is_none()))
    }

    /// The word for it: `read-only` or `read-write`, and `no` for none.
    pub const fn word(attached: Option<Self>) -> &'static str {
        match attached {
            Some(Self::ReadOnly) => "read-only",
            Some(Self::ReadWrite) => "read-write",
            None => "no",
        }
    }

    /// What the word means; `None` where it means nothing.
    pub fn named(word: &str) -> Option<Option<Self>> {
        [None, Some(Self::ReadOnly), Some(Self::ReadWrite)].into_iter().find(|is| Self::word(*is) == word)
    }
}
