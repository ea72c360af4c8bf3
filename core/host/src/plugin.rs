//! A driver as the host calls it, wherever it runs.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tandem_abi::DriverSide;
use tandem_contract::{Capabilities, Error, Request, Result};
use tokio_util::sync::CancellationToken;

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An opened driver: in this process, or wherever messages and streams can be carried to.
pub trait Plugin: Send + Sync + 'static {
    /// What it can do.
    fn capabilities(&self) -> &Capabilities;
    /// Makes one call. The descriptors belong to the driver from here on.
    fn call(&self, request: Request, fds: Vec<OwnedFd>) -> BoxFuture<'static, Result<Value>>;
    /// Ends every call and waits for them.
    fn shutdown(&self) -> BoxFuture<'static, ()>;
    /// Cancelled once it can never be called again; `None` where that does not happen.
    fn lost(&self) -> Option<CancellationToken> {
        None
    }
    /// Whether its streams cross a network.
    fn crosses_network(&self) -> bool {
        false
    }
    /// Told that it does not end a call; answers whether it was ended by force, with every call that ran in it.
    fn hangs(&self, _verb: &str) -> bool {
        false
    }
}

/// A driver in this process, behind the binary interface.
pub(crate) struct Loaded {
    driver: Box<dyn DriverSide>,
    capabilities: Capabilities,
}

impl Loaded {
    pub(crate) fn new(name: &str, driver: Box<dyn DriverSide>) -> Result<Self> {
        let capabilities = decode(name, "its capabilities", &driver.capabilities())?;
        Ok(Self { driver, capabilities })
    }
}

impl Plugin for Loaded {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn call(&self, request: Request, fds: Vec<OwnedFd>) -> BoxFuture<'static, Result<Value>> {
        let verb = request.verb.clone();
        let bytes = match encode(&request) {
            Ok(bytes) => bytes,
            Err(e) => return Box::pin(std::future::ready(Err(e))),
        };
        let work = self.driver.call(bytes, fds);
        Box::pin(async move {
            match work.await {
                Ok(bytes) => decode("the driver", &format!("its answer to `{verb}`"), &bytes),
                Err(bytes) => Err(decode_error(&format!("its answer to `{verb}`"), &bytes)),
            }
        })
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        self.driver.shutdown()
    }
}

pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(message)
        .map_err(|e| Error::bug(format!("a message of the contract does not encode: {e}")))
}

/// Decodes what a driver said; what does not decode is the driver's defect.
pub(crate) fn decode<T: DeserializeOwned>(who: &str, what: &str, bytes: &[u8]) -> Result<T> {
    if bytes.is_empty() {
        return Err(Error::bug(format!("{who} panicked in the SDK's glue; {what} is missing")));
    }
    serde_json::from_slice(bytes).map_err(|e| {
        let head: String = String::from_utf8_lossy(bytes).chars().take(200).collect();
        Error::bug(format!("{who} answered nonsense: {what} does not decode: {e}")).with("answer", head)
    })
}

/// The error in a driver's answer.
pub(crate) fn decode_error(what: &str, bytes: &[u8]) -> Error {
    decode::<Error>("the driver", what, bytes).unwrap_or_else(|nonsense| nonsense)
}
