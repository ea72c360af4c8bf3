//! The host as a driver sees it.

use std::future::Future;
use std::pin::Pin;

use serde_json::Value;
use tandem_contract::{Result, Signal};

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The process that opened the driver: across the binary interface, or in the same process (simulations).
pub trait Host: Send + Sync + 'static {
    /// One-way news. Must not block.
    fn signal(&self, signal: Signal);

    /// A call that is answered: a [`HostCall`](tandem_contract::HostCall) as JSON, or one that a newer host offers.
    fn call(&self, call: Value) -> BoxFuture<'static, Result<Value>>;
}
