//! What travels over the serial line between a test and the agent in its guest: frames, many commands at once.
//!
//! A frame is its length, the number of the command it belongs to, its kind, and bytes. The line is a raw terminal, so
//! every byte arrives; both sides are the same program, so there are no versions.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// No frame carries more than this many bytes.
pub(crate) const LONGEST: usize = 64 * 1024;
const HEAD: usize = 9;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// To the guest: start a [`Start`].
    Start,
    /// To the guest: input of a command; nothing means its end.
    Input,
    /// To the guest: kill a command and all that it has started.
    Kill,
    /// From the guest: output of a command.
    Output,
    /// From the guest: what a command said on standard error.
    Error,
    /// From the guest: an [`Ended`]; nothing of the command follows.
    Ended,
    /// From the guest, once: it is up.
    Hello,
}

const KINDS: [Kind; 7] =
    [Kind::Start, Kind::Input, Kind::Kill, Kind::Output, Kind::Error, Kind::Ended, Kind::Hello];

/// A command to start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) argv: Vec<String>,
    pub(crate) dir: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    /// Whether input follows; otherwise there is none.
    pub(crate) input: bool,
    /// Columns and rows of a terminal, for people.
    pub(crate) terminal: Option<(u16, u16)>,
}

/// How a command ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Its exit status, or 128 and the signal that ended it.
    pub(crate) status: i32,
    /// Why it was not even started.
    pub(crate) refused: Option<String>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) id: u32,
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
}

impl Frame {
    pub(crate) fn new(id: u32, kind: Kind, bytes: impl Into<Vec<u8>>) -> Self {
        Self { id, kind, bytes: bytes.into() }
    }

    pub(crate) fn json(id: u32, kind: Kind, value: &impl Serialize) -> io::Result<Self> {
        Ok(Self::new(id, kind, serde_json::to_vec(value)?))
    }

    /// One call of `write`, so that frames of several threads do not mix where the writer is locked.
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        if self.bytes.len() > LONGEST {
            return Err(io::Error::other(format!("a frame of {} bytes is too long", self.bytes.len())));
        }
        let mut whole = Vec::with_capacity(HEAD + self.bytes.len());
        whole.extend_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        whole.extend_from_slice(&self.id.to_le_bytes());
        whole.push(KINDS.iter().position(|kind| *kind == self.kind).unwrap_or_default() as u8);
        whole.extend_from_slice(&self.bytes);
        to.write_all(&whole)
    }

    /// The next frame; an error when the line has ended or carries something else.
    pub(crate) fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (length, id) = (number(0) as usize, number(4));
        let kind = KINDS.get(usize::from(head[8])).copied().filter(|_| length <= LONGEST);
        let kind =
            kind.ok_or_else(|| io::Error::other("the serial line carries something that is no frame"))?;
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        Ok(Self { id, kind, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let mut line = Vec::new();
        let sent: Vec<Frame> = KINDS
            .iter()
            .enumerate()
            .map(|(n, kind)| Frame::new(n as u32 * 70_000, *kind, vec![n as u8; n * 9000]))
            .collect();
        for frame in &sent {
            frame.write(&mut line).unwrap();
        }
        let mut rest = line.as_slice();
        for frame in &sent {
            assert_eq!(&Frame::read(&mut rest).unwrap(), frame);
        }
        assert!(Frame::read(&mut rest).is_err(), "the end of the line is no frame");
    }

    #[test]
    fn noise_and_too_much_are_refused() {
        assert!(Frame::read(&mut &b"Kernel panic - not syncing"[..]).is_err());
        assert!(Frame::new(1, Kind::Output, vec![0; LONGEST + 1]).write(&mut Vec::new()).is_err());
    }
}
