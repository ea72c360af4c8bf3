//! What every driver does: keep instances.

use std::future::Future;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use tandem_contract::{
    AccessReport, Attach, Attachment, Capabilities, CreateInstance, DeleteInstance, Detach, EnsureInstance,
    InstanceId, InstanceInfo, Observation, ObserveInstance, Outcome, Pool, ResizeInstance, Result,
    UpdateAccess,
};

use crate::{News, OpContext};

/// A driver: one opened back end. Write plain `async fn`s.
///
/// # Laws
/// The numbered laws of `docs/contract.md` hold for every method of every ability; the conformance suite checks them.
/// In short: a call may come any number of times, and a repeat of a finished one answers [`Outcome::Unchanged`]; the
/// same call with other arguments is a `Conflict`; an epoch lower than the last seen is `StaleEpoch`; nothing is kept
/// in memory between calls, since the next one may reach another process; a call that is cancelled or dropped stops
/// within seconds and leaves what [`observe_instance`](Self::observe_instance) can describe.
///
/// Verbs arrive as structs, so that an argument that joins the contract changes no signature.
pub trait Driver: Sized + Send + Sync + 'static {
    /// The name that settings call it by, lower case (`directory`, `zfs`).
    const NAME: &'static str;
    /// The driver's own version: `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str;
    /// One sentence on what it is.
    const SUMMARY: &'static str;
    /// Kinds and highest versions of the resume tokens it can read; empty without resumable transfers.
    const TOKENS: &'static [(&'static str, u32)] = &[];
    /// Its settings. The schema is derived; doc comments become descriptions. Put
    /// `#[serde(deny_unknown_fields)]` on it, so that a misspelt key is refused.
    type Config: DeserializeOwned + JsonSchema + Send;

    /// Checks the settings against the storage and returns the driver. Serves nothing yet: exports and mounts come
    /// with `ensure_instance`, once the manager has confirmed the epoch.
    fn open(config: Self::Config) -> impl Future<Output = Result<Self>> + Send;

    /// What it can do, with these settings. An ability that is claimed here must be listed in
    /// [`export_driver!`](crate::export_driver); one that is listed and not claimed is answered `Unsupported`.
    fn capabilities(&self) -> Capabilities;

    /// Tells of what changes by itself, for as long as the driver is open; it is stopped by being dropped. Without it such a
    /// change is seen when the manager looks, half an `rpo_seconds` later at most.
    fn watch(&self, news: News) -> impl Future<Output = ()> + Send {
        drop(news);
        std::future::ready(())
    }

    /// The pools, with their room. Quick.
    fn pools(&self, cx: &OpContext) -> impl Future<Output = Result<Vec<Pool>>> + Send;

    /// Every instance kept for Tandem, leftovers included.
    fn list_instances(&self, cx: &OpContext) -> impl Future<Output = Result<Vec<InstanceId>>> + Send;

    /// What is really there; `None` when nothing is, not even a leftover.
    fn observe_instance(
        &self,
        cx: &OpContext,
        call: ObserveInstance,
    ) -> impl Future<Output = Result<Option<Observation>>> + Send;

    /// Makes an empty active instance and serves it. With other arguments than the existing one's: `Conflict`.
    fn create_instance(
        &self,
        cx: &OpContext,
        call: CreateInstance,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send;

    /// Grows or shrinks it. A size below what is used is refused, and nothing is lost.
    fn resize_instance(
        &self,
        cx: &OpContext,
        call: ResizeInstance,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send;

    /// Removes it and everything on the storage that belongs to it. Removing what is not there is `Unchanged`.
    fn delete_instance(
        &self,
        cx: &OpContext,
        call: DeleteInstance,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// Makes exactly these rules hold.
    fn update_access(
        &self,
        cx: &OpContext,
        call: UpdateAccess,
    ) -> impl Future<Output = Result<Outcome<AccessReport>>> + Send;

    /// Serves it again as its role says, after a boot.
    fn ensure_instance(
        &self,
        cx: &OpContext,
        call: EnsureInstance,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send;
}

/// Gives the manager a path for the host-assisted copy. Claimed by `Capabilities::attach`.
pub trait Attachable: Driver {
    /// Makes the instance's content reachable at a path on this host, read-only where asked.
    fn attach(
        &self,
        cx: &OpContext,
        call: Attach,
    ) -> impl Future<Output = Result<Outcome<Attachment>>> + Send;

    /// Takes that path away. Detaching what is not attached is `Unchanged`.
    fn detach(&self, cx: &OpContext, call: Detach) -> impl Future<Output = Result<Outcome<()>>> + Send;
}
