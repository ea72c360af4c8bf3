//! The agent: runs the commands that come over the serial line, many at once, and hands on what they print.

use super::LINE;
use crate::Result;
use crate::wire::{Ended, Frame, Kind, LONGEST, Start};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Line = Arc<Mutex<File>>;
type Running = Arc<Mutex<HashMap<u32, Handle>>>;

/// The longest that what a command has printed may take to the other end.
const HANDED_ON: Duration = Duration::from_secs(30);

/// A command that runs.
#[derive(Debug)]
struct Handle {
    pid: Pid,
    input: Option<Box<File>>,
}

/// Runs until the line ends.
pub(crate) fn main() -> Result<()> {
    let (mut reader, writer) = open()?;
    let line: Line = Arc::new(Mutex::new(writer));
    let running = Running::default();
    send(&line, &Frame::new(0, Kind::Hello, ""));
    loop {
        let frame = Frame::read(&mut reader).map_err(|error| format!("reading {LINE}: {error}."))?;
        match frame.kind {
            Kind::Start => start(&line, &running, &frame),
            Kind::Input => input(&running, &frame),
            Kind::Kill => kill(&running, frame.id),
            _ => {}
        }
    }
}

fn open() -> Result<(File, File)> {
    let said = |error: &dyn std::fmt::Display| format!("opening {LINE}: {error}.");
    let line = rustix::fs::open(LINE, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| said(&error))?;
    let mut modes = tcgetattr(&line).map_err(|error| said(&error))?;
    modes.make_raw();
    tcsetattr(&line, OptionalActions::Now, &modes).map_err(|error| said(&error))?;
    let reader = File::from(line);
    let writer = reader.try_clone().map_err(|error| said(&error))?;
    Ok((reader, writer))
}

fn send(line: &Line, frame: &Frame) {
    // A line that is cut means a guest that is about to be ended.
    let _ = frame.write(&mut *lock(line));
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(line: &Line, running: &Running, frame: &Frame) {
    let id = frame.id;
    let outcome = serde_json::from_slice::<Start>(&frame.bytes)
        .map_err(|error| format!("the command is not understood: {error}."))
        .and_then(|start| launch(&start));
    let (mut child, terminal) = match outcome {
        Ok(launched) => launched,
        Err(sentence) => return ended(line, id, 127, Some(sentence)),
    };
    let mut pumps = Vec::new();
    let input = match terminal {
        Some(master) => {
            if let Ok(output) = master.try_clone() {
                pumps.push(pump(line, id, Kind::Output, output));
            }
            Some(Box::new(master))
        }
        None => {
            pumps.extend(child.stdout.take().map(|out| pump(line, id, Kind::Output, out)));
            pumps.extend(child.stderr.take().map(|out| pump(line, id, Kind::Error, out)));
            child.stdin.take().map(|input| Box::new(File::from(std::os::fd::OwnedFd::from(input))))
        }
    };
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        lock(running).insert(id, Handle { pid, input });
    }
    let (line, running) = (line.clone(), running.clone());
    std::thread::spawn(move || {
        let status = child.wait();
        lock(&running).remove(&id);
        // Output that a daemon it left behind still holds open is not waited for, but what was printed is handed on.
        settle(&pumps);
        match status {
            Ok(status) => {
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
                ended(&line, id, code, None);
            }
            Err(error) => ended(&line, id, 127, Some(format!("waiting for it: {error}."))),
        }
    });
}

