//! Streams between two hosts: blocks over a TLS connection of their own, a local descriptor at each end.
//!
//! ```text
//! driver ─ pipe ▶ relay ══ [length, bytes]… [0] over TLS ══▶ relay ─ armed pair ▶ driver
//! ```
//! An end of file cannot say whether a stream is complete or only its carrier dead. So over the network a stream ends
//! with an empty block, sent only after the writing call has succeeded; and the reading driver gets one end of an
//! **armed** socket pair: a byte that nobody has read waits at the relay's end, and while it does, closing that end is
//! an error (`ECONNRESET`) to the reader, whoever closes it: an orderly relay, a panic, or the kernel after a kill -9.
//! Only the empty block makes the relay take the byte, and then the reader sees a plain end of file.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// Bytes of a block at most.
const BLOCK: usize = 512 << 10;
/// What a pipe or a pair holds.
pub(crate) const HOLDS: usize = 1 << 20;
/// How long the other side may take to close after the end of a stream.
const LINGER: Duration = Duration::from_secs(30);

/// How a stream ended, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Whole.
    Whole,
    /// By its source, which failed.
    Failed,
}

/// A local descriptor, used without blocking.
enum Local {
    /// The end of a pipe that is read.
    Read(pipe::Receiver),
    /// The end of a pipe that is written.
    Write(pipe::Sender),
    /// One end of a socket pair.
    Pair(UnixStream),
}

/// A pipe whose end of file is worth as much as the writer's word: the write end, the read end.
pub(crate) fn plain() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Only a matter of speed: an unprivileged user may have used up his share of pipe memory.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, HOLDS);
    Ok((writer, reader))
}

/// An armed pair: the relay's end, the driver's end.
pub(crate) fn armed() -> io::Result<(OwnedFd, OwnedFd)> {
    let (relay, driver) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Only a matter of speed.
    let _ = sockopt::set_socket_send_buffer_size(&relay, HOLDS);
    send(&driver, b"!", SendFlags::NOSIGNAL)?;
    Ok((relay, driver))
}

impl Local {
    fn reader(fd: OwnedFd) -> io::Result<Self> {
        if is_socket(&fd)? { Self::pair(fd) } else { pipe::Receiver::from_owned_fd(fd).map(Self::Read) }
    }

    fn writer(fd: OwnedFd) -> io::Result<Self> {
        if is_socket(&fd)? { Self::pair(fd) } else { pipe::Sender::from_owned_fd(fd).map(Self::Write) }
    }

    fn pair(fd: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(fd);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket).map(Self::Pair)
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Read(end) => end.read(buffer).await,
            Self::Pair(end) => end.read(buffer).await,
            Self::Write(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Write(end) => end.write_all(bytes).await,
            Self::Pair(end) => end.write_all(bytes).await,
            Self::Read(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Takes the byte that makes closing an error.
    fn disarm(&self) {
        if let Self::Pair(end) = self {
            let mut byte = [0; 1];
            // A pair that was never armed has none.
            let _ = recv(end, &mut byte, RecvFlags::DONTWAIT);
        }
    }
}

fn is_socket(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Socket)
}

/// Carries from a local descriptor to the network. `succeeded` answers, once the descriptor has ended, whether that
/// end is the stream's.
///
/// # Errors
/// When either side breaks; the other side then sees an error, not an end.
pub(crate) async fn outward<S: AsyncRead + AsyncWrite + Send>(
    local: OwnedFd,
    net: S,
    succeeded: impl Future<Output = bool>,
) -> io::Result<Ended> {
    let mut local = Local::reader(local)?;
    let (mut back, mut net) = tokio::io::split(net);
    let sending = async {
        let mut buffer = vec![0; 4 + BLOCK];
        loop {
            let n = local.read(&mut buffer[4..]).await?;
            if n == 0 {
                break;
            }
            buffer[..4].copy_from_slice(&u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
            net.write_all(&buffer[..4 + n]).await?;
            net.flush().await?;
        }
        if !succeeded.await {
            return io::Result::Ok(Ended::Failed);
        }
        net.write_all(&[0; 4]).await?;
        net.shutdown().await?;
        Ok(Ended::Whole)
    };
    // Nothing comes back but the end: the reader has gone, however long our driver goes on writing nothing.
    let mut nothing = [0; 1];
    let done = tokio::select! {
        biased;
        done = sending => done?,
        gone = back.read(&mut nothing) => return Err(gone.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())),
    };
    if done == Ended::Whole {
        // Until the other side has closed too, so that nothing on its way is lost with this end.
        let _ = timeout(LINGER, back.read(&mut nothing)).await;
    }
    Ok(done)
}

/// Carries from the network to a local descriptor, the relay's end of an armed pair.
///
/// # Errors
/// When either side breaks, or the stream ends before its end.
pub(crate) async fn inward<S: AsyncRead + AsyncWrite + Send + Unpin>(
    local: OwnedFd,
    mut net: S,
) -> io::Result<()> {
    let mut local = Local::writer(local)?;
    let mut buffer = vec![0; BLOCK];
    loop {
        let mut head = [0; 4];
        net.read_exact(&mut head).await?;
        let length = u32::from_be_bytes(head) as usize;
        if length == 0 {
            local.disarm();
            let _ = timeout(LINGER, net.shutdown()).await;
            return Ok(());
        }
        let Some(block) = buffer.get_mut(..length) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a block of {length} bytes is no block"),
            ));
        };
        net.read_exact(block).await?;
        local.write_all(block).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn all(fd: OwnedFd) -> (Vec<u8>, io::Result<usize>) {
        let mut bytes = Vec::new();
        let done = std::fs::File::from(fd).read_to_end(&mut bytes);
        (bytes, done)
    }

    #[tokio::test]
    async fn a_whole_stream_ends_and_a_cut_one_is_an_error() {
        for (cut, ok) in [(false, true), (true, true), (false, false)] {
            let (writer, source) = plain().unwrap();
            let (relay, driver) = armed().unwrap();
            let (one, mut between_one) = tokio::io::duplex(1 << 17);
            let (two, mut between_two) = tokio::io::duplex(1 << 17);
            let out = tokio::spawn(outward(source, one, std::future::ready(ok)));
            let back = tokio::spawn(inward(relay, two));
            let reading = tokio::task::spawn_blocking(move || all(driver));
            tokio::task::spawn_blocking(move || rustix::io::write(writer, &[7; 50_000]).unwrap())
                .await
                .unwrap();
            let mut between = Vec::new();
            between_one.read_to_end(&mut between).await.unwrap();
            if cut {
                between.truncate(between.len() - 4);
            }
            between_two.write_all(&between).await.unwrap();
            drop((between_one, between_two));
            let (bytes, done) = reading.await.unwrap();
            assert_eq!(bytes.len(), 50_000, "what was carried arrives");
            if !cut && ok {
                assert!(done.is_ok() && back.await.unwrap().is_ok());
                assert_eq!(out.await.unwrap().unwrap(), Ended::Whole);
            } else {
                assert_eq!(done.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
                assert!(back.await.unwrap().is_err());
            }
        }
    }

    #[test]
    fn a_relay_that_vanishes_is_an_error_to_the_reader() {
        let (relay, driver) = armed().unwrap();
        rustix::io::write(&relay, b"half").unwrap();
        drop(relay);
        let (bytes, done) = all(driver);
        assert_eq!(
            (bytes.as_slice(), done.unwrap_err().kind()),
            (&b"half"[..], io::ErrorKind::ConnectionReset)
        );
    }
}
