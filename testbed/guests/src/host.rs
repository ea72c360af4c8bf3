//! What a scenario knows of a machine: run something on it, cut its power, switch it on again.
//!
//! Realised with user-mode Linux in [`crate::Guest`]; a machine with a kernel of its own can join behind the same trait.

use crate::Result;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long a command may take unless it says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A machine with disks, a power switch and a way to run commands on it.
pub trait Host: std::fmt::Debug + Send + Sync {
    /// Its name, which is also its host name.
    fn name(&self) -> &str;

    /// Its address on the network of the laboratory.
    fn address(&self) -> String;

    /// Starts a command and does not wait for it; any number may run at once.
    fn spawn(&self, command: &Command) -> Result<Running>;

    /// Cuts the power: nothing in it is told, and this returns when nothing of it runs any more.
    fn cut_power(&self) -> Result<()>;

    /// Switches it on (again), with the same disks, and waits until commands can run.
    fn boot(&self) -> Result<()>;

    /// From the next boot on its clock is this many seconds ahead (or behind).
    fn set_clock_offset(&self, seconds: i64);

    /// Runs a command to its end, whatever that is.
    fn output(&self, command: &Command) -> Result<Output> {
        self.spawn(command)?.wait()
    }

    /// Runs a command, which must succeed within the usual deadline; what it printed.
    fn run(&self, argv: &[&str]) -> Result<String> {
        let output = self.output(&Command::new(argv))?;
        if output.status == 0 {
            return Ok(output.stdout_text());
        }
        Err(format!(
            "`{}` on {} ended with {}: {}{}",
            argv.join(" "),
            self.name(),
            output.status,
            output.stdout_text(),
            output.stderr_text()
        ))
    }

    /// Whether a command succeeds.
    fn succeeds(&self, argv: &[&str]) -> Result<bool> {
        Ok(self.output(&Command::new(argv))?.status == 0)
    }
}

/// A command: an argument vector, never a line for a shell.
#[derive(Debug, Clone)]
pub struct Command {
    pub(crate) argv: Vec<String>,
    pub(crate) dir: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) deadline: Duration,
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) input: bool,
}

impl Command {
    /// A program by name or path, and its arguments.
    pub fn new<S: AsRef<str>>(argv: &[S]) -> Self {
        Self {
            argv: argv.iter().map(|word| word.as_ref().to_string()).collect(),
            dir: None,
            env: Vec::new(),
            deadline: DEADLINE,
            terminal: None,
            input: false,
        }
    }

    /// Runs in that folder.
    #[must_use]
    pub fn dir(mut self, dir: &str) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// With one more variable in its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Killed, and an error, when it takes longer.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// With a terminal of this many columns and rows, and input from it.
    #[must_use]
    pub fn terminal(mut self, columns: u16, rows: u16) -> Self {
        self.terminal = Some((columns, rows));
        self.input = true;
        self
    }

    /// With standard input that [`Running::input`] feeds.
    #[must_use]
    pub fn input(mut self) -> Self {
        self.input = true;
        self
    }
}

/// How a command ended, and what it printed.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Its exit status; 128 and the signal for one that was killed.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Something that a running command does.
#[derive(Debug, Clone)]
pub enum Event {
    /// It printed.
    Output(Vec<u8>),
    /// It complained.
    Error(Vec<u8>),
    /// It ended with that status; nothing follows.
    Ended(i32),
    /// It was not started, and why; nothing follows.
    Refused(String),
}

/// A command that runs on a host. Forgetting it does not end it.
pub struct Running {
    pub(crate) shown: String,
    pub(crate) deadline: Duration,
    pub(crate) events: Receiver<Event>,
    pub(crate) control: Arc<dyn Fn(Control<'_>) -> Result<()> + Send + Sync>,
}

/// What can be done to a running command.
pub(crate) enum Control<'a> {
    Kill,
    Input(&'a [u8]),
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Running").field(&self.shown).finish()
    }
}

impl Running {
    /// Kills it and what it has started, without a word.
    pub fn kill(&self) -> Result<()> {
        (self.control)(Control::Kill)
    }

    /// Gives it input; nothing at all is the end of it.
    pub fn input(&self, bytes: &[u8]) -> Result<()> {
        (self.control)(Control::Input(bytes))
    }

    /// The same from another thread.
    pub(crate) fn typist(&self) -> impl Fn(&[u8]) -> Result<()> + Send + 'static {
        let control = self.control.clone();
        move |bytes| control(Control::Input(bytes))
    }

    /// What it does next; nothing when that took longer than `patience`.
    pub fn next(&self, patience: Duration) -> Result<Option<Event>> {
        match self.events.recv_timeout(patience) {
            Ok(Event::Refused(sentence)) => Err(format!("`{}`: {sentence}", self.shown)),
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(format!("the host went away while `{}` ran.", self.shown))
            }
        }
    }

    /// Waits for its end within the command's deadline.
    pub fn wait(self) -> Result<Output> {
        let deadline = self.deadline;
        self.wait_within(deadline)
    }

    /// Waits for its end; after `patience` it is killed, which is an error.
    pub fn wait_within(self, patience: Duration) -> Result<Output> {
        let until = Instant::now() + patience;
        let mut output = Output::default();
        loop {
            match self.next(until.saturating_duration_since(Instant::now()))? {
                Some(Event::Output(bytes)) => output.stdout.extend(bytes),
                Some(Event::Error(bytes)) => output.stderr.extend(bytes),
                Some(Event::Ended(status)) => {
                    output.status = status;
                    return Ok(output);
                }
                Some(Event::Refused(sentence)) => return Err(sentence),
                None => {
                    self.kill()?;
                    return Err(format!(
                        "`{}` did not end within {} s; so far it said: {}{}",
                        self.shown,
                        patience.as_secs(),
                        output.stdout_text(),
                        output.stderr_text()
                    ));
                }
            }
        }
    }
}
