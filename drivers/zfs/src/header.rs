//! The first record of a send stream: which moment arrives, and what it builds on.
//!
//! It is read before the kernel sees the stream, so that a stream that is not the one announced changes nothing.
//! The layout is `dmu_replay_record_t` of OpenZFS, include/sys/zfs_ioctl.h: 312 bytes, in the sender's byte order.

use tandem_sdk::{Error, Result};

/// Bytes of a record.
pub(crate) const BYTES: usize = 312;

const MAGIC: u64 = 0x2_f5ba_cbac;
const RESUMING: u64 = 1 << 20;
const RAW: u64 = 1 << 24;
const EMBEDDED: u64 = 1 << 16;
const SUBSTREAM: u64 = 1;

/// What the first record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The guid of the snapshot that arrives.
    pub(crate) to: u64,
    /// The guid of the one it builds on; 0 for a full stream.
    pub(crate) from: u64,
    /// Whether it goes on where an earlier one was cut.
    pub(crate) resuming: bool,
    /// Whether it carries encrypted blocks as they are.
    pub(crate) raw: bool,
    /// Whether it may carry blocks that are embedded in their pointers.
    pub(crate) embedded: bool,
}

impl Header {
    /// Reads the first record.
    ///
    /// # Errors
    /// `Unavailable` when it is no start of a send stream: it was damaged on its way, or the sender is no such driver.
    pub(crate) fn parse(record: &[u8; BYTES]) -> Result<Self> {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&record[at..at + 8]);
            bytes
        };
        let decode: fn([u8; 8]) -> u64 = if u64::from_le_bytes(word(8)) == MAGIC {
            u64::from_le_bytes
        } else if u64::from_be_bytes(word(8)) == MAGIC {
            u64::from_be_bytes
        } else {
            return Err(damaged());
        };
        let version = decode(word(16));
        if word(0)[..4] != [0; 4] || version & 3 != SUBSTREAM {
            return Err(damaged());
        }
        let features = version >> 2 & 0x3fff_ffff;
        Ok(Self {
            to: decode(word(40)),
            from: decode(word(48)),
            resuming: features & RESUMING != 0,
            raw: features & RAW != 0,
            embedded: features & EMBEDDED != 0,
        })
    }
}

fn damaged() -> Error {
    Error::unavailable("what arrives does not begin as a ZFS stream does; it was damaged on its way")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn record(header: Header) -> [u8; BYTES] {
        let mut record = [0; BYTES];
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        let flags = flag(header.resuming, RESUMING) | flag(header.raw, RAW) | flag(header.embedded, EMBEDDED);
        let version = SUBSTREAM | flags << 2;
        for (at, value) in [(8, MAGIC), (16, version), (40, header.to), (48, header.from)] {
            record[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        record
    }

    proptest! {
        #[test]
        fn a_header_reads_back(to: u64, from: u64, resuming: bool, raw: bool, embedded: bool) {
            let header = Header { to, from, resuming, raw, embedded };
            prop_assert_eq!(Header::parse(&record(header)).unwrap(), header);
        }

        #[test]
        fn any_bytes_are_harmless(bytes in prop::array::uniform32(0u8..)) {
            let mut all = [0; BYTES];
            all[..32].copy_from_slice(&bytes);
            let _ = Header::parse(&all);
        }
    }

    #[test]
    fn a_package_of_several_streams_is_refused() {
        let mut record = record(Header { to: 1, from: 0, resuming: false, raw: false, embedded: false });
        record[16] = 2;
        assert!(Header::parse(&record).is_err());
    }
}
