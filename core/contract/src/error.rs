//! The one error of the contract: a flat kind, whether to retry, a sentence, and context.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the caller can do about an error, not where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The driver lacks the ability; its capabilities should have said so.
    Unsupported,
    /// The arguments make no sense on this storage, whatever its state.
    InvalidArgument,
    /// What the call names does not exist.
    NotFound,
    /// It exists, with other arguments than these; or its state forbids the call.
    Conflict,
    /// The epoch in the call is lower than the one last seen.
    StaleEpoch,
    /// Something else holds it for now.
    Busy,
    /// The manager asked for it to stop, and it stopped.
    Cancelled,
    /// The pool, or the size of the share, does not suffice.
    OutOfSpace,
    /// The storage, its host or the way to it is away.
    Unavailable,
    /// A defect in the driver: a panic, a nonsense answer, a broken promise.
    Bug,
    /// A kind that this side does not know yet.
    #[serde(other)]
    Unexpected,
}

/// Whether the same call may succeed when it is simply made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// It will fail again.
    #[default]
    Never,
    /// It may be made again at once, and later with growing pauses.
    Safe,
    /// Only after a person has changed something (space, a cable, a setting).
    #[serde(other)]
    AfterOperator,
}

/// An error of a driver call. Its message is for a person: what happened, to what, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// Whether to call again.
    #[serde(default)]
    pub retry: Retry,
    /// One sentence.
    pub message: String,
    /// Names and values that place it: paths, ids, tool output (bounded). Never a secret.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<(String, String)>,
}

/// Result of a driver call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with the retry class that is usual for its kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Busy | ErrorKind::Unavailable => Retry::Safe,
            ErrorKind::OutOfSpace | ErrorKind::Bug => Retry::AfterOperator,
            _ => Retry::Never,
        };
        Self { kind, retry, message: message.into(), context: Vec::new() }
    }

    /// The same error with another retry class.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same error with one more name and value.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.context.push((name.into(), value.to_string()));
        self
    }
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {
        impl Error {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Self { Self::new(ErrorKind::$kind, message) })*
        }
    };
}
constructors! {
    /// [`ErrorKind::Unsupported`].
    unsupported => Unsupported;
    /// [`ErrorKind::InvalidArgument`].
    invalid => InvalidArgument;
    /// [`ErrorKind::NotFound`].
    not_found => NotFound;
    /// [`ErrorKind::Conflict`].
    conflict => Conflict;
    /// [`ErrorKind::Busy`].
    busy => Busy;
    /// [`ErrorKind::Cancelled`].
    cancelled => Cancelled;
    /// [`ErrorKind::OutOfSpace`].
    out_of_space => OutOfSpace;
    /// [`ErrorKind::Unavailable`].
    unavailable => Unavailable;
    /// [`ErrorKind::Bug`].
    bug => Bug;
}

impl Error {
    /// [`ErrorKind::StaleEpoch`]: the call carries `called`, the storage has seen `seen`.
    pub fn stale_epoch(called: crate::Epoch, seen: crate::Epoch) -> Self {
        Self::new(
            ErrorKind::StaleEpoch,
            format!(
                "the call carries epoch {called}, but epoch {seen} was seen here; a newer promotion owns it"
            ),
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (i, (name, value)) in self.context.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { " (" } else { ", " })?;
        }
        if self.context.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl std::error::Error for Error {}
