//! Moves a stream between the manager's pipe and the one that the kernel's ZFS reads or writes.
//!
//! ```text
//! send:     lzc_send ──> inner pipe ──pump──> the call's stream
//! receive:  the call's stream ──pump──> inner pipe ──> lzc_receive
//! ```
//! The kernel's calls cannot be told to stop; closing our end of the inner pipe ends them at once. `splice` moves pages and
//! copies nothing, so that counting the bytes costs next to nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tandem_sdk::{Error, OpContext, Progress, Result};

/// What a pipe holds, and what one call moves.
const BYTES: usize = 1 << 20;
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
    // Only a matter of speed.
    let _ = fcntl_setpipe_size(&write, BYTES);
    Ok((read, write))
}

/// How a pump ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The source has no more.
    Whole,
    /// Nobody reads any more.
    Broken,
}

/// A pump and how far it is.
pub(crate) struct Pump<'a> {
    pub(crate) cx: &'a OpContext,
    /// Most bytes a second.
    pub(crate) limit: Option<u64>,
    /// About how many there will be.
    pub(crate) total: Option<u64>,
    /// Moved so far.
    pub(crate) bytes: u64,
}

impl Pump<'_> {
    /// Moves everything, until the source ends or the reader goes away.
    ///
    /// # Errors
    /// The reason to stop, or `Unavailable` when a pipe fails.
    pub(crate) fn run(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<End> {
        let started = Instant::now();
        let before = self.bytes;
        let chunk =
            self.limit.map_or(BYTES, |limit| usize::try_from(limit / 16).unwrap_or(BYTES).clamp(4096, BYTES));
        loop {
            self.keep_to_limit(started, before)?;
            self.cx.check()?;
            match splice(from, None, to, None, chunk, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                Ok(0) => return Ok(End::Whole),
                Ok(n) => self.moved(n),
                Err(Errno::AGAIN | Errno::INTR) => {
                    if !self.wait(from, to)? {
                        return Ok(End::Broken);
                    }
                }
                Err(Errno::PIPE) => return Ok(End::Broken),
                Err(e) => return Err(broke(&e.into())),
            }
        }
    }

    /// Waits a little for the end of a stream that holds nothing more: a sender whose reader goes away before it has ended
    /// takes that for a failure.
    pub(crate) fn see_off(&self, from: BorrowedFd<'_>) {
        let until = Instant::now() + FAREWELL;
        let mut rest = [0; 4096];
        while Instant::now() < until && self.cx.check().is_ok() {
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

/// Runs a pump beside a call of the kernel, on a thread of its own; it has ended when this returns.
///
/// # Errors
/// Its own, or `Bug` when it panics.
pub(crate) fn beside<T: Send>(pump: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let work = || {
        yields();
        pump()
    };
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(Error::bug("the thread that pumps panicked")))
}

/// Lets the kernel's side fill a pipe before this thread is run: else each of its writes, one a record and one its header,
/// is a switch of threads. Only a matter of speed.
#[allow(unsafe_code, reason = "no safe binding sets a thread's policy")]
fn yields() {
    let usual = libc::sched_param { sched_priority: 0 };
    // SAFETY: a plain call that reads `usual`; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &usual) };
}

/// Writes all of it, into a pipe that has room.
pub(crate) fn put(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to.as_fd(), bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(broke(&e.into())),
        }
    }
    Ok(())
}
