//! One back end under test: opens the driver, makes calls.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tandem_abi::{BoxFuture, DriverSide};
use tandem_contract::{
    CANCEL_VERB, CONTRACT_VERSION, Cancel, Capabilities, Error, OpId, Opening, Request, Result, Verb,
};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use uuid::Uuid;

use crate::host::Ear;
use crate::subject::Opener;

/// No call of the suite may take longer.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// A call that was told to stop has this long: the contract's "seconds", on a busy machine.
pub(crate) const SECONDS: Duration = Duration::from_secs(15);

static DELIVERIES: AtomicU64 = AtomicU64::new(1);

/// One back end under test.
#[derive(Clone)]
pub(crate) struct Side {
    opener: Arc<dyn Opener>,
    settings: Arc<Value>,
    ear: Ear,
    /// The driver, where it is kept open between calls.
    kept: Option<Arc<OnceCell<Arc<dyn DriverSide>>>>,
}

/// A call that runs.
pub(crate) struct Running {
    pub(crate) answer: BoxFuture<'static, Result<Value>>,
    pub(crate) delivery: u64,
    driver: Arc<dyn DriverSide>,
}

impl Side {
    pub(crate) fn new(opener: Arc<dyn Opener>, settings: Arc<Value>, keep: bool) -> Self {
        Self { opener, settings, ear: Ear::default(), kept: keep.then(Arc::default) }
    }

    /// What was wrong with the driver's news.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.ear.wrong()
    }

    /// Opens the driver with these settings.
    pub(crate) async fn open_with(&self, settings: &Value) -> Result<Arc<dyn DriverSide>> {
        let opening = Opening {
            backend: "conformance".to_owned(),
            contract: CONTRACT_VERSION,
            features: Vec::new(),
            log: "warn".to_owned(),
            settings: settings.clone(),
        };
        let opening = serde_json::to_vec(&opening).map_err(|e| Error::bug(format!("the opening: {e}")))?;
        let opened = timeout(LONG, self.opener.open(Box::new(self.ear.clone()), opening))
            .await
            .map_err(|_| Error::bug("the driver has not opened within two minutes"))?;
        opened.map(Arc::from).map_err(|bytes| decode_error("open", &bytes))
    }

    async fn driver(&self) -> Result<Arc<dyn DriverSide>> {
        match &self.kept {
            Some(kept) => kept.get_or_try_init(|| self.open_with(&self.settings)).await.cloned(),
            None => self.open_with(&self.settings).await,
        }
    }

    pub(crate) async fn capabilities(&self) -> Result<Capabilities> {
        let bytes = self.driver().await?.capabilities();
        serde_json::from_slice(&bytes).map_err(|e| Error::bug(format!("the capabilities do not decode: {e}")))
    }

    /// Makes a call.
    pub(crate) async fn call<V: Verb>(&self, verb: V) -> Result<V::Reply> {
        self.call_with(verb, Vec::new()).await
    }

    /// Makes a call with streams.
    pub(crate) async fn call_with<V: Verb>(&self, verb: V, fds: Vec<OwnedFd>) -> Result<V::Reply> {
        let running = self.start(verb, fds, None).await?;
        running.ends::<V>(LONG).await
    }

    /// Starts a call.
    pub(crate) async fn start<V: Verb>(
        &self,
        verb: V,
        fds: Vec<OwnedFd>,
        deadline: Option<Duration>,
    ) -> Result<Running> {
        let args = serde_json::to_value(&verb).map_err(|e| Error::bug(format!("the arguments: {e}")))?;
        self.start_raw(V::NAME, args, fds, deadline).await
    }

    pub(crate) async fn start_raw(
        &self,
        verb: &str,
        args: Value,
        fds: Vec<OwnedFd>,
        deadline: Option<Duration>,
    ) -> Result<Running> {
        let driver = self.driver().await?;
        let delivery = DELIVERIES.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            op: OpId(Uuid::now_v7()),
            delivery,
            deadline_ms: deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            verb: verb.to_owned(),
            args,
        };
        let answer = send(&driver, &request, fds)?;
        Ok(Running { answer, delivery, driver })
    }
}

fn send(
    driver: &Arc<dyn DriverSide>,
    request: &Request,
    fds: Vec<OwnedFd>,
) -> Result<BoxFuture<'static, Result<Value>>> {
    let bytes = serde_json::to_vec(request).map_err(|e| Error::bug(format!("the request: {e}")))?;
    let verb = request.verb.clone();
    let work = driver.call(bytes, fds);
    Ok(Box::pin(async move {
        match work.await {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| Error::bug(format!("the answer of `{verb}` does not decode: {e}"))),
            Err(bytes) => Err(decode_error(&verb, &bytes)),
        }
    }))
}

fn decode_error(verb: &str, bytes: &[u8]) -> Error {
    serde_json::from_slice(bytes).unwrap_or_else(|e| {
        let what = if bytes.is_empty() { "the library panicked".to_owned() } else { e.to_string() };
        Error::bug(format!("the error of `{verb}` does not decode: {what}"))
    })
}

impl Running {
    /// Its answer, which must come `within`.
    pub(crate) async fn ends<V: Verb>(self, within: Duration) -> Result<V::Reply> {
        let answer = timeout(within, self.answer).await.map_err(|_| {
            Error::bug(format!("`{}` has not returned within {} s", V::NAME, within.as_secs()))
        })??;
        let shown = answer.to_string();
        serde_json::from_value(answer).map_err(|e| {
            Error::bug(format!("the answer of `{}` does not fit: {e}", V::NAME)).with("answer", shown)
        })
    }

    /// Tells the driver to stop it.
    pub(crate) async fn cancel(&mut self) -> Result<()> {
        let args = serde_json::to_value(Cancel { delivery: self.delivery })
            .map_err(|e| Error::bug(format!("the cancel: {e}")))?;
        let request = Request {
            op: OpId(Uuid::now_v7()),
            delivery: DELIVERIES.fetch_add(1, Ordering::Relaxed),
            deadline_ms: None,
            verb: CANCEL_VERB.to_owned(),
            args,
        };
        let told = send(&self.driver, &request, Vec::new())?;
        timeout(SECONDS, told).await.map_err(|_| Error::bug("a cancel has not returned in time"))?.map(drop)
    }

    /// Whether it still runs after a moment.
    pub(crate) async fn still_runs(&mut self) -> bool {
        timeout(Duration::from_millis(300), &mut self.answer).await.is_err()
    }
}
