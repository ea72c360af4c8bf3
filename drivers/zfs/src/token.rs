//! Resume tokens: what `receive_resume_token` says of a transfer that was cut.
//!
//! `1-<checksum>-<size>-<hex>`: a zlib-compressed name-value list in its native encoding (OpenZFS, libzfs_sendrecv.c). It
//! is read here, since the manager asks for which point it is, and a sender must prove that it is about its snapshots.

use tandem_sdk::PointId;

use crate::lzc::Flags;
use crate::names;

/// A list that claims to be longer is no token.
const LONGEST: usize = 64 << 10;

/// The content of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Token {
    /// Where the stream goes on.
    pub(crate) object: u64,
    /// Where in that object.
    pub(crate) offset: u64,
    /// Bytes of the stream that have arrived.
    pub(crate) bytes: u64,
    /// The snapshot that it is on the way to.
    pub(crate) to: u64,
    /// The snapshot that it builds on; 0 for none.
    pub(crate) from: u64,
    /// The sender's name of the snapshot.
    pub(crate) name: String,
    pub(crate) large_blocks: bool,
    pub(crate) embedded: bool,
    pub(crate) compressed: bool,
    pub(crate) raw: bool,
}

impl Token {
    /// Reads a token; `None` when it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, '-');
        if parts.next()? != "1" {
            return None;
        }
        let _checksum = parts.next()?;
        let size = usize::from_str_radix(parts.next()?, 16).ok().filter(|size| *size <= LONGEST)?;
        let packed =
            miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&bytes(parts.next()?)?, size).ok()?;
        let mut token = Self::default();
        Reader(packed.get(..)?).list(&mut |name, value| {
            let number = if let Value::Number(number) = value { number } else { 0 };
            match (name, value) {
                ("object", _) => token.object = number,
                ("offset", _) => token.offset = number,
                ("bytes", _) => token.bytes = number,
                ("toguid", _) => token.to = number,
                ("fromguid", _) => token.from = number,
                ("toname", Value::Text(text)) => token.name = text.to_owned(),
                ("largeblockok", _) => token.large_blocks = true,
                ("embedok", _) => token.embedded = true,
                ("compressok", _) => token.compressed = true,
                ("rawok", _) => token.raw = true,
                _ => {}
            }
        })?;
        (token.to != 0).then_some(token)
    }

    /// How the stream was written, and has to go on.
    pub(crate) fn flags(&self) -> Flags {
        Flags {
            large_blocks: self.large_blocks,
            embedded: self.embedded,
            compressed: self.compressed,
            raw: self.raw,
        }
    }

    /// The point that it is on the way to, where the sender's name of the snapshot tells.
    pub(crate) fn point(&self) -> Option<PointId> {
        names::point_of(self.name.split_once('@')?.1)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Number(u64),
    Text(&'a str),
    Other,
}

/// A packed name-value list, in little-endian native encoding.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
        from.get(at..at + N)?.try_into().ok()
    }

    /// Calls `each` for every pair.
    fn list(&self, each: &mut dyn FnMut(&str, Value<'a>)) -> Option<()> {
        const UINT64: i32 = 8;
        const STRING: i32 = 9;
        // Encoding 0 is native; byte order 1 is little-endian. Version and flags follow.
        if self.0.first() != Some(&0) || self.0.get(1) != Some(&1) {
            return None;
        }
        let mut at = 12;
        loop {
            let size = usize::try_from(i32::from_le_bytes(Self::number(self.0, at)?)).ok()?;
            if size == 0 {
                return Some(());
            }
            let pair = self.0.get(at..at.checked_add(size)?)?;
            let named = usize::try_from(i16::from_le_bytes(Self::number(pair, 4)?)).ok()?;
            let kind = i32::from_le_bytes(Self::number(pair, 12)?);
            let name = pair.get(16..16 + named.checked_sub(1)?)?;
            let value = (16 + named).next_multiple_of(8);
            let value = match kind {
                UINT64 => Value::Number(u64::from_le_bytes(Self::number(pair, value)?)),
                STRING => {
                    let text = pair.get(value..)?.split(|byte| *byte == 0).next()?;
                    Value::Text(std::str::from_utf8(text).ok()?)
                }
                _ => Value::Other,
            };
            each(std::str::from_utf8(name).ok()?, value);
            at += size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(name: &str, kind: i32, elements: i32, value: &[u8]) -> Vec<u8> {
        let named = name.len() + 1;
        let start = (16 + named).next_multiple_of(8);
        let size = (start + value.len()).next_multiple_of(8);
        let mut pair = vec![0; size];
        pair[0..4].copy_from_slice(&i32::try_from(size).unwrap().to_le_bytes());
        pair[4..6].copy_from_slice(&i16::try_from(named).unwrap().to_le_bytes());
        pair[8..12].copy_from_slice(&elements.to_le_bytes());
        pair[12..16].copy_from_slice(&kind.to_le_bytes());
        pair[16..16 + name.len()].copy_from_slice(name.as_bytes());
        pair[start..start + value.len()].copy_from_slice(value);
        pair
    }

    fn text(token: &Token) -> String {
        let mut list = vec![0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        for (name, number) in [
            ("fromguid", token.from),
            ("object", token.object),
            ("offset", token.offset),
            ("bytes", token.bytes),
            ("toguid", token.to),
        ] {
            list.extend(pair(name, 8, 1, &number.to_le_bytes()));
        }
        list.extend(pair("toname", 9, 1, format!("{}\0", token.name).as_bytes()));
        for (name, on) in [
            ("largeblockok", token.large_blocks),
            ("embedok", token.embedded),
            ("compressok", token.compressed),
            ("rawok", token.raw),
        ] {
            if on {
                list.extend(pair(name, 1, 0, &[]));
            }
        }
        list.extend([0; 4]);
        let hex: String = miniz_oxide::deflate::compress_to_vec_zlib(&list, 6)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("1-c740b4779-{:x}-{hex}", list.len())
    }

    proptest! {
        #[test]
        fn a_token_reads_back(
            numbers: [u64; 4],
            to in 1u64..,
            flags: [bool; 4],
            name in "[a-z]{1,9}/[a-z0-9-]{1,40}@[a-z0-9-]{1,50}",
        ) {
            let [object, offset, bytes, from] = numbers;
            let [large_blocks, embedded, compressed, raw] = flags;
            let token =
                Token { object, offset, bytes, to, from, name, large_blocks, embedded, compressed, raw };
            prop_assert_eq!(Token::parse(&text(&token)), Some(token));
        }

        #[test]
        fn any_text_is_harmless(any in ".*", cut in 0usize..400, flip in 0usize..400) {
            let _ = Token::parse(&any);
            let whole = text(&Token { to: 7, name: "a@b".into(), ..Token::default() });
            let _ = Token::parse(&whole[..cut.min(whole.len())]);
            let mut bytes = whole.into_bytes();
            let at = flip % bytes.len();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let _ = Token::parse(&String::from_utf8(bytes).unwrap());
        }

        #[test]
        fn any_list_is_harmless(mut list in prop::collection::vec(any::<u8>(), 0..200)) {
            for (at, byte) in [0, 1].into_iter().enumerate() {
                if let Some(here) = list.get_mut(at) {
                    *here = byte;
                }
            }
            let _ = Reader(&list).list(&mut |_, _| {});
        }
    }

    #[test]
    fn the_point_is_in_the_name() {
        let id = "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1";
        let of = |name: String| Token { name, ..Token::default() }.point().map(|p| p.to_string());
        assert_eq!(of(format!("tank/t/x/v1@tandem-{id}")).as_deref(), Some(id));
        assert_eq!(of("tank/t@daily".to_owned()), None);
    }
}
