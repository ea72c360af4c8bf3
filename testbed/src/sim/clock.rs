//! Simulated time: the runtime's paused clock, which moves on when every task waits, counted on from life to life.

use std::time::Duration;

use async_trait::async_trait;
use tandem_manager::clock::{Clock, Timestamp};
use tokio::time::Instant;

/// Simulated time of one life.
pub struct SimClock {
    began: Timestamp,
    since: Instant,
}

impl SimClock {
    /// A clock that shows `began` now.
    pub fn starting(began: Timestamp) -> Self {
        Self { began, since: Instant::now() }
    }
}

#[async_trait]
impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.began.plus(self.since.elapsed())
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
