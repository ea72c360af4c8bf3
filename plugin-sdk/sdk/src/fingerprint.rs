//! What a driver answers whose content checks read trees with [`mirror::fingerprint`](tandem_mirror::fingerprint()).

use tandem_contract::{ContentFingerprint, Error, Result};
use tandem_mirror::{FINGERPRINT_SCHEME, Fingerprint};

/// Refuses a form of fingerprints other than that of trees.
///
/// # Errors
/// `InvalidArgument`, naming both forms.
pub fn of_trees(form: &str) -> Result<()> {
    if form == FINGERPRINT_SCHEME {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "fingerprints of the form `{form}` are unknown here; this driver takes `{FINGERPRINT_SCHEME}`"
    )))
}

/// The answer for a tree that was read.
pub fn of_tree(read: Fingerprint) -> ContentFingerprint {
    ContentFingerprint {
        form: FINGERPRINT_SCHEME.to_owned(),
        parts: read.parts.into_iter().map(|(part, digest)| (part.to_owned(), digest)).collect(),
        entries: read.entries,
        bytes: read.bytes,
        damaged: read.damaged,
    }
}
