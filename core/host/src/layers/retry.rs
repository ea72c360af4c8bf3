//! Makes a call again where its error says that this is safe.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tandem_contract::{Result, Retry};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{Call, Inner, Service};
use crate::BoxFuture;

/// How often and how fast a call is made again. Pauses grow fourfold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Calls in all; 1 means no retry.
    pub attempts: u32,
    /// The first pause.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 4, first_pause: Duration::from_millis(100), longest_pause: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// The pause before attempt `n + 1`, after `n` failed ones.
    fn pause(&self, failed: u32) -> Duration {
        self.first_pause.saturating_mul(4u32.saturating_pow(failed.saturating_sub(1))).min(self.longest_pause)
    }
}

pub(crate) struct RetryLayer {
    pub(crate) inner: Inner,
    pub(crate) policy: RetryPolicy,
    /// Cancelled once no attempt can succeed any more.
    pub(crate) lost: Option<CancellationToken>,
}

impl Service for RetryLayer {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Value>> {
        let (inner, policy, lost) = (Arc::clone(&self.inner), self.policy.clone(), self.lost.clone());
        Box::pin(async move {
            let mut next = Some(call);
            let mut failed = 0;
            loop {
                let Some(call) = next.take() else {
                    return Err(tandem_contract::Error::bug("the retry layer lost its call"));
                };
                let (cancel, deadline, verb) =
                    (call.cx.cancel.clone(), call.deadline, call.request.verb.clone());
                next = call.again();
                let answer = inner.call(call).await;
                failed += 1;
                let Err(error) = &answer else { return answer };
                if error.retry != Retry::Safe || next.is_none() || failed >= policy.attempts {
                    return answer;
                }
                let pause = policy.pause(failed);
                // What a lost connection has left open is for the manager to observe first.
                if lost.as_ref().is_some_and(CancellationToken::is_cancelled) {
                    return answer;
                }
                if cancel.is_cancelled() || deadline.is_some_and(|at| Instant::now() + pause >= at) {
                    return answer;
                }
                tracing::debug!("`{verb}` failed and is made again in {} ms: {error}", pause.as_millis());
                tokio::select! {
                    biased;
                    () = sleep(pause) => {}
                    () = cancel.cancelled() => return answer,
                }
                if let Some(call) = &mut next {
                    // The failed attempt's stop is spent.
                    call.stop = CancellationToken::new();
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let policy = RetryPolicy::default();
        let pauses: Vec<u128> = (1..=5).map(|n| policy.pause(n).as_millis()).collect();
        assert_eq!(pauses, [100, 400, 1600, 5000, 5000]);
        assert_eq!(policy.pause(u32::MAX), policy.longest_pause);
    }
}
