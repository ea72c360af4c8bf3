//! Frames: a length, then JSON. Of a TLS connection, or of a socket pair to a child, which carries descriptors too.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadHalf, WriteHalf};
use tokio::net::UnixStream;

use crate::BoxFuture;

/// A message may be this long; a list of a hundred thousand instances is a quarter of it.
pub(crate) const MOST: usize = 16 << 20;
/// Before the other side is known, it may send this much.
pub(crate) const MOST_FIRST: usize = 64 << 10;
/// Descriptors that one frame may carry.
const MOST_FDS: usize = 8;

/// One message.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Frame {
    /// A message without descriptors.
    ///
    /// # Errors
    /// When it does not encode or is too long to be taken by the other side.
    pub(crate) fn of(message: &impl Serialize) -> io::Result<Self> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MOST {
            return Err(invalid(format!(
                "a message of {} bytes is too long; {MOST} bytes are the most that is carried",
                bytes.len()
            )));
        }
        Ok(Self { bytes, fds: Vec::new() })
    }

    pub(crate) fn parse<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.bytes)
            .map_err(|e| invalid(format!("the other side sent what is no message of ours: {e}")))
    }
}

/// Takes frames in. A read that is dropped midway leaves it unusable.
pub(crate) trait Reader: Send {
    /// The next frame, of at most so many bytes; `None` when the other side has closed between two frames.
    fn read(&mut self, most: usize) -> BoxFuture<'_, io::Result<Option<Frame>>>;
}

/// Sends frames out.
pub(crate) trait Writer: Send {
    fn write(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>>;
}

fn invalid(sentence: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, sentence.into())
}

fn length(head: [u8; 4], most: usize) -> io::Result<usize> {
    let length = u32::from_be_bytes(head) as usize;
    if length > most {
        return Err(invalid(format!(
            "the other side announced a message of {length} bytes, {most} bytes are the most that is taken"
        )));
    }
    Ok(length)
}

impl<S: AsyncRead + Send> Reader for ReadHalf<S> {
    fn read(&mut self, most: usize) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async move {
            let mut head = [0; 4];
            if AsyncReadExt::read(self, &mut head[..1]).await? == 0 {
                return Ok(None);
            }
            self.read_exact(&mut head[1..]).await?;
            let length = length(head, most)?;
            let mut bytes = Vec::new();
            // Grows with what really arrives: an announcement costs the announcer, not us.
            if self.take(length as u64).read_to_end(&mut bytes).await? < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Some(Frame { bytes, fds: Vec::new() }))
        })
    }
}

impl<S: AsyncWrite + Send> Writer for WriteHalf<S> {
    fn write(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            if !frame.fds.is_empty() {
                return Err(invalid("descriptors do not cross a network"));
            }
            let length = u32::try_from(frame.bytes.len()).map_err(|_| invalid("too long"))?;
            self.write_all(&length.to_be_bytes()).await?;
            self.write_all(&frame.bytes).await?;
            self.flush().await
        })
    }
}

/// The reading side of a socket pair. Its frames name the number of their descriptors after the length.
pub(crate) struct UnixReader {
    socket: Arc<UnixStream>,
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    /// What one look at the socket brings at most.
    chunk: Vec<u8>,
}

/// The writing side of a socket pair.
pub(crate) struct UnixWriter(Arc<UnixStream>);

/// Both sides of one end of a socket pair.
pub(crate) fn unix(socket: UnixStream) -> (UnixReader, UnixWriter) {
    let socket = Arc::new(socket);
    (
        UnixReader {
            socket: Arc::clone(&socket),
            bytes: Vec::new(),
            fds: VecDeque::new(),
            chunk: vec![0; 64 << 10],
        },
        UnixWriter(socket),
    )
}

impl UnixReader {
    /// Reads on; answers the number of bytes, 0 at the end.
    async fn more(&mut self) -> io::Result<usize> {
        let (socket, fds, chunk) = (&self.socket, &mut self.fds, &mut self.chunk);
        let n = socket
            .async_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let got = recvmsg(
                    socket.as_fd(),
                    &mut [IoSliceMut::new(chunk)],
                    &mut control,
                    RecvFlags::CMSG_CLOEXEC,
                )?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(rights) = message {
                        fds.extend(rights);
                    }
                }
                Ok(got.bytes)
            })
            .await?;
        self.bytes.extend_from_slice(&chunk[..n]);
        Ok(n)
    }
}

