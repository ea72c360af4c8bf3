//! The keeper: a process beside the test that starts guests and ends them when the test is gone, however it went.
//!
//! The test holds one end of a socket, the keeper the other. Whatever happens to the test (a panic, Ctrl-C, SIGKILL), its
//! end closes, and the keeper kills every guest with all its processes and sweeps the folder. It is in a process group of
//! its own, so that a terminal's Ctrl-C does not reach it. Guests ask the kernel to end them should the keeper be killed.
//!
//! Having the keeper start them also keeps their file descriptors apart: they arrive as messages, and no other child
//! of a many-threaded test inherits them.

use crate::Result;
use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// As many descriptors as one guest is given.
const MOST_FDS: usize = 4;
/// A message is one packet.
const PACKET: usize = 64 * 1024;
/// Stands in arguments for the number of a descriptor: `ssl0=fd:{0}`.
fn slot(number: usize) -> String {
    format!("{{{number}}}")
}

/// What a test asks of its keeper.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    /// Start this program; descriptors come with the message.
    Start { argv: Vec<String>, env: Vec<(String, String)>, output: PathBuf },
    /// SIGKILL everything that was started under this number, and answer when it is gone.
    Kill { pid: i32 },
    /// Leave the folder where it is.
    Keep,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Started { pid: i32 },
    Done,
    Failed { sentence: String },
}

/// The test's side.
#[derive(Debug)]
pub(crate) struct Keeper {
    socket: Option<OwnedFd>,
    process: Child,
}

impl Keeper {
    /// Starts the keeper, which sweeps `folder` when this value or this process is gone.
    pub(crate) fn start(program: &Path, folder: &Path) -> Result<Self> {
        let (mine, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| format!("making a socket for the keeper: {error}."))?;
        let process = Command::new(program)
            .arg("keep")
            .arg(folder)
            .stdin(Stdio::from(its))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("starting {}: {error}.", program.display()))?;
        Ok(Self { socket: Some(mine), process })
    }

    fn ask(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<Answer> {
        let socket = self.socket.as_ref().ok_or("the keeper has ended.")?;
        let bytes = serde_json::to_vec(ask).map_err(|error| error.to_string())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(format!("{} descriptors are too many for one guest.", fds.len()));
        }
        let lost =
            |error: &dyn std::fmt::Display| format!("the keeper of the guests does not answer: {error}.");
        sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).map_err(|e| lost(&e))?;
        let mut buffer = vec![0; PACKET];
        let (length, _) =
            rustix::net::recv(socket, buffer.as_mut_slice(), RecvFlags::empty()).map_err(|e| lost(&e))?;
        match serde_json::from_slice(&buffer[..length]) {
            Ok(Answer::Failed { sentence }) => Err(sentence),
            Ok(answer) => Ok(answer),
            Err(error) => Err(lost(&error)),
        }
    }

    /// Starts a program whose arguments name its descriptors `{0}`, `{1}` …; its output goes into a file.
    pub(crate) fn spawn(
        &self,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        fds: &[BorrowedFd<'_>],
        output: &Path,
    ) -> Result<i32> {
        match self.ask(&Ask::Start { argv, env, output: output.into() }, fds)? {
            Answer::Started { pid } => Ok(pid),
            _ => Err("the keeper answered something else than was asked.".into()),
        }
    }

    /// Kills it without a word, and returns when it is gone.
    pub(crate) fn kill(&self, pid: i32) -> Result<()> {
        self.ask(&Ask::Kill { pid }, &[]).map(drop)
    }

    /// The folder stays.
    pub(crate) fn keep_folder(&self) -> Result<()> {
        self.ask(&Ask::Keep, &[]).map(drop)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.process.wait();
    }
}

/// The keeper's own main: standard input is the socket.
pub(crate) fn main(folder: &Path) -> Result<()> {
    let mut guests: Vec<Child> = Vec::new();
    let mut keep = false;
    let stdin = std::io::stdin();
    while let Some((ask, fds)) = receive(stdin.as_fd()) {
        let answer = match ask {
            Ask::Start { argv, env, output } => start(&argv, env, &output, &fds).map(|child| {
                let pid = child.id() as i32;
                guests.push(child);
                Answer::Started { pid }
            }),
            Ask::Kill { pid } => {
                if let Some(at) = guests.iter().position(|guest| guest.id() as i32 == pid) {
                    end(guests.swap_remove(at));
                }
                Ok(Answer::Done)
            }
            Ask::Keep => {
                keep = true;
                Ok(Answer::Done)
            }
        };
        drop(fds);
        let answer = answer.unwrap_or_else(|sentence| Answer::Failed { sentence });
        let bytes = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
        if rustix::net::send(stdin.as_fd(), &bytes, SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
    guests.into_iter().for_each(end);
    if keep {
        return Ok(());
    }
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("removing {}: {error}.", folder.display()))
        }
        _ => Ok(()),
    }
}

fn receive(socket: BorrowedFd<'_>) -> Option<(Ask, Vec<OwnedFd>)> {
    let mut buffer = vec![0; PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
    let length = got.ok()?.bytes;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // Nothing is the end: the test is gone.
    Some((serde_json::from_slice(&buffer[..length]).ok()?, fds))
}

fn start(argv: &[String], env: Vec<(String, String)>, output: &Path, fds: &[OwnedFd]) -> Result<Child> {
    let text = |error: std::io::Error| format!("starting {argv:?}: {error}.");
    let log = File::options().create(true).append(true).open(output).map_err(text)?;
    for fd in fds {
        // There is one thread here, so nobody else inherits them.
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(|error| text(error.into()))?;
    }
    let named = argv.iter().map(|argument| {
        fds.iter().enumerate().fold(argument.clone(), |argument, (number, fd)| {
            argument.replace(&slot(number), &fd.as_raw_fd().to_string())
        })
    });
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .args(named)
        .envs(env)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(text)?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(text)
}

/// A guest's kernel is a process, and each process of the guest is another, in the same group.
fn end(mut guest: Child) {
    if let Some(group) = Pid::from_raw(guest.id() as i32) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = guest.wait();
        // Those that were born meanwhile; dead ones that nobody has reaped yet count too, hence the bound.
        for _ in 0..20 {
            if rustix::process::kill_process_group(group, Signal::KILL).is_err() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}
