//! The model driver: keeps instances as small maps, in memory or in a folder, and obeys every law of the contract.
//!
//! Simulations link it in process: a [`World`] is the storage of any number of back ends, and outlives every driver
//! opened on it, as disks outlive a server. Tests write and read through the world as users do, script faults, cut
//! hosts off, and look at what happened. As a loaded library it keeps its world in a folder, so that it survives
//! `kill -9`; what it serves are real folders of plain files there.
//!
//! It shows that the contract is not shaped to folders: `mode: streamed` has points and streams, `mode: storage`
//! replicates by itself. No threads, no clock of its own, no randomness: a run is repeatable.

mod arbiter;
mod config;
mod driver;
mod fault;
mod folder;
mod hex;
mod inspect;
mod instance;
mod migration;
mod observe;
mod peers;
mod replication;
mod streams;
mod world;

pub use arbiter::Claimant;
pub use config::{Config, Mode, Promises};
pub use driver::Fake;
pub use fault::{Fault, What};
pub use inspect::Inspected;
pub use world::{Data, Event, World, Write, WriteRefused};

tandem_sdk::export_driver!(Fake: Attachable, Replication, Quiescable, Streamed, Verifiable, Reachable, StorageReplicated, Migration);