impl Reader for UnixReader {
    fn read(&mut self, most: usize) -> BoxFuture<'_, io::Result<Option<Frame>>> {
        Box::pin(async move {
            loop {
                if let [a, b, c, d, count, ..] = self.bytes[..] {
                    let end = 5 + length([a, b, c, d], most)?;
                    let count = usize::from(count);
                    if self.bytes.len() >= end {
                        if self.fds.len() < count {
                            return Err(invalid("descriptors were lost on their way"));
                        }
                        let rest = self.bytes.split_off(end);
                        let mut bytes = std::mem::replace(&mut self.bytes, rest);
                        bytes.drain(..5);
                        return Ok(Some(Frame { bytes, fds: self.fds.drain(..count).collect() }));
                    }
                }
                if self.more().await? == 0 {
                    return if self.bytes.is_empty() {
                        Ok(None)
                    } else {
                        Err(io::ErrorKind::UnexpectedEof.into())
                    };
                }
            }
        })
    }
}

impl Writer for UnixWriter {
    fn write(&mut self, frame: Frame) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let length = u32::try_from(frame.bytes.len()).map_err(|_| invalid("too long"))?;
            if frame.fds.len() > MOST_FDS {
                return Err(invalid("too many descriptors for one message"));
            }
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.push(u8::try_from(frame.fds.len()).unwrap_or(u8::MAX));
            bytes.extend_from_slice(&frame.bytes);
            // They go with the first byte.
            let mut fds = frame.fds;
            let mut sent = 0;
            while sent < bytes.len() {
                let rest = &bytes[sent..];
                sent += self
                    .0
                    .async_io(Interest::WRITABLE, || {
                        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
                        let mut control = SendAncillaryBuffer::new(&mut space);
                        if !borrowed.is_empty() {
                            control.push(SendAncillaryMessage::ScmRights(&borrowed));
                        }
                        let flags = SendFlags::NOSIGNAL;
                        Ok(sendmsg(self.0.as_fd(), &[IoSlice::new(rest)], &mut control, flags)?)
                    })
                    .await?;
                fds.clear();
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read as _, Write as _};

    #[tokio::test]
    async fn descriptors_arrive_with_their_frame() {
        let (a, b) = UnixStream::pair().unwrap();
        let ((_keep, mut out), (mut back, _keep_too)) = (unix(a), unix(b));
        let mut pipes = Vec::new();
        for _ in 0..3 {
            let (read, write) = rustix::pipe::pipe().unwrap();
            pipes.push((read, write));
        }
        let writing = tokio::spawn(async move {
            for (n, (read, write)) in pipes.into_iter().enumerate() {
                std::fs::File::from(write).write_all(&[n as u8]).unwrap();
                out.write(Frame { bytes: vec![b'a'; n * 100_000], fds: vec![read] }).await.unwrap();
                out.write(Frame { bytes: vec![b'b'; 3], fds: Vec::new() }).await.unwrap();
            }
        });
        for n in 0..3 {
            let mut frame = back.read(MOST).await.unwrap().unwrap();
            assert_eq!((frame.bytes.len(), frame.fds.len()), (n * 100_000, 1));
            let mut said = Vec::new();
            std::fs::File::from(frame.fds.remove(0)).read_to_end(&mut said).unwrap();
            assert_eq!(said, [n as u8]);
            let plain = back.read(MOST).await.unwrap().unwrap();
            assert_eq!((plain.bytes.len(), plain.fds.len()), (3, 0));
        }
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_huge_announcement_is_refused_and_a_cut_frame_is_no_frame() {
        for (bytes, sentence) in [
            (&u32::MAX.to_be_bytes()[..], "announced a message of 4294967295 bytes"),
            (&[0, 0, 0, 9, b'x'][..], "unexpected end of file"),
            (&[0, 0][..], "eof"),
        ] {
            let (a, mut b) = tokio::io::duplex(64);
            b.write_all(bytes).await.unwrap();
            drop(b);
            let mut reader = tokio::io::split(a).0;
            let error = Reader::read(&mut reader, MOST_FIRST).await.unwrap_err();
            assert!(error.to_string().contains(sentence), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (a, mut b) = tokio::io::duplex(128);
                b.write_all(&bytes).await.unwrap();
                drop(b);
                let mut reader = tokio::io::split(a).0;
                while let Ok(Some(frame)) = Reader::read(&mut reader, MOST_FIRST).await {
                    let _ = frame.parse::<super::super::message::Order>();
                }
            });
        }
    }
}
