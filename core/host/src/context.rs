//! What a caller gives along with a call.

use std::sync::Arc;
use std::time::Duration;

use tandem_contract::{Error, OpId, Progress, Result, ResumeToken};
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;

/// Told of progress, on a thread of the driver's: must not block.
pub type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

/// Makes a token durable; the driver waits for it.
pub type OnCheckpoint = Arc<dyn Fn(ResumeToken) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// What a caller gives along with a call. Cheap to clone.
#[derive(Clone)]
pub struct CallContext {
    /// The operation that the call is made for.
    pub op: OpId,
    /// How long the call may take, retries included; the back end's default for the verb when `None`.
    pub deadline: Option<Duration>,
    /// Stops the call when it is cancelled.
    pub cancel: CancellationToken,
    /// Told of progress.
    pub on_progress: OnProgress,
    /// Stores checkpoints.
    pub on_checkpoint: OnCheckpoint,
}

impl CallContext {
    /// A call for `op` that reports to nobody and stores no checkpoints.
    pub fn new(op: OpId) -> Self {
        Self {
            op,
            deadline: None,
            cancel: CancellationToken::new(),
            on_progress: Arc::new(|_| {}),
            on_checkpoint: Arc::new(|_| {
                Box::pin(std::future::ready(Err(Error::unsupported("this call stores no checkpoints"))))
            }),
        }
    }

    /// The same with a deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The same, stopped by `cancel`.
    #[must_use]
    pub fn cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// The same, reporting to `on_progress`.
    #[must_use]
    pub fn on_progress(mut self, on_progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.on_progress = Arc::new(on_progress);
        self
    }

    /// The same, storing checkpoints with `on_checkpoint`.
    #[must_use]
    pub fn on_checkpoint<F>(
        mut self,
        on_checkpoint: impl Fn(ResumeToken) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        self.on_checkpoint = Arc::new(move |token| Box::pin(on_checkpoint(token)));
        self
    }
}
