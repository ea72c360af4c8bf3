//! The cases, by what they are about. Each is an `async fn` of a [`Scene`](crate::scene::Scene).

pub(crate) mod access;
pub(crate) mod calls;
pub(crate) mod convert;
pub(crate) mod instances;
pub(crate) mod migration;
pub(crate) mod prints;
pub(crate) mod roles;
pub(crate) mod storage;
pub(crate) mod streams;
pub(crate) mod what;
