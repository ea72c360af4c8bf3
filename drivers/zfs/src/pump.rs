//! Moves a stream from the kernel's ZFS to where it goes, no faster than it may, or to be looked at here.
//!
//! ```text
//! lzc_send ──> pipe ──pump──> the call's stream
//! ```
//! `splice` moves pages and copies nothing. Where nothing limits a stream, the kernel writes it to the call's own
//! ([`crate::apart`]): in a guest, a pump on each side cost a fifth of the rate.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tandem_sdk::{Error, OpContext, Progress, Result};

use crate::{error, tool};

/// What one call moves at most.
const BYTES: usize = 1 << 20;
/// What a pipe between two calls of the kernel holds. What passes through it stays in the processor's cache: 768 MiB took
/// 2.2 s in a guest, and 2.8 s with 256 KiB or 1 MiB (medians of five turns). Both calls have queues of their own
/// (`zfs_send_queue_length`, `zfs_recv_queue_length`, 16 MiB each).
const NARROW: usize = 64 << 10;
/// How long one wait lasts before the context is looked at again.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long one pause for the sake of the bandwidth lasts.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a sender has to end a stream of which everything has been taken.
const FAREWELL: Duration = Duration::from_secs(2);

/// A pipe to or from the kernel's ZFS: reading end, writing end.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(|e| Error::unavailable(format!("no pipe for the stream: {e}")))?;
    narrow(&write);
    Ok((read, write))
}

/// Makes a pipe that is still empty the best width for the kernel's calls. Only a matter of speed.
pub(crate) fn narrow(pipe: &OwnedFd) {
    let _ = fcntl_setpipe_size(pipe, NARROW);
}

/// A pump and how far it is.
pub(crate) struct Pump<'a> {
    pub(crate) cx: &'a OpContext,
    /// Whose stream it is: what its pool never sends any more is not waited for.
    pub(crate) dataset: &'a str,
    /// Most bytes a second.
    pub(crate) limit: Option<u64>,
    /// About how many there will be.
    pub(crate) total: Option<u64>,
    /// Moved so far.
    pub(crate) bytes: u64,
}

impl Pump<'_> {
    /// Moves everything, until the source ends.
    ///
    /// # Errors
    /// The reason to stop, or `Unavailable` when a pipe fails or the reader goes away.
    pub(crate) fn run(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        let started = Instant::now();
        let before = self.bytes;
        let chunk =
            self.limit.map_or(BYTES, |limit| usize::try_from(limit / 16).unwrap_or(BYTES).clamp(4096, BYTES));
        loop {
            self.keep_to_limit(started, before)?;
            self.cx.check()?;
            match splice(from, None, to, None, chunk, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                Ok(0) => return Ok(()),
                Ok(n) => self.moved(n),
                Err(Errno::AGAIN | Errno::INTR) => {
                    if !self.wait(from, to)? {
                        return Err(left());
                    }
                }
                Err(Errno::PIPE) => return Err(left()),
                Err(e) => return Err(broke(&e.into())),
            }
        }
    }

    fn moved(&mut self, n: usize) {
        self.bytes = self.bytes.saturating_add(n as u64);
        let mut progress = Progress::of("transfer", self.bytes, self.total);
        progress.estimate = self.total.is_some();
        self.cx.progress(progress);
    }

    /// Waits until there is something to move and room for it; `false` when nobody reads any more.
    fn wait(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<bool> {
        loop {
            self.cx.check()?;
            tool::alive(self.dataset)?;
            let (readable, _, gone) = look(from, PollFlags::IN, to, PollFlags::empty())?;
            if gone {
                return Ok(false);
            }
            if !readable {
                continue;
            }
            let (_, writable, gone) = look(from, PollFlags::empty(), to, PollFlags::OUT)?;
            if gone {
                return Ok(false);
            }
            if writable {
                return Ok(true);
            }
        }
    }

    fn keep_to_limit(&self, started: Instant, before: u64) -> Result<()> {
        let Some(limit) = self.limit.filter(|limit| *limit > 0) else { return Ok(()) };
        let due =
            Duration::try_from_secs_f64((self.bytes - before) as f64 / limit as f64).unwrap_or(Duration::MAX);
        while let Some(left) = due.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
            self.cx.check()?;
            std::thread::sleep(left.min(PAUSE));
        }
        Ok(())
    }
}

/// Whether `from` can be read, `to` written, and the reader of `to` is gone.
fn look(
    from: BorrowedFd<'_>,
    from_flags: PollFlags,
    to: BorrowedFd<'_>,
    to_flags: PollFlags,
) -> Result<(bool, bool, bool)> {
    let both = [PollFd::from_borrowed_fd(to, to_flags), PollFd::from_borrowed_fd(from, from_flags)];
    // A source that has ended would wake a wait that is for room only.
    let mut fds = both;
    let count = if from_flags.is_empty() { 1 } else { 2 };
    match poll(&mut fds[..count], Some(&TURN)) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok((false, false, false)),
        Err(e) => return Err(broke(&e.into())),
    }
    let (to, from) = (fds[0].revents(), fds[1].revents());
    let readable = count == 2 && from.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR);
    Ok((readable, to.contains(PollFlags::OUT), to.intersects(PollFlags::ERR | PollFlags::NVAL)))
}

fn broke(e: &io::Error) -> Error {
    Error::unavailable(format!("the stream broke: {e}"))
}

/// Waits a little for the end of a stream that holds nothing more: a sender whose reader goes away before it has ended
/// takes that for a failure.
pub(crate) fn see_off(cx: &OpContext, from: BorrowedFd<'_>) {
    let until = Instant::now() + FAREWELL;
    let mut rest = [0; 4096];
    while Instant::now() < until && cx.check().is_ok() {
        let mut fds = [PollFd::from_borrowed_fd(from, PollFlags::IN)];
        match poll(&mut fds, Some(&TURN)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => return,
        }
        match rustix::io::read(from, &mut rest) {
            Ok(0) => return,
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The error of a sender whose receiver went away.
pub(crate) fn left() -> Error {
    Error::unavailable("the receiver went away before the stream had ended")
}

/// How a call ended that wrote a stream: `EPIPE` where nobody reads that any more, whatever the kernel made of it.
pub(crate) fn sent(stream: &OwnedFd, done: Result<(), i32>) -> Result<(), i32> {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    let gone =
        poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().contains(PollFlags::ERR);
    done.map_err(|errno| if gone { error::EPIPE } else { errno })
}
