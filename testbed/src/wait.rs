//! Waiting for a condition: generous, because a slow machine is not a defect.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After this long a condition will not come true any more.
pub const LONG: Duration = Duration::from_secs(180);

/// Milliseconds between two questions.
static PAUSE: AtomicU64 = AtomicU64::new(25);

/// From now on this process asks once in so long. For benchmarks in a guest: each request is answered on the one processor that
/// does the work which is timed.
pub fn every(pause: Duration) {
    PAUSE.store(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn pause() {
    std::thread::sleep(Duration::from_millis(PAUSE.load(Ordering::Relaxed)));
}

/// Asks until there is an answer; `what` is said when there never was one.
///
/// # Panics
/// When there is no answer within [`LONG`].
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < LONG, "waited {}s in vain: {what}", LONG.as_secs());
        pause();
    }
}

/// The same where the asking knows what is still missing, which is said when there never was an answer.
///
/// # Panics
/// When there is no answer within [`LONG`].
pub fn until_else<T>(mut ask: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(missing) => assert!(start.elapsed() < LONG, "waited {}s in vain: {missing}", LONG.as_secs()),
        }
        pause();
    }
}
