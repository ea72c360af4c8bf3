//! Roles: secondaries, promotion, demotion, fencing, quiescing.

use tandem_contract::*;
use uuid::Uuid;

use crate::case::list;
use crate::check::{Check, changed, ensure, refused, same, succeeds, unchanged};
use crate::content::{Content, sample};
use crate::pipe::{self, Mishap};
use crate::scene::{Pair, Scene};

list! {
    1 "create_replica and delete_replica repeat as unchanged" Replication replica_repeats;
    2 "create_replica with other arguments is a conflict" Replication replica_conflicts;
    3 "verbs of replication on an unknown instance say not found" Replication unknown;
    6 "a stale epoch is refused by each verb of replication" Replication stale;
    19 "a readable secondary can be read and not written" StreamsReadable readable;
    19 "a dr secondary cannot be reached until it is promoted" StreamsDr disaster;
    24 "a planned promotion switches and failback is the same verbs again" Streams planned;
    24 "a planned promotion to a point that is not here is a conflict" Streams not_there;
    24 "a forced promotion serves the newest whole point" Streams forced;
    24 "a replica that holds nothing whole is not promoted" Streams empty;
    24 "the active instance is not deleted as a replica" Replication keeps_active;
    1 "promote_replica and demote_replica repeat as unchanged" Streams promote_repeats;
    25 "a fenced instance serves nobody and receives nothing" Streams fenced;
    20 "points are made on one that was fenced while active, and sent" Streams fenced_points;
    26 "a quiesced instance takes no writes until it is resumed" Quiesce quiesces;
}

fn planned_at(point: &PointInfo) -> Promotion {
    Promotion::Planned { point: Some(point.id) }
}

/// A pair whose replica holds `content` as its newest point.
async fn synced(scene: &Scene, style: Style, content: &Content) -> Check<(Pair, PointInfo)> {
    let pair = scene.pair(style).await?;
    scene.fill(&scene.here, pair.active.instance, pair.epoch, content).await?;
    let point = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
    scene.sync(&pair, &point, None).await?;
    Ok((pair, point))
}

fn any_style(scene: &Scene) -> Check<Style> {
    scene.style(Style::Readable).ok_or_else(|| "replication without a style".to_owned())
}

async fn replica_repeats(scene: Scene) -> Check {
    let pair = scene.pair(any_style(&scene)?).await?;
    let seen = scene.observe(&scene.there, pair.replica.instance).await?;
    for _ in 0..2 {
        let again = scene.there.call(CreateReplica { spec: pair.replica.clone() }).await;
        let info = unchanged("the repeat of `create_replica`", again)?;
        same("its exports", &info.exports, &seen.exports)?;
    }
    let gone = DeleteReplica { instance: pair.replica.instance };
    changed("`delete_replica`", scene.there.call(gone.clone()).await)?;
    for _ in 0..2 {
        unchanged("the repeat of `delete_replica`", scene.there.call(gone.clone()).await)?;
    }
    let seen = scene.there.call(ObserveInstance { instance: pair.replica.instance }).await;
    same("what is observed of a deleted replica", &succeeds("`observe_instance`", seen)?, &None)
}

async fn replica_conflicts(scene: Scene) -> Check {
    let pair = scene.pair(any_style(&scene)?).await?;
    let other = InstanceSpec { resource: ResourceId(Uuid::new_v4()), ..pair.replica.clone() };
    refused(
        "`create_replica` of another resource",
        scene.there.call(CreateReplica { spec: other }).await,
        &[ErrorKind::Conflict],
    )?;
    let other = InstanceSpec { size_bytes: pair.replica.size_bytes * 2, ..pair.replica.clone() };
    refused(
        "`create_replica` of another size",
        scene.there.call(CreateReplica { spec: other }).await,
        &[ErrorKind::Conflict],
    )?;
    Ok(())
}

