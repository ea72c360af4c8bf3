//! The verbs: each is a struct of arguments that knows its name and its answer.
//!
//! A [`Request`] carries a verb as JSON; [`Verb`] gives both sides the types back. A verb that a driver does not know
//! is answered with [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported), so an old plug-in under a new server
//! is no special case.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AccessReport, AccessSpec, Attachment, Compatibility, ContentFingerprint, Demotion, Endpoint, Epoch,
    Error, InstanceId, InstanceInfo, InstanceSpec, MigrationProgress, MigrationSpec, Observation, OpId,
    Outcome, PointId, PointInfo, Pool, Progress, Promotion, ReceiveSpec, ReplicaReport, ResumeToken,
    SendSpec, Switched, TransferReport,
};

/// One call, as it crosses the binary interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The operation it is made for.
    pub op: OpId,
    /// Identifies this delivery, so that it can be cancelled; unique within the host process.
    pub delivery: u64,
    /// Milliseconds after which the caller stops listening. A driver stops by itself before that.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// [`Verb::NAME`].
    pub verb: String,
    /// The verb's struct.
    pub args: Value,
}

/// A verb of the contract: its arguments are the type itself.
pub trait Verb: Serialize + DeserializeOwned + Send + Sync {
    /// Its name on the wire.
    const NAME: &'static str;
    /// Whether it may change the storage. The manager sends no second changing call for an instance until the first
    /// has returned or its driver host is dead.
    const CHANGES: bool;
    /// What it answers.
    type Reply: Serialize + DeserializeOwned + Send;
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $changes:literal $wire:literal $name:ident { $($(#[$fdoc:meta])* $field:ident : $ty:ty),* $(,)? } -> $reply:ty;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
            pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }
            impl Verb for $name {
                const NAME: &'static str = $wire;
                const CHANGES: bool = $changes;
                type Reply = $reply;
            }
        )*
        /// Every verb of this contract: its name, and whether it changes the storage.
        pub const VERBS: &[(&str, bool)] = &[$(($wire, $changes)),*];
    };
}

