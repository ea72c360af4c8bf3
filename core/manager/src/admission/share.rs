//! Admission of what concerns a share as a whole.

use tandem_contract::{Epoch, InstanceId, ReplicaState, ResourceId};
use uuid::Uuid;

use super::new_op;
use crate::core::Core;
use crate::denied::Denied;
use crate::draft::Draft;
use crate::face::{Caller, MetadataChange, NewShare, ShareChange};
use crate::model::{Counted, Instance, InstanceStatus, Intent, Operation, Part, Share, ShareType};
use crate::oplog::Effect;

impl Core {
    /// Admits a share and its first instance.
    pub(crate) async fn create_share(&self, caller: &Caller, new: NewShare) -> Result<Share, Denied> {
        let share_type = self
            .store
            .share_type(new.share_type_id)
            .await?
            .ok_or_else(|| Denied::NoType(new.share_type_id.to_string()))?;
        self.check_zone(new.availability_zone.as_deref(), &share_type)?;
        let (share_id, instance_id) = (ResourceId(crate::ids::random()), InstanceId(crate::ids::random()));
        self.change_in(share_id, &caller.project_id, |draft| {
            new_share(draft, caller, &new, &share_type, share_id, instance_id)?;
            draft.share.clone().ok_or(Denied::NoShare(share_id))
        })
        .await
    }

    /// Admits the removal of a share; with `force`, whatever its status, and forgetting what cannot be removed.
    pub(crate) async fn delete_share(
        &self,
        caller: &Caller,
        id: ResourceId,
        force: bool,
    ) -> Result<Operation, Denied> {
        self.change(id, |draft| delete_share(draft, caller, id, force)).await
    }

    /// Changes what a person set.
    pub(crate) async fn update_share(&self, id: ResourceId, change: ShareChange) -> Result<Share, Denied> {
        self.change(id, |draft| {
            let share = draft.share.as_mut().ok_or(Denied::NoShare(id))?;
            if let Some(name) = &change.name {
                share.name.clone_from(name);
            }
            if let Some(description) = &change.description {
                share.description.clone_from(description);
            }
            if let Some(public) = change.is_public {
                share.is_public = public;
            }
            Ok(share.clone())
        })
        .await
    }

    /// Changes a share's metadata.
    pub(crate) async fn set_share_metadata(
        &self,
        id: ResourceId,
        change: MetadataChange,
    ) -> Result<Share, Denied> {
        self.change(id, |draft| {
            let share = draft.share.as_mut().ok_or(Denied::NoShare(id))?;
            change.apply(&mut share.metadata);
            Ok(share.clone())
        })
        .await
    }

    /// An admin's override of the status of the instance that speaks for the share.
    pub(crate) async fn reset_share_status(
        &self,
        caller: &Caller,
        id: ResourceId,
        status: InstanceStatus,
    ) -> Result<Operation, Denied> {
        self.change(id, |draft| {
            let share = draft.need_share(id)?;
            let instance = share.representative(&draft.instances).ok_or(Denied::NoShare(id))?.id;
            Ok(draft.reset(instance, Some(status), None, caller))
        })
        .await
    }

    /// An admin's override of an instance's status.
    pub(crate) async fn reset_instance_status(
        &self,
        caller: &Caller,
        id: InstanceId,
        status: InstanceStatus,
    ) -> Result<Operation, Denied> {
        let share = self.share_of(id).await?;
        self.change(share, |draft| {
            draft.need_instance(id)?;
            Ok(draft.reset(id, Some(status), None, caller))
        })
        .await
    }

    /// Admits another size. `verb` is `extend` or `shrink`.
    pub(crate) async fn resize_share(
        &self,
        caller: &Caller,
        id: ResourceId,
        to_gb: u64,
        verb: &'static str,
    ) -> Result<Operation, Denied> {
        self.change(id, |draft| resize_share(draft, caller, id, to_gb, verb)).await
    }
}

fn new_share(
    draft: &mut Draft,
    caller: &Caller,
    new: &NewShare,
    share_type: &ShareType,
    share_id: ResourceId,
    instance_id: InstanceId,
) -> Result<(), Denied> {
    let replication = share_type.replication();
    let size = i64::try_from(new.size_gb).unwrap_or(i64::MAX);
    let most = draft.limit("per_share_gigabytes");
    if most >= 0 && size > most {
        return Err(Denied::Invalid(format!(
            "Requested share size {}G is larger than maximum allowed limit {most}G.",
            new.size_gb
        )));
    }
    draft.reserve(Counted::Shares, 1)?;
    draft.reserve(Counted::Gigabytes, size)?;
    if replication.is_some() {
        draft.reserve(Counted::ShareReplicas, 1)?;
        draft.reserve(Counted::ReplicaGigabytes, size)?;
    }
    draft.share = Some(Share {
        id: share_id,
        version: 0,
        project_id: caller.project_id.clone(),
        user_id: caller.user_id.clone(),
        name: new.name.clone(),
        description: new.description.clone(),
        size_gb: new.size_gb,
        protocol: new.protocol.clone(),
        share_type_id: share_type.id,
        is_public: new.is_public,
        metadata: new.metadata.clone(),
        availability_zone: new.availability_zone.clone(),
        replication,
        epoch: Epoch(1),
        arbitration: None,
        points: Vec::new(),
        task_state: None,
        snapshot_support: share_type.snapshot_support(),
        created_at: draft.now,
        updated_at: None,
    });
    draft.instances.push(Instance {
        availability_zone: new.availability_zone.clone(),
        replica_state: replication.map(|_| ReplicaState::Active),
        ..blank_instance(instance_id, share_id, caller.project_id.clone(), share_type.id, draft.now)
    });
    let mut set = vec![Effect::Status { instance: instance_id, status: InstanceStatus::Creating }];
    if replication.is_some() {
        set.push(Effect::ReplicaState { instance: instance_id, state: Some(ReplicaState::Active) });
    }
    draft.admit(
        new_op(),
        Intent::CreateShare { instance: instance_id, only_host: new.only_host.clone() },
        set,
        Some(caller),
    );
    Ok(())
}