async fn unknown(scene: Scene) -> Check {
    let (instance, epoch, missing, here) =
        (InstanceId(Uuid::new_v4()), Epoch(1), [ErrorKind::NotFound], &scene.here);
    let report = here.call(UpdateReplicaState { instance, epoch }).await;
    refused("`update_replica_state` of nothing", report, &missing)?;
    let promotion = Promotion::Forced { point: None };
    let promoted = here.call(PromoteReplica { instance, epoch, promotion }).await;
    refused("`promote_replica` of nothing", promoted, &missing)?;
    let demoted = here.call(DemoteReplica { instance, epoch, to: Demotion::Fenced }).await;
    refused("`demote_replica` of nothing", demoted, &missing)?;
    unchanged("`delete_replica` of nothing", here.call(DeleteReplica { instance }).await)?;
    if crate::Needs::Streams.met(&scene.capabilities) {
        let point = PointId(Uuid::new_v4());
        refused("`make_point` of nothing", here.call(MakePoint { instance, epoch, point }).await, &missing)?;
        unchanged("`release_point` of nothing", here.call(ReleasePoint { instance, point }).await)?;
        unchanged("`discard_partial` of nothing", here.call(DiscardPartial { instance }).await)?;
    }
    if crate::Needs::Quiesce.met(&scene.capabilities) {
        let held = here.call(Quiesce { instance, epoch, wait_seconds: None }).await;
        refused("`quiesce` of nothing", held, &missing)?;
    }
    Ok(())
}

async fn stale(scene: Scene) -> Check {
    let pair = scene.pair(any_style(&scene)?).await?;
    let (active, replica) = (pair.active.instance, pair.replica.instance);
    let (epoch, kinds) = (Epoch(pair.epoch.0 - 1), [ErrorKind::StaleEpoch]);
    let before = scene.observe(&scene.here, active).await?;
    let (here, there) = (&scene.here, &scene.there);
    for (side, instance) in [(here, active), (there, replica)] {
        let report = side.call(UpdateReplicaState { instance, epoch }).await;
        refused("`update_replica_state` at a stale epoch", report, &kinds)?;
        let promotion = Promotion::Forced { point: None };
        let promoted = side.call(PromoteReplica { instance, epoch, promotion }).await;
        refused("`promote_replica` at a stale epoch", promoted, &kinds)?;
        for to in [Demotion::Secondary, Demotion::Fenced] {
            let demoted = side.call(DemoteReplica { instance, epoch, to }).await;
            refused("`demote_replica` at a stale epoch", demoted, &kinds)?;
        }
    }
    if crate::Needs::Quiesce.met(&scene.capabilities) {
        let held = here.call(Quiesce { instance: active, epoch, wait_seconds: None }).await;
        refused("`quiesce` at a stale epoch", held, &kinds)?;
        let resumed = here.call(ResumeWrites { instance: active, epoch }).await;
        refused("`resume_writes` at a stale epoch", resumed, &kinds)?;
    }
    if crate::Needs::Streams.met(&scene.capabilities) {
        let point = PointId(Uuid::new_v4());
        refused(
            "`make_point` at a stale epoch",
            here.call(MakePoint { instance: active, epoch, point }).await,
            &kinds,
        )?;
        let point = scene.point(here, active, pair.epoch).await?;
        let (send, receive) = scene.halves((active, replica), there, epoch, &point, None).await?;
        let (read, write) = pipe::plain().map_err(|e| e.to_string())?;
        refused(
            "`send` at a stale epoch",
            here.call_with(SendStream { spec: send }, vec![write]).await,
            &kinds,
        )?;
        let received = there.call_with(Receive { spec: receive }, vec![read]).await;
        refused("`receive` at a stale epoch", received, &kinds)?;
        let released = here.call(ReleasePoint { instance: active, point: point.id }).await;
        changed("`release_point`", released)?;
    }
    same("the observation afterwards", &scene.observe(here, active).await?, &before)
}

async fn readable(scene: Scene) -> Check {
    let content = sample(3);
    let (pair, point) = synced(&scene, Style::Readable, &content).await?;
    let seen = scene.observe(&scene.there, pair.replica.instance).await?;
    same("the role", &seen.role, &Role::Secondary)?;
    same("read-only", &seen.read_only, &true)?;
    ensure(!seen.exports.is_empty(), || "a readable secondary has no export".to_owned())?;
    ensure(seen.points.iter().any(|p| p.id == point.id && p.fingerprint == point.fingerprint), || {
        "the point that it received is not among its points".to_owned()
    })?;
    scene.holds(&scene.there, pair.replica.instance, pair.epoch, &content).await?;
    let call = UpdateReplicaState { instance: pair.replica.instance, epoch: pair.epoch };
    let report = succeeds("`update_replica_state`", scene.there.call(call).await)?;
    same("the newest point", &report.newest_point.map(|p| p.id), &Some(point.id))?;
    same("the state", &report.state, &ReplicaState::InSync)
}

