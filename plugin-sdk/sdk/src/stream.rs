//! Reading and writing a transfer's stream from blocking code, stopping when the call is to stop.
//!
//! A plain `read` of a pipe whose other side hangs never returns. These wait in short turns and look at the call's
//! context in between.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tandem_contract::{Error, Result};

use crate::OpContext;

/// How long one wait lasts before the context is looked at again.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The end of a stream that a call owns. When the call is to stop, [`Read`] and [`Write`] fail with
/// [`io::ErrorKind::TimedOut`], and [`error`](Self::error) says why.
pub struct Stream {
    fd: OwnedFd,
    cx: OpContext,
}

impl Stream {
    /// Takes the stream of a call. Not for a stream that is handed on to a tool: it becomes non-blocking.
    ///
    /// # Errors
    /// `InvalidArgument` when it is no usable stream.
    pub fn new(fd: OwnedFd, cx: &OpContext) -> Result<Self> {
        fcntl_getfl(&fd)
            .and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
            .map_err(|e| Error::invalid(format!("the stream of `{}` cannot be used: {e}", cx.verb())))?;
        Ok(Self { fd, cx: cx.clone() })
    }

    /// The stream itself, non-blocking: for code that waits by its own means.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The contract's error for a failure of reading or writing: the reason to stop, if there is one, else the stream's.
    pub fn error(&self, e: &io::Error) -> Error {
        match self.cx.check() {
            Err(stop) => stop,
            Ok(()) => Error::unavailable(format!("the stream of `{}` broke: {e}", self.cx.verb())),
        }
    }

    /// Waits until the stream is ready, or the call is to stop.
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        loop {
            if self.cx.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the call is to stop"));
            }
            let mut fds = [PollFd::new(&self.fd, flags)];
            match poll(&mut fds, Some(&TURN)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn retried(
        &self,
        flags: PollFlags,
        mut work: impl FnMut() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            if self.cx.is_cancelled() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the call is to stop"));
            }
            match work() {
                Err(Errno::AGAIN) => self.wait(flags)?,
                Err(Errno::INTR) => {}
                done => return done.map_err(Into::into),
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let fd = self.fd.as_fd();
        self.retried(PollFlags::IN, || rustix::io::read(fd, &mut *buffer))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fd = self.fd.as_fd();
        self.retried(PollFlags::OUT, || rustix::io::write(fd, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
