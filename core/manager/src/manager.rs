//! The manager: the one object that the APIs hold.
//!
//! Methods that change something admit a request: one transaction writes the new status and the operation that owns
//! it, and the answer is what the caller sees at that moment. None of them takes a step. Reads go to
//! [`Manager::store`]; what is not stored (room in pools, health, progress, lag) is asked of the manager.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tandem_contract::{AccessLevel, Epoch, InstanceId, OpId, Progress, ReplicaState, ResourceId};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::backends::Backends;
use crate::board::Board;
use crate::clock::SharedClock;
use crate::core::{Core, SharedCore};
use crate::denied::Denied;
use crate::face::{
    BackendView, Caller, Finding, Lag, MetadataChange, MigrationCheck, NewReplica, NewRule, NewShare,
    NewType, PoolView, Settings, ShareChange, TypeChange, Verdict,
};
use crate::kept::{Counting, Kept};
use crate::keyed::Keyed;
use crate::model::{
    AccessRule, Instance, InstanceStatus, MigrationRequest, Operation, Quota, Share, ShareType, TaskState,
};
use crate::queue::Queue;
use crate::store::{Around, SharedStore, Store};

/// The manager. Cheap to clone.
#[derive(Clone)]
pub struct Manager {
    core: SharedCore,
}

impl Manager {
    /// A manager over a store and back ends. It admits and answers at once; nothing runs before [`Manager::start`].
    pub fn new(
        store: SharedStore,
        clock: SharedClock,
        backends: Vec<crate::BackendConfig>,
        settings: Settings,
    ) -> Self {
        let backends = Backends::new(&settings.host, backends, settings.concurrent_syncs, clock.now());
        let kept = Arc::new(Kept::default());
        let store: SharedStore = Arc::new(Around { store, commits: Counting(Arc::clone(&kept)) });
        let core = Core {
            store,
            kept,
            clock,
            backends,
            board: Board::default(),
            checks: Arc::new(Semaphore::new(settings.verify.concurrent.max(1))),
            settings,
            queue: Queue::default(),
            points: Keyed::default(),
            rules: Keyed::default(),
            tasks: TaskTracker::new(),
            wake: Notify::new(),
            recovered: AtomicBool::new(false),
            stop: CancellationToken::new(),
        };
        Self { core: Arc::new(core) }
    }

    /// Every durable row.
    pub fn store(&self) -> &dyn Store {
        self.core.store.as_ref()
    }

    /// Answers that are kept while nothing is written.
    pub fn kept(&self) -> &Kept {
        &self.core.kept
    }

    /// The `host` of `host@backend#pool`.
    pub fn host(&self) -> &str {
        &self.core.settings.host
    }

    /// Now, by the manager's clock.
    pub fn now(&self) -> crate::clock::Timestamp {
        self.core.clock.now()
    }

    /// Admits a share and its first instance.
    ///
    /// # Errors
    /// `NoType`, `NoZone`, `OverQuota`, `Store`.
    pub async fn create_share(&self, caller: &Caller, new: NewShare) -> Result<Share, Denied> {
        self.core.create_share(caller, new).await
    }

    /// Admits the removal of a share; with `force`, whatever its status, and forgetting what cannot be removed.
    ///
    /// # Errors
    /// `NoShare`, `HasReplicas`, `Busy`, `ShareStatus`, `Store`.
    pub async fn delete_share(
        &self,
        caller: &Caller,
        id: ResourceId,
        force: bool,
    ) -> Result<Operation, Denied> {
        self.core.delete_share(caller, id, force).await
    }

    /// Changes what a person set on a share.
    ///
    /// # Errors
    /// `NoShare`, `Store`.
    pub async fn update_share(&self, id: ResourceId, change: ShareChange) -> Result<Share, Denied> {
        self.core.update_share(id, change).await
    }

    /// Changes a share's metadata.
    ///
    /// # Errors
    /// `NoShare`, `Store`.
    pub async fn set_share_metadata(&self, id: ResourceId, change: MetadataChange) -> Result<Share, Denied> {
        self.core.set_share_metadata(id, change).await
    }

