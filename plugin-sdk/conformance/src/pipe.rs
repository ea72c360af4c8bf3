//! Streams between two drivers, as the manager makes them, and what can befall them.

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What befalls a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// Nothing.
    None,
    /// It breaks after so many bytes.
    Cut(u64),
    /// The byte at this offset is another one.
    Flip(u64),
    /// It stops at this offset until the pause is released.
    Pause(u64),
}

/// A stream under the suite's eyes.
pub(crate) struct Watched {
    /// For the source.
    pub(crate) write: OwnedFd,
    /// For the destination.
    pub(crate) read: OwnedFd,
    /// Ends with the number of bytes that passed.
    pub(crate) relay: JoinHandle<u64>,
    /// Answers when the pause is reached.
    pub(crate) reached: oneshot::Receiver<()>,
    /// Ends the pause when it is dropped.
    pub(crate) pause: oneshot::Sender<()>,
}

/// A plain pipe: read end, write end.
pub(crate) fn plain() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// A stream with a mishap.
pub(crate) fn watched(mishap: Mishap) -> std::io::Result<Watched> {
    let (from_source, write) = plain()?;
    let (read, to_dest) = plain()?;
    let (say, reached) = oneshot::channel();
    let (pause, go) = oneshot::channel();
    let relay = tokio::task::spawn_blocking(move || relay(&from_source, &to_dest, mishap, say, go));
    Ok(Watched { write, read, relay, reached, pause })
}

fn relay(
    from: &OwnedFd,
    to: &OwnedFd,
    mishap: Mishap,
    say: oneshot::Sender<()>,
    go: oneshot::Receiver<()>,
) -> u64 {
    let mut waiting = Some((say, go));
    let mut passed = 0;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let stop = match mishap {
            Mishap::Cut(at) | Mishap::Pause(at) if at > passed => at - passed,
            _ => u64::MAX,
        };
        let most = buffer.len().min(usize::try_from(stop).unwrap_or(usize::MAX));
        let n = match rustix::io::read(from, &mut buffer[..most]) {
            Ok(0) | Err(_) => return passed,
            Ok(n) => n,
        };
        if let Mishap::Flip(at) = mishap
            && (passed..passed + n as u64).contains(&at)
        {
            buffer[usize::try_from(at - passed).unwrap_or(0)] ^= 0x55;
        }
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(_) => return passed,
            }
        }
        passed += n as u64;
        match mishap {
            Mishap::Cut(at) if passed >= at => return passed,
            Mishap::Pause(at) if passed == at => {
                if let Some((say, go)) = waiting.take() {
                    // Both fail when the case has ended already; then it just flows.
                    let _ = say.send(());
                    let _ = go.blocking_recv();
                }
            }
            _ => {}
        }
    }
}
