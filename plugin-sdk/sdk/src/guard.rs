//! Panics become errors before they leave the driver.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

use tandem_contract::{Error, Result};

/// Awaits `work`; a panic in it is a [`Bug`](tandem_contract::ErrorKind::Bug) that names `what`.
pub(crate) async fn guarded<T>(what: &str, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    // Whatever the driver's future holds is dropped after a panic and never looked at again.
    let mut work: Pin<Box<dyn Future<Output = Result<T>> + Send + '_>> = Box::pin(work);
    std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
        Ok(poll) => poll,
        Err(panic) => Poll::Ready(Err(bug(what, panic))),
    })
    .await
}

/// Runs `work`; a panic in it is a `Bug` that names `what`.
pub(crate) fn guarded_sync<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(bug(what, panic)))
}

/// The error that a panic becomes.
pub(crate) fn bug(what: &str, panic: Box<dyn Any + Send>) -> Error {
    Error::bug(format!("the driver panicked in `{what}`: {}", said(&*panic)))
}

/// What a panic says.
pub(crate) fn said(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "no message",
    }
}
