//! DRBD's data generations: which moment of the data a disk stands at.
//!
//! A disk bears the generation it is at (`current`) and, while it takes writes that its peer does not get, the one that both
//! had (`base`); a bitmap tells what changed since. Two new volumes that read as zeros are alike before either was written
//! to, so both are born with one generation that follows from the resource's id. Whenever the second one is connected, only
//! what was ever written is carried.

use std::fmt;

use tandem_sdk::ResourceId;
use uuid::Uuid;

/// `UUID_JUST_CREATED` of the kernel's drbd_int.h: metadata without a generation.
pub(super) const JUST_CREATED: u64 = 4;

/// The generation of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) current: u64,
    /// 0 while it has nothing that its peer lacks.
    pub(crate) base: u64,
}

impl Generation {
    /// Reads what `drbdsetup get-gi` prints. The lowest bit only says that it is primary.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut words = text.trim().split(':');
        let mut next = || Some(u64::from_str_radix(words.next()?, 16).ok()? & !1);
        Some(Self { current: next()?, base: next()? })
    }

    /// Whether it never got any data.
    pub(crate) fn is_blank(self, resource: ResourceId) -> bool {
        [0, JUST_CREATED, born(resource)].contains(&self.current)
    }

    /// Whether it took writes that its peer lacks.
    pub(crate) const fn has_own(self) -> bool {
        self.base != 0
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.current)
    }
}

/// The generation that volumes of a resource are born with.
pub(crate) fn born(resource: ResourceId) -> u64 {
    of(resource.0)
}

/// The same, as `drbdmeta set-gi` takes it.
pub(crate) fn birth_words(resource: ResourceId) -> String {
    words(born(resource))
}

/// Of a volume that has been in use: of a generation that nobody else has.
pub(crate) fn fresh_words() -> String {
    words(of(Uuid::new_v4()))
}

/// Even, and never one of the kernel's own.
fn of(id: Uuid) -> u64 {
    let (high, low) = id.as_u64_pair();
    ((high ^ low) | 1 << 63) & !1
}

/// Whole, up to date, nothing to tell a peer.
fn words(generation: u64) -> String {
    format!("{generation:016X}:0:0:0:1:1:0:0:0:0")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn generations_are_read() {
        let text = "ED1B2F20E775FB31:1234567890ABCDE0:0000000000000000:0000000000000000:1:1:1:0:0:0:0\n";
        let found = Generation::parse(text).unwrap();
        assert_eq!(found, Generation { current: 0xED1B_2F20_E775_FB30, base: 0x1234_5678_90AB_CDE0 });
        assert!(found.has_own());
        assert_eq!(found.to_string(), "ED1B2F20E775FB30");
        for wrong in ["", "Device has no disk", "12", "xy:1"] {
            assert_eq!(Generation::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_born_is_blank(bits: u128, text in ".*") {
            let resource = ResourceId(Uuid::from_u128(bits));
            let words = birth_words(resource);
            let found = Generation::parse(&words).unwrap();
            prop_assert!(found.is_blank(resource) && !found.has_own() && found.current > JUST_CREATED);
            let _ = Generation::parse(&text);
        }
    }
}
