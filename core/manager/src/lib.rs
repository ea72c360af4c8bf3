//! One manager for shares and servers: admission, the operation log, plans, the runner, recovery, reconciliation and
//! placement. Generic: it knows no storage technology and no HTTP.
//!
//! The way of a request: [`Manager`] admits it (one transaction writes the new status **and** the operation that owns
//! it), a runner claims the operation, a pure plan turns it into steps, and each step is logged before and after its
//! driver call. What a crash interrupts, the next start carries on.

mod admission;
mod backends;
mod board;
mod chores;
pub mod clock;
mod core;
mod denied;
mod doctor;
mod draft;
mod face;
pub mod ids;
mod kept;
mod keyed;
mod lag;
mod manager;
pub mod model;
pub mod oplog;
pub mod plan;
mod queue;
mod reconcile;
mod run;
pub mod schedule;
#[cfg(test)]
mod states_doc;
pub mod store;
mod watched;

pub use backends::{BackendConfig, OpenBackend};
pub use denied::Denied;
pub use face::*;
pub use kept::{Kept, Quiet};
pub use manager::Manager;
