//! The glue between the binary interface and the dispatcher: bytes, the library's own runtime, no panic outwards.

use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tandem_abi::{Answer, DriverSide, HostSide, Library, Opened};
use tandem_contract::{Error, Opening, Request, Result, Signal};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tracing::Instrument;

use crate::log::{self, Route};
use crate::{BoxFuture, Dispatcher, Host, Wired};

/// A driver's library, for [`export_driver!`](crate::export_driver).
pub struct Exported<D>(PhantomData<fn() -> D>);

impl<D: Wired> Library for Exported<D> {
    fn manifest() -> Vec<u8> {
        encode(&Dispatcher::<D>::manifest())
    }

    fn open(host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'static, Opened> {
        let host: Arc<dyn Host> = Arc::new(RemoteHost(Arc::from(host)));
        let work = async move {
            let opening: Opening = decode(&opening)?;
            log::install(&opening.log);
            let route = Route::new(&host, None);
            let span = tracing::info_span!("driver_open", tandem_log_key = route.key);
            let dispatcher =
                Dispatcher::<D>::open(Arc::clone(&host), opening.settings).instrument(span).await?;
            Ok(Opener { dispatcher: Some(Arc::new(dispatcher)), host })
        };
        let work = on_runtime(D::NAME, work);
        Box::pin(async move {
            work.await.map(|opened| Box::new(opened) as Box<dyn DriverSide>).map_err(|e| encode(&e))
        })
    }
}

/// An opened driver, behind the interface.
struct Opener<D: Wired> {
    /// `Some` until it is dropped.
    dispatcher: Option<Arc<Dispatcher<D>>>,
    host: Arc<dyn Host>,
}

impl<D: Wired> DriverSide for Opener<D> {
    fn capabilities(&self) -> Vec<u8> {
        self.dispatcher.as_ref().map(|d| encode(d.capabilities())).unwrap_or_default()
    }

    fn call(&self, request: Vec<u8>, fds: Vec<OwnedFd>) -> BoxFuture<'static, Answer> {
        let started = self.start(&request, fds);
        Box::pin(async move {
            let answer = match started {
                Ok(work) => work.await,
                Err(e) => Err(e),
            };
            answer.map(|value| encode(&value)).map_err(|e| encode(&e))
        })
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        let Some(dispatcher) = self.dispatcher.clone() else { return Box::pin(std::future::ready(())) };
        let work = on_runtime(D::NAME, async move {
            dispatcher.shutdown().await;
            Ok(())
        });
        Box::pin(async move {
            // All that can fail here is the runtime, and then nothing runs any more.
            let _ = work.await;
        })
    }
}

impl<D: Wired> Opener<D> {
    /// Starts a call on the library's runtime. It counts as running once this returns.
    fn start(
        &self,
        request: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<impl Future<Output = Result<Value>> + Send + 'static + use<D>> {
        let request: Request = decode(request)?;
        let Some(dispatcher) = &self.dispatcher else {
            return Err(Error::unavailable("the driver was shut down"));
        };
        let route = Route::new(&self.host, Some(request.delivery));
        let span = tracing::error_span!("driver_call", tandem_log_key = route.key);
        let call = span.in_scope(|| dispatcher.call(request, fds));
        let work = async move {
            let _route = route;
            call.await
        };
        Ok(on_runtime(D::NAME, work.instrument(span)))
    }
}

impl<D: Wired> Drop for Opener<D> {
    fn drop(&mut self) {
        // The driver's own `drop` may panic or block: never on the host's thread.
        if let (Some(dispatcher), Ok(runtime)) = (self.dispatcher.take(), runtime(D::NAME)) {
            runtime.spawn_blocking(move || drop(dispatcher));
        }
    }
}

/// A driver that is linked into the host's process: for simulations. Calls run where they are polled, on the host's
/// runtime and clock; every report of progress is sent; logs are the process's own.
pub struct InProcess<D>(PhantomData<fn() -> D>);

impl<D: Wired> Library for InProcess<D> {
    fn manifest() -> Vec<u8> {
        encode(&Dispatcher::<D>::manifest())
    }

    fn open(host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'static, Opened> {
        Box::pin(async move {
            let opening: Opening = decode(&opening).map_err(|e| encode(&e))?;
            let host = Arc::new(RemoteHost(Arc::from(host)));
            let opened = Dispatcher::<D>::open(host, opening.settings).await.map_err(|e| encode(&e))?;
            Ok(Box::new(Linked(Arc::new(opened.progress_every(Duration::ZERO)))) as Box<dyn DriverSide>)
        })
    }
}

struct Linked<D>(Arc<Dispatcher<D>>);

impl<D: Wired> DriverSide for Linked<D> {
    fn capabilities(&self) -> Vec<u8> {
        encode(self.0.capabilities())
    }

    fn call(&self, request: Vec<u8>, fds: Vec<OwnedFd>) -> BoxFuture<'static, Answer> {
        let started = decode(&request).map(|request| self.0.call(request, fds));
        Box::pin(async move {
            let answer = match started {
                Ok(work) => work.await,
                Err(e) => Err(e),
            };
            answer.map(|value| encode(&value)).map_err(|e| encode(&e))
        })
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        let dispatcher = Arc::clone(&self.0);
        Box::pin(async move { dispatcher.shutdown().await })
    }
}

/// The host, behind the interface.
struct RemoteHost(Arc<dyn HostSide>);

impl Host for RemoteHost {
    fn signal(&self, signal: Signal) {
        self.0.signal(encode(&signal));
    }

    fn call(&self, call: Value) -> BoxFuture<'static, Result<Value>> {
        let work = self.0.call(encode(&call));
        Box::pin(async move {
            match work.await {
                Ok(bytes) => decode(&bytes),
                Err(bytes) if bytes.is_empty() => {
                    Err(Error::bug("the host panicked in a call of the driver"))
                }
                Err(bytes) => Err(decode::<Error>(&bytes)?),
            }
        })
    }
}

/// The library's runtime: `tokio` does not cross a shared library. Two workers, since a driver mostly waits for tools
/// and disks; what blocks has threads of its own.
fn runtime(name: &str) -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build())
        .as_ref()
        .map_err(|e| Error::unavailable(format!("the driver's threads could not be started: {e}")))
}

/// Runs `work` on the library's runtime; dropping the answer stops it.
fn on_runtime<T: Send + 'static>(
    name: &'static str,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> impl Future<Output = Result<T>> + Send + 'static {
    let spawned = runtime(name).map(|runtime| AbortOnDrop(runtime.spawn(work)));
    async move {
        let mut task = spawned?;
        match (&mut task.0).await {
            Ok(done) => done,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => Err(crate::guard::bug("the SDK", panic)),
                Err(_) => Err(Error::cancelled("the driver is shutting down")),
            },
        }
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Messages of the contract are plain data and always encode; no bytes mean a defect to the other side.
fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T> {
    serde_json::from_slice(message)
        .map_err(|e| Error::bug(format!("a message of the host does not decode: {e}")))
}
