//! Time: a call ends by its deadline, or soon after it was cancelled, whatever the driver does.
//!
//! The call itself runs in a task of its own and keeps its hold on the instance until the driver has returned, so that
//! nothing else is sent for that instance meanwhile. The caller is answered in time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tandem_contract::{Error, Result, Retry};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::Instrument;

use super::{Call, Inner, Service};
use crate::BoxFuture;
use crate::Plugin;
use crate::gate::Gate;

/// How long calls may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// For verbs that change nothing, when the caller says nothing.
    pub query: Duration,
    /// For verbs that change something, when the caller says nothing.
    pub change: Duration,
    /// For verbs that move or read all data (`send`, `receive`, `make_point`, `fingerprint`, migrations, deletes), when the caller
    /// says nothing.
    pub transfer: Duration,
    /// How long a driver has to end a call that it was told to stop, before it counts as hung.
    pub grace: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            query: Duration::from_secs(30),
            change: Duration::from_secs(300),
            transfer: Duration::from_secs(24 * 3600),
            grace: Duration::from_secs(10),
        }
    }
}

/// Verbs whose time grows with the data.
const TRANSFERS: &[&str] = &[
    "send",
    "receive",
    "make_point",
    "fingerprint",
    "discard_partial",
    "delete_instance",
    "delete_replica",
    "migration_continue",
    "migration_complete",
    "migration_release",
    "migration_revert",
];

impl Deadlines {
    /// The deadline of a verb, when the caller says nothing.
    pub(crate) fn of(&self, verb: &str, changes: bool) -> Duration {
        if TRANSFERS.contains(&verb) {
            self.transfer
        } else if changes {
            self.change
        } else {
            self.query
        }
    }
}

pub(crate) struct DeadlineLayer {
    pub(crate) inner: Inner,
    pub(crate) gate: Arc<Gate>,
    pub(crate) grace: Duration,
    pub(crate) driver: String,
    pub(crate) plugin: Arc<dyn Plugin>,
}

/// Why a call has to end.
enum End {
    Cancelled,
    Deadline,
}

impl Service for DeadlineLayer {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Value>> {
        let (inner, gate) = (Arc::clone(&self.inner), Arc::clone(&self.gate));
        let (grace, driver, plugin) = (self.grace, self.driver.clone(), Arc::clone(&self.plugin));
        Box::pin(async move {
            let verb = call.request.verb.clone();
            let cancel = call.cx.cancel.clone();
            let deadline = call.deadline;
            let end = async {
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => End::Cancelled,
                    () = until(deadline) => End::Deadline,
                }
            };
            tokio::pin!(end);

            let mut hold = None;
            if let (true, Some(instance)) = (call.changes, call.instance) {
                hold = Some(tokio::select! {
                    biased;
                    entered = gate.enter(instance, &verb, call.request.op) => entered?,
                    why = &mut end => {
                        let holder = gate.holder(instance).unwrap_or_else(|| "another call".to_owned());
                        return Err(match why {
                            End::Cancelled => Error::cancelled(format!("`{verb}` was cancelled while it waited for `{holder}`")),
                            End::Deadline => Error::busy(format!("`{verb}` waited for `{holder}` on instance {instance} until its deadline")),
                        });
                    }
                });
            }
            let mark = hold.as_ref().map(crate::gate::Hold::mark);

            let stop = call.stop.clone();
            // Should the caller go away, the driver is told to stop; the task goes on until it has.
            let _stop_with_caller = stop.clone().drop_guard();
            let work = inner.call(call);
            let mut task = tokio::spawn(
                async move {
                    let done = work.await;
                    drop(hold);
                    done
                }
                .in_current_span(),
            );
            let joined = |done: Result<Result<Value>, tokio::task::JoinError>| {
                done.unwrap_or_else(|e| Err(Error::bug(format!("the host failed in `{verb}`: {e}"))))
            };

            let why = tokio::select! {
                biased;
                done = &mut task => return joined(done),
                why = &mut end => why,
            };
            stop.cancel();
            tokio::select! {
                biased;
                done = &mut task => return joined(done),
                () = sleep(grace) => {}
            }
            if plugin.hangs(&verb) {
                // Its process is gone, and with it the call: what it did is to be observed.
                return joined(task.await);
            }
            if let Some(mark) = mark {
                mark.hung();
            }
            tracing::error!(
                "driver `{driver}` has not ended `{verb}` {} s after it was told to",
                grace.as_secs()
            );
            Err(match why {
                End::Cancelled => Error::cancelled(format!(
                    "`{verb}` was cancelled, but driver `{driver}` has not stopped it within {} s",
                    grace.as_secs()
                )),
                End::Deadline => Error::unavailable(format!(
                    "driver `{driver}` has neither answered `{verb}` by its deadline nor stopped when told to"
                )),
            }
            .retry(Retry::AfterOperator))
        })
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
