//! The store as a simulated manager sees it: the rows that survive it, with the stage at every commit.

use std::sync::Arc;

use async_trait::async_trait;
use tandem_contract::{InstanceId, OpId, ResourceId};
use tandem_manager::clock::Timestamp;
use tandem_manager::model::{AccessRule, Instance, Operation, Quota, Share, ShareType, Usage};
use tandem_manager::oplog::Logged;
use tandem_manager::store::memory::MemoryStore;
use tandem_manager::store::{Batch, Family, InstanceQuery, OperationQuery, Page, Result, ShareQuery, Store};
use uuid::Uuid;

use super::stage::Stage;

/// The store of one life.
pub struct StagedStore {
    rows: Arc<MemoryStore>,
    stage: Arc<Stage>,
}

impl StagedStore {
    /// The store of one life.
    pub fn new(rows: Arc<MemoryStore>, stage: Arc<Stage>) -> Self {
        Self { rows, stage }
    }
}

macro_rules! reads {
    ($($name:ident($($arg:ident: $ty:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Store for StagedStore {
            async fn commit(&self, batch: Batch) -> Result<()> {
                self.stage.yields().await;
                let commit = self.stage.before_commit(&batch).await;
                self.rows.commit(batch.clone()).await?;
                self.stage.after_commit(commit, &batch).await;
                Ok(())
            }
            $(async fn $name(&self, $($arg: $ty),*) -> Result<$answer> {
                self.stage.yields().await;
                self.rows.$name($($arg),*).await
            })*
        }
    };
}

reads! {
    family(share: ResourceId) -> Family;
    share(id: ResourceId) -> Option<Share>;
    shares(query: &ShareQuery) -> Page<Share>;
    instance(id: InstanceId) -> Option<Instance>;
    instances(query: &InstanceQuery) -> Page<Instance>;
    rule(id: Uuid) -> Option<AccessRule>;
    rules(share: ResourceId) -> Vec<AccessRule>;
    share_types() -> Vec<ShareType>;
    share_type(id: Uuid) -> Option<ShareType>;
    quota(project: &str) -> Option<Quota>;
    usage(project: &str) -> Usage;
    operation(id: OpId) -> Option<Operation>;
    operations(query: &OperationQuery) -> Vec<Operation>;
    unfinished() -> Vec<Operation>;
    log(op: OpId) -> Vec<Logged>;
    log_from(position: i64, limit: u32) -> Vec<(i64, Logged)>;
    prune(before: Timestamp) -> u64;
    following() -> Vec<ResourceId>;
    promised() -> Vec<(String, u64)>;
}
