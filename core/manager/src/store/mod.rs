//! The store: rows with compare-and-set, and the append-only log, behind one trait.
//!
//! Everything is written by [`Store::commit`]: one [`Batch`], all or nothing, durable when it returns. Every row names
//! the version it was read at; a batch that would overwrite a newer row is refused whole with
//! [`StoreError::Conflict`], and the caller reads again. Nobody holds a lock between reading and writing.

pub(crate) mod around;
mod keys;
pub mod kill_at;
pub mod memory;
mod query;
pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use tandem_contract::{InstanceId, OpId, ResourceId};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::model::{AccessRule, Instance, Operation, Quota, Share, ShareType, Usage};
use crate::oplog::Logged;

pub(crate) use around::{Around, Commits};
pub use query::*;

/// Why the store could not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote first; read again.
    #[error("{0} was changed by another request meanwhile")]
    Conflict(String),
    /// A name that must be unique is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// The database fails; a sentence.
    #[error("the database fails: {0}")]
    Failed(String),
}

/// Result of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A row to be written at the version that it was read at (0: it must be new).
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// A share.
    Share(Box<Share>),
    /// An instance.
    Instance(Box<Instance>),
    /// A rule.
    Rule(Box<AccessRule>),
    /// A share type; its name is unique.
    Type(Box<ShareType>),
    /// A project's limits.
    Quota(Quota),
    /// What a project uses.
    Usage(Usage),
}

/// A row to be removed at the version that it was read at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// A share.
    Share(ResourceId, i64),
    /// An instance.
    Instance(InstanceId, i64),
    /// A rule.
    Rule(Uuid, i64),
    /// A share type.
    Type(Uuid, i64),
    /// A project's limits.
    Quota(String, i64),
}

/// What one commit writes. All or nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Rows to write.
    pub put: Vec<Row>,
    /// Rows to remove.
    pub gone: Vec<Gone>,
    /// Events to append; each must be the next of its operation, by `seq`.
    pub events: Vec<Logged>,
    /// Operations' rows as they are after those events; new or existing (checked by the events' numbers: an operation
    /// row is written only together with at least one event of it).
    pub operations: Vec<Operation>,
}

impl Batch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A share with everything that belongs to it, read at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Family {
    /// The share; `None` when there is none of that id.
    pub share: Option<Share>,
    /// Its instances, oldest first.
    pub instances: Vec<Instance>,
    /// Its rules, oldest first.
    pub rules: Vec<AccessRule>,
    /// Its type.
    pub share_type: Option<ShareType>,
    /// Its unfinished operations, oldest first.
    pub operations: Vec<Operation>,
}

/// Where everything durable is.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes a batch; durable when it returns.
    async fn commit(&self, batch: Batch) -> Result<()>;

    /// A share with everything that belongs to it, read at one moment.
    async fn family(&self, share: ResourceId) -> Result<Family>;
    /// One share.
    async fn share(&self, id: ResourceId) -> Result<Option<Share>>;
    /// Shares, by a query.
    async fn shares(&self, query: &ShareQuery) -> Result<Page<Share>>;
    /// One instance.
    async fn instance(&self, id: InstanceId) -> Result<Option<Instance>>;
    /// Instances, by a query; oldest first.
    async fn instances(&self, query: &InstanceQuery) -> Result<Page<Instance>>;
    /// One rule.
    async fn rule(&self, id: Uuid) -> Result<Option<AccessRule>>;
    /// The rules of a share, oldest first.
    async fn rules(&self, share: ResourceId) -> Result<Vec<AccessRule>>;
    /// Every share type, oldest first.
    async fn share_types(&self) -> Result<Vec<ShareType>>;
    /// One share type.
    async fn share_type(&self, id: Uuid) -> Result<Option<ShareType>>;
    /// A project's own limits.
    async fn quota(&self, project: &str) -> Result<Option<Quota>>;
    /// What a project uses; zeroes (version 0) when nothing was ever counted.
    async fn usage(&self, project: &str) -> Result<Usage>;
    /// One operation.
    async fn operation(&self, id: OpId) -> Result<Option<Operation>>;
    /// Operations, by a query; newest first.
    async fn operations(&self, query: &OperationQuery) -> Result<Vec<Operation>>;
    /// Every unfinished operation, oldest first.
    async fn unfinished(&self) -> Result<Vec<Operation>>;
    /// The log of one operation, in order.
    async fn log(&self, op: OpId) -> Result<Vec<Logged>>;
    /// The whole log in the order of commits, from a position on (exclusive, 0 for the start), at most `limit`
    /// events, each with its position.
    async fn log_from(&self, position: i64, limit: u32) -> Result<Vec<(i64, Logged)>>;
    /// Removes finished `sync` operations that ended before `before`, with their logs, except the newest of each
    /// instance. Answers how many.
    async fn prune(&self, before: Timestamp) -> Result<u64>;
    /// Every share that has an instance which is not active, or all of whose instances are to be: what the schedule of syncs looks
    /// after.
    async fn following(&self) -> Result<Vec<ResourceId>>;
    /// Bytes promised to instances on each pool (`host@backend#pool`), by the sizes of their shares.
    async fn promised(&self) -> Result<Vec<(String, u64)>>;
}

/// A shared store.
pub type SharedStore = Arc<dyn Store>;
