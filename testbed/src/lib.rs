//! Scenarios, simulations, benchmarks and end-to-end tests.
//!
//! What the tests share: chance that repeats ([`chance`]), real processes that end with their owner ([`server`]), the stock client ([`client`]), real
//! trees of files and an independent judge of them ([`tree`]), and waiting for conditions ([`wait`]). Scenarios that
//! speak HTTP themselves use [`api`]; real kills and what must be true after them are in [`kill`].
//! A host of its own, with ZFS and NFS and a power switch, is a [`site`]; with LVM and DRBD, a [`house`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "everything here runs in tests, where a panic is a failed test with its reason"
)]

pub mod api;
pub mod artifacts;
pub mod bench;
pub mod chance;
pub mod client;
pub mod far;
pub mod house;
pub mod kill;
mod moves;
mod rest;
pub mod server;
pub mod sim;
pub mod site;
pub mod tree;
pub mod wait;
