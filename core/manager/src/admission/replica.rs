//! Admission of what concerns replicas.

use tandem_contract::{InstanceId, PointId, ReplicaState, ResourceId, Style};

use super::new_op;
use super::share::blank_instance;
use crate::core::Core;
use crate::denied::Denied;
use crate::draft::Draft;
use crate::face::{Caller, MetadataChange, NewReplica};
use crate::model::{Counted, Instance, InstanceStatus, Intent, Operation, Part};
use crate::oplog::Effect;

impl Core {
    /// Admits a replica.
    pub(crate) async fn create_replica(
        &self,
        caller: &Caller,
        share: ResourceId,
        new: NewReplica,
    ) -> Result<Instance, Denied> {
        let share_type = self.store.family(share).await?.share_type.ok_or(Denied::NoShare(share))?;
        self.check_zone(new.availability_zone.as_deref(), &share_type)?;
        let id = InstanceId(crate::ids::random());
        self.change(share, |draft| {
            create_replica(draft, caller, share, &new, id)?;
            draft.instance(id).cloned().ok_or(Denied::NoInstance(id))
        })
        .await
    }

    /// Admits the removal of a replica; with `force`, forgetting what cannot be removed. `None`: it was nowhere and
    /// is gone already.
    pub(crate) async fn delete_replica(
        &self,
        caller: &Caller,
        id: InstanceId,
        force: bool,
    ) -> Result<Option<Operation>, Denied> {
        let share = self.share_of(id).await?;
        self.change(share, |draft| delete_replica(draft, caller, id, force)).await
    }

    /// Admits a promotion.
    pub(crate) async fn promote(
        &self,
        caller: &Caller,
        id: InstanceId,
        wait: Option<u64>,
    ) -> Result<Operation, Denied> {
        let share = self.share_of(id).await?;
        self.change(share, |draft| promote(draft, caller, id, wait)).await
    }

    /// Admits a sync that somebody asked for; also tells a fenced old active to follow the new one. `None`: one is
    /// on its way already.
    pub(crate) async fn resync(&self, caller: &Caller, id: InstanceId) -> Result<Option<Operation>, Denied> {
        let share = self.share_of(id).await?;
        self.change(share, |draft| {
            let row = draft.need_instance(id)?;
            if row.pool.is_none() {
                return Err(Denied::NoHost(id));
            }
            if let Some(row) = draft.instance_mut(id) {
                row.reset_by_admin = false;
            }
            admit_resync(draft, id, Some(caller))
        })
        .await
    }

    /// Admits a content check. Where one is on its way, it is that.
    pub(crate) async fn verify(&self, caller: &Caller, id: InstanceId) -> Result<Operation, Denied> {
        let share = self.share_of(id).await?;
        self.change(share, |draft| admit_verify(draft, id, Some(caller))).await
    }

    /// An admin's override of a replica's state.
    pub(crate) async fn reset_replica_state(
        &self,
        caller: &Caller,
        id: InstanceId,
        state: ReplicaState,
    ) -> Result<Operation, Denied> {
        let share = self.share_of(id).await?;
        self.change(share, |draft| {
            if draft.need_instance(id)?.replica_state == Some(ReplicaState::Active) {
                return Err(Denied::ResetActive(id));
            }
            Ok(draft.reset(id, None, Some(state), caller))
        })
        .await
    }

    /// Changes a replica's metadata.
    pub(crate) async fn set_replica_metadata(
        &self,
        id: InstanceId,
        change: MetadataChange,
    ) -> Result<Instance, Denied> {
        let share = self.share_of(id).await?;
        self.change(share, |draft| {
            let row = draft.instance_mut(id).ok_or(Denied::NoInstance(id))?;
            change.apply(&mut row.metadata);
            Ok(row.clone())
        })
        .await
    }
}

fn create_replica(
    draft: &mut Draft,
    caller: &Caller,
    share_id: ResourceId,
    new: &NewReplica,
    id: InstanceId,
) -> Result<(), Denied> {
    let share = draft.need_share(share_id)?.clone();
    let Some(style) = share.replication else { return Err(Denied::NotReplicated(share_id)) };
    draft.need_idle(share_id)?;
    // The one that grew or shrank may have been demoted meanwhile: the size is not settled before that has ended.
    if draft.resizing().is_some() || draft.active().is_none_or(|a| a.status != InstanceStatus::Available) {
        return Err(Denied::NoActiveReplica(share_id));
    }
    draft.reserve(Counted::ShareReplicas, 1)?;
    draft.reserve(Counted::ReplicaGigabytes, i64::try_from(share.size_gb).unwrap_or(i64::MAX))?;
    draft.instances.push(Instance {
        availability_zone: new.availability_zone.clone(),
        replica_state: Some(ReplicaState::OutOfSync),
        cast_rules_to_readonly: style == Style::Readable,
        metadata: new.metadata.clone(),
        ..blank_instance(id, share_id, share.project_id.clone(), share.share_type_id, draft.now)
    });
    let set = vec![
        Effect::Status { instance: id, status: InstanceStatus::Creating },
        Effect::ReplicaState { instance: id, state: Some(ReplicaState::OutOfSync) },
    ];
    draft.admit(
        new_op(),
        Intent::CreateReplica { instance: id, only_host: new.only_host.clone() },
        set,
        Some(caller),
    );
    Ok(())
}

