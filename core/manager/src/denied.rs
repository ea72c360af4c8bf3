//! Why a request was not admitted: typed, so that each API words it as its clients expect.

use tandem_contract::{InstanceId, OpId, ResourceId};
use uuid::Uuid;

use crate::model::{Counted, InstanceStatus};
use crate::store::StoreError;

/// Why a request was not admitted. Nothing was changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// No such share (or one of another project).
    #[error("there is no share {0}")]
    NoShare(ResourceId),
    /// No such instance or replica.
    #[error("there is no instance {0}")]
    NoInstance(InstanceId),
    /// No such access rule on that share.
    #[error("there is no access rule {0}")]
    NoRule(Uuid),
    /// No such share type.
    #[error("there is no share type {0}")]
    NoType(String),
    /// No such operation.
    #[error("there is no operation {0}")]
    NoOperation(OpId),
    /// A share type of that name exists.
    #[error("a share type named `{0}` exists already")]
    TypeExists(String),
    /// The share type is used by shares.
    #[error("share type {0} is in use")]
    TypeInUse(Uuid),
    /// No such zone, or the share type does not allow it.
    #[error("there is no availability zone `{0}` for this")]
    NoZone(String),
    /// The share (its representative instance) has another status than the request needs.
    #[error("share {share} is {status}, but must be {needed}")]
    ShareStatus {
        /// The share.
        share: ResourceId,
        /// Its status.
        status: InstanceStatus,
        /// What it must be, in words.
        needed: String,
    },
    /// The instance has another status than the request needs.
    #[error("instance {instance} is {status}, but must be {needed}")]
    InstanceStatus {
        /// The instance.
        instance: InstanceId,
        /// Its status.
        status: InstanceStatus,
        /// What it must be, in words.
        needed: String,
    },
    /// The share has a busy task state.
    #[error("share {share} is busy: {task_state}")]
    Busy {
        /// The share.
        share: ResourceId,
        /// Its task state.
        task_state: String,
    },
    /// Only sides of a `writable` share are arbitrated between.
    #[error("share {0} is not of the style writable; its sides do not ask who goes on")]
    NotArbitrated(ResourceId),
    /// The share has further replicas, which must go first.
    #[error("share {0} has replicas; remove them first")]
    HasReplicas(ResourceId),
    /// The share's type does not replicate.
    #[error("share {0} does not replicate: its type has no replication_type")]
    NotReplicated(ResourceId),
    /// There is no active replica that is available.
    #[error("share {0} has no active replica that is available")]
    NoActiveReplica(ResourceId),
    /// It is the last active replica.
    #[error("replica {0} is the last active one")]
    LastActiveReplica(InstanceId),
    /// Only an administrator may promote a replica that is not in sync.
    #[error("replica {instance} is {state}; only an administrator may promote it")]
    PromoteNeedsAdmin {
        /// The replica.
        instance: InstanceId,
        /// Its state, Manila's word.
        state: String,
    },
    /// An admin's reset of the state of an active replica.
    #[error("the state of replica {0} cannot be reset: it is active")]
    ResetActive(InstanceId),
    /// Replicas are compared with the active one.
    #[error("replica {0} is the active one, which the others are compared with; verify one of them")]
    VerifyActive(InstanceId),
    /// The replica was never placed.
    #[error("replica {0} has no host")]
    NoHost(InstanceId),
    /// The access rules of the instance are in error.
    #[error("the access rules of instance {0} are in error; mend them first")]
    RulesFailed(InstanceId),
    /// No such back end: `host@backend`.
    #[error("there is no back end {0}")]
    NoService(String),
    /// The back end is down: `host@backend`.
    #[error("back end {0} is down")]
    ServiceDown(String),
    /// The share is not being migrated.
    #[error("share {0} is not being migrated")]
    NoMigration(ResourceId),
    /// The same rule exists.
    #[error("an access rule of type {access_type} for {access_to} exists already")]
    RuleExists {
        /// Its type.
        access_type: String,
        /// Its address or name.
        access_to: String,
    },
    /// Rules cannot change while some are being applied or failed.
    #[error("the access rules of share {0} are being changed or are in error")]
    RulesBusy(ResourceId),
    /// The new size does not fit the verb.
    #[error("share {share} has {size_gb} GiB; {asked_gb} GiB does not {verb} it")]
    Size {
        /// The share.
        share: ResourceId,
        /// Its size.
        size_gb: u64,
        /// The size asked for.
        asked_gb: u64,
        /// `extend` or `shrink`.
        verb: &'static str,
    },
    /// A quota does not suffice.
    #[error("quota exceeded for {what:?}: {in_use} of {limit} in use, {asked} more asked for")]
    OverQuota {
        /// Which.
        what: Counted,
        /// The limit.
        limit: i64,
        /// In use.
        in_use: i64,
        /// More asked for.
        asked: i64,
    },
    /// The operation has ended.
    #[error("operation {0} has ended; there is nothing to cancel")]
    Ended(OpId),
    /// A value makes no sense; the sentence says which and why.
    #[error("{0}")]
    Invalid(String),
    /// The database fails; nothing was changed.
    #[error("{0}")]
    Store(StoreError),
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
