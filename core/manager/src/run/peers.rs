//! Steps of storage that replicates by itself: its sides are connected, waited for, and parted.

use std::time::Duration;

use tandem_contract::{
    BeginReplication, ConnectPeers, DisconnectPeers, EndReplication, Epoch, Error, ErrorKind, GetEndpoint,
    InstanceId, InstanceInfo, Progress, Role, Style, UpdateReplicaState,
};
use tandem_host::Backend;

use super::execute::Run;
use super::steps::{Done, Scene, served, set_exports};
use crate::draft::active_beside;
use crate::model::{Instance, Intent, Operation};
use crate::plan::by_storage;

/// Between two looks at whether both sides hold the same.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// So many looks the two sides of a split brain have to meet, once somebody said which one gives up what it has.
const LOOKS_UNTIL_MET: u32 = 60;

/// One side of a connection.
struct Side<'s> {
    backend: Backend,
    row: &'s Instance,
    epoch: Epoch,
}

impl Run {
    async fn side<'s>(&self, scene: &'s Scene, row: &'s Instance) -> Result<Side<'s>, Error> {
        Ok(Side { backend: self.core.backends.of(row).await?, row, epoch: scene.epoch_of(row) })
    }

    pub(super) async fn connect(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        let active = active_beside(&scene.family.instances, id)
            .ok_or_else(|| Error::conflict("the share has no other active replica"))?;
        let (source, dest) = (self.side(scene, active).await?, self.side(scene, scene.row(id)?).await?);
        // What only it has is given up when somebody said so, or when it was acknowledged to nobody, and never else.
        let give_up = dest.row.yields || matches!(self.intent(), Intent::Sync { asked: true, .. });
        if !give_up && let Some(how) = self.parted(&dest.backend, id, dest.epoch).await? {
            return Err(Error::conflict(format!("both sides have data that the other lacks: {how}")));
        }
        match self.join_sides(&source, &dest, give_up).await {
            Err(error) if error.kind == ErrorKind::Conflict => {
                // They were connected when it was the other one that led.
                self.disconnect(scene, id).await?;
                self.join_sides(&source, &dest, give_up).await?;
            }
            other => other?,
        }
        Ok(Done::nothing())
    }

