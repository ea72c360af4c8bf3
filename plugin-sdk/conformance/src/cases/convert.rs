//! Instances made without replication that replicate for a while, on storage that does so by itself.

use tandem_contract::*;

use crate::case::list;
use crate::cases::storage::{endpoint, up_to_date};
use crate::check::{Check, changed, refused, same, unchanged};
use crate::content::{Content, sample};
use crate::scene::{Pair, Scene};

list! {
    27 "what was made without replication begins to replicate, keeps what it holds, and ends it" StorageConverts returns;
    27 "what was made without replication moves to the other side, which is at a higher epoch" StorageConverts moves;
    27 "what has a peer goes on replicating" StorageConverts stays;
    6 "a stale epoch is refused by begin_replication and end_replication" StorageConverts stale;
}

/// An active instance without replication, what it holds, and the call that lets it replicate.
async fn plain(scene: &Scene) -> Check<(InstanceSpec, Content, BeginReplication)> {
    let spec = scene.spec(&scene.here, None).await?;
    changed("`create_instance`", scene.here.call(CreateInstance { spec: spec.clone() }).await)?;
    let content = sample(60);
    let can_see = scene.fill(&scene.here, spec.instance, spec.epoch, &content).await?;
    let replication = Some(ReplicationSpec { style: Style::Dr, instances: 2 });
    let begin = BeginReplication { spec: InstanceSpec { replication, ..spec.clone() }, peer: None };
    Ok((spec, if can_see { content } else { Content::new() }, begin))
}

/// Begun, and connected with a replica that is at the next epoch.
async fn paired(scene: &Scene) -> Check<(Pair, Content)> {
    let (spec, content, begin) = plain(scene).await?;
    changed("`begin_replication`", scene.here.call(begin.clone()).await)?;
    let new = scene.spec(&scene.there, Some(Style::Dr)).await?;
    let replica = InstanceSpec {
        instance: new.instance,
        pool: new.pool,
        epoch: spec.epoch.next(),
        ..begin.spec.clone()
    };
    changed("`create_replica`", scene.there.call(CreateReplica { spec: replica.clone() }).await)?;
    let here = endpoint(&scene.here, spec.instance).await?;
    let there = endpoint(&scene.there, replica.instance).await?;
    let of = |spec: &InstanceSpec, peer, authoritative| ConnectPeers {
        instance: spec.instance,
        epoch: spec.epoch,
        peer,
        authoritative,
        give_up: false,
    };
    changed("`connect_peers` of the replica", scene.there.call(of(&replica, here, false)).await)?;
    changed("`connect_peers` of the active", scene.here.call(of(&spec, there, true)).await)?;
    let pair = Pair { epoch: replica.epoch, active: spec, replica };
    up_to_date(scene, &pair).await?;
    Ok((pair, content))
}

async fn returns(scene: Scene) -> Check {
    let (spec, content, begin) = plain(&scene).await?;
    changed("`begin_replication`", scene.here.call(begin.clone()).await)?;
    unchanged("the repeat of `begin_replication`", scene.here.call(begin).await)?;
    endpoint(&scene.here, spec.instance).await?;
    scene.holds(&scene.here, spec.instance, spec.epoch, &content).await?;
    let end = EndReplication { instance: spec.instance, epoch: spec.epoch };
    changed("`end_replication`", scene.here.call(end.clone()).await)?;
    unchanged("the repeat of `end_replication`", scene.here.call(end).await)?;
    scene.holds(&scene.here, spec.instance, spec.epoch, &content).await?;
    unchanged("the repeat of `create_instance`", scene.here.call(CreateInstance { spec }).await).map(drop)
}

async fn moves(scene: Scene) -> Check {
    let (pair, content) = paired(&scene).await?;
    let (old, new, epoch) = (pair.active.instance, pair.replica.instance, pair.epoch);
    let demotion = DemoteReplica { instance: old, epoch: pair.active.epoch, to: Demotion::Secondary };
    changed("`demote_replica`", scene.here.call(demotion).await)?;
    let promotion = PromoteReplica { instance: new, epoch, promotion: Promotion::Planned { point: None } };
    changed("`promote_replica`", scene.there.call(promotion).await)?;
    scene.holds(&scene.there, new, epoch, &content).await?;
    changed("`disconnect_peers`", scene.there.call(DisconnectPeers { instance: new, peer: old }).await)?;
    let end = EndReplication { instance: new, epoch };
    changed("`end_replication`", scene.there.call(end).await)?;
    scene.holds(&scene.there, new, epoch, &content).await?;
    let seen = scene.observe(&scene.there, new).await?;
    same("its role and epoch", &(seen.role, seen.epoch), &(Role::Active, epoch))
}

async fn stays(scene: Scene) -> Check {
    let (pair, content) = paired(&scene).await?;
    let (instance, epoch) = (pair.active.instance, pair.active.epoch);
    let answer = scene.here.call(EndReplication { instance, epoch }).await;
    refused("`end_replication` of what has a peer", answer, &[ErrorKind::Conflict])?;
    scene.holds(&scene.here, instance, epoch, &content).await?;
    up_to_date(&scene, &pair).await
}

async fn stale(scene: Scene) -> Check {
    let (spec, _, begin) = plain(&scene).await?;
    let before = Epoch(spec.epoch.0 - 1);
    let old = BeginReplication { spec: InstanceSpec { epoch: before, ..begin.spec.clone() }, peer: None };
    refused("`begin_replication` at a stale epoch", scene.here.call(old).await, &[ErrorKind::StaleEpoch])?;
    changed("`begin_replication`", scene.here.call(begin).await)?;
    let old = EndReplication { instance: spec.instance, epoch: before };
    refused("`end_replication` at a stale epoch", scene.here.call(old).await, &[ErrorKind::StaleEpoch])?;
    Ok(())
}
