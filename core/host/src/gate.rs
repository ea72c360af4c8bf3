//! One changing call at a time for each instance, and none behind one that hangs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tandem_contract::{Error, InstanceId, OpId, Result, Retry};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Keeps changing calls of one instance apart.
#[derive(Default)]
pub(crate) struct Gate {
    held: Mutex<HashMap<InstanceId, Held>>,
    freed: Notify,
}

struct Held {
    call: HungCall,
    hung: bool,
}

/// A call that has not returned although its time was over. Until it returns, or its driver host is dead, nothing that
/// changes its instance is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HungCall {
    /// The instance.
    pub instance: InstanceId,
    /// The verb.
    pub verb: String,
    /// The operation that it was made for.
    pub op: OpId,
    /// When it was sent.
    pub since: Instant,
}

/// The right to change an instance; given back when the last clone is dropped, that is once the call has returned.
#[derive(Clone)]
pub(crate) struct Hold(Arc<HoldInner>);

struct HoldInner {
    gate: Arc<Gate>,
    instance: InstanceId,
}

/// Marks a hold as hung, without keeping it.
pub(crate) struct HoldMark(Weak<HoldInner>);

impl Gate {
    fn held(&self) -> MutexGuard<'_, HashMap<InstanceId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing changes `instance`, then holds it.
    ///
    /// # Errors
    /// `Unavailable`, at once, when the call that holds it hangs.
    pub(crate) async fn enter(self: &Arc<Self>, instance: InstanceId, verb: &str, op: OpId) -> Result<Hold> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(hold) = self.try_enter(instance, verb, op)? {
                return Ok(hold);
            }
            freed.await;
        }
    }

    fn try_enter(self: &Arc<Self>, instance: InstanceId, verb: &str, op: OpId) -> Result<Option<Hold>> {
        let mut held = self.held();
        match held.get(&instance) {
            Some(Held { hung: true, call }) => Err(Error::unavailable(format!(
                "`{verb}` was not sent: `{}` on instance {instance} has not returned since {} s; restart the driver's \
                 host if it does not come back",
                call.verb,
                call.since.elapsed().as_secs()
            ))
            .retry(Retry::AfterOperator)),
            Some(_) => Ok(None),
            None => {
                let call = HungCall { instance, verb: verb.to_owned(), op, since: Instant::now() };
                held.insert(instance, Held { call, hung: false });
                Ok(Some(Hold(Arc::new(HoldInner { gate: Arc::clone(self), instance }))))
            }
        }
    }

    /// The verb that changes `instance` now.
    pub(crate) fn holder(&self, instance: InstanceId) -> Option<String> {
        self.held().get(&instance).map(|held| held.call.verb.clone())
    }

    /// Every call that hangs.
    pub(crate) fn hung(&self) -> Vec<HungCall> {
        self.held().values().filter(|held| held.hung).map(|held| held.call.clone()).collect()
    }
}

impl Hold {
    pub(crate) fn mark(&self) -> HoldMark {
        HoldMark(Arc::downgrade(&self.0))
    }
}

impl HoldMark {
    /// From now on, calls for the instance fail at once instead of waiting.
    pub(crate) fn hung(&self) {
        if let Some(hold) = self.0.upgrade() {
            if let Some(held) = hold.gate.held().get_mut(&hold.instance) {
                held.hung = true;
            }
            // Whoever waits behind it fails now.
            hold.gate.freed.notify_waiters();
        }
    }
}

impl Drop for HoldInner {
    fn drop(&mut self) {
        self.gate.held().remove(&self.instance);
        self.gate.freed.notify_waiters();
    }
}
