//! The laws of rest: what must be true once a manager has nothing left to do, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};

use tandem_contract::{Epoch, InstanceId, PointId, ReplicaState, Role, Style};
use tandem_driver_fake::Inspected;
use tandem_manager::model::{Instance, InstanceStatus, Part, RuleState};
use tandem_manager::store::{Family, InstanceQuery, ShareQuery, Store};

use super::{Life, Sim};

/// Bytes in a GiB.
const GIB: u64 = 1 << 30;

/// Every law of rest that is broken, as sentences. Writes as users do: it is the last look at a simulation, or the
/// manager carries on what was written.
pub async fn at_rest(life: &Life<'_>) -> Vec<String> {
    let sim = life.sim;
    let mut wrong = Vec::new();
    let seen: BTreeMap<InstanceId, Inspected> =
        sim.world.inspect().into_iter().map(|i| (i.instance, i)).collect();
    let rows = sim.rows.instances(&InstanceQuery::default()).await.expect("the store answers").items;
    for op in sim.rows.unfinished().await.expect("the store answers") {
        wrong.push(format!("operation {} ({}) is {:?}", op.id, op.intent.kind(), op.status));
    }
    match life.manager.doctor().await {
        Ok(findings) => wrong.extend(
            findings
                .into_iter()
                .filter(|f| f.severity == "error")
                .map(|f| format!("doctor, law {}: {}: {}", f.law, f.subject, f.message)),
        ),
        Err(e) => wrong.push(format!("doctor: {e}")),
    }
    for there in seen.values() {
        match rows.iter().find(|row| row.id == there.instance) {
            None => wrong.push(format!("orphan {} on {}", there.instance, there.site)),
            Some(row) if row.backend() != Some(&there.site) => {
                wrong.push(format!("{} is on {}, its row says {:?}", row.id, there.site, row.pool));
            }
            Some(_) => {}
        }
    }
    for share in sim.rows.shares(&ShareQuery::default()).await.expect("the store answers").items {
        let family = sim.rows.family(share.id).await.expect("the store answers");
        of_share(sim, &family, &seen, &mut wrong);
    }
    wrong
}

