//! What a server and a driver host say to each other: one JSON message a frame.
//!
//! ```text
//! server ── Hello ──▶ driver host          one connection for each back end, and one for each stream
//!        ◀─ Greeting ─
//!        ── Open ───▶                      then, in any order and number:
//!        ◀─ Opened ──
//!        ── Call, Drop, HostAnswer ─▶
//!        ◀─ Answer, Signal, HostCall ─
//! ```
//! Requests, answers and news are the contract's own documents and pass unread.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tandem_abi::Answer;
use tandem_contract::{Error, Manifest};
use uuid::Uuid;

use crate::plugin::encode;

/// Version of these messages; another one is refused.
pub(crate) const VERSION: u32 = 1;

/// The first message of whoever connects.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u32,
    pub(crate) contract: (u32, u32),
    /// The server's name; its certificate must say the same.
    pub(crate) from: String,
    /// The driver host's name, so that a wrong address is noticed.
    pub(crate) to: String,
    pub(crate) wants: Wants,
}

/// What a connection is for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Wants {
    /// To call one back end.
    Backend,
    /// To carry one stream of a call.
    Stream { session: Uuid, stream: Uuid },
}

/// The answer to [`Hello`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Greeting {
    Welcome(Welcome),
    /// One sentence.
    Refused(String),
}

/// What a driver host says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub(crate) contract: (u32, u32),
    /// This connection, for its streams.
    pub(crate) session: Uuid,
    /// What its folder of drivers holds.
    pub(crate) drivers: Vec<FarDriver>,
}

/// One file of a driver host's folder of drivers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FarDriver {
    /// The file's name.
    pub file: String,
    /// What it says of itself, or the sentence why it was refused.
    pub driver: Result<Manifest, String>,
}

/// From the server to the driver host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    Open {
        driver: String,
        backend: String,
        opening: Box<RawValue>,
    },
    Call {
        id: u64,
        request: Box<RawValue>,
        /// For each slot, whether the driver writes; and over a network, the stream that will come.
        slots: Vec<Slot>,
    },
    /// Nobody waits for that call any more.
    Drop {
        id: u64,
    },
    HostAnswer {
        id: u64,
        answer: Document,
    },
    /// End every call, then say so.
    Shutdown,
    Ping,
}

/// One stream of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slot {
    /// Whether the driver writes to it.
    pub(crate) out: bool,
    /// Its name; absent when the descriptor itself came along.
    pub(crate) stream: Option<Uuid>,
}

/// From the driver host to the server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum News {
    Opened { capabilities: Box<RawValue> },
    NotOpened { error: Error },
    Answer { id: u64, answer: Document },
    Signal { signal: Box<RawValue> },
    HostCall { id: u64, call: Box<RawValue> },
    Ended,
    Pong,
}

/// An [`Answer`] of the binary interface.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Document {
    Ok(Box<RawValue>),
    Err(Box<RawValue>),
    /// An error without bytes.
    Panicked,
}

impl Document {
    pub(crate) fn of(answer: Answer) -> Self {
        let read =
            |bytes: Vec<u8>| String::from_utf8(bytes).ok().and_then(|text| RawValue::from_string(text).ok());
        match answer {
            Err(bytes) if bytes.is_empty() => Self::Panicked,
            Ok(bytes) => match read(bytes) {
                Some(text) => Self::Ok(text),
                None => Self::error(&Error::bug("the driver answered nonsense: its answer is no JSON")),
            },
            Err(bytes) => match read(bytes) {
                Some(text) => Self::Err(text),
                None => Self::error(&Error::bug("the driver answered nonsense: its error is no JSON")),
            },
        }
    }

    pub(crate) fn error(error: &Error) -> Self {
        serde_json::value::to_raw_value(error).map_or(Self::Panicked, Self::Err)
    }

    pub(crate) fn into_answer(self) -> Answer {
        match self {
            Self::Ok(text) => Ok(bytes(text)),
            Self::Err(text) => Err(bytes(text)),
            Self::Panicked => Err(Vec::new()),
        }
    }
}

/// A document as bytes.
pub(crate) fn bytes(document: Box<RawValue>) -> Vec<u8> {
    Box::<str>::from(document).into_boxed_bytes().into_vec()
}

/// Bytes that should be a document.
///
/// # Errors
/// `Bug`, since they come from a driver or from ourselves.
pub(crate) fn raw(bytes: Vec<u8>, what: &str) -> Result<Box<RawValue>, Error> {
    let nonsense = |e: &dyn std::fmt::Display| Error::bug(format!("{what} is no JSON: {e}"));
    let text = String::from_utf8(bytes).map_err(|e| nonsense(&e))?;
    RawValue::from_string(text).map_err(|e| nonsense(&e))
}

/// An error as the binary interface carries it.
pub(crate) fn failed(error: &Error) -> Answer {
    Err(encode(error).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_way() {
        for answer in [Ok(b"{\"a\":[1,2.50]}".to_vec()), Err(b"\"x\"".to_vec()), Err(Vec::new())] {
            let news = News::Answer { id: 7, answer: Document::of(answer.clone()) };
            let text = serde_json::to_vec(&news).unwrap();
            let News::Answer { id: 7, answer: back } = serde_json::from_slice(&text).unwrap() else {
                panic!("{text:?}")
            };
            assert_eq!(back.into_answer(), answer);
        }
        assert!(Document::of(Ok(b"nonsense".to_vec())).into_answer().is_err());
    }
}
