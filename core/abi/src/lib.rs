//! The frozen binary interface between Tandem and its drivers: the only crate that names `abi_stable` and `async-ffi`.
//!
//! Both sides see plain Rust: a driver's library implements [`Library`], the host implements [`HostSide`], and each
//! meets the other as a boxed trait object. What crosses is JSON of the contract as bytes, and file descriptors, which
//! the callee owns. No panic crosses: a call that panics answers `Err` with no bytes.
//!
//! Generations: [`v1`] is frozen once drivers of very different kinds pass; from then on a change is a module `v2`.

mod load;
mod probe;
mod sides;
pub mod v1;

pub use load::{LoadError, Module};
pub use probe::{GENERATION, Probe};
pub use sides::{Answer, BoxFuture, DriverSide, HostSide, Library, Opened};
