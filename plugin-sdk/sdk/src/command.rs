//! One wrapper for every tool a driver runs.
//!
//! No shell: an absolute path and an argument vector. The C locale, nothing else of the environment. A deadline, bounded
//! output, and the whole transcript in the error. The tool and its children are killed when the call is to stop.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::de::DeserializeOwned;
use tandem_contract::{Error, ErrorKind, Result, Retry};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;
use tokio::time::{Instant, sleep_until, timeout};

use crate::OpContext;

/// Standard output beyond this is a failure; a tool that lists more must be asked for less.
const MOST_STDOUT: usize = 16 << 20;
/// Standard error beyond this is cut in the middle.
const MOST_STDERR: usize = 64 << 10;
/// What the transcript in an error shows of either.
const SHOWN: usize = 4 << 10;
/// How long a tool has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

/// A tool and how to run it.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    secrets: Vec<usize>,
    deadline: Duration,
    stdin: Input,
    stdout: Option<OwnedFd>,
}

#[derive(Debug)]
enum Input {
    Nothing,
    Bytes(Vec<u8>),
    Stream(OwnedFd),
}

/// What a tool said. It has ended with status 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output; empty when it went to a stream.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// How a run ended, where the status is for the caller to judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The exit status.
    pub status: ExitStatus,
    /// What it said.
    pub output: Output,
    transcript: String,
}

impl Command {
    /// Runs the tool at an absolute path, for at most a minute unless [`deadline`](Self::deadline) says otherwise.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            secrets: Vec::new(),
            deadline: Duration::from_secs(60),
            stdin: Input::Nothing,
            stdout: None,
        }
    }

    /// One more argument, passed as it is.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments, passed as they are.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One more argument, which no transcript shows.
    #[must_use]
    pub fn secret_arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.secrets.push(self.args.len());
        self.arg(arg)
    }

    /// A variable of the environment, which is otherwise almost empty.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// How long it may run. The call's own deadline counts too, whichever comes first.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Gives it these bytes on standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Lets it read a stream.
    #[must_use]
    pub fn stdin_from(mut self, stream: OwnedFd) -> Self {
        self.stdin = Input::Stream(stream);
        self
    }

    /// Lets it write to a stream.
    #[must_use]
    pub fn stdout_to(mut self, stream: OwnedFd) -> Self {
        self.stdout = Some(stream);
        self
    }

    /// Runs it; a status other than 0 is an error with the transcript.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be started or exceeds its deadline, `Cancelled` when the call is to stop,
    /// `Unexpected` for a status other than 0: look into it with [`run_any`](Self::run_any) where a status means more.
    pub async fn run(self, cx: &OpContext) -> Result<Output> {
        let ended = self.run_any(cx).await?;
        if ended.status.success() { Ok(ended.output) } else { Err(ended.into_error()) }
    }

    /// Runs it and decodes the JSON that it prints.
    ///
    /// # Errors
    /// As [`run`](Self::run); `Bug` when the output is no such JSON.
    pub async fn run_json<T: DeserializeOwned>(self, cx: &OpContext) -> Result<T> {
        let ended = self.run_any(cx).await?;
        if !ended.status.success() {
            return Err(ended.into_error());
        }
        serde_json::from_slice(&ended.output.stdout).map_err(|e| {
            Error::bug(format!("the tool's output is not the JSON expected: {e}"))
                .with("transcript", &ended.transcript)
        })
    }

    /// Runs it and leaves the judgement of its status to the caller.
    ///
    /// # Errors
    /// As [`run`](Self::run), but for the status.
    pub async fn run_any(mut self, cx: &OpContext) -> Result<Ended> {
        cx.check()?;
        if !self.program.is_absolute() {
            return Err(Error::bug(format!("{} is no absolute path of a tool", self.program.display())));
        }
        let line = self.line();
        let started = Instant::now();
        let mut deadline = started + self.deadline;
        if let Some(of_call) = cx.deadline() {
            deadline = deadline.min(of_call);
        }
        tracing::debug!("runs {line}");
        let (mut child, input) = self.spawn()?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let stopped = {
            let talk = talk(&mut child, input);
            tokio::pin!(talk);
            tokio::select! {
                biased;
                done = &mut talk => {
                    let (status, stdout, stderr) = done.map_err(|e| failed(&self.program, &e))?;
                    group.done();
                    let transcript = transcript(&line, &describe(status), &stdout, &stderr, started.elapsed());
                    tracing::debug!("{line}: {}", describe(status));
                    if stdout.len() > MOST_STDOUT {
                        return Err(Error::bug(format!("the tool printed more than {MOST_STDOUT} bytes")).with("transcript", transcript));
                    }
                    return Ok(Ended { status, output: Output { stdout, stderr }, transcript });
                }
                () = cx.cancelled() => None,
                () = sleep_until(deadline) => Some(started.elapsed()),
            }
        };
        group.end(&mut child).await;
        match stopped {
            None => match cx.check() {
                Err(why) => Err(why.with("stopped", line)),
                Ok(()) => Err(Error::cancelled(format!("stopped {line}"))),
            },
            Some(after) => Err(Error::unavailable(format!(
                "{} has not ended within {} s and was killed",
                self.program.display(),
                after.as_secs()
            ))
            .with("command", line)),
        }
    }

    /// Runs it for as long as it lasts, without a deadline, and hands over each line that it prints: for tools that tell of events.
    /// Dropping the future kills it.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be started or read.
    pub async fn follow(mut self, mut each: impl FnMut(&str) + Send) -> Result<ExitStatus> {
        let program = self.program.clone();
        tracing::debug!("follows {}", self.line());
        let (mut child, _) = self.spawn()?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let lines = async {
            let Some(stdout) = stdout else { return Ok(()) };
            let mut lines = BufReader::new(stdout).lines();
            while let Some(line) = lines.next_line().await? {
                each(&line);
            }
            Ok(())
        };
        let (read, _) = tokio::join!(lines, drain(stderr, MOST_STDERR));
        let status = child.wait().await;
        group.done();
        read.and(status).map_err(|e| failed(&program, &e))
    }

    /// Starts it; what is to be fed to it comes back.
    fn spawn(&mut self) -> Result<(Child, Vec<u8>)> {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .env("LC_ALL", "C")
            .env("LANG", "C")
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true)
            .stderr(Stdio::piped());
        let mut input = Vec::new();
        match std::mem::replace(&mut self.stdin, Input::Nothing) {
            Input::Nothing => command.stdin(Stdio::null()),
            Input::Stream(stream) => command.stdin(stream),
            Input::Bytes(bytes) => {
                input = bytes;
                command.stdin(Stdio::piped())
            }
        };
        match self.stdout.take() {
            Some(stream) => command.stdout(stream),
            None => command.stdout(Stdio::piped()),
        };
        let child = command.spawn().map_err(|e| failed(&self.program, &e))?;
        Ok((child, input))
    }

    /// The command as a person would type it, with secrets left out.
    fn line(&self) -> String {
        let mut line = quoted(self.program.as_os_str());
        for (i, arg) in self.args.iter().enumerate() {
            let arg = if self.secrets.contains(&i) { "'***'".to_owned() } else { quoted(arg) };
            let _ = write!(line, " {arg}");
        }
        line
    }
}

