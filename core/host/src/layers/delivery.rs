//! The innermost service: numbers the delivery, listens to it, hands it to the driver, tells the driver to stop.

use std::sync::Arc;

use serde_json::Value;
use tandem_contract::{CANCEL_VERB, Cancel, Request, Result};
use tokio::time::Instant;

use super::{Call, Service};
use crate::router::Router;
use crate::{BoxFuture, Plugin};

pub(crate) struct DeliveryLayer {
    pub(crate) plugin: Arc<dyn Plugin>,
    pub(crate) router: Arc<Router>,
}

impl Service for DeliveryLayer {
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Value>> {
        let plugin = Arc::clone(&self.plugin);
        let router = Arc::clone(&self.router);
        Box::pin(async move {
            let delivery = router.deliver(call.cx);
            let mut request = call.request;
            request.delivery = delivery.id;
            request.deadline_ms = call.deadline.map(milliseconds_until);
            let op = request.op;
            let mut work = plugin.call(request, call.fds);
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = call.stop.cancelled() => {}
            }
            let id = delivery.id;
            let args = serde_json::to_value(Cancel { delivery: id }).unwrap_or_default();
            let cancel = Request { op, delivery: id, deadline_ms: None, verb: CANCEL_VERB.to_owned(), args };
            let mut told = plugin.call(cancel, Vec::new());
            // A driver that hangs may not even take the cancel: wait for the call, whatever becomes of the cancel.
            tokio::select! {
                biased;
                done = &mut work => done,
                answer = &mut told => {
                    if let Err(e) = answer {
                        tracing::warn!("the driver did not take a cancel: {e}");
                    }
                    work.await
                }
            }
        })
    }
}

fn milliseconds_until(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX)
}
