//! The host that the suite is for a driver: hears its news, and finds what is wrong with them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_abi::{Answer, BoxFuture, HostSide};
use tandem_contract::{Error, HostCall, Progress, Signal};

/// Hears what a driver says.
#[derive(Clone, Default)]
pub(crate) struct Ear(Arc<Mutex<Heard>>);

#[derive(Default)]
pub(crate) struct Heard {
    /// The last progress of each delivery.
    progress: HashMap<u64, Progress>,
    /// What was wrong with its news.
    wrong: Vec<String>,
}

impl Ear {
    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was wrong with its news, so far.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.heard().wrong.clone()
    }
}

impl Heard {
    fn take(&mut self, signal: Signal) {
        let Signal::Progress { delivery, progress } = signal else { return };
        if let Some(total) = progress.total
            && progress.done > total
            && !progress.estimate
        {
            self.wrong.push(format!("law 13: progress says {} of {total} bytes", progress.done));
        }
        if let Some(last) = self.progress.get(&delivery)
            && last.phase == progress.phase
            && last.done > progress.done
        {
            self.wrong.push(format!(
                "law 13: progress of `{}` fell from {} to {} bytes",
                progress.phase, last.done, progress.done
            ));
        }
        self.progress.insert(delivery, progress);
    }
}

impl HostSide for Ear {
    fn signal(&self, signal: Vec<u8>) {
        match serde_json::from_slice(&signal) {
            Ok(signal) => self.heard().take(signal),
            Err(e) => self.heard().wrong.push(format!("law 13: news that do not decode: {e}")),
        }
    }

    fn call(&self, call: Vec<u8>) -> BoxFuture<'static, Answer> {
        let answer = match serde_json::from_slice::<HostCall>(&call) {
            Ok(HostCall::Checkpoint { .. }) => Ok(b"null".to_vec()),
            _ => Err(Error::unsupported("the suite does not know that call")),
        };
        let answer = answer.map_err(|e| serde_json::to_vec(&e).unwrap_or_default());
        Box::pin(std::future::ready(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_that_falls_or_exceeds_is_heard() {
        let mut heard = Heard::default();
        let say = |done, total| Signal::Progress { delivery: 1, progress: Progress::of("x", done, total) };
        heard.take(say(1, Some(3)));
        heard.take(say(3, Some(3)));
        assert!(heard.wrong.is_empty());
        heard.take(say(2, None));
        heard.take(say(4, Some(3)));
        assert_eq!(heard.wrong.len(), 2, "{:?}", heard.wrong);
    }
}
