//! Abilities of drivers that mirror.

use std::future::{Future, ready};
use std::os::fd::OwnedFd;

use tandem_contract::{
    BeginReplication, ConnectPeers, ContentFingerprint, CreateReplica, DeleteReplica, DemoteReplica,
    DiscardPartial, DisconnectPeers, EndReplication, Endpoint, Error, GetEndpoint, InstanceInfo, MakePoint,
    Outcome, PointInfo, PromoteReplica, Quiesce, ReadFingerprint, Receive, ReleasePoint, ReplicaReport,
    Result, ResumeWrites, SendStream, TransferReport, UpdateReplicaState,
};

use crate::{Driver, OpContext};

/// Keeps replicas and changes their roles. Claimed by `Capabilities::replication`.
pub trait Replication: Driver {
    /// Makes an empty secondary, or one that its storage fills once the peers are connected.
    fn create_replica(
        &self,
        cx: &OpContext,
        call: CreateReplica,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send;

    /// State, lag, newest point. Fast: nothing is transferred inside. It may come amid a call that changes the instance: see law
    /// 10 of the contract.
    fn update_replica_state(
        &self,
        cx: &OpContext,
        call: UpdateReplicaState,
    ) -> impl Future<Output = Result<ReplicaReport>> + Send;

    /// Makes a secondary the active one at a raised epoch, and serves it read-write. Stores the epoch first.
    fn promote_replica(
        &self,
        cx: &OpContext,
        call: PromoteReplica,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send;

    /// Makes the active one a secondary, or fences it, at a raised epoch. Stores the epoch first, then takes write
    /// access away; the answer comes when nobody can write any more.
    fn demote_replica(
        &self,
        cx: &OpContext,
        call: DemoteReplica,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send;

    /// Removes a secondary or a fenced instance, and everything that belongs to it. Removing what is not there is
    /// `Unchanged`.
    fn delete_replica(
        &self,
        cx: &OpContext,
        call: DeleteReplica,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;
}

/// Holds writers back. Claimed by `ReplicationCapability::quiesce`.
pub trait Quiescable: Replication {
    /// Holds writers back until [`resume_writes`](Self::resume_writes), or fails with the writers as before.
    fn quiesce(&self, cx: &OpContext, call: Quiesce) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// Lets writers go on.
    fn resume_writes(
        &self,
        cx: &OpContext,
        call: ResumeWrites,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;
}

/// Writes and reads streams that Tandem carries. Claimed by `Transport::Streamed`.
pub trait Streamed: Driver {
    /// Makes a point on the active instance and protects it until it is released. Repeating it with the same id
    /// answers the same fingerprint.
    fn make_point(
        &self,
        cx: &OpContext,
        call: MakePoint,
    ) -> impl Future<Output = Result<Outcome<PointInfo>>> + Send;

    /// Lets a point go. Releasing what is not there is `Unchanged`.
    fn release_point(
        &self,
        cx: &OpContext,
        call: ReleasePoint,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// Writes the stream to `stream` and closes it by dropping it. A reader that goes away (`EPIPE`) is
    /// `Unavailable`.
    fn send(
        &self,
        cx: &OpContext,
        call: SendStream,
        stream: OwnedFd,
    ) -> impl Future<Output = Result<TransferReport>> + Send;

    /// Reads the stream from `stream` to its end, proves the content against the fingerprint, and makes it the newest
    /// point. A stream that ends early keeps what arrived, for the next call to go on from; the newest whole point
    /// stays in place until the new one is proven. A receive of a point that is already whole here reads nothing and
    /// answers `Unchanged`.
    fn receive(
        &self,
        cx: &OpContext,
        call: Receive,
        stream: OwnedFd,
    ) -> impl Future<Output = Result<Outcome<TransferReport>>> + Send;

    /// Throws away what a cut `receive` left; the newest whole point stays.
    fn discard_partial(
        &self,
        cx: &OpContext,
        call: DiscardPartial,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;
}

/// Reads again what it holds. Claimed by `ReplicationCapability::fingerprints`.
pub trait Verifiable: Driver {
    /// Digests of what an instance holds at a point, read from its storage and not from what is noted of it. The view
    /// stands still meanwhile, however its users write, and nothing is left of it, however the call ends.
    /// [`mirror::fingerprint`](crate::mirror::fingerprint) does the reading where the content is a tree of files.
    fn fingerprint(
        &self,
        cx: &OpContext,
        call: ReadFingerprint,
    ) -> impl Future<Output = Result<ContentFingerprint>> + Send;
}

/// Tells its peers where it is: needed by storage that replicates by itself, and by driver-assisted migration.
pub trait Reachable: Driver {
    /// This side's address for its peers.
    fn endpoint(&self, cx: &OpContext, call: GetEndpoint) -> impl Future<Output = Result<Endpoint>> + Send;
}

/// Storage that replicates by itself. Claimed by `Transport::Storage`.
pub trait StorageReplicated: Replication + Reachable {
    /// Lets the storage replicate between this instance and a peer; each side is asked once.
    fn connect_peers(
        &self,
        cx: &OpContext,
        call: ConnectPeers,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// Ends that. Disconnecting who is not connected is `Unchanged`.
    fn disconnect_peers(
        &self,
        cx: &OpContext,
        call: DisconnectPeers,
    ) -> impl Future<Output = Result<Outcome<()>>> + Send;

    /// Lets an active instance that was made without replication replicate from now on; its users find everything as it was.
    /// Claimed by `ReplicationCapability::converts`.
    fn begin_replication(
        &self,
        _: &OpContext,
        _: BeginReplication,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send {
        ready(Err(Error::unsupported("what was made without replication stays so on this storage")))
    }

    /// Takes away again what lets an active instance replicate. One that has a peer is refused with `Conflict`.
    fn end_replication(
        &self,
        _: &OpContext,
        _: EndReplication,
    ) -> impl Future<Output = Result<Outcome<InstanceInfo>>> + Send {
        ready(Err(Error::unsupported("what was made with replication stays so on this storage")))
    }
}
