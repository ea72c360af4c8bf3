//! Contents as hexadecimal text in JSON: as lists of numbers they take seconds to write.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    serializer.serialize_str(&bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect::<String>())
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digit = |c: &u8| (*c as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [a, b] => Some(digit(a)? << 4 | digit(b)?),
        _ => None,
    });
    pairs.collect::<Option<_>>().ok_or_else(|| D::Error::custom("not hexadecimal"))
}

/// The same for the contents of named things.
pub(crate) mod named {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(transparent)]
    struct Hex(#[serde(with = "super")] Vec<u8>);

    #[derive(Serialize)]
    #[serde(transparent)]
    struct Borrowed<'a>(#[serde(serialize_with = "super::serialize")] &'a [u8]);

    pub(crate) fn serialize<S: Serializer>(data: &crate::Data, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(data.iter().map(|(name, content)| (name, Borrowed(content))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<crate::Data, D::Error> {
        let data = BTreeMap::<String, Hex>::deserialize(deserializer)?;
        Ok(data.into_iter().map(|(name, Hex(content))| (name, content)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Both {
        #[serde(with = "super")]
        bytes: Vec<u8>,
        #[serde(with = "super::named")]
        data: crate::Data,
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes: Vec<u8> = (0..=255).collect();
        let both = Both { data: [("name".to_owned(), bytes.clone())].into(), bytes };
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Both>(&text).unwrap(), both);
        assert!(serde_json::from_str::<Both>(r#"{"bytes":"0","data":{}}"#).is_err());
        assert!(serde_json::from_str::<Both>(r#"{"bytes":"0g","data":{}}"#).is_err());
    }
}
