//! Layers around every call, outermost first: trace, retry, deadline, repeat, chaos, delivery. None knows a driver, and
//! no driver knows a layer.

mod chaos;
mod deadline;
mod delivery;
mod repeat;
mod retry;
mod trace;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::Value;
use tandem_contract::{InstanceId, Request, Result};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use chaos::ChaosLayer;
pub use chaos::{Chaos, ChaosRule, Fault};
pub(crate) use deadline::DeadlineLayer;
pub use deadline::Deadlines;
pub(crate) use delivery::DeliveryLayer;
pub(crate) use repeat::RepeatLayer;
pub(crate) use retry::RetryLayer;
pub use retry::RetryPolicy;
pub(crate) use trace::TraceLayer;

use crate::{BoxFuture, CallContext};

/// A call on its way through the layers.
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) cx: CallContext,
    /// Whether the verb may change the storage.
    pub(crate) changes: bool,
    /// The instance it is about.
    pub(crate) instance: Option<InstanceId>,
    /// When all attempts must have ended.
    pub(crate) deadline: Option<Instant>,
    /// Cancelled when the driver is to stop this attempt.
    pub(crate) stop: CancellationToken,
}

impl Call {
    /// The same call once more, unless it carries streams: each delivery needs fresh ones.
    pub(crate) fn again(&self) -> Option<Self> {
        self.fds.is_empty().then(|| Self {
            request: self.request.clone(),
            fds: Vec::new(),
            cx: self.cx.clone(),
            changes: self.changes,
            instance: self.instance,
            deadline: self.deadline,
            stop: self.stop.clone(),
        })
    }
}

/// What takes calls: a layer, or the driver itself.
pub(crate) trait Service: Send + Sync + 'static {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Value>>;
}

/// The next service inward.
pub(crate) type Inner = Arc<dyn Service>;

/// The instance that a request is about, by the shapes that the contract's verbs have.
pub(crate) fn instance_of(args: &Value) -> Option<InstanceId> {
    let found = args
        .get("instance")
        .or_else(|| args.get("spec").and_then(|spec| spec.get("instance")))
        .or_else(|| args.get("migration").and_then(|migration| migration.get("source")))?;
    found.as_str()?.parse().ok()
}
