//! One opened driver with its layers: what the manager calls.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tandem_contract::{Capabilities, Error, ErrorKind, InstanceId, Manifest, Request, Result, Verb};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;
use crate::layers::{
    Call, ChaosLayer, DeadlineLayer, DeliveryLayer, Inner, RepeatLayer, RetryLayer, TraceLayer, instance_of,
};
use crate::router::Router;
use crate::{CallContext, Chaos, Deadlines, HungCall, Plugin, RetryPolicy};

/// How a back end's calls are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Deadlines of calls whose caller sets none.
    pub deadlines: Deadlines,
    /// How often failed calls are made again.
    pub retry: RetryPolicy,
    /// How long opening may take.
    pub open_within: Duration,
    /// The least level of log lines that the driver sends: `error`, `warn`, `info`, `debug`, `trace`.
    pub log: String,
    /// Faults to inject; for tests.
    pub chaos: Option<Chaos>,
    /// Whether each changing call is delivered twice; for tests.
    pub repeat: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadlines: Deadlines::default(),
            retry: RetryPolicy::default(),
            open_within: Duration::from_secs(60),
            log: "info".to_owned(),
            chaos: None,
            repeat: false,
        }
    }
}

/// One opened driver. Cheap to clone.
#[derive(Clone)]
pub struct Backend(Arc<Inside>);

struct Inside {
    name: String,
    manifest: Arc<Manifest>,
    plugin: Arc<dyn Plugin>,
    service: Inner,
    router: Arc<Router>,
    gate: Arc<Gate>,
    deadlines: Deadlines,
    last_bug: Mutex<Option<String>>,
}

/// What is wrong with a back end, as far as its calls tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendReport {
    /// Calls that have not returned although they were told to stop. Their instances take no changing call until they
    /// do.
    pub hung: Vec<HungCall>,
    /// The last defect that the driver showed (a panic, nonsense, a broken law), since it was opened.
    pub last_bug: Option<String>,
}

impl BackendReport {
    /// Whether nothing is wrong.
    pub fn is_healthy(&self) -> bool {
        self.hung.is_empty() && self.last_bug.is_none()
    }
}

impl Backend {
    pub(crate) fn new(
        name: &str,
        manifest: Arc<Manifest>,
        plugin: Arc<dyn Plugin>,
        router: Arc<Router>,
        options: Options,
    ) -> Self {
        let gate = Arc::<Gate>::default();
        let driver = manifest.name.clone();
        let mut service: Inner =
            Arc::new(DeliveryLayer { plugin: Arc::clone(&plugin), router: Arc::clone(&router) });
        if let Some(chaos) = &options.chaos {
            service = Arc::new(ChaosLayer::new(service, chaos));
        }
        if options.repeat {
            service = Arc::new(RepeatLayer { inner: service, driver: driver.clone() });
        }
        service = Arc::new(DeadlineLayer {
            inner: service,
            gate: Arc::clone(&gate),
            grace: options.deadlines.grace,
            driver: driver.clone(),
            plugin: Arc::clone(&plugin),
        });
        let lost = plugin.lost();
        service = Arc::new(RetryLayer { inner: service, policy: options.retry, lost });
        service = Arc::new(TraceLayer { inner: service, backend: name.to_owned(), driver });
        let deadlines = options.deadlines;
        Self(Arc::new(Inside {
            name: name.to_owned(),
            manifest,
            plugin,
            service,
            router,
            gate,
            deadlines,
            last_bug: Mutex::default(),
        }))
    }

    /// Its name in the settings.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What its driver says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// What it can do.
    pub fn capabilities(&self) -> &Capabilities {
        self.0.plugin.capabilities()
    }

    /// What is wrong with it, as far as its calls tell.
    pub fn report(&self) -> BackendReport {
        let last_bug = self.0.last_bug.lock().unwrap_or_else(PoisonError::into_inner).clone();
        BackendReport { hung: self.0.gate.hung(), last_bug }
    }

    /// Whether it can never be called again, because its process or the way to its host is gone; it has to be opened
    /// anew.
    pub fn is_lost(&self) -> bool {
        self.0.plugin.lost().is_some_and(|lost| lost.is_cancelled())
    }

    /// Ends once it [is lost](Self::is_lost); never in this process.
    pub async fn lost(&self) {
        match self.0.plugin.lost() {
            Some(lost) => lost.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Waits for instances that its driver says have changed by themselves.
    pub async fn changed(&self) -> BTreeSet<InstanceId> {
        self.0.router.changed().await
    }

    /// Whether it runs on another host: its streams cross a network, and its paths are that host's.
    pub fn crosses_network(&self) -> bool {
        self.0.plugin.crosses_network()
    }

    /// Makes a call.
    ///
    /// # Errors
    /// The driver's; `Unavailable` when it does not answer in time, or an earlier call for the instance hangs; `Bug`
    /// when it panics or answers nonsense.
    pub async fn call<V: Verb>(&self, cx: &CallContext, verb: V) -> Result<V::Reply> {
        self.call_with(cx, verb, Vec::new()).await
    }

    /// Makes a call with streams, which the driver owns from here on.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_with<V: Verb>(&self, cx: &CallContext, verb: V, fds: Vec<OwnedFd>) -> Result<V::Reply> {
        let args = serde_json::to_value(&verb)
            .map_err(|e| Error::bug(format!("the arguments of `{}` do not encode: {e}", V::NAME)))?;
        let within = cx.deadline.unwrap_or_else(|| self.0.deadlines.of(V::NAME, V::CHANGES));
        let call = Call {
            instance: instance_of(&args),
            request: Request { op: cx.op, delivery: 0, deadline_ms: None, verb: V::NAME.to_owned(), args },
            fds,
            cx: cx.clone(),
            changes: V::CHANGES,
            deadline: Instant::now().checked_add(within),
            stop: CancellationToken::new(),
        };
        let answer = self.0.service.call(call).await.and_then(|reply| {
            let shown: String = reply.to_string().chars().take(200).collect();
            serde_json::from_value(reply).map_err(|e| {
                let driver = &self.0.manifest.name;
                Error::bug(format!("driver `{driver}` answered `{}` with nonsense: {e}", V::NAME))
                    .with("answer", shown)
            })
        });
        if let Err(e) = &answer
            && e.kind == ErrorKind::Bug
        {
            *self.0.last_bug.lock().unwrap_or_else(PoisonError::into_inner) = Some(e.to_string());
        }
        answer
    }

    /// Ends every call, waiting `within` for the driver.
    ///
    /// # Errors
    /// `Unavailable` when it does not end.
    pub async fn shutdown(&self, within: Duration) -> Result<()> {
        tokio::time::timeout(within, self.0.plugin.shutdown()).await.map_err(|_| {
            Error::unavailable(format!(
                "back end `{}` has not ended its calls within {} s",
                self.0.name,
                within.as_secs()
            ))
        })
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend").field("name", &self.0.name).field("driver", &self.0.manifest.name).finish()
    }
}
