//! Generation 1. Once frozen: never edit; a change is a new module.
#![allow(
    unsafe_code,                 // file descriptors and the loader's symbol
    non_local_definitions,       // what the macros of abi_stable write
    non_camel_case_types,
    unreachable_pub,
    missing_docs
)]

use std::future::Future;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

use abi_stable::library::{
    __call_root_module_loader, CheckTypeLayout, LibHeader, RootModule, RootModuleResult,
};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RBox, RResult, RVec};
use abi_stable::{StableAbi, sabi_trait};
use async_ffi::{FfiFuture, FutureExt};

use crate::{Answer, BoxFuture, DriverSide, HostSide, Library};

/// One JSON document.
pub type Bytes = RVec<u8>;
/// A document, or a contract error as one.
pub type FfiAnswer = FfiFuture<RResult<Bytes, Bytes>>;

/// The host, as a driver holds it.
#[sabi_trait]
pub trait HostAbi: Send + Sync {
    fn signal(&self, signal: Bytes);
    #[sabi(last_prefix_field)]
    fn call(&self, call: Bytes) -> FfiAnswer;
}

/// An opened driver, as the host holds it.
#[sabi_trait]
pub trait DriverAbi: Send + Sync {
    fn capabilities(&self) -> Bytes;
    fn call(&self, request: Bytes, fds: RVec<i32>) -> FfiAnswer;
    #[sabi(last_prefix_field)]
    fn shutdown(&self) -> FfiFuture<()>;
}

pub type Host = HostAbi_TO<'static, RBox<()>>;
pub type Driver = DriverAbi_TO<'static, RBox<()>>;

/// The entry points of a library.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = DriverModule_Ref)))]
pub struct DriverModule {
    pub manifest: extern "C" fn() -> Bytes,
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(host: Host, opening: Bytes) -> FfiFuture<RResult<Driver, Bytes>>,
}

impl RootModule for DriverModule_Ref {
    abi_stable::declare_root_module_statics! {DriverModule_Ref}
    const BASE_NAME: &'static str = "tandem_driver";
    const NAME: &'static str = "tandem_driver";
    // The generation's, not this crate's: the crate may move on while the generation stays.
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}

/// A library's loader symbol: `export_driver!` puts it under the name that `abi_stable` looks for.
pub type Header = LibHeader;

/// The header of a driver's library.
pub const fn header<L: Library>() -> Header {
    // SAFETY: `constructor` answers a `DriverModule_Ref`, the type named here.
    unsafe { LibHeader::from_constructor::<DriverModule_Ref>(constructor::<L>, CheckTypeLayout::Yes) }
}

extern "C" fn constructor<L: Library>() -> RootModuleResult {
    fn module<L: Library>() -> DriverModule_Ref {
        DriverModule { manifest: manifest::<L>, open: open::<L> }.leak_into_prefix()
    }
    __call_root_module_loader(module::<L>)
}

extern "C" fn manifest<L: Library>() -> Bytes {
    no_panic(|| Bytes::from(L::manifest())).unwrap_or_default()
}

extern "C" fn open<L: Library>(host: Host, opening: Bytes) -> FfiFuture<RResult<Driver, Bytes>> {
    let work = no_panic(|| L::open(Box::new(RemoteHost(host)), opening.into_vec()));
    async move {
        match work {
            Some(work) => match no_panic_in(work).await {
                Some(Ok(driver)) => {
                    RResult::ROk(DriverAbi_TO::from_value(LocalDriver(driver), sabi_trait::TD_Opaque))
                }
                Some(Err(error)) => RResult::RErr(error.into()),
                None => RResult::RErr(Bytes::new()),
            },
            None => RResult::RErr(Bytes::new()),
        }
    }
    .into_ffi()
}

/// This side's driver, as the other side calls it.
struct LocalDriver(Box<dyn DriverSide>);

impl DriverAbi for LocalDriver {
    fn capabilities(&self) -> Bytes {
        no_panic(|| self.0.capabilities().into()).unwrap_or_default()
    }
    fn call(&self, request: Bytes, fds: RVec<i32>) -> FfiAnswer {
        // SAFETY: the caller hands each descriptor over and keeps none: `RemoteDriver::call`.
        let fds = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
        answer(no_panic(|| self.0.call(request.into_vec(), fds)))
    }
    fn shutdown(&self) -> FfiFuture<()> {
        let work = no_panic(|| self.0.shutdown());
        async move {
            if let Some(work) = work {
                no_panic_in(work).await;
            }
        }
        .into_ffi()
    }
}

/// This side's host, as the other side calls it.
struct LocalHost(Box<dyn HostSide>);

impl HostAbi for LocalHost {
    fn signal(&self, signal: Bytes) {
        no_panic(|| self.0.signal(signal.into_vec()));
    }
    fn call(&self, call: Bytes) -> FfiAnswer {
        answer(no_panic(|| self.0.call(call.into_vec())))
    }
}

/// The other side's driver.
pub(crate) struct RemoteDriver(pub(crate) Driver);

impl DriverSide for RemoteDriver {
    fn capabilities(&self) -> Vec<u8> {
        self.0.capabilities().into_vec()
    }
    fn call(&self, request: Vec<u8>, fds: Vec<OwnedFd>) -> BoxFuture<'static, Answer> {
        let fds = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
        let work = self.0.call(request.into(), fds);
        Box::pin(async move { work.await.into_result().map(Bytes::into_vec).map_err(Bytes::into_vec) })
    }
    fn shutdown(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.0.shutdown())
    }
}

/// The other side's host.
struct RemoteHost(Host);

impl HostSide for RemoteHost {
    fn signal(&self, signal: Vec<u8>) {
        self.0.signal(signal.into());
    }
    fn call(&self, call: Vec<u8>) -> BoxFuture<'static, Answer> {
        let work = self.0.call(call.into());
        Box::pin(async move { work.await.into_result().map(Bytes::into_vec).map_err(Bytes::into_vec) })
    }
}

/// Opens a back end of a loaded library.
pub(crate) async fn open_remote(
    module: DriverModule_Ref,
    host: Box<dyn HostSide>,
    opening: Vec<u8>,
) -> Result<RemoteDriver, Vec<u8>> {
    let host = HostAbi_TO::from_value(LocalHost(host), sabi_trait::TD_Opaque);
    match module.open()(host, opening.into()).await {
        RResult::ROk(driver) => Ok(RemoteDriver(driver)),
        RResult::RErr(error) => Err(error.into_vec()),
    }
}

fn answer(work: Option<BoxFuture<'static, Answer>>) -> FfiAnswer {
    async move {
        let done = match work {
            Some(work) => no_panic_in(work).await,
            None => None,
        };
        match done {
            Some(Ok(bytes)) => RResult::ROk(bytes.into()),
            Some(Err(bytes)) => RResult::RErr(bytes.into()),
            None => RResult::RErr(Bytes::new()),
        }
    }
    .into_ffi()
}

/// Runs `work`; `None` when it panics. A panic that left an `extern "C"` function would end the process.
fn no_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    // What `work` borrowed is not looked at again once it has panicked.
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Awaits `work`; `None` when it panics.
async fn no_panic_in<T>(mut work: BoxFuture<'static, T>) -> Option<T> {
    std::future::poll_fn(move |cx| match no_panic(|| Future::poll(work.as_mut(), cx)) {
        Some(Poll::Ready(done)) => Poll::Ready(Some(done)),
        Some(Poll::Pending) => Poll::Pending,
        None => Poll::Ready(None),
    })
    .await
}