fn of_share(sim: &Sim, family: &Family, seen: &BTreeMap<InstanceId, Inspected>, wrong: &mut Vec<String>) {
    let Some(share) = &family.share else { return };
    let mut say = |what: String| wrong.push(format!("share {}: {what}", share.id));
    for row in family.instances.iter().filter(|i| i.part != Part::Whole) {
        say(format!("{} is left by a migration for ever", row.id));
    }
    for row in family.instances.iter().filter(|i| i.status.is_transient()) {
        say(format!("{} is {} for ever", row.id, row.status));
    }
    let active: Vec<&Instance> = family
        .instances
        .iter()
        .filter(|i| {
            i.part == Part::Whole && i.replica_state.is_none_or(|state| state == ReplicaState::Active)
        })
        .collect();
    let writable = share.replication == Some(Style::Writable);
    let active = match active[..] {
        [active] => active,
        [active, ..] if writable => active,
        _ => {
            say(format!("{} instances are active by their rows", active.len()));
            return;
        }
    };
    let serves = !matches!(active.status, InstanceStatus::Error | InstanceStatus::ErrorDeleting);
    let Some(source) = seen.get(&active.id) else {
        if serves {
            say(format!("{} is {}, but its storage is gone", active.id, active.status));
        }
        return;
    };
    if !serves {
        return;
    }
    if source.role != Role::Active || source.epoch != share.epoch {
        say(format!(
            "{} should be active at epoch {}, and is {:?} at epoch {}",
            active.id, share.epoch, source.role, source.epoch
        ));
    }
    if source.quiesced || source.read_only || !source.served || source.suspended {
        say(format!("users cannot write to the active {}: {source:?}", active.id));
    }
    if active.status == InstanceStatus::Available && source.size_bytes != share.size_gb * GIB {
        say(format!("{} has {} bytes, the share {} GiB", active.id, source.size_bytes, share.size_gb));
    }
    if active.status == InstanceStatus::Available && active.exports.is_empty() {
        say(format!("users are not told where the active {} is", active.id));
    }
    let lost = sim.stage.clients(|clients, _| match clients.may_have_lost(share.id) {
        true => Vec::new(),
        false => clients.missing(share.id, &source.data),
    });
    if !lost.is_empty() {
        say(format!("acknowledged writes are lost: {lost:?}"));
    }
    for row in family.instances.iter().filter(|row| row.id != active.id) {
        let Some(there) = seen.get(&row.id) else {
            if row.status == InstanceStatus::Available {
                say(format!("{} is available, but its storage is gone", row.id));
            }
            continue;
        };
        if writable {
            joined(share.epoch, row, source, there, &mut say);
        } else {
            follower(row, source, there, &mut say);
        }
        // What was found equal was read after it had rotted.
        let checked = row.checked.as_ref().map(|c| c.at);
        if !there.rotten.is_empty() && checked.is_some_and(|at| Some(at) > sim.stage.rotted_at(row.id)) {
            say(format!("{} was verified, and {:?} of it are rotten", row.id, there.rotten));
        }
        // A resize that ended in error is a person's to look at, and says so.
        // Who lost gets its size when it follows.
        let follows = !writable || row.replica_state == Some(ReplicaState::Active);
        let smaller = there.size_bytes < source.size_bytes && !row.fenced && follows;
        if active.status == InstanceStatus::Available && smaller {
            say(format!("{} is smaller than the active one", row.id));
        }
    }
    points(family, seen, source, &mut say);
    rules(family, seen, &mut say);
    if !wrong.is_empty() {
        return;
    }
    let mut say = |what: String| wrong.push(format!("share {}: {what}", share.id));
    let writes = |site: &str, id| sim.stage.clients(|clients, world| clients.write(world, site, id, 8));
    // What could not be deleted is deleted again one day, and may serve until then.
    let stays =
        |id| !family.instances.iter().any(|row| row.id == id && row.status == InstanceStatus::ErrorDeleting);
    for there in
        seen.values().filter(|there| there.resource == share.id && (!writable || stays(there.instance)))
    {
        let is_active =
            |row: &&Instance| row.id == there.instance && row.replica_state == Some(ReplicaState::Active);
        let may = there.instance == active.id || family.instances.iter().any(|row| is_active(&row));
        if writes(&there.site, there.instance) != may {
            say(format!("a write to {} was {}", there.instance, if may { "refused" } else { "taken" }));
        }
    }
}

/// All are active; but for what was fenced, is in error, or holds what nobody said that it may give up.
fn joined(epoch: Epoch, row: &Instance, source: &Inspected, there: &Inspected, say: &mut impl FnMut(String)) {
    if row.unfenced {
        say(format!("{} is still unfenced", row.id));
    }
    let rests = row.status != InstanceStatus::Available || row.fenced || there.parted;
    if row.replica_state != Some(ReplicaState::Active) {
        if there.role == Role::Active && !there.suspended && row.status != InstanceStatus::ErrorDeleting {
            say(format!("{} serves, but not by its row", row.id));
        }
        // Storage joins two; a third one says that it cannot be.
        let third = row.reason.as_ref().is_some_and(|why| why.contains("joins two, not three"));
        if !rests && !third {
            say(format!("{} is {:?} at rest: {:?}", row.id, row.replica_state, row.reason));
        }
        return;
    }
    if (there.role, there.epoch) != (Role::Active, epoch) || there.suspended || !there.served {
        say(format!("{} should serve at epoch {epoch}: {there:?}", row.id));
    }
    if there.data != source.data {
        say(format!("{} does not hold what the other active one holds", row.id));
    }
    if row.exports.is_empty() || row.yields {
        say(format!("{} is active, and users are told {:?}; it yields: {}", row.id, row.exports, row.yields));
    }
}

