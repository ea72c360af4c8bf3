//! Everything HTTP: Manila's API, Tandem's own API.
//!
//! A request passes, in Manila's order: request id, size limit, authentication, route, microversion, body,
//! project of the path, version window, handler (which checks policy, parses and calls the manager).

pub mod auth;
mod fault;
pub mod microversion;
mod page;
pub mod policy;
mod python;
mod watch;
