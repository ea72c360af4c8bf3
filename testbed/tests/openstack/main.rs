//! The OpenStack API, held against what a real Manila answered, and against nonsense.
//!
//! A whole server runs in this process: the router, the manager with its store in memory, and the model driver
//! linked in. [`replay`] sends every recorded request and compares; [`clients`] those of the stock clients; [`fuzz`] sends mutations of them;
//! [`coverage`] holds `docs/openstack.md` against the table of routes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // helpers of tests are tests

mod clients;
mod compare;
mod coverage;
mod differences;
mod fuzz;
mod migration;
mod record;
mod replay;
mod server;