    /// An admin's override of the status of the instance that speaks for the share.
    ///
    /// # Errors
    /// `NoShare`, `Store`.
    pub async fn reset_share_status(
        &self,
        caller: &Caller,
        id: ResourceId,
        status: InstanceStatus,
    ) -> Result<Operation, Denied> {
        self.core.reset_share_status(caller, id, status).await
    }

    /// An admin's override of the status of an instance or replica.
    ///
    /// # Errors
    /// `NoInstance`, `Store`.
    pub async fn reset_instance_status(
        &self,
        caller: &Caller,
        id: InstanceId,
        status: InstanceStatus,
    ) -> Result<Operation, Denied> {
        self.core.reset_instance_status(caller, id, status).await
    }

    /// Admits growth to `to_gb` GiB.
    ///
    /// # Errors
    /// `NoShare`, `ShareStatus`, `Busy`, `Size`, `OverQuota`, `Store`.
    pub async fn extend_share(
        &self,
        caller: &Caller,
        id: ResourceId,
        to_gb: u64,
    ) -> Result<Operation, Denied> {
        self.core.resize_share(caller, id, to_gb, "extend").await
    }

    /// Admits shrinking to `to_gb` GiB.
    ///
    /// # Errors
    /// `NoShare`, `ShareStatus`, `Busy`, `Size`, `Store`.
    pub async fn shrink_share(
        &self,
        caller: &Caller,
        id: ResourceId,
        to_gb: u64,
    ) -> Result<Operation, Denied> {
        self.core.resize_share(caller, id, to_gb, "shrink").await
    }

    /// Admits an access rule.
    ///
    /// # Errors
    /// `NoShare`, `ShareStatus`, `Busy`, `RuleExists`, `Store`.
    pub async fn allow_access(
        &self,
        caller: &Caller,
        share: ResourceId,
        new: NewRule,
    ) -> Result<AccessRule, Denied> {
        self.core.allow_access(caller, share, new).await
    }

    /// Admits the removal of an access rule.
    ///
    /// # Errors
    /// `NoShare`, `NoRule`, `Store`.
    pub async fn deny_access(&self, caller: &Caller, share: ResourceId, rule: Uuid) -> Result<(), Denied> {
        self.core.deny_access(caller, share, rule).await
    }

    /// Admits another level of a rule.
    ///
    /// # Errors
    /// `NoShare`, `NoRule`, `ShareStatus`, `Busy`, `Store`.
    pub async fn set_access_level(
        &self,
        caller: &Caller,
        share: ResourceId,
        rule: Uuid,
        level: AccessLevel,
    ) -> Result<AccessRule, Denied> {
        self.core.set_access_level(caller, share, rule, level).await
    }

    /// Changes a rule's metadata; answers all of it.
    ///
    /// # Errors
    /// `NoRule`, `Store`.
    pub async fn set_rule_metadata(
        &self,
        share: ResourceId,
        rule: Uuid,
        change: MetadataChange,
    ) -> Result<BTreeMap<String, String>, Denied> {
        self.core.set_rule_metadata(share, rule, change).await
    }

    /// Admits a replica.
    ///
    /// # Errors
    /// `NoShare`, `NotReplicated`, `Busy`, `NoActiveReplica`, `NoZone`, `OverQuota`, `Store`.
    pub async fn create_replica(
        &self,
        caller: &Caller,
        share: ResourceId,
        new: NewReplica,
    ) -> Result<Instance, Denied> {
        self.core.create_replica(caller, share, new).await
    }

    /// Admits the removal of a replica; with `force`, forgetting what cannot be removed. `None`: it is being removed
    /// already.
    ///
    /// # Errors
    /// `NoInstance`, `NotReplicated`, `LastActiveReplica`, `Store`.
    pub async fn delete_replica(
        &self,
        caller: &Caller,
        id: InstanceId,
        force: bool,
    ) -> Result<Option<Operation>, Denied> {
        self.core.delete_replica(caller, id, force).await
    }