fn delete_replica(
    draft: &mut Draft,
    caller: &Caller,
    id: InstanceId,
    force: bool,
) -> Result<Option<Operation>, Denied> {
    let row = draft.need_instance(id)?.clone();
    if row.part != Part::Whole {
        return delete_leftover(draft, caller, id, force);
    }
    let share = draft.need_share(row.share_id)?;
    if share.replication.is_none() {
        return Err(Denied::NotReplicated(row.share_id));
    }
    let another_active = draft.instances.iter().any(|i| i.id != id && i.stays_active());
    if row.replica_state == Some(ReplicaState::Active) && !another_active {
        return Err(Denied::LastActiveReplica(id));
    }
    let concerns = |op: &Operation| op.intent.instance() == Some(id);
    if row.status == InstanceStatus::Deleting
        && draft.unfinished().iter().any(|op| op.intent.deletes() && concerns(op))
        && !force
    {
        return Ok(None);
    }
    draft.preempt(|op| concerns(op) && (force || !op.intent.deletes()));
    let set = vec![Effect::Status { instance: id, status: InstanceStatus::Deleting }];
    Ok(Some(draft.admit(new_op(), Intent::DeleteReplica { instance: id, force }, set, Some(caller))))
}

/// Removes what a migration left. While it is being filled, the migration is what has to be cancelled.
fn delete_leftover(
    draft: &mut Draft,
    caller: &Caller,
    id: InstanceId,
    force: bool,
) -> Result<Option<Operation>, Denied> {
    let migrates = |op: &Operation| matches!(op.intent, Intent::Migrate { .. });
    // One that is to end may yet switch: what it fills would be the share.
    let owned =
        draft.unfinished().into_iter().find(|op| op.intent.concerns(id) && (!op.cancel || migrates(op)));
    match owned {
        Some(op) if migrates(&op) => {
            return Err(Denied::Invalid(format!(
                "instance {id} belongs to a migration that runs; cancel that instead"
            )));
        }
        Some(_) if !force => return Ok(None),
        Some(op) => draft.request_cancel(&op),
        None => {}
    }
    let set = vec![Effect::Status { instance: id, status: InstanceStatus::Deleting }];
    Ok(Some(draft.admit(new_op(), Intent::Release { instance: id, force }, set, Some(caller))))
}

fn promote(
    draft: &mut Draft,
    caller: &Caller,
    id: InstanceId,
    wait: Option<u64>,
) -> Result<Operation, Denied> {
    let row = draft.need_instance(id)?.clone();
    if draft.need_share(row.share_id)?.replication.is_none() {
        return Err(Denied::NotReplicated(row.share_id));
    }
    if row.status != InstanceStatus::Available {
        return Err(Denied::InstanceStatus { instance: id, status: row.status, needed: "available".into() });
    }
    let state = row.replica_state.unwrap_or(ReplicaState::Error);
    if !caller.admin && matches!(state, ReplicaState::OutOfSync | ReplicaState::Error) {
        return Err(Denied::PromoteNeedsAdmin { instance: id, state: state.as_str().into() });
    }
    draft.need_idle(row.share_id)?;
    // A promotion makes its own last sync, and continues what a preempted one had carried.
    draft.preempt(|op| matches!(op.intent, Intent::Sync { .. }));
    let set = vec![Effect::Status { instance: id, status: InstanceStatus::ReplicationChange }];
    let epoch = draft.share.as_ref().map(|share| share.epoch);
    // Where both sides have what the other lacks, this says that it is this one that is to be kept.
    let keep = state == ReplicaState::Error;
    let intent = Intent::Promote { instance: id, quiesce_wait_seconds: wait, epoch, keep };
    Ok(draft.admit(new_op(), intent, set, Some(caller)))
}

/// Admits a sync that gives up nothing, unless one is waiting or running for that instance.
pub(crate) fn admit_sync(
    draft: &mut Draft,
    id: InstanceId,
    point: Option<PointId>,
) -> Result<Option<Operation>, Denied> {
    admit(draft, id, point, (false, None))
}

/// Admits a sync that gives up what only that instance has: somebody, or its share type, said so. One that gives up nothing does
/// not take its place.
pub(crate) fn admit_resync(
    draft: &mut Draft,
    id: InstanceId,
    caller: Option<&Caller>,
) -> Result<Option<Operation>, Denied> {
    admit(draft, id, None, (true, caller))
}

fn admit(
    draft: &mut Draft,
    id: InstanceId,
    point: Option<PointId>,
    (wanted, caller): (bool, Option<&Caller>),
) -> Result<Option<Operation>, Denied> {
    draft.need_instance(id)?;
    let does = |intent: &Intent| matches!(intent, Intent::Sync { instance, asked, .. } if *instance == id && (*asked || !wanted));
    if draft.unfinished().iter().any(|op| does(&op.intent) && !op.cancel) {
        return Ok(None);
    }
    let intent = Intent::Sync { instance: id, asked: wanted, point };
    Ok(Some(draft.admit(new_op(), intent, Vec::new(), caller)))
}

/// Admits a content check of a follower that is available. Where one is on its way, it is that.
pub(crate) fn admit_verify(
    draft: &mut Draft,
    id: InstanceId,
    caller: Option<&Caller>,
) -> Result<Operation, Denied> {
    let row = draft.need_instance(id)?.clone();
    if draft.need_share(row.share_id)?.replication.is_none() {
        return Err(Denied::NotReplicated(row.share_id));
    }
    if row.replica_state == Some(ReplicaState::Active) {
        return Err(Denied::VerifyActive(id));
    }
    if row.status != InstanceStatus::Available {
        return Err(Denied::InstanceStatus { instance: id, status: row.status, needed: "available".into() });
    }
    let mine = |op: &&Operation| {
        matches!(op.intent, Intent::Verify { instance, .. } if instance == id) && !op.cancel
    };
    if let Some(running) = draft.unfinished().iter().find(mine) {
        return Ok(running.clone());
    }
    Ok(draft.admit(new_op(), Intent::Verify { instance: id, asked: caller.is_some() }, Vec::new(), caller))
}