/// What follows is in sync and the same; what was fenced serves nobody.
fn follower(row: &Instance, source: &Inspected, there: &Inspected, say: &mut impl FnMut(String)) {
    if row.unfenced {
        say(format!("{} is still unfenced", row.id));
    }
    if there.role == Role::Active && there.style != Some(Style::Writable) {
        say(format!("{} is active on its storage, but not by its row", row.id));
    }
    if row.fenced {
        if there.role != Role::Fenced {
            say(format!("{} is fenced by its row, and {:?} on its storage", row.id, there.role));
        }
        return;
    }
    if row.status != InstanceStatus::Available {
        return;
    }
    if there.parted {
        // It keeps what nobody said that it may give up, and says so.
        if row.replica_state != Some(ReplicaState::Error) || row.reason.is_none() {
            say(format!(
                "{} is {:?} although both sides parted: {:?}",
                row.id, row.replica_state, row.reason
            ));
        }
        return;
    }
    if row.replica_state != Some(ReplicaState::InSync) {
        say(format!("{} is {:?} at rest: {:?}", row.id, row.replica_state, row.reason));
    }
    if there.data != source.data {
        say(format!("{} does not hold what the active one holds", row.id));
    }
    if there.partial.is_some() {
        say(format!("{} keeps a partial receive that nothing continues", row.id));
    }
    if !there.served {
        say(format!("{} is not served again", row.id));
    }
    if row.exports.is_empty() != (there.style == Some(Style::Dr)) {
        say(format!("users are told that {} is at {:?}, and it is {:?}", row.id, row.exports, there.style));
    }
}

/// No point is kept that no replica needs; no link leads to what is gone.
fn points(
    family: &Family,
    seen: &BTreeMap<InstanceId, Inspected>,
    source: &Inspected,
    say: &mut impl FnMut(String),
) {
    let needed: BTreeSet<PointId> = family
        .instances
        .iter()
        .filter_map(|row| row.point.as_ref())
        .map(|point| point.info.id)
        .chain(family.instances.iter().filter_map(|row| seen.get(&row.id)?.partial))
        .collect();
    // What was fenced is told to follow one day, from what it has in common with the others.
    let fenced = family.instances.iter().filter(|row| row.fenced).filter_map(|row| seen.get(&row.id));
    let others = |id| seen.values().filter(move |other: &&Inspected| other.instance != id);
    let needed: BTreeSet<PointId> = fenced
        .flat_map(|one| others(one.instance).map(move |other| (one, other)))
        .filter_map(|(one, other)| one.points.iter().rev().find(|id| other.points.contains(id)).copied())
        .chain(needed)
        .collect();
    let recorded = |id: &PointId| family.share.iter().any(|s| s.points.iter().any(|p| p.info.id == *id));
    // A call that hung may make a point after its operation has ended: the next sync releases it, if there is one.
    let alone = family.instances.iter().filter(|row| row.pool.is_some()).count() == 1;
    let waits = |id: &PointId| alone && !recorded(id);
    // What could not be deleted is deleted again one day, with all that it has.
    let stays = family.instances.iter().filter(|row| row.status != InstanceStatus::ErrorDeleting);
    for there in stays.filter_map(|row| seen.get(&row.id)) {
        for point in there.points.iter().filter(|point| !needed.contains(point) && !waits(point)) {
            say(format!("{} keeps point {point}, which nobody needs", there.instance));
        }
        for peer in there.peers.iter().filter(|peer| !family.instances.iter().any(|row| row.id == **peer)) {
            say(format!("{} is linked with {peer}, which is gone", there.instance));
        }
    }
    if let Some(share) = &family.share {
        for point in share.points.iter().filter(|point| !source.points.contains(&point.info.id)) {
            say(format!("point {} is on record, but not on the active one", point.info.id));
        }
    }
}

/// Rules hold where they should.
fn rules(family: &Family, seen: &BTreeMap<InstanceId, Inspected>, say: &mut impl FnMut(String)) {
    for row in family.instances.iter().filter(|row| row.status == InstanceStatus::Available && !row.fenced) {
        let Some(there) = seen.get(&row.id) else { continue };
        for rule in &family.rules {
            match rule.states.get(&row.id) {
                Some(RuleState::Active) if !there.rules.contains(&rule.id) => {
                    say(format!("rule {} holds on {} only by its row", rule.id, row.id));
                }
                Some(RuleState::Active | RuleState::Error) | None => {}
                Some(state) => say(format!("rule {} is {state:?} on {} for ever", rule.id, row.id)),
            }
        }
        if let Some(extra) = there.rules.iter().find(|id| !family.rules.iter().any(|rule| rule.id == **id)) {
            say(format!("rule {extra} still holds on {}, but is gone", row.id));
        }
    }
}
