//! The two sides of the interface, as plain Rust.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// JSON of an answer, or JSON of a contract error. An error without bytes means that the other side panicked.
pub type Answer = Result<Vec<u8>, Vec<u8>>;

/// An opened driver, or JSON of a contract error.
pub type Opened = Result<Box<dyn DriverSide>, Vec<u8>>;

/// The host, as a driver calls it.
pub trait HostSide: Send + Sync + 'static {
    /// One-way news: JSON of a `Signal`. Must not block.
    fn signal(&self, signal: Vec<u8>);
    /// JSON of a `HostCall`. The future is polled on the driver's threads.
    fn call(&self, call: Vec<u8>) -> BoxFuture<'static, Answer>;
}

/// An opened driver, as the host calls it.
pub trait DriverSide: Send + Sync + 'static {
    /// JSON of its `Capabilities`.
    fn capabilities(&self) -> Vec<u8>;
    /// JSON of a `Request`, and the file descriptors of its slots, which the driver owns from here on. The future is
    /// polled on the host's threads.
    fn call(&self, request: Vec<u8>, fds: Vec<OwnedFd>) -> BoxFuture<'static, Answer>;
    /// Ends every call and waits for them.
    fn shutdown(&self) -> BoxFuture<'static, ()>;
}

/// A driver's library, as its entry points need it.
pub trait Library: 'static {
    /// JSON of its `Manifest`.
    fn manifest() -> Vec<u8>;
    /// Opens a back end; `opening` is JSON of an `Opening`. The future is polled on the host's threads.
    fn open(host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'static, Opened>;
}