/// Waits until everything that lies in the pipes was handed on, however slow the line; daemons may hold them open for ever.
fn settle(pumps: &[Pump]) {
    let until = Instant::now() + HANDED_ON;
    while pumps.iter().any(Pump::has_more) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn ended(line: &Line, id: u32, status: i32, refused: Option<String>) {
    if let Ok(frame) = Frame::json(id, Kind::Ended, &Ended { status, refused }) {
        send(line, &frame);
    }
}

/// Starts it, with a terminal if one is asked for.
fn launch(start: &Start) -> Result<(Child, Option<File>)> {
    let (program, arguments) = start.argv.split_first().ok_or("the command is empty.")?;
    let said = |error: &dyn std::fmt::Display| format!("starting {program}: {error}.");
    let terminal = start.terminal.map(terminal).transpose()?;
    let mut command = match &terminal {
        Some(_) => {
            let mut command = Command::new("setsid");
            command.args(["--ctty", "--wait", "--", program]);
            command
        }
        None => {
            let mut command = Command::new(program);
            command.process_group(0);
            command
        }
    };
    command.args(arguments).envs(start.env.iter().map(|(key, value)| (key, value)));
    if let Some(dir) = &start.dir {
        command.current_dir(dir);
    }
    match terminal {
        None => {
            let input = if start.input { Stdio::piped() } else { Stdio::null() };
            command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
            Ok((command.spawn().map_err(|error| said(&error))?, None))
        }
        Some((master, slave)) => {
            let copy = || slave.try_clone().map_err(|error| said(&error));
            command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
            Ok((command.spawn().map_err(|error| said(&error))?, Some(master)))
        }
    }
}

fn terminal((columns, rows): (u16, u16)) -> Result<(File, File)> {
    let said = |error: &dyn std::fmt::Display| format!("making a terminal: {error}.");
    let master =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).map_err(|e| said(&e))?;
    grantpt(&master).and_then(|()| unlockpt(&master)).map_err(|e| said(&e))?;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&master, size).map_err(|e| said(&e))?;
    let name = ptsname(&master, Vec::new()).map_err(|e| said(&e))?;
    let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| said(&e))?;
    Ok((File::from(master), File::from(slave)))
}

/// Hands on what a command prints.
struct Pump {
    thread: JoinHandle<()>,
    /// A second descriptor of what is read.
    from: Option<File>,
    /// Held from before something is read until it was sent.
    sending: Arc<Mutex<()>>,
}

impl Pump {
    /// Whether something was printed that has not been sent.
    fn has_more(&self) -> bool {
        if self.thread.is_finished() {
            return false;
        }
        let _not_now = lock(&self.sending);
        self.from.as_ref().is_none_or(|from| waits(from, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))
    }
}

/// Whether there is something to read, or its end, within that time.
fn waits(from: &File, within: Option<&Timespec>) -> bool {
    let mut looked = [PollFd::new(from, PollFlags::IN)];
    !matches!(poll(&mut looked, within), Ok(0))
}

fn pump(line: &Line, id: u32, kind: Kind, from: impl Into<OwnedFd>) -> Pump {
    let mut from = File::from(from.into());
    let sending = Arc::<Mutex<()>>::default();
    let (line, second, sends) = (line.clone(), from.try_clone().ok(), sending.clone());
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; LONGEST / 4];
        loop {
            waits(&from, None);
            let _now = lock(&sends);
            match from.read(&mut buffer) {
                Ok(length @ 1..) => send(&line, &Frame::new(id, kind, &buffer[..length])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    Pump { thread, from: second, sending }
}

fn input(running: &Running, frame: &Frame) {
    let mut running = lock(running);
    let Some(handle) = running.get_mut(&frame.id) else { return };
    let written = handle.input.as_mut().is_none_or(|input| input.write_all(&frame.bytes).is_ok());
    if frame.bytes.is_empty() || !written {
        handle.input = None;
    }
}

fn kill(running: &Running, id: u32) {
    if let Some(handle) = lock(running).get(&id) {
        let _ = rustix::process::kill_process_group(handle.pid, Signal::KILL);
        let _ = rustix::process::kill_process(handle.pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_is_handed_on_before_the_end_however_slow_the_line() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let line: Line = Arc::new(Mutex::new(File::from(writer)));
        let argv = ["head", "-c", "200000", "/dev/zero"].map(str::to_owned).to_vec();
        let wanted = Start { argv, dir: None, env: Vec::new(), input: false, terminal: None };
        start(&line, &Running::default(), &Frame::json(7, Kind::Start, &wanted).unwrap());
        let (mut reader, mut printed) = (File::from(reader), 0);
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let frame = Frame::read(&mut reader).unwrap();
            match frame.kind {
                Kind::Output => printed += frame.bytes.len(),
                Kind::Ended => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(printed, 200_000);
    }
}
