//! Names of groups and volumes.

use tandem_sdk::InstanceId;

/// How the names of this driver's volumes begin.
const PREFIX: &str = "tandem-";

/// Whether LVM takes this as the name of a group or a volume; see lvm(8), "VALID NAMES".
pub(crate) fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    (1..=120).contains(&name.len())
        && !name.starts_with('-')
        && name != "."
        && name != ".."
        && name.chars().all(plain)
}

/// Whether this can be a device in the filter of LVM's settings.
pub(crate) fn is_device(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/+_.:-".contains(c);
    path.starts_with("/dev/") && path.chars().all(plain) && path.split('/').all(|part| part != "..")
}

/// The volume of an instance.
pub(crate) fn of_instance(id: InstanceId) -> String {
    format!("{PREFIX}{id}")
}

/// The volume of DRBD's metadata for an instance.
pub(crate) fn metadata_of(id: InstanceId) -> String {
    format!("{PREFIX}{id}.drbd")
}

/// A snapshot of an instance that users read: one of two, by its slot.
pub(crate) fn view_of(id: InstanceId, slot: usize) -> String {
    format!("{PREFIX}{id}.read{slot}")
}

/// The instance that a volume is by its name.
pub(crate) fn instance_of(name: &str) -> Option<InstanceId> {
    let text = name.strip_prefix(PREFIX)?;
    let id: InstanceId = text.parse().ok()?;
    // Only the form that is written here.
    (id.to_string() == text).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_devices() {
        for good in ["vg_alpha", "a", "data-1.x+y"] {
            assert!(is_name(good), "{good}");
        }
        for wrong in ["", "-a", ".", "..", "a/b", "a b", "a@b", "#a", "a\"b", &"x".repeat(130)] {
            assert!(!is_name(wrong), "{wrong}");
        }
        for good in ["/dev/sdb", "/dev/disk/by-id/nvme-x_1", "/dev/mapper/alpha"] {
            assert!(is_device(good), "{good}");
        }
        for wrong in ["sdb", "/dev/a|b", "/dev/a\"b", "/dev/../etc/passwd", "/etc/passwd", "/dev/a$"] {
            assert!(!is_device(wrong), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn names_read_back(bits: u128) {
            let id = InstanceId(uuid::Uuid::from_u128(bits));
            prop_assert!(is_name(&of_instance(id)));
            prop_assert_eq!(instance_of(&of_instance(id)), Some(id));
            for other in [metadata_of(id), view_of(id, 0), view_of(id, 1)] {
                prop_assert!(is_name(&other) && instance_of(&other).is_none());
            }
        }

        #[test]
        fn any_text_is_harmless(text in ".*") {
            let _ = (is_name(&text), is_device(&text), instance_of(&text));
        }
    }
}
