//! Words for what ZFS refuses: what happened, to what, what to do.

use tandem_sdk::{Error, Retry};

use crate::lzc::Errno;
use crate::names::pool_of;

pub(crate) const ENOENT: Errno = 2;
pub(crate) const EBUSY: Errno = 16;
pub(crate) const EEXIST: Errno = 17;
pub(crate) const ESRCH: Errno = 3;
pub(crate) const EPIPE: Errno = 32;
pub(crate) const ENOTSUP: Errno = 95;

/// The error behind a number of the kernel, for `action` ("snapshot", "send") on a dataset.
pub(crate) fn of_errno(action: &str, dataset: &str, errno: Errno) -> Error {
    const EPERM: Errno = 1;
    const EINTR: Errno = 4;
    const EIO: Errno = 5;
    const ENXIO: Errno = 6;
    const EAGAIN: Errno = 11;
    const EACCES: Errno = 13;
    const EXDEV: Errno = 18;
    const ENODEV: Errno = 19;
    const ETXTBSY: Errno = 26;
    const ENOSPC: Errno = 28;
    const EROFS: Errno = 30;
    const EBADE: Errno = 52;

    const EDQUOT: Errno = 122;
    const IVSET_MISSING: Errno = 1034;
    const IVSET_MISMATCH: Errno = 1035;
    const UNKNOWN_FEATURE: Errno = 1037;
    const TRUNCATED: Errno = 1040;
    const RESUME_EXISTS: Errno = 1047;
    let pool = pool_of(dataset);
    let could_not = format!("could not {action} `{dataset}`");
    let error = match errno {
        ENOSPC | EDQUOT => Error::out_of_space(format!(
            "{could_not}: the pool `{pool}` or a quota above the dataset is full; free room or raise the quota"
        )),
        EBUSY | RESUME_EXISTS => {
            Error::busy(format!("{could_not}: it is in use, by another transfer, a mount or a hold"))
        }
        ENOENT | ESRCH | ENXIO => Error::unavailable(format!(
            "{could_not}: it is gone, or the pool `{pool}` is not imported; import the pool, or repair the replica"
        )),
        EPERM | EACCES => Error::unavailable(format!(
            "{could_not}: it is not permitted; run the server as root, or load the dataset's key if it is encrypted"
        ))
        .retry(Retry::AfterOperator),
        EROFS => Error::unavailable(format!("{could_not}: the pool `{pool}` is imported read-only"))
            .retry(Retry::AfterOperator),
        EAGAIN | EIO => Error::unavailable(format!(
            "{could_not}: the pool `{pool}` cannot read or write its devices; see `zpool status {pool}`"
        )),
        EINTR | EPIPE | TRUNCATED => {
            Error::unavailable(format!("{could_not}: the stream ended before it was whole"))
        }
        EBADE => Error::unavailable(format!(
            "{could_not}: the stream was damaged on its way; what was whole is still in place"
        )),
        EEXIST => Error::conflict(format!("{could_not}: it exists already")),
        ETXTBSY | ENODEV | EXDEV => Error::conflict(format!(
            "{could_not}: the dataset was changed since the snapshot that the stream builds on"
        )),
        ENOTSUP | UNKNOWN_FEATURE => Error::unsupported(format!(
            "{could_not}: the pool `{pool}` lacks a feature that the stream needs; upgrade the pool or its ZFS"
        )),
        IVSET_MISSING | IVSET_MISMATCH => Error::conflict(format!(
            "{could_not}: the encrypted snapshots of the two sides do not belong together; a full copy is needed"
        )),
        other => Error::unavailable(format!("{could_not}: ZFS answers {}", text(other))),
    };
    error.with("errno", errno)
}

fn text(errno: Errno) -> String {
    if errno < 1024 {
        std::io::Error::from_raw_os_error(errno).to_string()
    } else {
        format!("its error {errno}")
    }
}

