//! Storage that replicates by itself.

use std::time::Duration;

use tandem_contract::*;
use tokio::time::{Instant, sleep};

use crate::case::list;
use crate::check::{Check, changed, ensure, refused, same, succeeds, unchanged};
use crate::content::{Content, sample};
use crate::scene::{Pair, Scene};
use crate::side::{LONG, Side};

list! {
    27 "connected peers become up to date and a planned promotion loses nothing" Storage promotes;
    27 "a side that is not up to date is not promoted as planned" Storage not_up_to_date;
    19 "a readable replica comes to show what was written" StorageReadable shows;
    19 "a dr replica that is up to date cannot be reached" StorageDr hides;
    27 "a writable replica that is up to date becomes active beside the other, at its epoch" StorageWritable joins;
    27 "a writable replica that is not connected does not become active" StorageWritable stays_out;
    27 "a writable side is taken out of service, and joins again" StorageWritable joins_again;
    27 "a writable side that leaves in order keeps nobody waiting" StorageWritable leaves;
    27 "a writable side at a higher epoch goes on, and the other joins it there" StorageWritable goes_on;
    27 "a writable side that has seen a higher epoch does not join at an older one" StorageWritable joins_no_more;
    1 "connect_peers and disconnect_peers repeat as unchanged" Storage repeats;
    2 "connecting the other way round is a conflict" Storage conflicts;
    6 "a stale epoch is refused by connect_peers" Storage stale;
}

/// A pair in a style with one active side.
async fn pair(scene: &Scene) -> Check<Option<Pair>> {
    match scene.style(Style::Readable) {
        Some(style) if style != Style::Writable => scene.pair(style).await.map(Some),
        _ => Ok(None),
    }
}

pub(super) async fn endpoint(side: &Side, instance: InstanceId) -> Check<Endpoint> {
    let endpoint = succeeds("`endpoint`", side.call(GetEndpoint { instance }).await)?;
    same("the instance of the endpoint", &endpoint.instance, &instance)?;
    Ok(endpoint)
}

/// The two calls that connect a pair: here and there.
async fn connections(scene: &Scene, pair: &Pair) -> Check<[ConnectPeers; 2]> {
    let (active, replica) = (pair.active.instance, pair.replica.instance);
    let here = endpoint(&scene.here, active).await?;
    let there = endpoint(&scene.there, replica).await?;
    let epoch = pair.epoch;
    Ok([
        ConnectPeers { instance: active, epoch, peer: there, authoritative: true, give_up: false },
        ConnectPeers { instance: replica, epoch, peer: here, authoritative: false, give_up: false },
    ])
}

async fn connect(scene: &Scene, pair: &Pair) -> Check {
    let [here, there] = connections(scene, pair).await?;
    changed("`connect_peers` of the replica", scene.there.call(there).await)?;
    changed("`connect_peers` of the active", scene.here.call(here).await).map(drop)
}

pub(super) async fn up_to_date(scene: &Scene, pair: &Pair) -> Check {
    let started = Instant::now();
    loop {
        let call = UpdateReplicaState { instance: pair.replica.instance, epoch: pair.epoch };
        let report = succeeds("`update_replica_state`", scene.there.call(call).await)?;
        if report.up_to_date == Some(true) {
            return same("the state", &report.state, &ReplicaState::InSync);
        }
        ensure(started.elapsed() < LONG, || format!("the replica does not become up to date: {report:?}"))?;
        sleep(Duration::from_millis(100)).await;
    }
}

async fn promotes(scene: Scene) -> Check {
    let Some(pair) = pair(&scene).await? else { return Ok(()) };
    connect(&scene, &pair).await?;
    let content = sample(50);
    let can_see = scene.fill(&scene.here, pair.active.instance, pair.epoch, &content).await?;
    up_to_date(&scene, &pair).await?;
    let (old, new, epoch) = (pair.active.instance, pair.replica.instance, pair.epoch.next());
    let demoted = scene.here.call(DemoteReplica { instance: old, epoch, to: Demotion::Secondary }).await;
    changed("`demote_replica`", demoted)?;
    let promotion = Promotion::Planned { point: None };
    let call = PromoteReplica { instance: new, epoch, promotion };
    let first = changed("`promote_replica`", scene.there.call(call.clone()).await)?;
    same("the repeat", &unchanged("the repeat of `promote_replica`", scene.there.call(call).await)?, &first)?;
    let expected = if can_see { content } else { Content::new() };
    scene.holds(&scene.there, new, epoch, &expected).await?;
    let seen = scene.observe(&scene.here, old).await?;
    same("the old one's role and epoch", &(seen.role, seen.epoch), &(Role::Secondary, epoch))
}