    /// Admits a promotion: planned where the active one can be asked, forced where its back end is away. A replica
    /// that is active already is the API's to answer.
    ///
    /// # Errors
    /// `NoInstance`, `NotReplicated`, `InstanceStatus`, `PromoteNeedsAdmin`, `Busy`, `Store`.
    pub async fn promote_replica(
        &self,
        caller: &Caller,
        id: InstanceId,
        quiesce_wait_seconds: Option<u64>,
    ) -> Result<Operation, Denied> {
        self.core.promote(caller, id, quiesce_wait_seconds).await
    }

    /// Admits a sync; also tells a fenced old active to follow the new one. `None`: a sync is on its way already.
    /// A replica that is active is the API's to answer.
    ///
    /// # Errors
    /// `NoInstance`, `NoHost`, `Store`.
    pub async fn resync_replica(&self, caller: &Caller, id: InstanceId) -> Result<Option<Operation>, Denied> {
        self.core.resync(caller, id).await
    }

    /// Admits a content check of a replica: what it holds is compared with what the active one holds, by reading both
    /// again. Where one is on its way, it is that.
    ///
    /// # Errors
    /// `NoInstance`, `NotReplicated`, `VerifyActive`, `InstanceStatus`, `Store`.
    pub async fn verify_replica(&self, caller: &Caller, id: InstanceId) -> Result<Operation, Denied> {
        self.core.verify(caller, id).await
    }

    /// An admin's override of a replica's state.
    ///
    /// # Errors
    /// `NoInstance`, `ResetActive`, `Store`.
    pub async fn reset_replica_state(
        &self,
        caller: &Caller,
        id: InstanceId,
        state: ReplicaState,
    ) -> Result<Operation, Denied> {
        self.core.reset_replica_state(caller, id, state).await
    }

    /// Changes a replica's metadata.
    ///
    /// # Errors
    /// `NoInstance`, `Store`.
    pub async fn set_replica_metadata(
        &self,
        id: InstanceId,
        change: MetadataChange,
    ) -> Result<Instance, Denied> {
        self.core.set_replica_metadata(id, change).await
    }

    /// Admits a migration to another pool. `None`: the share is there already, as it would be.
    ///
    /// # Errors
    /// `NoShare`, `HasReplicas`, `InstanceStatus`, `RulesFailed`, `Busy`, `NoService`, `ServiceDown`, `NoType`, `NoZone`,
    /// `OverQuota`, `Store`.
    pub async fn migrate(
        &self,
        caller: &Caller,
        share: ResourceId,
        request: MigrationRequest,
    ) -> Result<Option<Operation>, Denied> {
        self.core.migrate(caller, share, request).await
    }

    /// What a migration would do, and by which way. Changes nothing.
    ///
    /// # Errors
    /// `NoShare`, `NoType`, `Store`.
    pub async fn check_migration(
        &self,
        share: ResourceId,
        request: MigrationRequest,
    ) -> Result<MigrationCheck, Denied> {
        self.core.check_migration(share, request).await
    }

    /// Tells a migration to go on after its first phase.
    ///
    /// # Errors
    /// `NoShare`, `NoMigration`, `Store`.
    pub async fn complete_migration(&self, share: ResourceId) -> Result<Operation, Denied> {
        self.core.complete_migration(share).await
    }

    /// Asks a migration to end. It gives the source back as it was, unless the switch has come before.
    ///
    /// # Errors
    /// `NoShare`, `NoMigration`, `Store`.
    pub async fn cancel_migration(&self, share: ResourceId) -> Result<Operation, Denied> {
        self.core.cancel_migration(share).await
    }

    /// An admin's override of a share's task state.
    ///
    /// # Errors
    /// `NoShare`, `Store`.
    pub async fn reset_task_state(
        &self,
        caller: &Caller,
        share: ResourceId,
        state: Option<TaskState>,
    ) -> Result<Operation, Denied> {
        self.core.reset_task_state(caller, share, state).await
    }

    /// Makes a share type.
    ///
    /// # Errors
    /// `TypeExists`, `Store`.
    pub async fn create_type(&self, new: NewType) -> Result<ShareType, Denied> {
        self.core.create_type(new).await
    }

    /// Changes a share type.
    ///
    /// # Errors
    /// `NoType`, `TypeExists`, `Store`.
    pub async fn update_type(&self, id: Uuid, change: TypeChange) -> Result<ShareType, Denied> {
        self.core.update_type(id, change).await
    }

