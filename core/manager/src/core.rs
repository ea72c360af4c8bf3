//! What every part of the manager shares.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tandem_contract::{InstanceId, ResourceId};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backends::Backends;
use crate::board::Board;
use crate::clock::SharedClock;
use crate::denied::Denied;
use crate::draft::Draft;
use crate::face::Settings;
use crate::kept::Kept;
use crate::keyed::Keyed;
use crate::model::{Intent, ShareType};
use crate::queue::Queue;
use crate::store::{Family, SharedStore, StoreError};

/// Compare-and-set losers read again this many times before they give up; each loss means that another writer won.
const MOST_TRIES: u32 = 1000;

/// What every part of the manager shares.
pub(crate) struct Core {
    pub store: SharedStore,
    /// Answers that are kept while nothing is written.
    pub kept: Arc<Kept>,
    pub clock: SharedClock,
    pub backends: Backends,
    pub board: Board,
    pub settings: Settings,
    pub queue: Queue,
    /// Keeps two calls that make or release points of one instance from overlapping.
    pub points: Keyed<InstanceId>,
    /// Keeps two calls that apply the rules of one instance from overtaking each other.
    pub rules: Keyed<InstanceId>,
    /// Every task of the manager, so that a stop can wait for them.
    pub tasks: TaskTracker,
    /// Content checks that run at once.
    pub checks: Arc<Semaphore>,
    /// Wakes the runner: something was admitted, or ended.
    pub wake: Notify,
    /// Whether everything that a crash interrupted is in the queue.
    pub recovered: AtomicBool,
    /// Ends every task of the manager.
    pub stop: CancellationToken,
}

/// Shared by every task.
pub(crate) type SharedCore = Arc<Core>;

impl Core {
    /// Changes a share's family of rows: reads, lets `change` decide, writes with compare-and-set, and reads again
    /// when another writer won. `change` may run several times; it must be pure.
    pub async fn change<T>(
        &self,
        share: ResourceId,
        change: impl FnMut(&mut Draft) -> Result<T, Denied>,
    ) -> Result<T, Denied> {
        self.change_in(share, "", change).await
    }

    /// The same where the share may not exist yet: `project` is who pays for it.
    pub async fn change_in<T>(
        &self,
        share: ResourceId,
        project: &str,
        mut change: impl FnMut(&mut Draft) -> Result<T, Denied>,
    ) -> Result<T, Denied> {
        for attempt in 0..MOST_TRIES {
            let family = self.store.family(share).await?;
            let mut draft = self.draft(family, project).await?;
            let answer = change(&mut draft)?;
            let batch = draft.finish();
            if batch.is_empty() {
                return Ok(answer);
            }
            let operations = batch.operations.clone();
            match self.store.commit(batch).await {
                Ok(()) => {
                    self.board.watched.forget(share);
                    for op in &operations {
                        self.queue.note(op);
                        let changes =
                            matches!(op.intent, Intent::CreateReplica { .. } | Intent::Promote { .. });
                        if changes && op.status.is_finished() {
                            self.board.look_at(share);
                        }
                    }
                    self.wake.notify_one();
                    return Ok(answer);
                }
                Err(StoreError::Conflict(what)) => {
                    tracing::trace!(attempt, what, "Lost a compare-and-set; reading again.");
                    tokio::task::yield_now().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict(format!("share {share}")).into())
    }

    /// A draft of what was read; `project` pays where the share does not exist yet.
    pub(crate) async fn draft(&self, family: Family, project: &str) -> Result<Draft, StoreError> {
        let project = family.share.as_ref().map_or(project, |s| s.project_id.as_str()).to_owned();
        let usage = self.store.usage(&project).await?;
        let quota = self.store.quota(&project).await?;
        Ok(Draft::new(family, usage, quota, self.clock.now()))
    }

    /// The share that an instance belongs to.
    pub async fn share_of(&self, instance: InstanceId) -> Result<ResourceId, Denied> {
        Ok(self.store.instance(instance).await?.ok_or(Denied::NoInstance(instance))?.share_id)
    }

    /// Whether the zone exists and the type allows it.
    pub fn check_zone(&self, zone: Option<&str>, share_type: &ShareType) -> Result<(), Denied> {
        let Some(zone) = zone else { return Ok(()) };
        if !self.backends.zones().iter().any(|z| z == zone) {
            return Err(Denied::NoZone(zone.to_owned()));
        }
        match share_type.extra_specs.get("availability_zones") {
            Some(allowed) if !allowed.split(',').any(|a| a.trim() == zone) => {
                Err(Denied::NoZone(zone.to_owned()))
            }
            _ => Ok(()),
        }
    }
}
