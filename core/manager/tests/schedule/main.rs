//! Placement: tables of the language of extra specs and of each filter, and what holds of all requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod filters;
mod pools;
mod properties;
mod specs;