    /// Tells each side of the other; the source leads.
    async fn join_sides(&self, source: &Side<'_>, dest: &Side<'_>, give_up: bool) -> Result<(), Error> {
        let here = self.ask(&source.backend, GetEndpoint { instance: source.row.id }).await?;
        let there = self.ask(&dest.backend, GetEndpoint { instance: dest.row.id }).await?;
        let of = |side: &Side<'_>, peer, authoritative, give_up| ConnectPeers {
            instance: side.row.id,
            epoch: side.epoch,
            peer,
            authoritative,
            give_up,
        };
        // Both hear of it, whatever the first one says.
        let follow = self.ask(&dest.backend, of(dest, here, false, give_up)).await;
        if follow.as_ref().is_err_and(|error| error.kind != ErrorKind::Conflict) {
            return follow.map(drop);
        }
        self.ask(&source.backend, of(source, there, true, false)).await.and(follow).map(drop)
    }

    /// Whether a follower holds changes that the active one lacks, as a sentence.
    pub(super) async fn parted(
        &self,
        backend: &Backend,
        id: InstanceId,
        epoch: Epoch,
    ) -> Result<Option<String>, Error> {
        let report = self.ask(backend, UpdateReplicaState { instance: id, epoch }).await?;
        self.core.board.set_freshness(id, |f| f.parted = report.split_brain.is_some());
        Ok(report.split_brain)
    }

    pub(super) async fn disconnect(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        let Some(active) = active_beside(&scene.family.instances, id) else { return Ok(Done::nothing()) };
        let source = self.core.backends.of(active).await?;
        let dest = self.placed(scene, id).await?;
        if matches!(self.intent(), Intent::DeleteReplica { .. }) {
            if self.observe(active).await?.is_none() {
                return Err(Error::conflict(format!(
                    "the storage of the active instance {} is gone, and its users may have what lies on this one \
                     alone: reset its status to `available`, and promote it; to go without it, delete it by force",
                    active.id
                )));
            }
            if let Some(dest) = &dest
                && scene.share.replication == Some(Style::Writable)
                && matches!(self.observe(scene.row(id)?).await, Ok(None))
            {
                // It may be mounted still, by what lies on the other one.
                self.leave(dest, id, active.id).await?;
            }
        }
        self.leave(&source, active.id, id).await?;
        if let Some(dest) = dest {
            self.leave(&dest, id, active.id).await?;
        }
        Ok(Done::nothing())
    }

    /// What is gone is connected to nobody.
    async fn leave(&self, backend: &Backend, instance: InstanceId, peer: InstanceId) -> Result<(), Error> {
        match self.ask(backend, DisconnectPeers { instance, peer }).await {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    pub(super) async fn await_up_to_date(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        let row = scene.row(id)?;
        let told = row.yields || matches!(self.intent(), Intent::Sync { asked: true, .. });
        self.up_to_date(&self.side(scene, row).await?, told).await?;
        // As after the first point that arrives: now there is something that users may read.
        let first = row.exports.is_empty() && scene.share.replication == Some(Style::Readable);
        let seen = if first { self.observe(row).await.unwrap_or_default() } else { None };
        let exports = seen.filter(|seen| seen.role == Role::Secondary).map(|seen| seen.exports);
        let Some(exports) = exports.filter(|exports| !exports.is_empty()) else { return Ok(Done::nothing()) };
        Ok(Done::with(move |draft| {
            set_exports(draft, id, &InstanceInfo { exports: exports.clone(), ..InstanceInfo::default() });
            Vec::new()
        }))
    }

    /// Waits until a follower has everything. `told`: it was said which side gives up what only it has.
    async fn up_to_date(&self, side: &Side<'_>, told: bool) -> Result<(), Error> {
        let (instance, epoch, now) = (side.row.id, side.epoch, self.core.clock.now());
        self.moving(async |cx| {
            let mut looks = if told { LOOKS_UNTIL_MET } else { 0 };
            loop {
                let report = side.backend.call(&cx, UpdateReplicaState { instance, epoch }).await?;
                if let Some(how) = report.split_brain.filter(|_| looks == 0) {
                    return Err(Error::conflict(format!("both sides have data that the other lacks: {how}")));
                }
                looks = looks.saturating_sub(1);
                self.core.board.set_freshness(instance, |f| f.lag_bytes = report.lag_bytes);
                if report.up_to_date == Some(true) {
                    self.core.board.set_freshness(instance, |f| f.confirmed_at = Some(now));
                    return Ok(());
                }
                (cx.on_progress)(report.resync.unwrap_or_else(|| Progress::of("resync", 0, None)));
                tokio::select! {
                    biased;
                    () = self.core.clock.sleep(LOOK_AGAIN) => {}
                    () = cx.cancel.cancelled() => return Err(Error::cancelled("stopped while waiting for the storage")),
                }
            }
        })
        .await
    }

    /// The destination of a migration has what its source has, and goes on getting it. A share whose type does not replicate
    /// does so for as long as it moves.
    pub(super) async fn follow(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let from = self.side(scene, scene.row(source)?).await?;
        let to = self.side(scene, scene.row(instance)?).await?;
        let mut info = None;
        if scene.share.replication.is_none() {
            let (backend, spec) = self.spec(scene, source).await?;
            let spec = super::migration::as_replica(spec, &backend);
            let peer = Some(self.ask(&to.backend, GetEndpoint { instance }).await?);
            info = Some(self.ask(&backend, BeginReplication { spec, peer }).await?.into_inner());
        }
        self.join_sides(&from, &to, false).await?;
        self.up_to_date(&to, false).await?;
        Ok(info.map_or_else(Done::nothing, |info| served(source, info, &scene.share)))
    }

    pub(super) async fn leave_peer(
        &self,
        scene: &Scene,
        instance: InstanceId,
        peer: InstanceId,
    ) -> Result<Done, Error> {
        let backend = self.core.backends.of(scene.row(instance)?).await?;
        if by_storage(backend.capabilities()) {
            self.leave(&backend, instance, peer).await?;
        }
        Ok(Done::nothing())
    }

    pub(super) async fn end_replication(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        let side = self.side(scene, scene.row(id)?).await?;
        let converts = side.backend.capabilities().replication.as_ref().is_some_and(|r| r.converts);
        let moves = |op: &Operation| {
            matches!(op.intent, Intent::Migrate { source, .. } if source == id) && op.id != self.op
        };
        if !converts || scene.share.replication.is_some() || scene.family.operations.iter().any(moves) {
            return Ok(Done::nothing());
        }
        let verb = EndReplication { instance: id, epoch: side.epoch };
        let info = self.ask(&side.backend, verb).await?.into_inner();
        Ok(served(id, info, &scene.share))
    }
}