impl Ended {
    /// The error that this end is when its status means a failure.
    pub fn into_error(self) -> Error {
        let said = String::from_utf8_lossy(&self.output.stderr);
        let said =
            said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
        Error::new(ErrorKind::Unexpected, format!("the tool failed ({}): {said}", describe(self.status)))
            .retry(Retry::Never)
            .with("transcript", self.transcript)
    }
}

/// The tool's process group: killed when it is dropped early.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            // It may have ended just now; then there is nobody to signal.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// The tool has ended and was waited for: its id may belong to another process by now.
    fn done(mut self) {
        self.0 = None;
    }

    async fn end(self, child: &mut Child) {
        self.signal(Signal::TERM);
        let ended = timeout(GRACE, child.wait()).await;
        // Children that outlive the tool go too: they may still write.
        self.signal(Signal::KILL);
        if ended.is_err() {
            let _ = child.wait().await;
        }
        self.done();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Feeds and drains the tool until it ends.
async fn talk(child: &mut Child, input: Vec<u8>) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A tool that does not want all of its input says why on its own.
            let _ = stdin.write_all(&input).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(feed, drain(stdout, MOST_STDOUT + 1), drain(stderr, MOST_STDERR));
    let status = child.wait().await?;
    Ok((status, stdout?, stderr?))
}

/// Reads to the end and keeps at most `most` bytes.
async fn drain(from: Option<impl AsyncRead + Unpin>, most: usize) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    let mut buffer = vec![0; 16 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(kept);
        }
        let room = most.saturating_sub(kept.len()).min(n);
        kept.extend_from_slice(&buffer[..room]);
    }
}

fn failed(program: &Path, e: &std::io::Error) -> Error {
    Error::unavailable(format!("{} could not be run: {e}", program.display()))
        .retry(if e.kind() == std::io::ErrorKind::NotFound { Retry::AfterOperator } else { Retry::Safe })
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}

fn transcript(line: &str, status: &str, stdout: &[u8], stderr: &[u8], took: Duration) -> String {
    let mut text = format!("$ {line}\n[{status} after {} ms]", took.as_millis());
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        if !bytes.is_empty() {
            let _ = write!(text, "\n[{name}]\n{}", shown(bytes));
        }
    }
    text
}

/// The head and the tail of an output, where errors use to stand.
fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= SHOWN {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let (head, tail) = (&bytes[..SHOWN / 2], &bytes[bytes.len() - SHOWN / 2..]);
    format!(
        "{}\n[… {} bytes …]\n{}",
        String::from_utf8_lossy(head),
        bytes.len() - SHOWN,
        String::from_utf8_lossy(tail)
    )
}

fn quoted(arg: &OsStr) -> String {
    let text = arg.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
