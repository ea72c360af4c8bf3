//! All that a vendor needs to write a Tandem driver.
//!
//! A driver is a type that implements [`Driver`] and, one by one, the abilities its storage has: [`Replication`],
//! [`Streamed`] or [`StorageReplicated`], [`Quiescable`], [`Verifiable`], [`Attachable`], [`Migration`]. One line makes a loadable
//! library of it:
//!
//! ```ignore
//! tandem_sdk::export_driver!(MyDriver: Replication, Streamed);
//! ```
//!
//! Build the crate with `crate-type = ["cdylib"]`, put the `.so` into the server's folder of drivers, and prove it with
//! the conformance suite. `docs/writing-a-driver.md` tells the way from an empty crate; `docs/contract.md` holds the
//! laws.

mod ability;
mod attached;
pub mod command;
mod context;
mod dispatch;
mod driver;
mod export;
pub mod exporter;
pub mod files;
pub mod fingerprint;
mod guard;
mod host;
mod lock;
mod log;
mod migration;
mod news;
mod plugin;
mod replication;
pub mod settings;
mod stream;

#[doc(hidden)]
pub use ability::route;
pub use ability::{Ability, Incoming, Wired};
pub use attached::Attached;
pub use context::OpContext;
pub use dispatch::Dispatcher;
pub use driver::{Attachable, Driver};
pub use exporter::{Client, ExportSettings, Exporter};
pub use host::{BoxFuture, Host};
pub use lock::Lock;
pub use migration::Migration;
pub use news::News;
pub use plugin::InProcess;
pub use replication::{Quiescable, Reachable, Replication, StorageReplicated, Streamed, Verifiable};
pub use stream::Stream;

pub use schemars;
pub use serde_json::Value;
pub use tandem_contract as contract;
pub use tandem_contract::*;
pub use tandem_mirror as mirror;

/// What [`export_driver!`] writes names this; not for anybody else.
#[doc(hidden)]
pub mod glue {
    pub use crate::plugin::Exported;
    pub use tandem_abi::Probe;
    pub use tandem_abi::v1::{Header, header};
}
