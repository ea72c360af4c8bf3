//! A pipe or socket that can be left at any moment: waiting for the other side never outlasts a cancel.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

type Cancelled<'a> = dyn Fn() -> bool + 'a;

/// A pipe holds this much, where the system lets it grow: fewer switches between the two sides.
const ROOM: usize = 1024 * 1024;
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

fn prepare(fd: BorrowedFd<'_>) -> io::Result<()> {
    // No pipe, or no right to enlarge it: as good.
    let _ = rustix::pipe::fcntl_setpipe_size(fd, ROOM);
    fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, for_what: PollFlags, cancelled: &Cancelled<'_>) -> io::Result<()> {
    loop {
        if cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        match poll(&mut [PollFd::from_borrowed_fd(fd, for_what)], Some(&PAUSE)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The reading side.
pub struct PipeReader<'a> {
    fd: OwnedFd,
    cancelled: &'a Cancelled<'a>,
}

impl<'a> PipeReader<'a> {
    /// Reads from `fd`, which it closes when it goes. `cancelled` is asked while there is nothing to read.
    pub fn new(fd: OwnedFd, cancelled: &'a Cancelled<'a>) -> io::Result<Self> {
        prepare(fd.as_fd())?;
        Ok(Self { fd, cancelled })
    }
}

impl Read for PipeReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.fd, &mut *into) {
                Err(Errno::AGAIN) => wait(self.fd.as_fd(), PollFlags::IN, self.cancelled)?,
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// The writing side.
pub struct PipeWriter<'a> {
    fd: OwnedFd,
    cancelled: &'a Cancelled<'a>,
}

impl<'a> PipeWriter<'a> {
    /// Writes to `fd`, which it closes when it goes. `cancelled` is asked while there is no room.
    pub fn new(fd: OwnedFd, cancelled: &'a Cancelled<'a>) -> io::Result<Self> {
        prepare(fd.as_fd())?;
        Ok(Self { fd, cancelled })
    }
}

impl Write for PipeWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.fd, bytes) {
                Err(Errno::AGAIN) => wait(self.fd.as_fd(), PollFlags::OUT, self.cancelled)?,
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl std::fmt::Debug for PipeReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipeReader").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PipeWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipeWriter").field("fd", &self.fd).finish_non_exhaustive()
    }
}
