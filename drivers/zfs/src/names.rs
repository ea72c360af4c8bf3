//! Names: of datasets, of the snapshots and bookmarks that are points.

use tandem_sdk::{InstanceId, PointId};

/// How the snapshots and bookmarks of this driver begin.
const PREFIX: &str = "tandem-";
/// How the snapshots and bookmarks of a migration begin; the destination's id and a number follow.
const MOVE: &str = "tandem-move-";
/// The hold on a point's snapshot.
pub(crate) const HOLD: &str = "tandem";
/// The longest name of a dataset that leaves room for what the driver appends.
const LONGEST: usize = 150;

/// Whether a name can be that of a dataset (a file system, not a snapshot).
pub(crate) fn is_dataset(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    let part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.starts_with('-') && part.chars().all(plain)
    };
    name.len() <= LONGEST && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.split('/').all(part)
}

/// The pool that a dataset lies in.
pub(crate) fn pool_of(dataset: &str) -> &str {
    dataset.split(['/', '@', '#']).next().unwrap_or(dataset)
}

/// The last part of the name of a point's snapshot or bookmark.
pub(crate) fn of_point(point: PointId) -> String {
    format!("{PREFIX}{point}")
}

/// The point that a snapshot or bookmark is; `None` for a foreign one.
pub(crate) fn point_of(short: &str) -> Option<PointId> {
    let text = short.strip_prefix(PREFIX)?;
    let point: PointId = text.parse().ok()?;
    // Only the form that is written here: another spelling of the same id is somebody else's.
    (point.to_string() == text).then_some(point)
}

/// The last part of the name of a snapshot or bookmark that a migration makes.
pub(crate) fn of_move(destination: InstanceId, number: u64) -> String {
    format!("{MOVE}{destination}-{number}")
}

/// The destination of the migration that a snapshot or bookmark belongs to, and its number.
pub(crate) fn move_of(short: &str) -> Option<(InstanceId, u64)> {
    let (id, number) = short.strip_prefix(MOVE)?.rsplit_once('-')?;
    let (id, number) = (id.parse().ok()?, number.parse().ok()?);
    (of_move(id, number) == short).then_some((id, number))
}

/// The instance that a dataset right below the parent is.
pub(crate) fn instance_of(short: &str) -> Option<InstanceId> {
    let id: InstanceId = short.parse().ok()?;
    (id.to_string() == short).then_some(id)
}

/// The name of a version of the content.
pub(crate) fn of_version(version: u64) -> String {
    format!("v{version}")
}

/// The version that a dataset right below an instance's is.
pub(crate) fn version_of(short: &str) -> Option<u64> {
    let version: u64 = short.strip_prefix('v')?.parse().ok()?;
    (version > 0 && of_version(version) == short).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn datasets() {
        for good in ["tank/tandem", "a", "tank/a b".replace(' ', "_").as_str(), "tank/x.y:z-1/b"] {
            assert!(is_dataset(good), "{good}");
        }
        for wrong in [
            "", "/tank", "tank/", "tank//a", "tank/a@b", "tank/a#b", "tank/a b", "-t", "tank/..", "1tank/a",
            "tank/-x",
        ] {
            assert!(!is_dataset(wrong), "{wrong}");
        }
        assert_eq!(pool_of("tank/a/b"), "tank");
        assert_eq!(pool_of("tank@x"), "tank");
    }

    #[test]
    fn foreign_names_are_left_alone() {
        for foreign in ["daily", "tandem-", "tandem-1", "tandem-0", "autosnap_2026-11-21", "TANDEM-x"] {
            assert_eq!(point_of(foreign), None, "{foreign}");
        }
        let id = "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1";
        assert!(point_of(&format!("tandem-{id}")).is_some());
        assert!(point_of(&format!("tandem-{}", id.to_uppercase())).is_none());
        assert!(instance_of(id).is_some());
        assert!(instance_of("home").is_none());
        for foreign in ["v0", "v", "v01", "v+1", "w1", "v1x"] {
            assert_eq!(version_of(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn names_read_back(bits: u128, version in 1u64..) {
            let point = PointId(uuid::Uuid::from_u128(bits));
            prop_assert_eq!(point_of(&of_point(point)), Some(point));
            prop_assert_eq!(move_of(&of_point(point)), None);
            let id = InstanceId(uuid::Uuid::from_u128(bits));
            prop_assert_eq!(move_of(&of_move(id, version)), Some((id, version)));
            prop_assert_eq!(point_of(&of_move(id, version)), None);
            prop_assert_eq!(version_of(&of_version(version)), Some(version));
        }

        #[test]
        fn any_text_is_harmless(text in ".*") {
            let _ = (is_dataset(&text), point_of(&text), move_of(&text), instance_of(&text), version_of(&text), pool_of(&text));
        }
    }
}