async fn disaster(scene: Scene) -> Check {
    let content = sample(4);
    let (pair, point) = synced(&scene, Style::Dr, &content).await?;
    let (instance, epoch) = (pair.replica.instance, pair.epoch.next());
    same(
        "the exports of a dr secondary",
        &scene.observe(&scene.there, instance).await?.exports,
        &Vec::new(),
    )?;
    let served = scene.there.call(EnsureInstance { instance, epoch: pair.epoch }).await;
    same(
        "its exports once it is ensured",
        &succeeds("`ensure_instance`", served)?.into_inner().exports,
        &Vec::new(),
    )?;
    let promoted = PromoteReplica { instance, epoch, promotion: planned_at(&point) };
    let info = changed("`promote_replica`", scene.there.call(promoted).await)?;
    ensure(!info.exports.is_empty(), || "it is promoted, but has no export".to_owned())?;
    scene.holds(&scene.there, instance, epoch, &content).await
}

/// Switch, write on the other side, sync back, switch back.
async fn planned(scene: Scene) -> Check {
    let mut content = sample(5);
    let (mut pair, mut point) = synced(&scene, any_style(&scene)?, &content).await?;
    let mut scene = scene;
    for round in 0..2u64 {
        let (old, new, epoch) = (pair.active.instance, pair.replica.instance, pair.epoch.next());
        let demoted = scene.here.call(DemoteReplica { instance: old, epoch, to: Demotion::Secondary }).await;
        changed("`demote_replica`", demoted)?;
        let seen = scene.observe(&scene.here, old).await?;
        same("the old one's role and epoch", &(seen.role, seen.epoch), &(Role::Secondary, epoch))?;
        same("whether the old one is read-only", &seen.read_only, &true)?;
        let promoted = PromoteReplica { instance: new, epoch, promotion: planned_at(&point) };
        changed("`promote_replica`", scene.there.call(promoted).await)?;
        let seen = scene.observe(&scene.there, new).await?;
        same("the new one's role and epoch", &(seen.role, seen.epoch), &(Role::Active, epoch))?;
        same("whether the new one is read-only", &seen.read_only, &false)?;
        scene.holds(&scene.there, new, epoch, &content).await?;

        // The old one follows, from the point that both have.
        scene = scene.turned();
        pair = Pair { active: pair.replica, replica: pair.active, epoch };
        content.insert("file 0".to_owned(), crate::content::noise(900 + round, 1000));
        content.insert(format!("new in round {round}"), b"x".to_vec());
        scene.fill(&scene.here, new, epoch, &content).await?;
        let next = scene.point(&scene.here, new, epoch).await?;
        let carried = scene.sync(&pair, &next, Some(&point)).await?;
        ensure(carried.bytes < 200 << 10, || {
            format!("failback carried {} bytes for a change of 1 KB", carried.bytes)
        })?;
        scene.holds(&scene.there, old, epoch, &content).await?;
        point = next;
    }
    Ok(())
}

async fn not_there(scene: Scene) -> Check {
    let (pair, point) = synced(&scene, any_style(&scene)?, &sample(6)).await?;
    let other = PointInfo { id: PointId(Uuid::new_v4()), ..point };
    let call = PromoteReplica {
        instance: pair.replica.instance,
        epoch: pair.epoch.next(),
        promotion: planned_at(&other),
    };
    refused(
        "`promote_replica` to a point that is not here",
        scene.there.call(call).await,
        &[ErrorKind::Conflict],
    )?;
    same("the role", &scene.observe(&scene.there, pair.replica.instance).await?.role, &Role::Secondary)
}