verbs! {
    /// The pools of the back end, with their room. Quick.
    false "pools" Pools {} -> Vec<Pool>;
    /// Every instance that this back end keeps for Tandem: what `doctor` compares with the store.
    false "list_instances" ListInstances {} -> Vec<InstanceId>;
    /// What is really there; `None` when nothing is, not even a leftover.
    false "observe_instance" ObserveInstance {
        /// The instance.
        instance: InstanceId,
    } -> Option<Observation>;
    /// Makes an empty active instance and serves it.
    true "create_instance" CreateInstance {
        /// What it is to be.
        spec: InstanceSpec,
    } -> Outcome<InstanceInfo>;
    /// Grows or shrinks it.
    true "resize_instance" ResizeInstance {
        /// The instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
        /// The new size in bytes.
        size_bytes: u64,
    } -> Outcome<InstanceInfo>;
    /// Removes it, and everything on the storage that belongs to it. Removing what is not there is `Unchanged`.
    true "delete_instance" DeleteInstance {
        /// The instance.
        instance: InstanceId,
    } -> Outcome<()>;
    /// Makes exactly these rules hold.
    true "update_access" UpdateAccess {
        /// The instance.
        instance: InstanceId,
        /// The resource's epoch: a stale host must not open an export.
        epoch: Epoch,
        /// The full list.
        access: AccessSpec,
    } -> Outcome<AccessReport>;
    /// Serves it again as its role says, after a boot: mounts and exports come only now, with the epoch confirmed.
    true "ensure_instance" EnsureInstance {
        /// The instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
    } -> Outcome<InstanceInfo>;
    /// Gives a path on the driver's host through which the manager copies.
    true "attach" Attach {
        /// The instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
        /// Whether it will only be read.
        read_only: bool,
    } -> Outcome<Attachment>;
    /// Takes that path away.
    true "detach" Detach {
        /// The instance.
        instance: InstanceId,
    } -> Outcome<()>;

    /// Makes an empty secondary (streamed), or one that its storage fills after `connect_peers`.
    true "create_replica" CreateReplica {
        /// What it is to be; `replication` is set.
        spec: InstanceSpec,
    } -> Outcome<InstanceInfo>;
    /// State, lag and newest point. Fast: no transfer inside. It changes nothing that another call meets or that a report
    /// tells, and so may come while one that changes the instance is under way. A driver may tidy up meanwhile what it alone
    /// owns, such as a snapshot that users read of a replica: it stands back at once for a call that changes the instance, lets
    /// such a call wait for its end where it has begun, and reports all the same when that comes to nothing.
    false "update_replica_state" UpdateReplicaState {
        /// The instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
    } -> ReplicaReport;
    /// Holds writers back (within the deadline) until `resume_writes`.
    true "quiesce" Quiesce {
        /// The active instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
        /// Seconds to wait for users to settle; Manila's `quiesce_wait_time`.
        wait_seconds: Option<u64>,
    } -> Outcome<()>;
    /// Lets writers go on after `quiesce`.
    true "resume_writes" ResumeWrites {
        /// The instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
    } -> Outcome<()>;
    /// Makes a secondary the active one at a raised epoch, and serves it read-write.
    true "promote_replica" PromoteReplica {
        /// The instance.
        instance: InstanceId,
        /// The raised epoch.
        epoch: Epoch,
        /// Planned or forced.
        promotion: Promotion,
    } -> Outcome<InstanceInfo>;
    /// Makes the active one a secondary at a raised epoch: read-only or unreachable, as the style says, or fenced.
    true "demote_replica" DemoteReplica {
        /// The instance.
        instance: InstanceId,
        /// The raised epoch.
        epoch: Epoch,
        /// What it becomes.
        to: Demotion,
    } -> Outcome<InstanceInfo>;
    /// Removes a secondary, and everything on the storage that belongs to it.
    true "delete_replica" DeleteReplica {
        /// The instance.
        instance: InstanceId,
    } -> Outcome<()>;

    /// Makes a point on the active instance and protects it until `release_point`. Repeating it with the same id
    /// answers the same fingerprint. May take long where the storage has no snapshots; reports progress then.
    true "make_point" MakePoint {
        /// The active instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
        /// The manager's name for it.
        point: PointId,
    } -> Outcome<PointInfo>;
    /// Lets a point go. Releasing what is not there is `Unchanged`. The newest whole point of a secondary is its
    /// data: releasing it forgets only what a later increment would need.
    true "release_point" ReleasePoint {
        /// The instance.
        instance: InstanceId,
        /// The point.
        point: PointId,
    } -> Outcome<()>;
    /// Writes a stream to file descriptor slot 0 and closes it.
    false "send" SendStream {
        /// What to send.
        spec: SendSpec,
    } -> TransferReport;
    /// Reads a stream from file descriptor slot 0 to its end, proves it, and makes it the newest point.
    true "receive" Receive {
        /// What arrives.
        spec: ReceiveSpec,
    } -> Outcome<TransferReport>;
    /// Throws away what a cut `receive` left; the newest whole point stays.
    true "discard_partial" DiscardPartial {
        /// The instance.
        instance: InstanceId,
    } -> Outcome<()>;

    /// Reads again what an instance holds at a point, from a view that stands still while its users go on, and answers
    /// with digests of it. Takes as long as there is content; reports progress. Changes nothing, and leaves nothing.
    false "fingerprint" ReadFingerprint {
        /// The instance.
        instance: InstanceId,
        /// A point that it holds.
        point: PointId,
        /// The form: one of [`ReplicationCapability::fingerprints`](crate::ReplicationCapability::fingerprints).
        form: String,
        /// At most so many bytes are read a second; unlimited when absent.
        bandwidth: Option<u64>,
    } -> ContentFingerprint;

    /// A side's address for its peers.
    false "endpoint" GetEndpoint {
        /// The instance.
        instance: InstanceId,
    } -> Endpoint;
    /// Lets the storage replicate between this instance and a peer.
    true "connect_peers" ConnectPeers {
        /// The instance on this side.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
        /// The other side.
        peer: Endpoint,
        /// Whether this side's data wins when they differ.
        authoritative: bool,
        /// Whether somebody said that this side is to give up what it took and its peer lacks. Without that word a side
        /// that holds such changes, and is not to win, refuses with `Conflict`.
        #[serde(default)]
        give_up: bool,
    } -> Outcome<()>;
    /// Ends that. Of an instance that is not there (its disk was replaced), what its storage still serves or carries of it is
    /// taken away.
    true "disconnect_peers" DisconnectPeers {
        /// The instance on this side.
        instance: InstanceId,
        /// The other side.
        peer: InstanceId,
    } -> Outcome<()>;
    /// Lets an active instance that was made without replication replicate, as one that is made so now would. Its users may
    /// have to wait for a moment and to open their files anew, and find everything as it was. `Unchanged` where it replicates already.
    true "begin_replication" BeginReplication {
        /// How it would be made now, with its replication.
        spec: InstanceSpec,
        /// The other side that it is to have. Where the two could not replicate, `InvalidArgument` says so before users notice
        /// anything.
        #[serde(default)]
        peer: Option<Endpoint>,
    } -> Outcome<InstanceInfo>;
    /// Takes away what lets an active instance replicate, which has no peer any more: it is as one made without. Its users may
    /// have to wait for a moment. `Unchanged` where it does not replicate.
    true "end_replication" EndReplication {
        /// The instance.
        instance: InstanceId,
        /// The resource's epoch.
        epoch: Epoch,
    } -> Outcome<InstanceInfo>;
    /// Makes an empty, unserved instance that a migration fills.
    true "prepare_destination" PrepareDestination {
        /// What it is to be.
        spec: InstanceSpec,
    } -> Outcome<InstanceInfo>;

    /// What the source's driver promises for this destination. Changes nothing.
    false "migration_check_compatibility" MigrationCheckCompatibility {
        /// The two sides.
        migration: MigrationSpec,
    } -> Compatibility;
    /// Starts the first phase and returns.
    true "migration_start" MigrationStart {
        /// The two sides.
        migration: MigrationSpec,
    } -> Outcome<()>;
    /// One more round of the first phase; `first_phase_done` says when it is enough.
    true "migration_continue" MigrationContinue {
        /// The two sides.
        migration: MigrationSpec,
    } -> MigrationProgress;
    /// The last round with the source held back, then the switch: users are served by the destination.
    true "migration_complete" MigrationComplete {
        /// The two sides.
        migration: MigrationSpec,
    } -> Outcome<Switched>;
    /// After the switch: lets the source go (Nova's confirm).
    true "migration_release" MigrationRelease {
        /// The two sides.
        migration: MigrationSpec,
    } -> Outcome<()>;
    /// After the switch: goes back to the source (Nova's revert).
    true "migration_revert" MigrationRevert {
        /// The two sides.
        migration: MigrationSpec,
    } -> Outcome<Switched>;
    /// Stops the first phase; the source is as before.
    true "migration_cancel" MigrationCancel {
        /// The two sides.
        migration: MigrationSpec,
    } -> Outcome<()>;
    /// How far it is.
    false "migration_get_progress" MigrationGetProgress {
        /// The two sides.
        migration: MigrationSpec,
    } -> MigrationProgress;
    /// Finishes a running first phase at the users' cost (Nova's force_complete).
    true "migration_force_complete" MigrationForceComplete {
        /// The two sides.
        migration: MigrationSpec,
    } -> Outcome<()>;
}