/// The error behind what `zfs` or `zpool` printed, in the C locale.
pub(crate) fn of_tool(dataset: &str, said: &str) -> Option<Error> {
    let pool = pool_of(dataset);
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let said = said.trim();
    let error = if has(&[
        "out of space",
        "No space left",
        "quota exceeded",
        "size is greater than available space",
    ]) {
        Error::out_of_space(format!(
            "the pool `{pool}` or a quota above `{dataset}` has not enough room: {said}; free room or raise the quota"
        ))
    } else if has(&["I/O is currently suspended", "pool is suspended"]) {
        suspended(pool)
    } else if has(&["no such pool", "cannot open '/dev/zfs'", "modules are not loaded", "modules cannot be"])
    {
        not_imported(pool)
    } else if has(&["Key load error", "Incorrect key", "Keys must be loaded"]) {
        Error::conflict(format!("the encryption key of `{dataset}` cannot be loaded: {said}"))
            .retry(Retry::AfterOperator)
    } else if has(&["has dependent clones", "has children", "filesystem has dependent"]) {
        Error::busy(format!(
            "`{dataset}` has clones or children that somebody else made: {said}; remove them first"
        ))
        .retry(Retry::AfterOperator)
    } else if has(&["is busy", "is currently mounted", "is in use", "Device or resource busy"]) {
        Error::busy(format!("`{dataset}` is in use: {said}"))
    } else if has(&["ermission denied", "must be superuser", "ot permitted"]) {
        Error::unavailable(format!("ZFS refused: {said}; run the server as root")).retry(Retry::AfterOperator)
    } else if has(&["read-only"]) {
        Error::unavailable(format!("the pool `{pool}` is read-only: {said}")).retry(Retry::AfterOperator)
    } else if has(&["already exists"]) {
        Error::conflict(format!("`{dataset}` exists already: {said}"))
    } else if has(&["does not exist"]) {
        Error::not_found(format!("`{dataset}` is not there: {said}"))
    } else if has(&[
        "invalid property",
        "bad property",
        "must be ",
        "is too long",
        "is readonly",
        "bad numeric",
    ]) {
        Error::invalid(format!("ZFS does not take it: {said}"))
    } else {
        return None;
    };
    Some(error)
}

/// The pool is away.
pub(crate) fn not_imported(pool: &str) -> Error {
    Error::unavailable(format!("the ZFS pool `{pool}` is not imported; import it with `zpool import {pool}`"))
}

/// The pool waits for its devices.
pub(crate) fn suspended(pool: &str) -> Error {
    Error::unavailable(format!(
        "the ZFS pool `{pool}` has stopped, since its devices fail; see `zpool status {pool}`, then `zpool clear {pool}`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_sdk::ErrorKind;

    #[test]
    fn numbers_have_kinds() {
        for (errno, kind) in [
            (28, ErrorKind::OutOfSpace),
            (122, ErrorKind::OutOfSpace),
            (16, ErrorKind::Busy),
            (52, ErrorKind::Unavailable),
            (26, ErrorKind::Conflict),
            (95, ErrorKind::Unsupported),
            (9999, ErrorKind::Unavailable),
        ] {
            let error = of_errno("receive", "tank/a@b", errno);
            assert_eq!(error.kind, kind, "{errno}");
            assert!(error.message.contains("tank/a@b"));
        }
    }

    #[test]
    fn what_tools_say_has_kinds() {
        let kind = |said| of_tool("tank/a", said).map(|e| e.kind);
        assert_eq!(kind("cannot create 'tank/a': out of space"), Some(ErrorKind::OutOfSpace));
        assert_eq!(kind("cannot open 'tank': no such pool"), Some(ErrorKind::Unavailable));
        assert_eq!(kind("cannot destroy 'tank/a': dataset is busy"), Some(ErrorKind::Busy));
        assert_eq!(kind("cannot open 'tank/a': dataset does not exist"), Some(ErrorKind::NotFound));
        assert_eq!(kind("cannot create 'tank/a': dataset already exists"), Some(ErrorKind::Conflict));
        let wrong = of_tool("tank/a", "Key load error: Incorrect key provided for 'tank/a'.").unwrap();
        assert_eq!((wrong.kind, wrong.retry), (ErrorKind::Conflict, Retry::AfterOperator));
        assert_eq!(
            kind("cannot create 'tank/a': 'recordsize' must be power of 2 from 512B to 16M"),
            Some(ErrorKind::InvalidArgument)
        );
        assert_eq!(kind("something new"), None);
    }
}
