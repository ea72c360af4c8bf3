//! `tandem-lvm-worker WIRE LOCK`: runs commands of LVM for the driver, one at a time.
//!
//! LVM's library sets the process's umask, is not made for threads, and may wait for a lock or a device for ever: so it
//! lives in a process that can be ended. Standard input is a socket to the driver; when the driver goes away this ends,
//! after the command that runs. LOCK is a file that is locked while a command runs: the worker of a server that was
//! started anew begins nothing before that of the last one has ended.

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

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Signal, getpid, kill_process};

use crate::library::{Library, refused};
use crate::wire::{Ask, Said, WIRE};

/// How often the lock is tried.
const PAUSE: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
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
            (Ok(ask), Ok((library, lock))) => answer(&ask, library, lock),
            (_, Err(sentence)) => refused(sentence),
            (Err(e), _) => refused(&format!("the driver's words make no sense to its worker: {e}")),
        };
        let mut bytes = serde_json::to_vec(&said)?;
        bytes.push(b'\n');
        socket.write_all(&bytes)?;
    }
    Ok(())
}

fn answer(ask: &Ask, library: &Library, lock: &File) -> Said {
    let until = Instant::now() + Duration::from_millis(ask.within_ms);
    while flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= until {
            return refused("another worker of this back end still runs a command of LVM");
        }
        std::thread::sleep(PAUSE);
    }
    let (ended, watched) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let left = until.saturating_duration_since(Instant::now());
        if watched.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Nothing less ends a thread that waits inside of the library.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    });
    let said = library.run(&ask.words);
    drop(ended);
    let _ = watch.join();
    let _ = flock(lock, FlockOperation::Unlock);
    said
}