/// Control of a delivery: served by the SDK's runtime, not by a driver. Sent like any call.
pub const CANCEL_VERB: &str = "tandem.cancel";

/// Arguments of [`CANCEL_VERB`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// [`Request::delivery`] of the call to stop.
    pub delivery: u64,
}

/// One-way news from a driver to its host; must not block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "signal", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Signal {
    /// How far a call is.
    Progress {
        /// The call.
        delivery: u64,
        /// How far.
        progress: Progress,
    },
    /// A line for the server's log, under the operation's span.
    Log {
        /// The call, when it is within one.
        #[serde(default)]
        delivery: Option<u64>,
        /// `error`, `warn`, `info`, `debug`, `trace`.
        level: String,
        /// Module path of the driver's code.
        target: String,
        /// The sentence.
        message: String,
        /// Names and values.
        #[serde(default)]
        fields: Vec<(String, String)>,
    },
    /// An instance is not as it was, and no call has made it so: a link was cut, a disk failed, two sides are equal again. It is
    /// looked at without delay.
    Changed {
        /// The instance.
        instance: InstanceId,
    },
    /// News that this side does not know yet.
    #[serde(other)]
    Unknown,
}

/// A call from a driver to its host; answered with JSON. A host answers what it does not know with `Unsupported`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "host_call", rename_all = "snake_case")]
#[non_exhaustive]
pub enum HostCall {
    /// Answered once the token is durable in the operation log.
    Checkpoint {
        /// The call.
        delivery: u64,
        /// The token.
        token: ResumeToken,
    },
    /// A call that this side does not know yet.
    #[serde(other)]
    Unknown,
}

impl Request {
    /// The verb's arguments.
    ///
    /// # Errors
    /// `InvalidArgument` naming the verb when the JSON does not fit.
    pub fn args<V: Verb>(&self) -> Result<V, Error> {
        V::deserialize(&self.args)
            .map_err(|e| Error::invalid(format!("the arguments of `{}` do not fit: {e}", self.verb)))
    }
}
