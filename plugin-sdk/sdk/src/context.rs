//! What a call knows of the operation it is made for.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tandem_contract::{Error, HostCall, OpId, Progress, Request, Result, ResumeToken, Retry, Signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::Host;

/// The context of one call. Cheap to clone; may move into threads.
#[derive(Clone)]
pub struct OpContext {
    inner: Arc<Inner>,
}

struct Inner {
    op: OpId,
    delivery: u64,
    verb: String,
    deadline: Option<Instant>,
    cancel: CancellationToken,
    /// The same as `cancel`, for libraries that poll a plain flag.
    flag: Arc<AtomicBool>,
    reason: OnceLock<Stop>,
    host: Arc<dyn Host>,
    progress: Mutex<Pending>,
    progress_every: Duration,
    span: Span,
}

/// Why a call has to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Asked,
    Deadline,
    Dropped,
}

/// Progress that was reported too soon after the last to be sent.
#[derive(Default)]
struct Pending {
    last: Option<(Instant, String)>,
    unsent: Option<Progress>,
}

impl OpContext {
    pub(crate) fn new(request: &Request, host: Arc<dyn Host>, progress_every: Duration, span: Span) -> Self {
        let inner = Inner {
            op: request.op,
            delivery: request.delivery,
            verb: request.verb.clone(),
            deadline: request
                .deadline_ms
                .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms))),
            cancel: CancellationToken::new(),
            flag: Arc::default(),
            reason: OnceLock::new(),
            host,
            progress: Mutex::default(),
            progress_every,
            span,
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn delivery(&self) -> u64 {
        self.inner.delivery
    }

    /// The operation; the same in each delivery of the call.
    pub fn op(&self) -> OpId {
        self.inner.op
    }

    /// The verb's name on the wire.
    pub fn verb(&self) -> &str {
        &self.inner.verb
    }

    /// When the caller stops listening; stop by yourself before that.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.deadline
    }

    /// Time left until [`deadline`](Self::deadline).
    pub fn remaining(&self) -> Option<Duration> {
        self.inner.deadline.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Resolves when the call is to stop: the manager cancelled it, its deadline passed, or nobody listens any more.
    pub async fn cancelled(&self) {
        self.inner.cancel.cancelled().await;
    }

    /// Whether the call is to stop. For loops that do not await; never blocks.
    pub fn is_cancelled(&self) -> bool {
        self.inner.flag.load(Ordering::Relaxed)
    }

    /// The flag behind [`is_cancelled`](Self::is_cancelled), for libraries that poll one.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.inner.flag)
    }

    /// A token that is cancelled when the call is to stop.
    pub fn cancel_token(&self) -> CancellationToken {
        self.inner.cancel.clone()
    }

    /// `Err` once the call is to stop: `context.check()?` in a loop is all that cancellation asks of most drivers.
    ///
    /// # Errors
    /// `Cancelled`, saying why.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(self.stop_error()) } else { Ok(()) }
    }

    /// Awaits `work`, unless the call is to stop first; `work` is dropped then.
    ///
    /// # Errors
    /// Those of `work`, or `Cancelled`.
    pub async fn or_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancelled() => Err(self.stop_error()),
            done = work => done,
        }
    }

    /// Waits for a time, unless the call is to stop first.
    ///
    /// # Errors
    /// `Cancelled`.
    pub async fn sleep(&self, duration: Duration) -> Result<()> {
        self.or_cancelled(async {
            tokio::time::sleep(duration).await;
            Ok(())
        })
        .await
    }

    /// Runs blocking `work` (system calls, hashing) on a thread for it, under the operation's span. The thread is not
    /// stopped from outside: it looks at [`check`](Self::check) from time to time.
    ///
    /// # Errors
    /// Those of `work`; `Bug` when it panics.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let cx = self.clone();
        let run = move || cx.inner.span.clone().in_scope(|| work(&cx));
        match tokio::task::spawn_blocking(run).await {
            Ok(done) => done,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => Err(crate::guard::bug(self.verb(), panic)),
                Err(_) => {
                    Err(Error::cancelled(format!("`{}` stopped: the driver is shutting down", self.verb())))
                }
            },
        }
    }

    /// Reports how far the call is. As often as you like: what comes too soon after the last is held back, and the
    /// newest is always sent in the end.
    pub fn progress(&self, progress: Progress) {
        let mut pending = self.inner.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let soon = pending.last.as_ref().is_some_and(|(at, phase)| {
            *phase == progress.phase && now.saturating_duration_since(*at) < self.inner.progress_every
        });
        if soon {
            pending.unsent = Some(progress);
        } else {
            pending.last = Some((now, progress.phase.clone()));
            pending.unsent = None;
            self.inner.host.signal(Signal::Progress { delivery: self.inner.delivery, progress });
        }
    }

    /// Stores a token in the operation log. Once this returns, it survives a crash of everything.
    ///
    /// # Errors
    /// When the host cannot store it; the call should stop.
    pub async fn checkpoint(&self, token: ResumeToken) -> Result<()> {
        let call = HostCall::Checkpoint { delivery: self.inner.delivery, token };
        let call = serde_json::to_value(call)
            .map_err(|e| Error::bug(format!("a checkpoint does not encode: {e}")))?;
        self.inner.host.call(call).await.map(drop)
    }

    /// Calls the host: for abilities of newer hosts. What a host does not know is `Unsupported`.
    ///
    /// # Errors
    /// The host's.
    pub async fn host_call(&self, call: Value) -> Result<Value> {
        self.inner.host.call(call).await
    }

    /// Sends progress that was held back.
    pub(crate) fn flush(&self) {
        let unsent = self.inner.progress.lock().unwrap_or_else(PoisonError::into_inner).unsent.take();
        if let Some(progress) = unsent {
            self.inner.host.signal(Signal::Progress { delivery: self.inner.delivery, progress });
        }
    }

    pub(crate) fn stop(&self, why: Stop) {
        let _ = self.inner.reason.set(why);
        self.inner.flag.store(true, Ordering::Relaxed);
        self.inner.cancel.cancel();
    }

    fn stop_error(&self) -> Error {
        let verb = self.verb();
        match self.inner.reason.get() {
            Some(Stop::Deadline) => {
                Error::cancelled(format!("`{verb}` stopped at its deadline")).retry(Retry::Safe)
            }
            Some(Stop::Dropped) => Error::cancelled(format!("`{verb}` stopped: its caller went away")),
            Some(Stop::Asked) | None => Error::cancelled(format!("`{verb}` was cancelled")),
        }
    }
}
