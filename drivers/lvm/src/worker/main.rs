//! `tandem-lvm-worker WIRE LOCK`: runs commands of LVM for the driver, one at a time.
//!
//! LVM's library sets the process's umask, is not made for threads, and may wait for a lock or a device for ever: so it
//! lives in a process that can be ended. Standard input is a socket to the driver; when the driver goes away this ends,
//! after the command that runs. LOCK is a file that is locked while a command runs: the worker of a server that was
//! started anew begins nothing before that of the last one has ended.
//!
//! LVM is told not to wait for a lock of the group; the waiting is done here, where it is seen what is waited for, and that
//! the driver has gone meanwhile.

mod library;
#[path = "../lvm2cmd.rs"]
mod lvm2cmd;
#[path = "../wire.rs"]
mod wire;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, getpid, kill_process};

use crate::library::{Library, refused};
use crate::wire::{Ask, Said, WIRE};

/// How often a lock is tried.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    outlive_signals();
    let (Some(wire), Some(lock), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        return ExitCode::from(64);
    };
    let ready = if wire == WIRE {
        Library::open().and_then(|library| {
            let file = File::options().create(true).truncate(false).write(true).open(&lock);
            file.map(|file| (library, file)).map_err(|e| format!("{lock} cannot be opened: {e}"))
        })
    } else {
        Err("the driver's library and its worker are of different versions; install both again".to_owned())
    };
    match converse(&ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Answers until the driver has gone.
fn converse(ready: &Result<(Library, File), String>) -> std::io::Result<()> {
    let mut socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    for line in BufReader::new(socket.try_clone()?).lines() {
        let said = match (serde_json::from_str::<Ask>(&line?), ready) {
            (Ok(ask), Ok((library, lock))) => match answer(&ask, library, lock, &socket) {
                Some(said) => said,
                None => return Ok(()),
            },
            (_, Err(sentence)) => refused(sentence),
            (Err(e), _) => refused(&format!("the driver's words make no sense to its worker: {e}")),
        };
        let mut bytes = serde_json::to_vec(&said)?;
        bytes.push(b'\n');
        socket.write_all(&bytes)?;
    }
    Ok(())
}

/// Runs a command once it has its locks. `None` when the driver has gone before that: then nothing was begun.
fn answer(ask: &Ask, library: &Library, lock: &File, driver: &UnixStream) -> Option<Said> {
    let until = Instant::now() + Duration::from_millis(ask.wait_ms);
    while flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if is_gone(driver) {
            return None;
        }
        if Instant::now() >= until {
            return Some(refused("another worker of this back end still runs a command of LVM"));
        }
        std::thread::sleep(PAUSE);
    }
    let said = loop {
        let said = bounded(Duration::from_millis(ask.within_ms), || library.run(&ask.words));
        if !said.is_locked_out() || Instant::now() >= until {
            break Some(said);
        }
        if is_gone(driver) {
            break None;
        }
        std::thread::sleep(PAUSE);
    };
    let _ = flock(lock, FlockOperation::Unlock);
    said
}

/// Ends this process when `work` takes longer: nothing less ends a thread that waits inside of the library.
fn bounded(longest: Duration, work: impl FnOnce() -> Said) -> Said {
    let (ended, watched) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if watched.recv_timeout(longest) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    });
    let said = work();
    drop(ended);
    let _ = watch.join();
    said
}

/// Whether nobody waits for an answer any more.
fn is_gone(driver: &UnixStream) -> bool {
    let mut watched = PollFd::new(driver, PollFlags::RDHUP);
    poll(std::slice::from_mut(&mut watched), Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && watched.revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
}

/// A service manager that stops the server signals all of its processes at once. A command of LVM is not to be cut by that:
/// this ends when its driver has. LVM's own tools inherit it.
#[allow(unsafe_code)]
fn outlive_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: no handler is installed, and no other thread runs yet.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
