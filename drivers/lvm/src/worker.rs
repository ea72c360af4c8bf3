//! The worker as the driver sees it: a process that runs one command of LVM at a time, is ended when it overruns, and is
//! started anew when it has gone.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tandem_sdk::{Error, OpContext, Result, Retry};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error;
use crate::report::Report;
use crate::wire::{Ask, MOST_WORDS, SUCCEEDED, Said, WIRE, is_word};

/// A command has so long once it has its locks. Those of this driver take less than a second; a device that hangs takes
/// the rest.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);
/// So long it waits for a lock of the group that somebody else holds, where its call leaves it the time.
const PATIENCE: Duration = Duration::from_secs(60);
/// A command that reads has so long in any case: a worker is not ended lightly.
const QUICK: Duration = Duration::from_secs(10);
/// What a call keeps of its time, at most, to say what it waited for.
const MARGIN: Duration = Duration::from_secs(1);
/// The worker ends itself by then; it is ended from outside a little later.
const GRACE: Duration = Duration::from_secs(2);
/// The command that only reads.
const LVS_VERB: &str = "lvs";
/// Commands that wait.
const QUEUE: usize = 64;

/// What a worker is started with.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) program: PathBuf,
    /// `LVM_SYSTEM_DIR`.
    pub(crate) system: PathBuf,
    /// Whether udev makes the device nodes.
    pub(crate) udev: bool,
}

/// The way to the worker. It ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Worker(mpsc::Sender<Job>);

#[derive(Debug)]
struct Job {
    words: Vec<String>,
    /// Its call has something to say by then.
    until: Option<Instant>,
    answer: oneshot::Sender<Result<Said>>,
}

impl Job {
    /// How long it may wait for locks, and run once it has them. A command that changes something is not cut because its
    /// call ends; one that reads is.
    fn times(&self, now: Instant) -> (Duration, Duration) {
        let Some(until) = self.until else { return (PATIENCE, LONGEST) };
        let left = until.saturating_duration_since(now);
        // What it waited for is to be known before the call has to say so.
        let wait = PATIENCE.min(left - left / 8);
        (wait, if self.only_reads() { LONGEST.min(left).max(QUICK) } else { LONGEST })
    }

    fn only_reads(&self) -> bool {
        self.words.first().is_some_and(|verb| verb == LVS_VERB)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

struct Process {
    child: Child,
    socket: BufReader<UnixStream>,
}

impl Worker {
    /// Nothing is started before the first command.
    pub(crate) fn new(setup: Setup) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(serve(setup, queue));
        Self(jobs)
    }

    /// Runs a command that changes something.
    ///
    /// # Errors
    /// In LVM's own words, with a kind that fits.
    pub(crate) async fn run(&self, cx: &OpContext, words: &[&str]) -> Result<()> {
        let said = cx.or_cancelled(self.ask(words, cx.deadline())).await?;
        if said.status == SUCCEEDED { Ok(()) } else { Err(error::of_said(words, &said)) }
    }

    /// Runs a command that reports. What it names and does not find is no row of it.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) async fn report(&self, cx: &OpContext, words: &[&str]) -> Result<Report> {
        reported(words, &cx.or_cancelled(self.ask(words, cx.deadline())).await?)
    }

    /// [`report`](Self::report) before there is a call.
    pub(crate) async fn report_at_open(&self, words: &[&str]) -> Result<Report> {
        reported(words, &self.ask(words, None).await?)
    }

    async fn ask(&self, words: &[&str], deadline: Option<Instant>) -> Result<Said> {
        if words.len() > MOST_WORDS || !words.iter().all(|word| is_word(word)) {
            return Err(Error::bug(format!("LVM would not take `{}` as it is meant", words.join(" "))));
        }
        let until = deadline.map(|at| at - margin(at));
        let (answer, said) = oneshot::channel();
        let job = Job { words: words.iter().map(|w| (*w).to_owned()).collect(), until, answer };
        let gone = || Error::unavailable("the driver is shutting down");
        let answered = async {
            self.0.send(job).await.map_err(|_| gone())?;
            said.await.map_err(|_| gone())?
        };
        match until {
            None => answered.await,
            Some(until) => timeout_at(until, answered).await.unwrap_or_else(|_| Err(late(words))),
        }
    }
}

/// A report out of what a command said.
fn reported(words: &[&str], said: &Said) -> Result<Report> {
    if said.status != SUCCEEDED && !error::only_missing(said) {
        return Err(error::of_said(words, said));
    }
    Report::parse(&said.printed).ok_or_else(|| {
        Error::bug(format!("LVM's report is not the JSON expected: {}", said.printed.join("\n")))
    })
}

