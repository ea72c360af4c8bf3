//! Everything HTTP: Manila's API, Tandem's own API.
//!
//! A request passes, in Manila's order: request id, size limit, authentication, route, microversion, body,
//! project of the path, version window, handler (which checks policy, parses and calls the manager).

mod app;
pub mod auth;
mod call;
mod discovery;
mod fault;
mod manila;
pub mod microversion;
pub mod native;
mod page;
pub mod policy;
mod python;
mod router;
mod routes;
mod watch;

pub use app::{App, Settings};
pub use router::router;
pub use routes::{calls, later_calls};
