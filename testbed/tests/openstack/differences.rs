//! The differences that stay, as `docs/openstack.md` lists them.
//!
//! A row of its table says where (`03#85`, or several with commas), what differs, and why. What differs is one of
//!
//! - `status N`: the answer's status is N; its body is not compared;
//! - `body PATH`: what is at this path of the body (`share_replica.replica_state`) is not compared;
//! - `fewer KEY`: the recorded list under this key has entries that are not here;
//! - `not sent`: the request is left out, because what it is about could not be made.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Difference {
    Status(u16),
    Body(String),
    Fewer(String),
    NotSent,
}

/// Where (`03#85`), and what.
pub(crate) type Differences = BTreeMap<String, Vec<Difference>>;

/// The document.
pub(crate) fn document() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/openstack.md");
    std::fs::read_to_string(path).expect("docs/openstack.md")
}

/// The cells of a table's row.
pub(crate) fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// Reads the table.
pub(crate) fn read() -> Differences {
    let mut out = Differences::new();
    for line in document().lines() {
        let Some(row) = cells(line) else { continue };
        let [places, _, what, why] = row.as_slice() else { continue };
        if !places.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        assert!(!why.is_empty(), "a difference without a reason: {line}");
        let what = difference(what.trim_matches('`')).unwrap_or_else(|| panic!("what differs? {line}"));
        for place in places.split(',').map(str::trim) {
            out.entry(place.to_owned()).or_default().push(what.clone());
        }
    }
    out
}

fn difference(text: &str) -> Option<Difference> {
    if text == "not sent" {
        return Some(Difference::NotSent);
    }
    let (kind, rest) = text.split_once(' ')?;
    match kind {
        "status" => Some(Difference::Status(rest.parse().ok()?)),
        "body" => Some(Difference::Body(rest.to_owned())),
        "fewer" => Some(Difference::Fewer(rest.to_owned())),
        _ => None,
    }
}