/// An instance that is nowhere yet.
pub(super) fn blank_instance(
    id: InstanceId,
    share_id: ResourceId,
    project_id: String,
    share_type_id: Uuid,
    now: crate::clock::Timestamp,
) -> Instance {
    Instance {
        id,
        version: 0,
        share_id,
        project_id,
        share_type_id,
        pool: None,
        availability_zone: None,
        status: InstanceStatus::Creating,
        replica_state: None,
        access_rules_status: crate::model::AccessRulesStatus::Active,
        cast_rules_to_readonly: false,
        exports: Vec::new(),
        metadata: std::collections::BTreeMap::new(),
        epoch: Epoch(0),
        unfenced: false,
        fenced: false,
        yields: false,
        part: Part::Whole,
        point: None,
        reason: None,
        checked: None,
        tried_at: None,
        damage: None,
        damaged_at: None,
        reset_by_admin: false,
        created_at: now,
        scheduled_at: None,
        launched_at: None,
        updated_at: None,
    }
}

fn delete_share(
    draft: &mut Draft,
    caller: &Caller,
    id: ResourceId,
    force: bool,
) -> Result<Operation, Denied> {
    let share = draft.need_share(id)?;
    if share.has_replicas(&draft.instances) {
        return Err(Denied::HasReplicas(id));
    }
    if !force {
        if let Some(instance) = share.representative(&draft.instances)
            && !matches!(
                instance.status,
                InstanceStatus::Available
                    | InstanceStatus::Error
                    | InstanceStatus::Inactive
                    | InstanceStatus::ErrorDeleting
            )
        {
            return Err(Denied::ShareStatus {
                share: id,
                status: instance.status,
                needed: "available, error or inactive".into(),
            });
        }
        draft.need_idle(id)?;
    }
    draft.preempt(|op| {
        force || matches!(op.intent, Intent::Sync { .. } | Intent::UpdateAccess | Intent::Release { .. })
    });
    let set = draft
        .instances
        .iter()
        .map(|i| Effect::Status { instance: i.id, status: InstanceStatus::Deleting })
        .collect();
    Ok(draft.admit(new_op(), Intent::DeleteShare { force }, set, Some(caller)))
}

fn resize_share(
    draft: &mut Draft,
    caller: &Caller,
    id: ResourceId,
    to_gb: u64,
    verb: &'static str,
) -> Result<Operation, Denied> {
    let share = draft.need_share(id)?;
    let (from_gb, replicated) = (share.size_gb, share.replication.is_some());
    let instance = share.representative(&draft.instances).ok_or(Denied::NoShare(id))?;
    let (instance, status) = (instance.id, instance.status);
    if status != InstanceStatus::Available {
        return Err(Denied::ShareStatus { share: id, status, needed: "available".into() });
    }
    draft.need_idle(id)?;
    // Another replica may have become the active one, and be available, while the share grows.
    if let Some((from_gb, to_gb)) = draft.resizing() {
        let status = if to_gb > from_gb { InstanceStatus::Extending } else { InstanceStatus::Shrinking };
        return Err(Denied::ShareStatus { share: id, status, needed: "available".into() });
    }
    let fits = if verb == "extend" { to_gb > from_gb } else { to_gb < from_gb && to_gb > 0 };
    if !fits {
        return Err(Denied::Size { share: id, size_gb: from_gb, asked_gb: to_gb, verb });
    }
    let status = if verb == "extend" {
        let more = i64::try_from(to_gb - from_gb).unwrap_or(i64::MAX);
        draft.reserve(Counted::Gigabytes, more)?;
        if replicated {
            let all = more.saturating_mul(draft.counted());
            draft.reserve(Counted::ReplicaGigabytes, all)?;
        }
        InstanceStatus::Extending
    } else {
        InstanceStatus::Shrinking
    };
    let set = vec![Effect::Status { instance, status }];
    Ok(draft.admit(new_op(), Intent::Resize { from_gb, to_gb }, set, Some(caller)))
}

impl MetadataChange {
    /// Makes the change.
    pub(crate) fn apply(&self, metadata: &mut std::collections::BTreeMap<String, String>) {
        match self {
            Self::Merge(new) => metadata.extend(new.clone()),
            Self::Replace(new) => metadata.clone_from(new),
            Self::Remove(key) => {
                metadata.remove(key);
            }
        }
    }
}
