//! Calls of the kernel that may never return, since the pool that they wait for has stopped: each on a thread of its own,
//! which is left behind then.
//!
//! The call ends when its pool goes on, with the pipes that it had closed at their other ends; it holds no lock of ours.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use tandem_sdk::{Error, Result, Retry};

use crate::{names, tool};

/// How long one wait lasts before the pool is looked at again.
const TURN: Duration = Duration::from_millis(200);

/// A call that runs.
pub(crate) struct Apart<T> {
    answer: Receiver<T>,
    pool: String,
}

impl<T: Send + 'static> Apart<T> {
    /// Starts a call on a dataset.
    pub(crate) fn run(dataset: &str, call: impl FnOnce() -> T + Send + 'static) -> Result<Self> {
        let (told, answer) = sync_channel(1);
        let pool = names::pool_of(dataset).to_owned();
        let work = move || {
            // Nobody may wait any more.
            let _ = told.send(call());
        };
        match std::thread::Builder::new().name("zfs stream".to_owned()).spawn(work) {
            Ok(_) => Ok(Self { answer, pool }),
            Err(e) => Err(Error::unavailable(format!("no thread for the stream: {e}")).retry(Retry::Safe)),
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `Unavailable` when its pool has stopped: then nobody knows when it ends.
    pub(crate) fn end(self) -> Result<T> {
        loop {
            match self.answer.recv_timeout(TURN) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::bug("a thread of the stream panicked"));
                }
                Err(RecvTimeoutError::Timeout) => tool::alive(&self.pool)?,
            }
        }
    }
}
