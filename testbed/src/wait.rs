//! Waiting for a condition: generous, because a slow machine is not a defect.

use std::time::{Duration, Instant};

/// After this long a condition will not come true any more.
pub const LONG: Duration = Duration::from_secs(180);

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
        std::thread::sleep(Duration::from_millis(25));
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
        std::thread::sleep(Duration::from_millis(25));
    }
}
