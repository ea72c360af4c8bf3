//! What the system says about a path, as an error for a person.

use std::io;
use std::path::Path;

use tandem_contract::{Error, Retry};

/// The error of an action on a path: `OutOfSpace` where something is full, else `Unavailable`; what only an operator
/// can change is not tried again.
pub fn failed(action: &str, path: &Path, e: &io::Error) -> Error {
    let error = Error::unavailable(format!("could not {action} `{}`: {e}", path.display()));
    match e.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            error.retry(Retry::AfterOperator)
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::out_of_space(error.message),
        _ => error,
    }
}
