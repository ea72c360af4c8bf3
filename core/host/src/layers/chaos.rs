//! Fault injection, for tests: fails, delays, loses or hangs calls, by verb and ratio, from a seed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tandem_contract::{Error, ErrorKind, Result};

use super::{Call, Inner, Service};
use crate::BoxFuture;

/// Which faults to inject. The same seed and the same order of calls give the same faults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chaos {
    /// Where the randomness starts.
    pub seed: u64,
    /// Tried in order; the first that hits counts.
    pub rules: Vec<ChaosRule>,
}

/// One fault, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChaosRule {
    /// The verb; every verb when empty.
    #[serde(default)]
    pub verb: String,
    /// Part of the calls that it hits, 0 to 1.
    pub ratio: f64,
    /// At most so many times; without end when absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// What happens.
    pub fault: Fault,
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// It fails before it reaches the driver.
    Fail {
        /// The error's kind.
        error: ErrorKind,
    },
    /// It reaches the driver, but the answer is lost.
    LoseAnswer,
    /// It is held up first.
    Delay {
        /// For so many milliseconds.
        ms: u64,
    },
    /// It never returns, and heeds no cancel.
    Hang,
    /// It panics in the host's task.
    Panic,
}

pub(crate) struct ChaosLayer {
    pub(crate) inner: Inner,
    state: Mutex<State>,
}

struct State {
    random: u64,
    /// Rules, and how often each has hit.
    rules: Vec<(ChaosRule, u32)>,
}

impl ChaosLayer {
    pub(crate) fn new(inner: Inner, chaos: &Chaos) -> Self {
        let rules = chaos.rules.iter().map(|rule| (rule.clone(), 0)).collect();
        Self { inner, state: Mutex::new(State { random: chaos.seed, rules }) }
    }

    fn draw(&self, verb: &str) -> Option<Fault> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        for (rule, hits) in &mut state.rules {
            if !(rule.verb.is_empty() || rule.verb == verb) || rule.times.is_some_and(|times| *hits >= times)
            {
                continue;
            }
            if unit(&mut state.random) < rule.ratio {
                *hits += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }
}

/// The next number of SplitMix64, as 0 <= n < 1. Faults need repeatable, not secret, randomness.
fn unit(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

impl Service for ChaosLayer {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Value>> {
        let inner = Arc::clone(&self.inner);
        let fault = self.draw(&call.request.verb);
        Box::pin(async move {
            let verb = call.request.verb.clone();
            match fault {
                None => inner.call(call).await,
                Some(Fault::Fail { error }) => Err(Error::new(error, format!("injected: `{verb}` fails"))),
                Some(Fault::LoseAnswer) => {
                    inner.call(call).await?;
                    Err(Error::unavailable(format!("injected: the answer of `{verb}` was lost")))
                }
                Some(Fault::Delay { ms }) => {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    inner.call(call).await
                }
                Some(Fault::Hang) => std::future::pending().await,
                #[allow(clippy::panic)] // that is the fault
                Some(Fault::Panic) => panic!("injected: `{verb}` panics"),
            }
        })
    }
}
