//! What a case says when it fails, and the words to say it in.

use std::fmt::Debug;

use tandem_contract::{Error, ErrorKind, Outcome, Result};

/// Passed, or a sentence on what is wrong.
pub(crate) type Check<T = ()> = std::result::Result<T, String>;

/// Fails with a sentence unless `holds`.
pub(crate) fn ensure(holds: bool, what: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(what()) }
}

/// Fails unless both are equal.
pub(crate) fn same<T: PartialEq + Debug>(what: &str, found: &T, expected: &T) -> Check {
    ensure(found == expected, || format!("{what} is {found:?}, but should be {expected:?}"))
}

/// A call that must succeed.
pub(crate) fn succeeds<T>(what: &str, answer: Result<T>) -> Check<T> {
    answer.map_err(|e| format!("{what} failed: {:?}: {e}", e.kind))
}

/// A call that must be refused with one of these kinds.
pub(crate) fn refused<T: Debug>(what: &str, answer: Result<T>, kinds: &[ErrorKind]) -> Check<Error> {
    match answer {
        Ok(value) => Err(format!("{what} succeeded with {value:?}, but should be refused as {kinds:?}")),
        Err(e) if kinds.contains(&e.kind) => sensible(what, e),
        Err(e) => Err(format!("{what} was refused as {:?} ({e}), but should be as {kinds:?}", e.kind)),
    }
}

/// Law 12: an error that a person can use.
fn sensible(what: &str, e: Error) -> Check<Error> {
    ensure(e.message.trim().len() >= 10, || format!("{what}: the error says too little: `{}`", e.message))?;
    ensure(e.message.len() <= 1000 && e.message.lines().count() == 1, || {
        format!("{what}: the error's message is not one sentence: `{}`", e.message)
    })?;
    Ok(e)
}

/// A call that must have changed something.
pub(crate) fn changed<T: Debug>(what: &str, answer: Result<Outcome<T>>) -> Check<T> {
    match succeeds(what, answer)? {
        Outcome::Changed(value) => Ok(value),
        Outcome::Unchanged(value) => Err(format!("{what} says that it was so already ({value:?})")),
    }
}

/// A call that must have changed nothing.
pub(crate) fn unchanged<T: Debug>(what: &str, answer: Result<Outcome<T>>) -> Check<T> {
    match succeeds(what, answer)? {
        Outcome::Unchanged(value) => Ok(value),
        Outcome::Changed(value) => Err(format!("{what} says that it changed something ({value:?})")),
    }
}
