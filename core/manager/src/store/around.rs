//! A store with something around its commits.

use async_trait::async_trait;
use tandem_contract::{InstanceId, OpId, ResourceId};
use uuid::Uuid;

use super::{Batch, Family, InstanceQuery, OperationQuery, Page, Result, ShareQuery, SharedStore, Store};
use crate::clock::Timestamp;
use crate::model::{AccessRule, Instance, Operation, Quota, Share, ShareType, Usage};
use crate::oplog::Logged;

/// What happens around a commit.
#[async_trait]
pub(crate) trait Commits: Send + Sync + 'static {
    /// Commits a batch to the store, or not.
    async fn commit(&self, store: &dyn Store, batch: Batch) -> Result<()>;
}

/// A store with something around its commits; everything else is the store's own.
pub(crate) struct Around<C> {
    pub store: SharedStore,
    pub commits: C,
}

#[async_trait]
impl<C: Commits> Store for Around<C> {
    async fn commit(&self, batch: Batch) -> Result<()> {
        self.commits.commit(self.store.as_ref(), batch).await
    }
    async fn family(&self, share: ResourceId) -> Result<Family> {
        self.store.family(share).await
    }
    async fn share(&self, id: ResourceId) -> Result<Option<Share>> {
        self.store.share(id).await
    }
    async fn shares(&self, query: &ShareQuery) -> Result<Page<Share>> {
        self.store.shares(query).await
    }
    async fn instance(&self, id: InstanceId) -> Result<Option<Instance>> {
        self.store.instance(id).await
    }
    async fn instances(&self, query: &InstanceQuery) -> Result<Page<Instance>> {
        self.store.instances(query).await
    }
    async fn rule(&self, id: Uuid) -> Result<Option<AccessRule>> {
        self.store.rule(id).await
    }
    async fn rules(&self, share: ResourceId) -> Result<Vec<AccessRule>> {
        self.store.rules(share).await
    }
    async fn share_types(&self) -> Result<Vec<ShareType>> {
        self.store.share_types().await
    }
    async fn share_type(&self, id: Uuid) -> Result<Option<ShareType>> {
        self.store.share_type(id).await
    }
    async fn quota(&self, project: &str) -> Result<Option<Quota>> {
        self.store.quota(project).await
    }
    async fn usage(&self, project: &str) -> Result<Usage> {
        self.store.usage(project).await
    }
    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        self.store.operation(id).await
    }
    async fn operations(&self, query: &OperationQuery) -> Result<Vec<Operation>> {
        self.store.operations(query).await
    }
    async fn unfinished(&self) -> Result<Vec<Operation>> {
        self.store.unfinished().await
    }
    async fn log(&self, op: OpId) -> Result<Vec<Logged>> {
        self.store.log(op).await
    }
    async fn log_from(&self, position: i64, limit: u32) -> Result<Vec<(i64, Logged)>> {
        self.store.log_from(position, limit).await
    }
    async fn prune(&self, before: Timestamp) -> Result<u64> {
        self.store.prune(before).await
    }
    async fn following(&self) -> Result<Vec<ResourceId>> {
        self.store.following().await
    }
    async fn promised(&self) -> Result<Vec<(String, u64)>> {
        self.store.promised().await
    }
}
