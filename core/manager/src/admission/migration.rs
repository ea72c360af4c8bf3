//! Admission of migrations: start, go on, cancel.

use tandem_contract::{InstanceId, ResourceId};

use super::{new_op, share::blank_instance};
use crate::core::Core;
use crate::denied::Denied;
use crate::draft::Draft;
use crate::face::Caller;
use crate::model::{
    AccessRulesStatus, Counted, Instance, InstanceStatus, Intent, MigrationRequest, OpStatus, Operation,
    Part, ShareType, TaskState,
};
use crate::oplog::{Effect, Ending, Event};

impl Core {
    /// Admits a migration. `None`: it is where it would go, as it would be.
    pub(crate) async fn migrate(
        &self,
        caller: &Caller,
        share: ResourceId,
        request: MigrationRequest,
    ) -> Result<Option<Operation>, Denied> {
        let new_type = self.new_type(&request).await?;
        let destination = InstanceId(crate::ids::random());
        self.change(share, |draft| {
            self.admit_migration(draft, caller, share, destination, &request, new_type.as_ref())
        })
        .await
    }

    /// The same in a draft, which may be thrown away.
    pub(super) fn admit_migration(
        &self,
        draft: &mut Draft,
        caller: &Caller,
        share: ResourceId,
        destination: InstanceId,
        request: &MigrationRequest,
        new_type: Option<&ShareType>,
    ) -> Result<Option<Operation>, Denied> {
        let source = ready(draft, share)?;
        if stays(&source, request) {
            if let Some(share) = &mut draft.share {
                share.task_state = Some(TaskState::Success.as_str().to_owned());
            }
            return Ok(None);
        }
        let zone = self.destination_zone(request)?;
        if let Some(share_type) = new_type.or(draft.before().share_type.as_ref()) {
            self.check_zone(Some(&zone), share_type)?;
        }
        admit(draft, caller, &source, destination, request, new_type, zone).map(Some)
    }

    /// Tells a migration to go on after its first phase. Told again, nothing changes.
    pub(crate) async fn complete_migration(&self, share: ResourceId) -> Result<Operation, Denied> {
        self.change(share, |draft| {
            let op = running(draft, share)?;
            if op.status == OpStatus::Undoing {
                // It turns back, which its log does not let it be talked out of.
                return Err(Denied::NoMigration(share));
            }
            if !op.proceed {
                return Ok(draft.append(op, Event::ProceedRequested, Vec::new(), None));
            }
            Ok(op)
        })
        .await
    }

    /// Asks a migration to end: accepted at any time before the switch.
    pub(crate) async fn cancel_migration(&self, share: ResourceId) -> Result<Operation, Denied> {
        self.change(share, |draft| {
            let op = running(draft, share)?;
            draft.request_cancel(&op);
            Ok(Operation { cancel: true, ..op })
        })
        .await
    }

    /// An admin's override of the task state.
    pub(crate) async fn reset_task_state(
        &self,
        caller: &Caller,
        share: ResourceId,
        state: Option<TaskState>,
    ) -> Result<Operation, Denied> {
        let state = state.map(|s| s.as_str().to_owned());
        self.change(share, |draft| {
            draft.need_share(share)?;
            let intent = Intent::ResetTask { task_state: state.clone() };
            let op = draft.admit(new_op(), intent, Vec::new(), Some(caller));
            let op =
                draft.append(op, Event::Finished { ending: Ending::Done, error: None }, Vec::new(), None);
            if let Some(share) = &mut draft.share {
                share.task_state.clone_from(&state);
            }
            Ok(op)
        })
        .await
    }

    pub(super) async fn new_type(&self, request: &MigrationRequest) -> Result<Option<ShareType>, Denied> {
        let Some(id) = request.new_type else { return Ok(None) };
        Ok(Some(self.store.share_type(id).await?.ok_or_else(|| Denied::NoType(id.to_string()))?))
    }

    /// The zone of the back end that a migration goes to, which must be there and up.
    pub(super) fn destination_zone(&self, request: &MigrationRequest) -> Result<String, Denied> {
        let name = request.backend();
        let host = request.host.split('@').next().unwrap_or_default();
        let service = request.host.split('#').next().unwrap_or_default().to_owned();
        let view = self.backends.views().into_iter().find(|v| v.name == name && v.host == host);
        let Some(view) = view else { return Err(Denied::NoService(service)) };
        match view.state {
            crate::face::BackendState::Up => Ok(view.availability_zone),
            crate::face::BackendState::Down { .. } => Err(Denied::ServiceDown(service)),
        }
    }
}

/// Whether the share may migrate now; its instance.
fn ready(draft: &Draft, id: ResourceId) -> Result<Instance, Denied> {
    let share = draft.need_share(id)?;
    if share.has_replicas(&draft.instances) {
        return Err(Denied::HasReplicas(id));
    }
    let source = share.representative(&draft.instances).ok_or(Denied::NoShare(id))?.clone();
    if source.status != InstanceStatus::Available {
        let (instance, status) = (source.id, source.status);
        return Err(Denied::InstanceStatus { instance, status, needed: "available".into() });
    }
    if source.access_rules_status == AccessRulesStatus::Error {
        return Err(Denied::RulesFailed(source.id));
    }
    draft.need_idle(id)?;
    // An admin's reset of status and task state does not end it.
    if running(draft, id).is_ok() {
        return Err(Denied::Busy { share: id, task_state: TaskState::InProgress.as_str().to_owned() });
    }
    Ok(source)
}

/// Whether it is where it would go, as it would be.
fn stays(source: &Instance, request: &MigrationRequest) -> bool {
    source.pool.as_ref().is_some_and(|pool| pool.to_string() == request.host)
        && request.new_type.is_none_or(|id| id == source.share_type_id)
}

fn admit(
    draft: &mut Draft,
    caller: &Caller,
    source: &Instance,
    destination: InstanceId,
    request: &MigrationRequest,
    new_type: Option<&ShareType>,
    zone: String,
) -> Result<Operation, Denied> {
    let share = draft.need_share(source.share_id)?.clone();
    let type_id = new_type.map_or(share.share_type_id, |t| t.id);
    let replicates = new_type.is_some_and(|t| t.replication().is_some());
    if replicates && share.replication.is_none() {
        draft.reserve(Counted::ShareReplicas, 1)?;
        draft.reserve(Counted::ReplicaGigabytes, i64::try_from(share.size_gb).unwrap_or(i64::MAX))?;
    }
    draft.instances.push(Instance {
        availability_zone: Some(zone),
        part: Part::Incoming,
        ..blank_instance(destination, share.id, share.project_id.clone(), type_id, draft.now)
    });
    if let Some(share) = &mut draft.share {
        share.task_state = Some(TaskState::Starting.as_str().to_owned());
    }
    let set = vec![
        Effect::Status { instance: source.id, status: InstanceStatus::Migrating },
        Effect::Status { instance: destination, status: InstanceStatus::MigratingTo },
    ];
    // A replica's schedule begins anew at the destination.
    draft.preempt(|op| matches!(op.intent, Intent::Sync { .. }));
    let request = MigrationRequest { replicates, ..request.clone() };
    let intent = Intent::Migrate { source: source.id, destination, request };
    Ok(draft.admit(new_op(), intent, set, Some(caller)))
}

/// The migration of a share that has not ended.
fn running(draft: &Draft, share: ResourceId) -> Result<Operation, Denied> {
    draft.need_share(share)?;
    let migrates = |op: &Operation| matches!(op.intent, Intent::Migrate { .. });
    draft.unfinished().into_iter().find(migrates).ok_or(Denied::NoMigration(share))
}
