//! The program `tandem-guest`, which is three things: the first process and the agent inside a guest, the keeper beside
//! a test, and `run` and `shell` for people. Two small tools for scenarios are in it as well: `dial` and `records`.

use crate::host::Event;
use crate::{Command, Host, Kind, Lab, Result, agent, forward, keeper, kind, nfs, records};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "tandem-guest run KIND [--share DIR]... -- COMMAND...\n\
                    tandem-guest shell KIND [--share DIR]...\n\
                    KIND is plain, zfs or lvm";

/// Runs what the arguments, or being a guest's first process, ask for.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        // In a container it may be the first process too.
        _ if rustix::process::getpid().is_init() && std::env::var_os(agent::SETUP).is_some() => {
            agent::init().map(|()| 0)
        }
        [word] if *word == agent::SERVE => agent::serve().map(|()| 0),
        ["keep", folder] => keeper::main(Path::new(folder)).map(|()| 0),
        ["dial", port] => forward::dial(port).map(|()| 0),
        ["records", file] => records::write(Path::new(file)).map(|()| 0),
        ["run", kind, rest @ ..] => run(kind, rest),
        ["shell", kind, rest @ ..] => shell(kind, rest),
        _ => Err(HELP.into()),
    };
    match outcome {
        Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(1)),
        Err(sentence) => {
            eprintln!("tandem-guest: {sentence}");
            ExitCode::from(125)
        }
    }
}

/// Folders to share, and what stands behind `--`.
fn options<'a>(words: &'a [&'a str]) -> Result<(Vec<PathBuf>, &'a [&'a str])> {
    let mut shared = Vec::new();
    let mut rest = words;
    loop {
        match rest {
            ["--share", folder, more @ ..] => {
                shared.push(PathBuf::from(folder));
                rest = more;
            }
            ["--", command @ ..] => return Ok((shared, command)),
            [] => return Ok((shared, &[])),
            [word, ..] => return Err(format!("{word:?} is not understood.\n{HELP}")),
        }
    }
}

fn boot(kind: &str, shared: &[PathBuf]) -> Result<(Lab, crate::Guest)> {
    let kind = Kind::named(kind)?;
    let program = std::env::current_exe().map_err(|error| format!("finding this program: {error}."))?;
    let lab = Lab::new(&program)?;
    let plan = shared.iter().fold(kind.plan("guest")?, |plan, folder| plan.share(folder));
    let guest = lab.guest(plan)?;
    guest.boot()?;
    kind.prepare(&guest)?;
    if kind != Kind::Plain {
        nfs::serve(&guest)?;
    }
    Ok((lab, guest))
}

/// In the same folder, with the variables that programs of this project read.
fn outfit(mut command: Command, shared: &[PathBuf]) -> Command {
    for (key, value) in std::env::vars() {
        if ["TANDEM_", "CARGO_", "RUST_"].iter().any(|prefix| key.starts_with(prefix)) {
            command = command.env(&key, &value);
        }
    }
    command = command.env("LVM_SYSTEM_DIR", crate::lvm::SYSTEM);
    command = command.env("TANDEM_POOLS", &kind::NAMES.join(" "));
    let here =
        std::env::current_dir().ok().filter(|here| shared.iter().any(|folder| here.starts_with(folder)));
    match here.as_deref().and_then(Path::to_str) {
        Some(here) => command.dir(here),
        None => command,
    }
}

fn run(kind: &str, words: &[&str]) -> Result<i32> {
    let (shared, argv) = options(words)?;
    if argv.is_empty() {
        return Err(format!("what is to run stands behind `--`.\n{HELP}"));
    }
    let (_lab, guest) = boot(kind, &shared)?;
    let running = guest.spawn(&outfit(Command::new(argv), &shared))?;
    follow(&running)
}

/// Hands on what it prints until it ends.
fn follow(running: &crate::Running) -> Result<i32> {
    loop {
        let said = match running.next(Duration::from_secs(3600))? {
            Some(Event::Output(bytes)) => print(&mut std::io::stdout(), &bytes),
            Some(Event::Error(bytes)) => print(&mut std::io::stderr(), &bytes),
            Some(Event::Ended(status)) => return Ok(status),
            Some(Event::Refused(sentence)) => return Err(sentence),
            None => Ok(()),
        };
        said.map_err(|error| format!("writing what the guest said: {error}."))?;
    }
}

fn print(to: &mut impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn shell(kind: &str, words: &[&str]) -> Result<i32> {
    let (shared, _) = options(words)?;
    let stdin = std::io::stdin();
    if !isatty(&stdin) {
        return Err("a shell needs a terminal; for a command there is `run`.".into());
    }
    let (_lab, guest) = boot(kind, &shared)?;
    let size = tcgetwinsize(&stdin).map_err(|error| format!("the terminal: {error}."))?;
    eprintln!(
        "A {kind} guest with the disks {} under /dev/mapper; `exit` ends it, and all it holds is gone.\r",
        kind::NAMES.join(", ")
    );
    let command = Command::new(&["bash", "-l", "-i"]).env("TERM", "xterm").terminal(size.ws_col, size.ws_row);
    let running = guest.spawn(&outfit(command, &shared))?;
    let _raw = Raw::new()?;
    let typed = running.typist();
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            if typed(&buffer[..length]).is_err() {
                break;
            }
        }
    });
    follow(&running)
}

/// A terminal that hands over every key, until dropped.
struct Raw(Termios);

impl Raw {
    fn new() -> Result<Self> {
        let said = |error: rustix::io::Errno| format!("the terminal: {error}.");
        let before = tcgetattr(std::io::stdin()).map_err(said)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(said)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
