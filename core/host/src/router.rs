//! Brings what a driver says during a call to whoever made the call: progress, logs, checkpoints.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tandem_abi::{Answer, HostSide};
use tandem_contract::{Error, HostCall, InstanceId, Result, Signal};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::{Level, Span};

use crate::CallContext;
use crate::plugin::encode;

/// Numbers deliveries: unique within the process, since one library may serve several back ends.
static DELIVERIES: AtomicU64 = AtomicU64::new(1);

/// Instances that a driver may say have changed, until somebody looks.
const MOST_CHANGED: usize = 100_000;

/// The calls of one back end that run now, by delivery.
pub(crate) struct Router {
    backend: String,
    driver: String,
    calls: Mutex<HashMap<u64, Listener>>,
    /// Instances that its driver says have changed by themselves.
    changed: Mutex<BTreeSet<InstanceId>>,
    more_changed: Notify,
    /// Where the host's own futures run: a driver polls on threads that know no runtime of ours.
    runtime: Handle,
}

#[derive(Clone)]
struct Listener {
    cx: CallContext,
    span: Span,
}

/// A running delivery; no news is taken for it once this is dropped.
pub(crate) struct Delivery {
    router: Arc<Router>,
    pub(crate) id: u64,
}

impl Router {
    pub(crate) fn new(backend: &str, driver: &str) -> Arc<Self> {
        Arc::new(Self {
            backend: backend.to_owned(),
            driver: driver.to_owned(),
            calls: Mutex::default(),
            changed: Mutex::default(),
            more_changed: Notify::new(),
            runtime: Handle::current(),
        })
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<u64, Listener>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a delivery whose news go to `cx`, and its logs under the current span.
    pub(crate) fn deliver(self: &Arc<Self>, cx: CallContext) -> Delivery {
        let id = DELIVERIES.fetch_add(1, Ordering::Relaxed);
        self.calls().insert(id, Listener { cx, span: Span::current() });
        Delivery { router: Arc::clone(self), id }
    }

    fn listener(&self, delivery: u64) -> Option<Listener> {
        self.calls().get(&delivery).cloned()
    }

    fn take(&self, signal: Signal) {
        match signal {
            Signal::Progress { delivery, progress } => {
                if let Some(listener) = self.listener(delivery) {
                    (listener.cx.on_progress)(progress);
                }
            }
            Signal::Log { delivery, level, target, message, fields } => {
                let span =
                    delivery.and_then(|d| self.listener(d)).map(|listener| listener.span).unwrap_or_else(
                        || tracing::info_span!("driver", backend = %self.backend, driver = %self.driver),
                    );
                span.in_scope(|| log(&level, &target, &message, &fields));
            }
            Signal::Changed { instance } => {
                let mut changed = self.changed.lock().unwrap_or_else(PoisonError::into_inner);
                // A driver that names more than there can be is not listened to.
                if changed.len() < MOST_CHANGED {
                    changed.insert(instance);
                }
                drop(changed);
                self.more_changed.notify_one();
            }
            // News that this side does not know yet.
            _ => {}
        }
    }

    /// Waits for instances that have changed by themselves.
    pub(crate) async fn changed(&self) -> BTreeSet<InstanceId> {
        loop {
            let now = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
            if !now.is_empty() {
                return now;
            }
            self.more_changed.notified().await;
        }
    }

    async fn answer(self: Arc<Self>, call: Value) -> Result<Value> {
        let call: HostCall = serde_json::from_value(call)
            .map_err(|e| Error::invalid(format!("the call to the host does not decode: {e}")))?;
        match call {
            HostCall::Checkpoint { delivery, token } => {
                let listener = self.listener(delivery).ok_or_else(|| {
                    Error::cancelled("the checkpoint came after its call had ended; it is not stored")
                })?;
                (listener.cx.on_checkpoint)(token).await?;
                Ok(Value::Null)
            }
            _ => Err(Error::unsupported("this server does not know that call")),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.router.calls().remove(&self.id);
    }
}

/// A driver's host: the router of its back end.
pub(crate) struct HostOf(pub(crate) Arc<Router>);

impl HostSide for HostOf {
    fn signal(&self, signal: Vec<u8>) {
        match serde_json::from_slice(&signal) {
            Ok(signal) => self.0.take(signal),
            Err(e) => {
                tracing::warn!(backend = %self.0.backend, "driver `{}` sent news that does not decode: {e}", self.0.driver)
            }
        }
    }

    fn call(&self, call: Vec<u8>) -> tandem_abi::BoxFuture<'static, Answer> {
        let router = Arc::clone(&self.0);
        let work = self.0.runtime.spawn(async move {
            let call = serde_json::from_slice(&call)
                .map_err(|e| Error::invalid(format!("the call to the host does not decode: {e}")))?;
            router.answer(call).await
        });
        Box::pin(async move {
            let answer =
                work.await.unwrap_or_else(|e| Err(Error::bug(format!("the host failed in a call: {e}"))));
            match answer {
                Ok(value) => encode(&value).map_err(|e| encode(&e).unwrap_or_default()),
                Err(e) => Err(encode(&e).unwrap_or_default()),
            }
        })
    }
}

/// One line of a driver's log. Levels and targets of `tracing` are static, so the driver's target becomes a field.
fn log(level: &str, target: &str, message: &str, fields: &[(String, String)]) {
    let fields: String = fields.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    macro_rules! at {
        ($level:expr) => {
            tracing::event!(target: "tandem_driver", $level, code = target, "{message}{fields}")
        };
    }
    match level {
        "error" => at!(Level::ERROR),
        "warn" => at!(Level::WARN),
        "debug" => at!(Level::DEBUG),
        "trace" => at!(Level::TRACE),
        _ => at!(Level::INFO),
    }
}
