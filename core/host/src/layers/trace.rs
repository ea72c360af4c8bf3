//! A span for each call: driver logs arrive under it, and its failure is written once.

use std::sync::Arc;

use serde_json::Value;
use tandem_contract::{ErrorKind, Result};
use tokio::time::Instant;
use tracing::Instrument;

use super::{Call, Inner, Service};
use crate::BoxFuture;

pub(crate) struct TraceLayer {
    pub(crate) inner: Inner,
    pub(crate) backend: String,
    pub(crate) driver: String,
}

impl Service for TraceLayer {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Value>> {
        let span = tracing::info_span!(
            "driver_call",
            op = %call.request.op,
            verb = %call.request.verb,
            instance = call.instance.map(tracing::field::display),
            backend = %self.backend,
            driver = %self.driver,
        );
        let inner = Arc::clone(&self.inner);
        let work = async move {
            let started = Instant::now();
            tracing::trace!(args = %call.request.args, "sent");
            let answer = inner.call(call).await;
            let ms = started.elapsed().as_millis();
            match &answer {
                Ok(_) => tracing::debug!(ms, "answered"),
                Err(e) if e.kind == ErrorKind::Bug => tracing::error!(ms, "the driver is broken: {e}"),
                Err(e) => tracing::info!(ms, kind = ?e.kind, "refused: {e}"),
            }
            answer
        };
        Box::pin(work.instrument(span))
    }
}
