//! Plain data of Tandem's driver contract: what a manager asks of a driver and what a driver answers.
//!
//! Everything here is data that serialises to JSON. The same messages cross the binary interface, run over a
//! socket to a driver host, and stand in the operation log. The crate is **additive only**: fields that join carry
//! `#[serde(default)]`, enums that cross the boundary have an arm for what they do not know, and a new verb stands
//! behind a feature name in the [`Manifest`]. The numbered laws are in `docs/contract.md`.

mod access;
mod call;
mod capability;
mod error;
mod id;
mod instance;
mod manifest;
mod migration;
mod progress;
mod replica;

pub use access::*;
pub use call::*;
pub use capability::*;
pub use error::*;
pub use id::*;
pub use instance::*;
pub use manifest::*;
pub use migration::*;
pub use progress::*;
pub use replica::*;

/// The contract this crate describes, as (major, minor). A minor step only adds.
pub const CONTRACT_VERSION: (u32, u32) = (1, 0);
