//! Words for what LVM refuses: its own, with a kind that fits.

use tandem_sdk::{Error, Retry};

use crate::wire::Said;

/// Whether all that a report complains of is that something is not there.
pub(crate) fn only_missing(said: &Said) -> bool {
    let mut real = complaints(said).peekable();
    real.peek().is_some() && real.all(|line| line.contains("Failed to find logical volume"))
}

/// What it said, without warnings.
fn complaints(said: &Said) -> impl Iterator<Item = &str> {
    said.errors.iter().map(|line| line.trim()).filter(|line| !line.is_empty() && !line.starts_with("WARNING"))
}

/// The error behind a command that failed.
pub(crate) fn of_said(words: &[&str], said: &Said) -> Error {
    let (verb, target) = (words.first().unwrap_or(&""), words.last().unwrap_or(&""));
    let mut lines: Vec<&str> = complaints(said).collect();
    if lines.is_empty() {
        lines = said.errors.iter().map(|line| line.trim()).collect();
    }
    let text = if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") };
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let sentence = |advice: &str| format!("`{verb}` of {target} failed: {text}{advice}");
    let error = if has(&["too large for circular buffer"]) {
        Error::out_of_space(sentence(
            "; the volume group's own metadata has no more room: delete shares, or give it a larger area, as the driver's \
             README tells",
        ))
    } else if has(&[
        "nsufficient free space",
        "nsufficient suitable",
        "out of space",
        "over threshold",
        "reached threshold",
        "is exhausted",
        "No space left",
    ]) {
        Error::out_of_space(sentence("; extend the thin pool"))
    } else if said.is_locked_out() {
        Error::busy(sentence(
            "; another command of LVM on this host works on the volume group (`fuser -v /run/lock/lvm/V_*` shows it)",
        ))
    } else if has(&["in use", "is used by", "busy"]) {
        Error::busy(sentence("; end what uses it"))
    } else if has(&["another worker", "ocking failed"]) {
        Error::busy(sentence("; something else holds the volume group"))
    } else if has(&["already exists in"]) {
        Error::conflict(sentence(""))
    } else if has(&["Failed to find logical volume"]) {
        Error::not_found(sentence(""))
    } else if has(&["not found", "issing", "rror reading", "rite failed", "nput/output error"]) {
        Error::unavailable(sentence("; see `vgs` and `pvs`"))
    } else if has(&[
        "cannot be opened",
        "different versions",
        "needs check",
        "needs repair",
        "ermission denied",
        "read only",
        "incompatible",
    ]) {
        Error::unavailable(sentence("")).retry(Retry::AfterOperator)
    } else {
        Error::unavailable(sentence(""))
    };
    error.with("command", words.join(" ")).with("status", said.status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_sdk::ErrorKind;

    fn said(errors: &[&str]) -> Said {
        Said { status: 5, printed: Vec::new(), errors: errors.iter().map(|e| (*e).to_owned()).collect() }
    }

    #[test]
    fn what_lvm_says_has_kinds() {
        for (text, kind) in [
            ("  Insufficient free space: 3 extents needed, but only 2 available", ErrorKind::OutOfSpace),
            (
                "Free space in pool g/pool is over threshold, new volumes are not allowed.",
                ErrorKind::OutOfSpace,
            ),
            (
                "VG g metadata on /dev/sdb (522753 bytes) too large for circular buffer (1044480 bytes with 1 used)",
                ErrorKind::OutOfSpace,
            ),
            ("Can't get lock for g.", ErrorKind::Busy),
            ("Logical volume g/a contains a filesystem in use.", ErrorKind::Busy),
            ("Logical Volume \"a\" already exists in volume group \"g\"", ErrorKind::Conflict),
            ("Failed to find logical volume \"g/a\"", ErrorKind::NotFound),
            ("Volume group \"g\" not found", ErrorKind::Unavailable),
            ("something new", ErrorKind::Unavailable),
        ] {
            let error = of_said(&["lvremove", "-y", "g/a"], &said(&["WARNING: x.", text]));
            assert_eq!(error.kind, kind, "{text}");
            assert!(error.message.contains(text.trim()) && error.message.contains("g/a"), "{error}");
            assert!(!error.message.contains("WARNING"), "{error}");
        }
        assert!(of_said(&["lvs"], &said(&[])).message.contains("said nothing"));
    }

    #[test]
    fn what_is_missing_from_a_report_is_no_failure() {
        assert!(only_missing(&said(&["WARNING: x", "  Failed to find logical volume \"g/a\""])));
        assert!(!only_missing(&said(&[
            "Failed to find logical volume \"g/a\"",
            "Volume group \"g\" not found"
        ])));
        assert!(!only_missing(&said(&[])));
    }
}