async fn forced(scene: Scene) -> Check {
    let content = sample(7);
    let (pair, point) = synced(&scene, any_style(&scene)?, &content).await?;
    // What was on its way when the active was lost is not whole, and is not served.
    let mut newer = content.clone();
    newer.insert("file 1".to_owned(), crate::content::noise(77, 100_000));
    if scene.fill(&scene.here, pair.active.instance, pair.epoch, &newer).await? {
        let next = scene.point(&scene.here, pair.active.instance, pair.epoch).await?;
        let cut = scene.carry(&pair, &next, Some(&point), Mishap::Cut(40_000)).await?;
        ensure(cut.received.is_err(), || "a cut stream was received".to_owned())?;
    }
    let epoch = pair.epoch.next();
    let promotion = Promotion::Forced { point: Some(point.id) };
    let call = PromoteReplica { instance: pair.replica.instance, epoch, promotion };
    changed("`promote_replica`", scene.there.call(call).await)?;
    scene.holds(&scene.there, pair.replica.instance, epoch, &content).await?;
    let seen = scene.observe(&scene.there, pair.replica.instance).await?;
    same("what is left of the cut transfer", &seen.resume, &None)?;
    same("the role and epoch", &(seen.role, seen.epoch), &(Role::Active, epoch))
}

async fn empty(scene: Scene) -> Check {
    let pair = scene.pair(any_style(&scene)?).await?;
    let promotion = Promotion::Forced { point: None };
    let call = PromoteReplica { instance: pair.replica.instance, epoch: pair.epoch.next(), promotion };
    refused("`promote_replica` of an empty replica", scene.there.call(call).await, &[ErrorKind::Conflict])?;
    same("the role", &scene.observe(&scene.there, pair.replica.instance).await?.role, &Role::Secondary)
}

async fn keeps_active(scene: Scene) -> Check {
    let style = any_style(&scene)?;
    if style == Style::Writable {
        return Ok(());
    }
    let pair = scene.pair(style).await?;
    let gone = scene.here.call(DeleteReplica { instance: pair.active.instance }).await;
    refused("`delete_replica` of the active instance", gone, &[ErrorKind::Conflict])?;
    same("the role", &scene.observe(&scene.here, pair.active.instance).await?.role, &Role::Active)
}

async fn promote_repeats(scene: Scene) -> Check {
    let (pair, point) = synced(&scene, any_style(&scene)?, &sample(8)).await?;
    let epoch = pair.epoch.next();
    for to in [Demotion::Fenced, Demotion::Secondary] {
        let call = DemoteReplica { instance: pair.active.instance, epoch, to };
        let first = changed("`demote_replica`", scene.here.call(call.clone()).await)?;
        for _ in 0..2 {
            let again = unchanged("the repeat of `demote_replica`", scene.here.call(call.clone()).await)?;
            same("the repeat's value", &again, &first)?;
        }
    }
    let call = PromoteReplica { instance: pair.replica.instance, epoch, promotion: planned_at(&point) };
    let first = changed("`promote_replica`", scene.there.call(call.clone()).await)?;
    for _ in 0..2 {
        let again = unchanged("the repeat of `promote_replica`", scene.there.call(call.clone()).await)?;
        same("the repeat's value", &again, &first)?;
    }
    Ok(())
}

