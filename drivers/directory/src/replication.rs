//! Replicas and their roles.

use std::fs;

use tandem_sdk::contract::{
    CreateReplica, DeleteReplica, DemoteReplica, Demotion, InstanceInfo, Outcome, PromoteReplica, Promotion,
    ReplicaReport, Role, UpdateReplicaState,
};
use tandem_sdk::{Error, OpContext, Replication, Result, mirror};

use crate::instance::{create, delete};
use crate::store::{Instance, Store, from_mirror, io_error};
use crate::{Directory, observe};

impl Replication for Directory {
    async fn create_replica(&self, cx: &OpContext, call: CreateReplica) -> Result<Outcome<InstanceInfo>> {
        self.run(cx, move |store, _| create(store, call.spec, Role::Secondary)).await
    }

    async fn update_replica_state(&self, cx: &OpContext, call: UpdateReplicaState) -> Result<ReplicaReport> {
        self.run(cx, move |store, cx| observe::replica_state(store, call.instance, call.epoch, cx)).await
    }

    async fn promote_replica(&self, cx: &OpContext, call: PromoteReplica) -> Result<Outcome<InstanceInfo>> {
        self.run(cx, move |store, cx| promote(store, &call, cx)).await
    }

    async fn demote_replica(&self, cx: &OpContext, call: DemoteReplica) -> Result<Outcome<InstanceInfo>> {
        self.run(cx, move |store, cx| demote(store, &call, cx)).await
    }

    async fn delete_replica(&self, cx: &OpContext, call: DeleteReplica) -> Result<Outcome<()>> {
        self.run(cx, move |store, cx| {
            let active =
                store.find(call.instance)?.is_some_and(|i| i.meta.role == Role::Active && !i.meta.deleting);
            if active {
                return Err(Error::conflict(format!(
                    "instance {} is the active one; promote another replica first, or delete the share",
                    call.instance
                )));
            }
            delete(store, call.instance, cx)
        })
        .await
    }
}

/// Makes a secondary the active one.
fn promote(store: &Store, call: &PromoteReplica, cx: &OpContext) -> Result<Outcome<InstanceInfo>> {
    let mut instance = store.lock_existing(call.instance)?;
    let rose = instance.meta.epoch.see(call.epoch)?;
    if instance.meta.role == Role::Active {
        if rose {
            instance.save()?;
        }
        instance.serve()?;
        return Ok(Outcome::of(rose, instance.info()));
    }
    if instance.meta.version == 0 {
        return Err(Error::conflict(format!(
            "instance {} holds no whole point yet, so that it cannot become active",
            call.instance
        )));
    }
    if let Promotion::Planned { point: Some(point) } = call.promotion
        && instance.meta.point.as_ref().map(|p| p.id) != Some(point)
    {
        return Err(Error::conflict(format!(
            "instance {} is not at point {point}; sync it first",
            call.instance
        )));
    }
    instance.save()?;
    // Users are about to write: files that older versions share with this tree must be this tree's alone by then, and
    // what is half arrived would never be whole.
    let cancelled = || cx.is_cancelled();
    mirror::remove_path(&instance.incoming(), &cancelled).map_err(|e| from_mirror(&e))?;
    instance.remove_versions(&[instance.meta.version], &cancelled)?;
    if let Some(point) = instance.meta.point.clone() {
        keep_as_point(&instance, point.id)?;
        instance.meta.points = vec![point];
        instance.prune_points()?;
    }
    instance.meta.point = None;
    instance.meta.role = Role::Active;
    instance.meta.read_only = false;
    instance.save()?;
    instance.serve()?;
    for name in ["manifest", "variants", "delta"] {
        let path = instance.version_dir().join(name);
        mirror::remove_path(&path, &|| false).map_err(|e| from_mirror(&e))?;
    }
    tracing::info!(instance = %call.instance, epoch = %call.epoch, "Promoted the replica.");
    Ok(Outcome::Changed(instance.info()))
}

/// What a replica's tree came from becomes a point of the active one: the next sync of every other replica starts there.
fn keep_as_point(instance: &Instance, id: tandem_sdk::PointId) -> Result<()> {
    for name in ["manifest", "variants"] {
        let (from, to) = (instance.version_dir().join(name), instance.point_file(id, name));
        match fs::metadata(&from) {
            // An empty list of newer files says that there are none.
            Ok(found) if found.len() == 0 => continue,
            Err(_) if name == "variants" => continue,
            _ => {}
        }
        mirror::remove_path(&to, &|| false).map_err(|e| from_mirror(&e))?;
        fs::hard_link(&from, &to).map_err(|e| io_error("keep", &from, &e))?;
    }
    Ok(())
}

/// Makes the active one a secondary, or fences it.
fn demote(store: &Store, call: &DemoteReplica, cx: &OpContext) -> Result<Outcome<InstanceInfo>> {
    let mut instance = store.lock_existing(call.instance)?;
    let rose = instance.meta.epoch.see(call.epoch)?;
    let role = match call.to {
        Demotion::Secondary => Role::Secondary,
        Demotion::Fenced => Role::Fenced,
    };
    if rose {
        instance.save()?;
    }
    if instance.meta.role == role {
        instance.serve()?;
        return Ok(Outcome::of(rose, instance.info()));
    }
    if role == Role::Secondary && instance.meta.spec.replication.is_none() {
        return Err(Error::conflict(format!("instance {} does not replicate", call.instance)));
    }
    if instance.meta.role == Role::Active && role == Role::Fenced {
        instance.meta.role = role;
        instance.save()?;
        instance.serve()?;
        tracing::info!(instance = %call.instance, epoch = %call.epoch, "Fenced the instance.");
        return Ok(Outcome::Changed(instance.info()));
    }
    if role == Role::Secondary {
        become_secondary(&mut instance, cx)?;
    }
    instance.meta.role = role;
    instance.save()?;
    instance.serve()?;
    tracing::info!(instance = %call.instance, epoch = %call.epoch, ?role, "Demoted the instance.");
    Ok(Outcome::Changed(instance.info()))
}

/// The live tree becomes a replica's tree: at its newest point when nothing was written since, at none otherwise.
fn become_secondary(instance: &mut Instance, cx: &OpContext) -> Result<()> {
    if instance.meta.point.is_some() {
        // It was a secondary before it was fenced.
        return Ok(());
    }
    // First nobody may write any more, then what was written up to now counts. Its role changes last, so that a kill
    // on the way has all of this done again.
    if instance.meta.role == Role::Active && !instance.meta.read_only {
        instance.meta.read_only = true;
        instance.save()?;
    }
    instance.unexport()?;
    instance.serve_nobody()?;
    let newest = instance.meta.points.last().cloned();
    let changed = observe::changed_since(instance, newest.as_ref(), cx)?;
    if let Some(point) = newest.filter(|_| !changed) {
        let (from, to) = (instance.point_file(point.id, "manifest"), instance.version_dir().join("manifest"));
        mirror::remove_path(&to, &|| false).map_err(|e| from_mirror(&e))?;
        fs::hard_link(&from, &to).map_err(|e| io_error("keep", &from, &e))?;
        instance.meta.point = Some(point);
    } else {
        tracing::warn!(
            instance = %instance.meta.spec.instance,
            "The instance was written to after its newest point; it needs a full copy to follow again."
        );
    }
    Ok(())
}
