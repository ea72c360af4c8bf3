//! Takes requests as data and calls the driver's methods: the same in process and behind the binary interface.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tandem_contract::{
    CANCEL_VERB, CONTRACT_VERSION, Cancel, Capabilities, Error, Manifest, Request, Result,
};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::ability::{Incoming, unknown};
use crate::context::Stop;
use crate::guard::{guarded, guarded_sync};
use crate::{Ability, Host, News, OpContext, Wired};

/// How often progress is sent at most, unless set otherwise.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// An opened driver that takes requests.
pub struct Dispatcher<D> {
    driver: Arc<D>,
    host: Arc<dyn Host>,
    capabilities: Capabilities,
    calls: Arc<Calls>,
    progress_every: Duration,
    /// The driver's own eyes.
    watch: JoinHandle<()>,
}

impl<D> Drop for Dispatcher<D> {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// The calls that run now.
#[derive(Default)]
struct Calls {
    running: Mutex<HashMap<u64, OpContext>>,
    ended: Notify,
    tickets: AtomicU64,
}

/// One running call; taken off the list, and its context stopped, when it is dropped.
struct Running {
    calls: Arc<Calls>,
    ticket: u64,
    cx: OpContext,
}

impl<D: Wired> Dispatcher<D> {
    /// Opens the driver.
    ///
    /// # Errors
    /// `InvalidArgument` when the settings do not fit, `Bug` when the driver panics or claims an ability that is not
    /// wired, and whatever the driver says.
    pub async fn open(host: Arc<dyn Host>, settings: Value) -> Result<Self> {
        let config: D::Config = parse_settings::<D::Config>(settings)
            .map_err(|e| Error::invalid(format!("the settings of driver `{}` do not fit: {e}", D::NAME)))?;
        let driver = guarded("open", D::open(config)).await?;
        let capabilities = guarded_sync("capabilities", || Ok(driver.capabilities()))?;
        for ability in Ability::OPTIONAL {
            if ability.claimed(&capabilities) && !D::ABILITIES.contains(ability) {
                return Err(Error::bug(format!(
                    "driver `{}` claims what needs the ability `{}`, but does not list it in export_driver!",
                    D::NAME,
                    ability.name()
                )));
            }
        }
        let (driver, news) = (Arc::new(driver), News::new(Arc::clone(&host)));
        let watched = Arc::clone(&driver);
        let watch = async move {
            let ended = guarded("watch", async {
                watched.watch(news).await;
                Ok(())
            });
            if let Err(error) = ended.await {
                tracing::error!(%error, "What changes by itself is not told any more.");
            }
        };
        let watch = tokio::spawn(watch.in_current_span());
        let calls = Arc::default();
        Ok(Self { driver, host, capabilities, calls, progress_every: PROGRESS_EVERY, watch })
    }

    /// The same with another least interval between two reports of progress; zero sends each.
    #[must_use]
    pub fn progress_every(mut self, interval: Duration) -> Self {
        self.progress_every = interval;
        self
    }

    /// What the driver says of itself before it is opened.
    pub fn manifest() -> Manifest {
        Manifest {
            name: D::NAME.to_owned(),
            version: D::VERSION.to_owned(),
            contract: CONTRACT_VERSION,
            features: Vec::new(),
            settings: settings_schema::<D>(),
            summary: D::SUMMARY.to_owned(),
            tokens: D::TOKENS.iter().map(|(kind, version)| ((*kind).to_owned(), *version)).collect(),
        }
    }

    /// What the driver can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The driver itself, for simulations that look inside.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    /// Makes one call. It counts as running from here on, so that a cancel that follows finds it; dropping the future
    /// stops it.
    pub fn call(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<Value>> + Send + 'static + use<D> {
        let span = tracing::info_span!(
            "driver_call",
            driver = D::NAME,
            verb = %request.verb,
            op = %request.op,
            delivery = request.delivery
        );
        let cx = OpContext::new(&request, Arc::clone(&self.host), self.progress_every, span.clone());
        let running = self.calls.start(cx.clone());
        let route = self.route(request, fds, cx.clone());
        async move {
            let _running = running;
            let answer = route.await;
            cx.flush();
            answer
        }
        .instrument(span)
    }

    fn route(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        cx: OpContext,
    ) -> impl Future<Output = Result<Value>> + Send + 'static + use<D> {
        let driver = Arc::clone(&self.driver);
        let calls = Arc::clone(&self.calls);
        let ability = Ability::of(&request.verb);
        let claimed = ability.is_some_and(|a| a.claimed(&self.capabilities));
        async move {
            if request.verb == CANCEL_VERB {
                return calls.cancel(&request);
            }
            let Some(ability) = ability else { return Err(unknown(&request.verb)) };
            if !claimed {
                return Err(Error::unsupported(format!(
                    "driver `{}` lacks the ability `{}` that `{}` needs",
                    D::NAME,
                    ability.name(),
                    request.verb
                )));
            }
            let verb = request.verb.clone();
            let work = guarded(&verb, driver.route(&cx, ability, Incoming::new(request, fds)));
            tokio::pin!(work);
            let Some(deadline) = cx.deadline() else { return work.await };
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep_until(deadline) => cx.stop(Stop::Deadline),
            }
            // The driver is told, and it is the driver that ends the call: only it knows when it has let go.
            work.await
        }
    }

    /// Stops every call and waits until the last has returned.
    pub async fn shutdown(&self) {
        self.watch.abort();
        for cx in self.calls.list().values() {
            cx.stop(Stop::Dropped);
        }
        loop {
            let ended = self.calls.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.calls.list().is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Calls {
    fn list(&self) -> MutexGuard<'_, HashMap<u64, OpContext>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>, cx: OpContext) -> Running {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.list().insert(ticket, cx.clone());
        Running { calls: Arc::clone(self), ticket, cx }
    }

    /// Stops the named call. Cancelling what has ended already is no error: the news crossed.
    fn cancel(&self, request: &Request) -> Result<Value> {
        let Cancel { delivery } = serde_json::from_value(request.args.clone())
            .map_err(|e| Error::invalid(format!("the arguments of `{CANCEL_VERB}` do not fit: {e}")))?;
        for cx in self.list().values().filter(|cx| cx.delivery() == delivery && cx.verb() != CANCEL_VERB) {
            cx.stop(Stop::Asked);
        }
        Ok(Value::Null)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Threads that still work for the call see that nobody listens any more.
        self.cx.stop(Stop::Dropped);
        self.calls.list().remove(&self.ticket);
        self.calls.ended.notify_waiters();
    }
}

/// Settings as the driver's type; without settings, as if an empty table had been given.
fn parse_settings<T: DeserializeOwned>(settings: Value) -> serde_json::Result<T> {
    serde_json::from_value(if settings.is_null() { Value::Object(serde_json::Map::new()) } else { settings })
}

/// The JSON Schema of the driver's settings, without references, so that the host's check stays small.
fn settings_schema<D: Wired>() -> Value {
    let draft = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    draft.into_generator().into_root_schema_for::<D::Config>().to_value()
}