/// What was written after the last point is neither forgotten nor kept from going: it is told, and carried like anything else.
async fn fenced_points(scene: Scene) -> Check {
    let mut content = sample(10);
    let (pair, point) = synced(&scene, any_style(&scene)?, &content).await?;
    let (old, new, epoch) = (pair.active.instance, pair.replica.instance, pair.epoch.next());
    content.insert("written last".to_owned(), b"x".to_vec());
    let can_see = scene.fill(&scene.here, old, pair.epoch, &content).await?;
    let call = DemoteReplica { instance: old, epoch, to: Demotion::Fenced };
    changed("`demote_replica`", scene.here.call(call).await)?;
    let changed_since = async || -> Check<Option<bool>> {
        let call = UpdateReplicaState { instance: old, epoch };
        let report = succeeds("`update_replica_state`", scene.here.call(call).await)?;
        Ok(report.changed_since_point)
    };
    ensure(!can_see || changed_since().await? != Some(false), || {
        "it says that nothing was written after its newest point, and something was".to_owned()
    })?;
    let call = MakePoint { instance: old, epoch, point: PointId(Uuid::new_v4()) };
    let next = changed("`make_point` of a fenced instance", scene.here.call(call.clone()).await)?;
    let again = unchanged("its repeat", scene.here.call(call).await)?;
    same("the repeat's value", &again, &next)?;
    ensure(changed_since().await? != Some(true), || {
        "it says that something was written after its newest point, and nobody could".to_owned()
    })?;
    let pair = Pair { epoch, ..pair };
    scene.sync(&pair, &next, Some(&point)).await?;
    scene.holds(&scene.there, new, epoch, &content).await?;
    let seen = scene.observe(&scene.here, old).await?;
    same("its role and exports", &(seen.role, seen.exports), &(Role::Fenced, Vec::new()))?;

    let (epoch, promotion) = (epoch.next(), Promotion::Planned { point: None });
    let back = PromoteReplica { instance: old, epoch, promotion };
    changed("`promote_replica` of what was fenced", scene.here.call(back).await)?;
    scene.holds(&scene.here, old, epoch, &content).await
}

async fn fenced(scene: Scene) -> Check {
    let content = sample(9);
    let (pair, point) = synced(&scene, any_style(&scene)?, &content).await?;
    let (old, epoch) = (pair.active.instance, pair.epoch.next());
    let call = DemoteReplica { instance: old, epoch, to: Demotion::Fenced };
    let info = changed("`demote_replica`", scene.here.call(call).await)?;
    same("the exports of a fenced instance", &info.exports, &Vec::new())?;
    let seen = scene.observe(&scene.here, old).await?;
    same("its role and epoch", &(seen.role, seen.epoch), &(Role::Fenced, epoch))?;
    same("its exports", &seen.exports, &Vec::new())?;
    let served = scene.here.call(EnsureInstance { instance: old, epoch }).await;
    same(
        "its exports once it is ensured",
        &succeeds("`ensure_instance`", served)?.into_inner().exports,
        &Vec::new(),
    )?;

    let promoted = PromoteReplica { instance: pair.replica.instance, epoch, promotion: planned_at(&point) };
    changed("`promote_replica`", scene.there.call(promoted).await)?;
    let next = scene.point(&scene.there, pair.replica.instance, epoch).await?;
    let ids = (pair.replica.instance, old);
    let (_, receive) = scene.halves(ids, &scene.here, epoch, &next, None).await?;
    let (read, _write) = pipe::plain().map_err(|e| e.to_string())?;
    let received = scene.here.call_with(Receive { spec: receive }, vec![read]).await;
    refused("`receive` into a fenced instance", received, &[ErrorKind::Conflict])?;

    // Told which side to keep, it follows.
    let call = DemoteReplica { instance: old, epoch, to: Demotion::Secondary };
    changed("`demote_replica` of a fenced instance", scene.here.call(call).await)?;
    let scene = scene.turned();
    let pair = Pair { active: pair.replica, replica: pair.active, epoch };
    let carried = scene.carry(&pair, &next, None, Mishap::None).await?;
    succeeds("`receive` into what was fenced", carried.received)?;
    scene.holds(&scene.there, old, epoch, &content).await
}

async fn quiesces(scene: Scene) -> Check {
    let (spec, _) = scene.active().await?;
    let (instance, epoch) = (spec.instance, spec.epoch);
    let hold = Quiesce { instance, epoch, wait_seconds: Some(1) };
    changed("`quiesce`", scene.here.call(hold.clone()).await)?;
    unchanged("the repeat of `quiesce`", scene.here.call(hold).await)?;
    same("quiesced", &scene.observe(&scene.here, instance).await?.quiesced, &true)?;
    let go = ResumeWrites { instance, epoch };
    changed("`resume_writes`", scene.here.call(go.clone()).await)?;
    unchanged("the repeat of `resume_writes`", scene.here.call(go).await)?;
    let seen = scene.observe(&scene.here, instance).await?;
    same("quiesced and read-only", &(seen.quiesced, seen.read_only), &(false, false))?;
    scene.fill(&scene.here, instance, epoch, &sample(10)).await?;
    scene.holds(&scene.here, instance, epoch, &sample(10)).await
}
