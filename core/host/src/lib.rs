//! Finds, checks, opens and calls drivers.
//!
//! ```text
//! discover ── Library ── open ──▶ Backend ── call::<Verb>(cx, args) ──▶ reply
//!                                   │
//!            trace ▸ retry ▸ deadline (and gate) ▸ repeat ▸ chaos ▸ delivery ▸ Plugin
//! ```
//!
//! [`discover()`] looks through a folder and refuses what it does not trust, a sentence each. [`Backend`] is one opened
//! driver with its layers; whatever the driver does (panic, hang, nonsense) becomes an error of that call. [`remote`]
//! opens drivers in other processes and on other hosts, with the same layers. Nothing in here knows what a driver stores.

mod backend;
mod context;
mod discover;
mod gate;
mod layers;
mod library;
mod plugin;
pub mod remote;
mod router;
mod settings;
mod transfer;

pub use backend::{Backend, BackendReport, Options};
pub use context::{CallContext, OnCheckpoint, OnProgress};
pub use discover::{Discovery, Refusal, discover};
pub use gate::HungCall;
pub use layers::{Chaos, ChaosRule, Deadlines, Fault, RetryPolicy};
pub use library::Library;
pub use plugin::{BoxFuture, Plugin};
pub use remote::FarDriver;
pub use settings::{SettingsError, check_settings};
pub use transfer::{Transferred, transfer};
