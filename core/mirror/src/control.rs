//! What the caller of a long copy holds in its hands: progress, an end, and a limit.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, show};

/// How far a long call is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// What is being done (`scan`, `transfer`, `build`).
    pub phase: &'static str,
    /// Bytes of content done; never falls.
    pub done: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
    /// What is being worked on.
    pub current: &'a str,
}

type OnStep<'a> = dyn Fn(Step<'_>) + Sync + 'a;
type Cancelled<'a> = dyn Fn() -> bool + Sync + 'a;

/// Progress out, cancel and limits in. Shared by all threads of one copy.
pub struct Control<'a> {
    cancelled: &'a Cancelled<'a>,
    on_step: &'a OnStep<'a>,
    threads: usize,
    done: AtomicU64,
    total: AtomicU64,
    last: Mutex<Instant>,
    limit: Option<Mutex<Limit>>,
    read_limit: Option<Mutex<Limit>>,
    expected: Option<u64>,
}

/// Steps are told at most this often.
const PACE: Duration = Duration::from_millis(200);
const UNKNOWN: u64 = u64::MAX;

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("threads", &self.threads)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

impl<'a> Control<'a> {
    /// `cancelled` is asked at least once a chunk; `on_step` must not block.
    pub fn new(cancelled: &'a Cancelled<'a>, on_step: &'a OnStep<'a>) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            cancelled,
            on_step,
            threads: cores.clamp(2, 4),
            done: AtomicU64::new(0),
            total: AtomicU64::new(UNKNOWN),
            last: Mutex::new(Instant::now()),
            limit: None,
            read_limit: None,
            expected: None,
        }
    }

    /// The same with so many bytes a second written at most, by all threads together.
    #[must_use]
    pub fn limited(mut self, bytes_per_second: Option<u64>) -> Self {
        self.limit = bytes_per_second.map(|bytes| Mutex::new(Limit::new(bytes)));
        self
    }

    /// The same with so many bytes a second read at most by whoever hashes them, by all threads together.
    #[must_use]
    pub fn reading_limited(mut self, bytes_per_second: Option<u64>) -> Self {
        self.read_limit = bytes_per_second.map(|bytes| Mutex::new(Limit::new(bytes)));
        self
    }

    /// The same with a total, for work that cannot know it by itself.
    #[must_use]
    pub const fn expecting(mut self, total: Option<u64>) -> Self {
        self.expected = total;
        self
    }

    pub(crate) const fn expected(&self) -> Option<u64> {
        self.expected
    }

    /// Waits until so many bytes may be written.
    pub(crate) fn pace(&self, bytes: u64) -> Result<()> {
        self.pass(self.limit.as_ref(), bytes)
    }

    /// Waits until so many bytes may be read.
    pub(crate) fn pace_read(&self, bytes: u64) -> Result<()> {
        self.pass(self.read_limit.as_ref(), bytes)
    }

    fn pass(&self, limit: Option<&Mutex<Limit>>, bytes: u64) -> Result<()> {
        let Some(limit) = limit else { return Ok(()) };
        let mut limit = limit.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        limit.pass(usize::try_from(bytes).unwrap_or(usize::MAX), self.cancelled)
    }

    /// A control that nobody watches and nobody stops.
    pub fn none() -> Control<'static> {
        Control::new(&|| false, &|_| {})
    }

    /// Threads for work on many files.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Fails once the caller asked for an end.
    pub fn check(&self) -> Result<()> {
        if (self.cancelled)() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Waits, unless the caller asks for an end meanwhile.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        let since = Instant::now();
        while let Some(left) = time.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) {
            self.check()?;
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        self.check()
    }

    /// Whether the caller asked for an end.
    pub fn cancelled(&self) -> bool {
        (self.cancelled)()
    }

    /// Starts a phase of so many bytes.
    pub(crate) fn start(&self, phase: &'static str, total: Option<u64>) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total.unwrap_or(UNKNOWN), Ordering::Relaxed);
        (self.on_step)(Step { phase, done: 0, total, current: "" });
    }

    /// Counts bytes, and tells the caller now and then.
    pub(crate) fn add(&self, phase: &'static str, bytes: u64, path: &[u8]) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() >= PACE {
            *last = Instant::now();
            let total = Some(self.total.load(Ordering::Relaxed)).filter(|t| *t != UNKNOWN);
            // Files that grew may carry more than was foreseen; a total is never overrun.
            let total = total.map(|t| t.max(done));
            (self.on_step)(Step { phase, done, total, current: &show(path) });
        }
    }
}

/// Holds a stream to a number of bytes a second, over stretches of a quarter second.
#[derive(Debug)]
pub(crate) struct Limit {
    bytes_per_second: u64,
    since: Instant,
    passed: u64,
}

impl Limit {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), since: Instant::now(), passed: 0 }
    }

    /// Waits until `bytes` more may pass.
    pub(crate) fn pass(&mut self, bytes: usize, cancelled: &dyn Fn() -> bool) -> Result<()> {
        self.passed += bytes as u64;
        loop {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            let due = Duration::from_secs_f64(self.passed as f64 / self.bytes_per_second as f64);
            let Some(early) = due.checked_sub(self.since.elapsed()).filter(|d| !d.is_zero()) else { break };
            std::thread::sleep(early.min(Duration::from_millis(100)));
        }
        // What was not used does not add up to a burst.
        if self.since.elapsed() > Duration::from_millis(250) {
            self.since = Instant::now();
            self.passed = 0;
        }
        Ok(())
    }
}