/// What a call that ends then keeps of the time that it still has.
fn margin(deadline: Instant) -> Duration {
    (deadline.saturating_duration_since(Instant::now()) / 8).min(MARGIN)
}

/// LVM has not come to it, or not to its end, in the time that the call has.
fn late(words: &[&str]) -> Error {
    let (verb, target) = (words.first().unwrap_or(&""), words.last().unwrap_or(&""));
    Error::unavailable(format!(
        "`{verb}` of {target} has not ended in the time that this call has: LVM still works for another call, waits for a \
         lock of the volume group, or for a device; the next call looks at what was done"
    ))
    .with("command", words.join(" "))
}

/// The one task that talks to the process. A caller that goes away leaves the command to its end, and the next one waits
/// for that.
async fn serve(setup: Setup, mut queue: mpsc::Receiver<Job>) {
    let mut process = None;
    while let Some(job) = queue.recv().await {
        if job.answer.is_closed() {
            continue;
        }
        let said = one(&setup, &mut process, &job).await;
        // The caller may have gone meanwhile.
        let _ = job.answer.send(said);
    }
}

/// Runs a command. One that only reads is repeated once when its worker went away: every call begins with such a one, so
/// that a worker that is ended between calls is not noticed.
async fn one(setup: &Setup, process: &mut Option<Process>, job: &Job) -> Result<Said> {
    let started = Instant::now();
    match once(setup, process, job).await {
        Err(e) if e.retry == Retry::Safe && started.elapsed() < LONGEST && job.only_reads() => {
            once(setup, process, job).await
        }
        other => other,
    }
}

async fn once(setup: &Setup, process: &mut Option<Process>, job: &Job) -> Result<Said> {
    if process.as_mut().is_some_and(|p| !matches!(p.child.try_wait(), Ok(None))) {
        *process = None;
    }
    let running = match process {
        Some(running) => running,
        None => process.insert(start(setup)?),
    };
    let (words, started) = (&job.words, Instant::now());
    let (wait, within) = job.times(started);
    let ask = Ask { words: words.clone(), wait_ms: milliseconds(wait), within_ms: milliseconds(within) };
    let said = timeout(wait + within + GRACE, exchange(&mut running.socket, &ask)).await;
    let why = match said {
        Ok(Ok(said)) => {
            let (command, milliseconds) = (words.join(" "), milliseconds(started.elapsed()));
            tracing::debug!(command, milliseconds, status = said.status, "LVM did a command.");
            return Ok(said);
        }
        Ok(Err(e)) => e.to_string(),
        Err(_) => "it did not stop by itself".to_owned(),
    };
    // Not waited for: a process that hangs in the kernel stays until the kernel lets go. Its lock keeps the next one out.
    if let Some(mut ended) = process.take() {
        let _ = ended.child.start_kill();
    }
    let (verb, target) = (words.first().map_or("", |w| w), words.last().map_or("", |w| w));
    tracing::warn!(verb, target, why, "The worker for LVM was ended.");
    let sentence = if started.elapsed() < within {
        format!(
            "the worker for LVM ended in the middle of `{verb}` of {target}; the next call starts another, and looks at what \
             was done"
        )
    } else {
        format!(
            "LVM has not done `{verb}` of {target} within {} s and was stopped; a device of the volume group may hang: see \
             `vgs` and `dmsetup ls`",
            within.as_secs()
        )
    };
    Err(Error::unavailable(sentence).with("command", words.join(" ")).with("worker", why))
}

async fn exchange(socket: &mut BufReader<UnixStream>, ask: &Ask) -> std::io::Result<Said> {
    let mut bytes = serde_json::to_vec(ask)?;
    bytes.push(b'\n');
    socket.get_mut().write_all(&bytes).await?;
    let mut line = Vec::new();
    socket.read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(std::io::Error::other("it ended in the middle"));
    }
    Ok(serde_json::from_slice(&line)?)
}

fn start(setup: &Setup) -> Result<Process> {
    let failed = |e: std::io::Error| {
        Error::unavailable(format!("the worker for LVM, {}, cannot be started: {e}", setup.program.display()))
            .retry(Retry::AfterOperator)
    };
    let (ours, theirs) = Pair::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut command = Command::new(&setup.program);
    command
        .arg(WIRE)
        .arg(setup.system.join("worker.lock"))
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LVM_SYSTEM_DIR", &setup.system)
        // A server has many.
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if !setup.udev {
        // Else device-mapper's library waits for nodes that nobody makes.
        command.env("DM_DISABLE_UDEV", "1");
    }
    let child = command.spawn().map_err(failed)?;
    Ok(Process { child, socket: BufReader::new(UnixStream::from_std(ours).map_err(failed)?) })
}