    /// Adds or replaces extra specs.
    ///
    /// # Errors
    /// `NoType`, `Store`.
    pub async fn set_extra_specs(
        &self,
        id: Uuid,
        specs: BTreeMap<String, String>,
    ) -> Result<ShareType, Denied> {
        self.core.set_extra_specs(id, specs).await
    }

    /// Takes an extra spec away.
    ///
    /// # Errors
    /// `NoType`, `Store`.
    pub async fn unset_extra_spec(&self, id: Uuid, key: &str) -> Result<ShareType, Denied> {
        self.core.unset_extra_spec(id, key).await
    }

    /// Removes a share type that nothing uses.
    ///
    /// # Errors
    /// `NoType`, `TypeInUse`, `Store`.
    pub async fn delete_type(&self, id: Uuid) -> Result<(), Denied> {
        self.core.delete_type(id).await
    }

    /// Sets some of a project's limits (Manila's keys; -1 is unlimited).
    ///
    /// # Errors
    /// `Store`.
    pub async fn set_quota(&self, project: &str, limits: BTreeMap<String, i64>) -> Result<Quota, Denied> {
        self.core.set_quota(project, limits).await
    }

    /// Gives a project the default limits again.
    ///
    /// # Errors
    /// `Store`.
    pub async fn delete_quota(&self, project: &str) -> Result<(), Denied> {
        self.core.delete_quota(project).await
    }

    /// Asks an operation to end: accepted in every state that is not terminal.
    ///
    /// # Errors
    /// `NoOperation`, `Ended`, `Store`.
    pub async fn cancel(&self, op: OpId) -> Result<Operation, Denied> {
        self.core.cancel(op).await
    }

    /// Progress of an operation that runs.
    pub fn progress(&self, op: OpId) -> Option<Progress> {
        self.core.board.progress_of(op)
    }

    /// How far behind a replica is.
    pub fn lag(&self, replica: &Instance) -> Lag {
        self.core.lag(replica)
    }

    /// What is wrong with an instance although it is in no error, as its driver last told: a sentence. It may be the last whole copy.
    pub fn degraded(&self, instance: InstanceId) -> Option<String> {
        self.core.board.freshness(instance).degraded
    }

    /// Decides who goes on, when sides of a `writable` share are cut off from each other: `instance` claims it, and was
    /// active at `epoch`. Durable before it is answered.
    ///
    /// # Errors
    /// `NoShare`, `NoInstance`, `NotArbitrated`, `Store`: nothing was decided.
    pub async fn claim(
        &self,
        share: ResourceId,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<Verdict, Denied> {
        self.core.claim(share, instance, epoch).await
    }

    /// Every back end, in the order of the settings.
    pub fn backends(&self) -> Vec<BackendView> {
        self.core.backends.views()
    }

    /// Zones of the back ends, sorted, without repeats.
    pub fn zones(&self) -> Vec<String> {
        self.core.backends.zones()
    }

    /// Every pool, as the scheduler sees it.
    ///
    /// # Errors
    /// `Store`.
    pub async fn pools(&self) -> Result<Vec<PoolView>, Denied> {
        self.core.pool_views().await
    }

    /// Looks for everything that breaks a law, in the store and on the storage. Changes nothing.
    ///
    /// # Errors
    /// `Store`.
    pub async fn doctor(&self) -> Result<Vec<Finding>, Denied> {
        self.core.doctor().await
    }

    /// Whether requests can be served: the store answers, and everything that a crash interrupted is queued.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub async fn ready(&self) -> Result<(), String> {
        if !self.core.recovered.load(Ordering::Acquire) {
            return Err("what was interrupted is still being read".into());
        }
        self.store().share_types().await.map(drop).map_err(|e| e.to_string())
    }

    /// Starts everything that runs: recovery of what a crash interrupted, the runner, reconciliation.
    pub fn start(&self) {
        crate::run::start(&self.core);
    }

    /// Stops: nothing new starts, running driver calls are told to stop, and what does not stop in time is left to
    /// the log, as after a crash.
    pub async fn stop(&self, within: std::time::Duration) {
        crate::run::stop(&self.core, within).await;
    }
}
