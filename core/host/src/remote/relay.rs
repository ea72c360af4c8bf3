//! Streams between two hosts: blocks over a TLS connection of their own, a pipe at each end.
//!
//! ```text
//! driver ─ pipe ▶ relay ══ [length, bytes]… [0] over TLS ══▶ relay ─ pipe ▶ driver
//! ```
//! An end of file cannot say whether a stream is complete or only its carrier dead. So over the network a stream ends
//! with an empty block, sent only after the writing call has succeeded; without it the connection's end is an error. And
//! a pipe that is not to end is not closed: whoever holds its write end cancels the reading call first, and closes it
//! once that has returned.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::time::timeout;

/// Bytes of a block at most.
const BLOCK: usize = 512 << 10;
/// What a pipe holds: a wake-up for each MiB, not for each 64 KiB.
const HOLDS: usize = 1 << 20;
/// How long the other side may take to close after the end of a stream.
const LINGER: Duration = Duration::from_secs(30);

/// How a stream outward ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Whole.
    Whole,
    /// By its source, which failed.
    Failed,
}

/// A pipe: the write end, the read end.
pub(crate) fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Only a matter of speed: an unprivileged user may have used up his share of pipe memory.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, HOLDS);
    Ok((writer, reader))
}

/// Why a stream from the network ended early.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The reader has gone.
    Here(io::Error),
    /// The way, or its source.
    There(io::Error),
}

/// Carries from a pipe's read end to the network. `succeeded` answers, once the pipe has ended, whether that end is the
/// stream's.
///
/// # Errors
/// When either side breaks; the other side then sees an error, not an end.
pub(crate) async fn outward<S: AsyncRead + AsyncWrite + Send>(
    local: OwnedFd,
    net: S,
    succeeded: impl Future<Output = bool>,
) -> io::Result<Ended> {
    let mut local = pipe::Receiver::from_owned_fd(local)?;
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

/// Carries from the network to a pipe's write end, which stays open.
///
/// # Errors
/// When either side breaks, or the stream ends before its end.
pub(crate) async fn inward<S: AsyncRead + AsyncWrite + Send + Unpin>(
    local: &mut pipe::Sender,
    mut net: S,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BLOCK];
    loop {
        let mut head = [0; 4];
        net.read_exact(&mut head).await.map_err(Broken::There)?;
        let length = u32::from_be_bytes(head) as usize;
        if length == 0 {
            let _ = timeout(LINGER, net.shutdown()).await;
            return Ok(());
        }
        let Some(block) = buffer.get_mut(..length) else {
            let sentence = format!("a block of {length} bytes is no block");
            return Err(Broken::There(io::Error::new(io::ErrorKind::InvalidData, sentence)));
        };
        net.read_exact(block).await.map_err(Broken::There)?;
        local.write_all(block).await.map_err(Broken::Here)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_an_empty_block_ends_a_stream() {
        for (cut, ok) in [(0, true), (4, true), (5, true), (0, false)] {
            let (writer, source) = new_pipe().unwrap();
            let (dest, mut driver) = pipe::pipe().unwrap();
            let (one, mut between_one) = tokio::io::duplex(1 << 17);
            let (two, mut between_two) = tokio::io::duplex(1 << 17);
            let out = tokio::spawn(outward(source, one, std::future::ready(ok)));
            let back = tokio::spawn(async move {
                let mut dest = dest;
                (inward(&mut dest, two).await, dest)
            });
            tokio::task::spawn_blocking(move || rustix::io::write(writer, &[7; 50_000]).unwrap())
                .await
                .unwrap();
            let mut between = Vec::new();
            between_one.read_to_end(&mut between).await.unwrap();
            between.truncate(between.len() - cut);
            between_two.write_all(&between).await.unwrap();
            drop((between_one, between_two));
            let (done, dest) = back.await.unwrap();
            let whole = cut == 0 && ok;
            assert_eq!(done.is_ok(), whole, "{done:?}");
            assert!(matches!(done, Ok(()) | Err(Broken::There(_))));
            assert_eq!(out.await.unwrap().unwrap(), if ok { Ended::Whole } else { Ended::Failed });
            drop(dest);
            let mut bytes = Vec::new();
            driver.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes.len(), if cut > 4 { 0 } else { 50_000 });
        }
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_is_told_apart() {
        let (mut dest, driver) = pipe::pipe().unwrap();
        drop(driver);
        let (mut one, two) = tokio::io::duplex(1 << 17);
        one.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
        assert!(matches!(inward(&mut dest, two).await, Err(Broken::Here(_))));
    }
}