/// What users read may be older than what is there: it is looked at until it is not.
async fn shows(scene: Scene) -> Check {
    let pair = scene.pair(Style::Readable).await?;
    connect(&scene, &pair).await?;
    let (instance, epoch, content) = (pair.replica.instance, pair.epoch, sample(40));
    scene.fill(&scene.here, pair.active.instance, epoch, &content).await?;
    up_to_date(&scene, &pair).await?;
    let started = Instant::now();
    loop {
        up_to_date(&scene, &pair).await?;
        let seen = scene.observe(&scene.there, instance).await?;
        same("the role and read-only", &(seen.role, seen.read_only), &(Role::Secondary, true))?;
        let read = match seen.exports.is_empty() {
            true => Err("a readable replica that is up to date has no export".to_owned()),
            false => scene.holds(&scene.there, instance, epoch, &content).await,
        };
        if read.is_ok() || started.elapsed() > LONG {
            return read;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn hides(scene: Scene) -> Check {
    let pair = scene.pair(Style::Dr).await?;
    connect(&scene, &pair).await?;
    up_to_date(&scene, &pair).await?;
    let (instance, epoch) = (pair.replica.instance, pair.epoch);
    let served = scene.there.call(EnsureInstance { instance, epoch }).await;
    let info = succeeds("`ensure_instance`", served)?.into_inner();
    same("the exports of a dr replica", &info.exports, &Vec::new())?;
    same("the same, observed", &scene.observe(&scene.there, instance).await?.exports, &Vec::new())
}

/// A pair in the style `writable`, connected and up to date; the second side does not serve yet.
async fn writable(scene: &Scene) -> Check<Pair> {
    let pair = scene.pair(Style::Writable).await?;
    connect(scene, &pair).await?;
    Ok(pair)
}

/// The call that makes the second side active beside the first.
fn beside(pair: &Pair) -> PromoteReplica {
    let promotion = Promotion::Planned { point: None };
    PromoteReplica { instance: pair.replica.instance, epoch: pair.epoch, promotion }
}

/// Both sides, as they are observed.
async fn roles_are(scene: &Scene, pair: &Pair, roles: [Role; 2]) -> Check {
    let here = scene.observe(&scene.here, pair.active.instance).await?;
    let there = scene.observe(&scene.there, pair.replica.instance).await?;
    let found = [(here.role, here.epoch), (there.role, there.epoch)];
    same("the roles and epochs of both", &found, &roles.map(|role| (role, pair.epoch)))
}

async fn joins(scene: Scene) -> Check {
    let pair = writable(&scene).await?;
    roles_are(&scene, &pair, [Role::Active, Role::Secondary]).await?;
    let content = sample(30);
    let can_see = scene.fill(&scene.here, pair.active.instance, pair.epoch, &content).await?;
    up_to_date(&scene, &pair).await?;
    let first = changed("`promote_replica`", scene.there.call(beside(&pair)).await)?;
    let again = unchanged("the repeat of `promote_replica`", scene.there.call(beside(&pair)).await)?;
    same("the repeat", &again, &first)?;
    roles_are(&scene, &pair, [Role::Active, Role::Active]).await?;
    let expected = if can_see { content } else { Content::new() };
    scene.holds(&scene.there, pair.replica.instance, pair.epoch, &expected).await?;
    scene.holds(&scene.here, pair.active.instance, pair.epoch, &expected).await
}

async fn stays_out(scene: Scene) -> Check {
    let pair = scene.pair(Style::Writable).await?;
    let answer = scene.there.call(beside(&pair)).await;
    refused("`promote_replica` of a side that is not connected", answer, &[ErrorKind::Conflict])?;
    roles_are(&scene, &pair, [Role::Active, Role::Secondary]).await
}

async fn joins_again(scene: Scene) -> Check {
    let pair = writable(&scene).await?;
    up_to_date(&scene, &pair).await?;
    changed("`promote_replica`", scene.there.call(beside(&pair)).await)?;
    let (instance, epoch) = (pair.replica.instance, pair.epoch);
    let out = scene.there.call(DemoteReplica { instance, epoch, to: Demotion::Secondary }).await;
    same("its exports", &changed("`demote_replica`", out)?.exports, &Vec::new())?;
    roles_are(&scene, &pair, [Role::Active, Role::Secondary]).await?;
    up_to_date(&scene, &pair).await?;
    changed("`promote_replica` once more", scene.there.call(beside(&pair)).await)?;
    roles_are(&scene, &pair, [Role::Active, Role::Active]).await
}

/// Both sides active.
async fn joined(scene: &Scene) -> Check<Pair> {
    let pair = writable(scene).await?;
    up_to_date(scene, &pair).await?;
    changed("`promote_replica`", scene.there.call(beside(&pair)).await)?;
    Ok(pair)
}

async fn leaves(scene: Scene) -> Check {
    let pair = joined(&scene).await?;
    let (old, instance, epoch) = (pair.active.instance, pair.replica.instance, pair.epoch);
    let out = scene.there.call(DemoteReplica { instance, epoch, to: Demotion::Secondary }).await;
    changed("`demote_replica`", out)?;
    let content = sample(30);
    let can_see = scene.fill(&scene.here, old, epoch, &content).await?;
    for (side, instance, peer) in [(&scene.here, old, instance), (&scene.there, instance, old)] {
        changed("`disconnect_peers`", side.call(DisconnectPeers { instance, peer }).await)?;
    }
    roles_are(&scene, &pair, [Role::Active, Role::Secondary]).await?;
    let expected = if can_see { content } else { Content::new() };
    scene.holds(&scene.here, old, epoch, &expected).await
}

async fn goes_on(scene: Scene) -> Check {
    let pair = joined(&scene).await?;
    let (first, other, epoch) = (pair.active.instance, pair.replica.instance, pair.epoch.next());
    let promotion = Promotion::Planned { point: None };
    let on = PromoteReplica { instance: first, epoch, promotion };
    changed("`promote_replica` at a higher epoch", scene.here.call(on.clone()).await)?;
    unchanged("the repeat of it", scene.here.call(on).await)?;
    let content = sample(30);
    let can_see = scene.fill(&scene.here, first, epoch, &content).await?;
    let out = scene.there.call(DemoteReplica { instance: other, epoch, to: Demotion::Secondary }).await;
    changed("`demote_replica` of the other one", out)?;
    let pair = Pair { epoch, ..pair };
    roles_are(&scene, &pair, [Role::Active, Role::Secondary]).await?;
    up_to_date(&scene, &pair).await?;
    changed("`promote_replica` of the other one", scene.there.call(beside(&pair)).await)?;
    roles_are(&scene, &pair, [Role::Active, Role::Active]).await?;
    let expected = if can_see { content } else { Content::new() };
    scene.holds(&scene.there, other, epoch, &expected).await
}

async fn joins_no_more(scene: Scene) -> Check {
    let pair = joined(&scene).await?;
    let (instance, epoch) = (pair.replica.instance, pair.epoch.next());
    let out = scene.there.call(DemoteReplica { instance, epoch, to: Demotion::Secondary }).await;
    changed("`demote_replica` at a higher epoch", out)?;
    let answer = scene.there.call(beside(&pair)).await;
    refused("`promote_replica` at the epoch before", answer, &[ErrorKind::StaleEpoch]).map(drop)
}

async fn not_up_to_date(scene: Scene) -> Check {
    let Some(pair) = pair(&scene).await? else { return Ok(()) };
    let promotion = Promotion::Planned { point: None };
    let call = PromoteReplica { instance: pair.replica.instance, epoch: pair.epoch.next(), promotion };
    refused(
        "a planned promotion of an unconnected side",
        scene.there.call(call).await,
        &[ErrorKind::Conflict],
    )?;
    Ok(())
}

async fn repeats(scene: Scene) -> Check {
    let Some(pair) = pair(&scene).await? else { return Ok(()) };
    let [here, there] = connections(&scene, &pair).await?;
    for (side, call) in [(&scene.here, here), (&scene.there, there)] {
        changed("`connect_peers`", side.call(call.clone()).await)?;
        unchanged("the repeat of `connect_peers`", side.call(call).await)?;
    }
    let (active, replica) = (pair.active.instance, pair.replica.instance);
    for (side, instance, peer) in [(&scene.here, active, replica), (&scene.there, replica, active)] {
        let call = DisconnectPeers { instance, peer };
        changed("`disconnect_peers`", side.call(call.clone()).await)?;
        unchanged("the repeat of `disconnect_peers`", side.call(call).await)?;
    }
    Ok(())
}

async fn conflicts(scene: Scene) -> Check {
    let Some(pair) = pair(&scene).await? else { return Ok(()) };
    let [here, _] = connections(&scene, &pair).await?;
    changed("`connect_peers`", scene.here.call(here.clone()).await)?;
    let other = ConnectPeers { authoritative: false, ..here };
    refused("`connect_peers` the other way round", scene.here.call(other).await, &[ErrorKind::Conflict])?;
    Ok(())
}

async fn stale(scene: Scene) -> Check {
    let Some(pair) = pair(&scene).await? else { return Ok(()) };
    let [here, _] = connections(&scene, &pair).await?;
    let call = ConnectPeers { epoch: Epoch(pair.epoch.0 - 1), ..here };
    refused("`connect_peers` at a stale epoch", scene.here.call(call).await, &[ErrorKind::StaleEpoch])?;
    Ok(())
}
