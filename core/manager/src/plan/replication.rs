//! Plans of replication.

use tandem_contract::{Demotion, Epoch, Error, InstanceId, PointId, ReplicaState, Role};

use super::{Link, Step, World, common_form, newest_common};
use crate::draft::holds_back;
use crate::model::{Instance, Part};

/// Bytes in a GiB.
const GIB: u64 = 1 << 30;

pub(super) fn create(world: &World<'_>, instance: InstanceId) -> Result<Vec<Step>, Error> {
    let active = world.active().ok_or_else(no_active)?.id;
    let mut steps = vec![Step::Place { instance }, Step::CreateReplica { instance }];
    if world.by_storage(active) {
        steps.push(Step::Connect { instance });
    }
    steps.push(Step::ApplyAccess { instance });
    Ok(steps)
}

/// Whatever the creation left, even when only its answer was lost.
pub(super) fn undo_create(
    world: &World<'_>,
    instance: InstanceId,
    steps: &[Step],
    failed: usize,
) -> Vec<Step> {
    let reached = |pick: fn(&Step) -> bool| steps.iter().take(failed + 1).any(pick);
    if !reached(|s| matches!(s, Step::CreateReplica { .. })) {
        return Vec::new();
    }
    delete_steps(world, instance)
}

pub(super) fn delete(world: &World<'_>, instance: InstanceId) -> Result<Vec<Step>, Error> {
    if world.instance(instance).is_none_or(|i| i.pool.is_none()) {
        return Ok(Vec::new());
    }
    let mut others = world.instances.iter().filter(|i| i.id != instance);
    if world.instance(instance).is_some_and(is_active) && !others.any(Instance::stays_active) {
        return Err(Error::conflict(
            "it became the active replica before it could be deleted; promote another one first",
        ));
    }
    let mut steps = Vec::new();
    if world.is_writable() && world.instance(instance).is_some_and(|i| is_active(i) || i.yields) {
        // It leaves in order: what goes on beside it need not ask who may, and who lost serves nobody on its way out.
        steps.push(Step::Demote { instance, to: Demotion::Secondary });
    }
    steps.extend(delete_steps(world, instance));
    if world.active().is_some_and(|a| !world.by_storage(a.id)) {
        steps.push(Step::ReleasePoints);
    }
    Ok(steps)
}

fn delete_steps(world: &World<'_>, instance: InstanceId) -> Vec<Step> {
    let mut steps = Vec::new();
    // Where the active's driver cannot be asked, the replica's own tells as much.
    if world.active_beside(instance).is_some_and(|a| world.by_storage(a.id) || world.by_storage(instance)) {
        steps.push(Step::Disconnect { instance });
    }
    steps.push(Step::DeleteReplica { instance });
    steps
}

/// Streamed: a point, its transfer, and letting go of what no replica needs. A cut transfer is continued with the
/// point it was on the way to. By the storage: connected, and waited for.
pub(super) fn sync(
    world: &World<'_>,
    instance: InstanceId,
    point: Option<PointId>,
    asked: bool,
) -> Result<Vec<Step>, Error> {
    let active = world.active().ok_or_else(no_active)?;
    if active.id == instance || world.instance(instance).is_some_and(is_active) {
        // It was promoted since the sync was asked for.
        return Err(Error::cancelled("it is an active replica now, which follows nobody"));
    }
    if !asked && world.instance(instance).is_some_and(|i| i.fenced || i.unfenced) {
        return Err(Error::cancelled("it was fenced meanwhile, and follows once somebody asks for a resync"));
    }
    for id in [active.id, instance] {
        if let Some(why) = world.away(id) {
            return Err(Error::unavailable(format!("instance {id} cannot be asked: {why}")));
        }
    }
    let mut steps = Vec::new();
    // One that is to give up what it has is no active one before.
    let stays = world.has_joined(instance) && !asked;
    if world.seen(instance).is_some_and(|seen| seen.role != Role::Secondary) && !stays {
        steps.push(Step::Demote { instance, to: Demotion::Secondary });
        if !world.is_writable() {
            // Rules may have changed while it was away.
            steps.push(Step::ApplyAccess { instance });
        }
    }
    if world.is_writable() {
        steps.extend(size_of(world, instance));
        steps.extend([Step::Connect { instance }, Step::AwaitUpToDate { instance }]);
        steps.extend([Step::ApplyAccess { instance }, Step::Join { instance }]);
        return Ok(steps);
    }
    if world.by_storage(active.id) {
        steps.extend([Step::Connect { instance }, Step::AwaitUpToDate { instance }]);
        return Ok(steps);
    }
    // What is damaged may hold that very point, and is to be carried again nevertheless.
    let damaged = world.instance(instance).is_some_and(|i| i.damage.is_some());
    let point = resumable(world, active.id, instance)
        .or(point.filter(|point| !damaged && !is_ahead(world, instance, *point)))
        .unwrap_or(world.new_points[0]);
    steps.extend([
        Step::MakePoint { source: active.id, point },
        Step::Transfer { source: active.id, instance, point },
        Step::ReleasePoints,
    ]);
    Ok(steps)
}

/// Who was not active while its share grew or shrank gets its size before it follows.
fn size_of(world: &World<'_>, instance: InstanceId) -> Option<Step> {
    let (wanted, has) = (world.size_gb.saturating_mul(GIB), world.seen(instance)?.size_bytes);
    let can = world.capabilities.get(&instance)?;
    let able = if wanted > has { can.extend } else { can.shrink };
    (wanted != has && able).then_some(Step::Resize { instance, size_gb: world.size_gb })
}

fn is_active(row: &Instance) -> bool {
    row.replica_state == Some(ReplicaState::Active)
}

/// Why a promotion does not go past the active ones although they cannot be asked.
pub(crate) fn overtaken(epoch: Epoch) -> Error {
    Error::conflict(format!(
        "another replica was told to go on since this was asked for (the share is at epoch {epoch} now); to go past that one as \
         well, ask once more"
    ))
}

/// Whether a replica holds the point and went past it: it followed one that is active no more, and only a newer point
/// brings it back.
fn is_ahead(world: &World<'_>, instance: InstanceId, point: PointId) -> bool {
    let Some(seen) = world.seen(instance) else { return false };
    seen.points.iter().any(|p| p.id == point) && seen.points.last().is_some_and(|p| p.id != point)
}

/// The point that a cut transfer was on the way to, if the source still has it.
fn resumable(world: &World<'_>, source: InstanceId, instance: InstanceId) -> Option<PointId> {
    let to = world.seen(instance)?.resume.as_ref()?.to?;
    world.seen(source)?.points.iter().any(|p| p.id == to).then_some(to)
}

/// A failed sync lets go of its point, unless a partial transfer waits for it (the step itself looks).
pub(super) fn undo_sync(steps: &[Step]) -> Vec<Step> {
    if steps.contains(&Step::ReleasePoints) { vec![Step::ReleasePoints] } else { Vec::new() }
}

/// Planned: the bulk while users still write; then writers are held back (quiesced, or by rules cast to read-only where
/// the driver cannot), the last point, and the switch. Forced, when the active cannot be asked: the epoch, and the
/// switch. `keep`: both have what the other lacks, and this one is to be kept: the active one steps down, and nothing is awaited.
pub(super) fn promote(
    world: &World<'_>,
    instance: InstanceId,
    wait_seconds: Option<u64>,
    asked_at: Option<Epoch>,
    keep: bool,
) -> Result<Vec<Step>, Error> {
    if let Some(why) = world.away(instance) {
        return Err(Error::unavailable(format!("replica {instance} cannot be asked: {why}")));
    }
    let serves = |id| world.seen(id).is_some_and(|seen| seen.role == Role::Active);
    if world.is_writable() && world.instance(instance).is_some_and(is_active) && serves(instance) {
        return Ok(Vec::new());
    }
    let actives = || world.instances.iter().filter(|i| is_active(i) && i.part == Part::Whole);
    if let Some(Link::Faulty(error)) =
        actives().find_map(|old| world.links.get(&old.id).filter(|link| matches!(link, Link::Faulty(_))))
    {
        // It may be serving its users: going past it by force could lose what they write.
        return Err(error.clone());
    }
    let returns = world.is_writable() && world.instance(instance).is_some_and(is_active);
    // Of sides that were active when their hosts went down none serves before it was told so.
    let leads = |old: &&Instance| world.away(old.id).is_none() && (!returns || serves(old.id));
    let old = match actives().find(|old| old.id != instance && leads(old)) {
        Some(old) => old.id,
        None if world.is_writable() && asked_at.is_some_and(|asked| asked != world.epoch) => {
            return Err(overtaken(world.epoch));
        }
        None => {
            let forced =
                [Step::RaiseEpoch, Step::Promote { instance, forced: true }, Step::ApplyAccess { instance }];
            // Its disk was replaced by a blank one, while its users had what lies on this one's: they have until it is told to leave.
            let is_lost = |old: &&Instance| {
                old.id != instance
                    && world.is_lost(old.id)
                    && world.by_storage(old.id)
                    && !world.is_writable()
            };
            let leave = actives().find(is_lost).map(|_| Step::Disconnect { instance });
            return Ok(leave.into_iter().chain(forced).collect());
        }
    };
    if world.is_writable() {
        if returns {
            return Err(Error::conflict(format!(
                "replica {instance} is active by its row, and not on its storage, while replica {old} can be asked; it follows \
                 that one by itself"
            )));
        }
        // It becomes active beside the other one, which goes on.
        return sync(world, instance, None, true);
    }
    if keep && world.by_storage(old) {
        // Both are left as they are: the old one gives up what only it has when somebody asks for its resync.
        return Ok(vec![
            Step::RaiseEpoch,
            Step::Demote { instance: old, to: Demotion::Secondary },
            Step::Promote { instance, forced: true },
            Step::ApplyAccess { instance },
            Step::ApplyAccess { instance: old },
        ]);
    }
    let hold = if world.can_quiesce(old) {
        Step::Quiesce { instance: old, wait_seconds }
    } else {
        Step::Cast { instance: old, read_only: true }
    };
    let mut steps = Vec::new();
    if world.by_storage(old) {
        steps.extend([Step::AwaitUpToDate { instance }, hold, Step::AwaitUpToDate { instance }]);
    } else {
        let bulk = resumable(world, old, instance).unwrap_or(world.new_points[0]);
        let carry =
            |point| [Step::MakePoint { source: old, point }, Step::Transfer { source: old, instance, point }];
        steps.extend(carry(bulk));
        steps.push(hold);
        steps.extend(carry(world.new_points[1]));
    }
    steps.extend([Step::RaiseEpoch, Step::Demote { instance: old, to: Demotion::Secondary }]);
    steps.extend([
        Step::Promote { instance, forced: false },
        Step::ApplyAccess { instance },
        Step::ApplyAccess { instance: old },
    ]);
    if world.by_storage(old) {
        // So that both say that it is the new one that leads.
        steps.push(Step::Connect { instance: old });
    } else {
        steps.push(Step::ReleasePoints);
    }
    Ok(steps)
}

/// Gives the source back, active and writable; at a new epoch where one was raised. The new side may have become
/// active although its answer was lost, so it is demoted at the same epoch before the old one serves again.
pub(super) fn undo_promote(instance: InstanceId, steps: &[Step], failed: usize) -> Vec<Step> {
    if steps.iter().any(|s| matches!(s, Step::Join { .. })) {
        // Nobody else was touched.
        return Vec::new();
    }
    let reached = |pick: &dyn Fn(&Step) -> bool| steps.iter().take(failed + 1).any(pick);
    let old = steps.iter().find_map(|s| match s {
        Step::Demote { instance, .. } => Some(*instance),
        _ => None,
    });
    let Some(old) = old else {
        // By force: the new side may have become active although its answer was lost.
        let begun = reached(&|s| matches!(s, Step::Promote { .. }));
        let back = [Step::RaiseEpoch, Step::Demote { instance, to: Demotion::Secondary }];
        return if begun { back.to_vec() } else { Vec::new() };
    };
    let mut undo = Vec::new();
    if reached(&|s| matches!(s, Step::Demote { .. } | Step::Promote { .. })) {
        undo.push(Step::RaiseEpoch);
        if reached(&|s| matches!(s, Step::Promote { .. })) {
            undo.push(Step::Demote { instance, to: Demotion::Secondary });
        }
        undo.push(Step::Promote { instance: old, forced: false });
    }
    if reached(&|s| matches!(s, Step::Quiesce { .. })) {
        undo.push(Step::ResumeWrites { instance: old });
    }
    if reached(&|s| matches!(s, Step::Cast { .. } | Step::Demote { .. })) {
        undo.push(Step::Cast { instance: old, read_only: false });
    }
    if steps.contains(&Step::ReleasePoints) {
        undo.push(Step::ReleasePoints);
    }
    undo
}

pub(super) fn fence(world: &World<'_>, instance: InstanceId) -> Result<Vec<Step>, Error> {
    if world.instance(instance).is_none_or(|i| !i.unfenced || i.replica_state == Some(ReplicaState::Active)) {
        return Err(Error::cancelled("it was promoted, fenced or removed meanwhile"));
    }
    let waiting = world.active().filter(|old| holds_back(world.instances, old) == Some(instance));
    if let Some(old) = waiting
        && (world.seen(instance).is_none() || world.seen(old.id).is_none())
    {
        // One of them serves, and which one only both can tell: fenced, what its users wrote would be given up.
        return Err(Error::unavailable(format!(
            "instances {instance} and {} must both be seen first",
            old.id
        )));
    }
    if let Some(old) = waiting
        && let (Some(own), Some(left)) = (world.seen(instance), world.seen(old.id))
        && own.role == Role::Active
        && left.role != Role::Active
    {
        // Its promotion had come to pass, and only the answer was lost: it holds what its users wrote since.
        let mut steps = vec![
            Step::RaiseEpoch,
            Step::Promote { instance, forced: false },
            Step::ApplyAccess { instance },
            Step::ApplyAccess { instance: old.id },
        ];
        if !world.by_storage(old.id) {
            steps.push(Step::ReleasePoints);
        }
        return Ok(steps);
    }
    // What was promoted and never became active holds nothing of its own, and goes on following.
    let follows = waiting.is_some() && world.seen(instance).is_some_and(|own| own.role == Role::Secondary);
    let to = if follows { Demotion::Secondary } else { Demotion::Fenced };
    let mut steps = vec![Step::Demote { instance, to }];
    if follows {
        // Rules that changed while it could not be asked.
        steps.push(Step::ApplyAccess { instance });
    }
    if world.active().is_some_and(|a| !world.by_storage(a.id)) {
        // Now that it can be asked, it is known what it has in common with the others.
        steps.push(Step::ReleasePoints);
    }
    Ok(steps)
}

/// At the newest point that both have.
pub(super) fn verify(world: &World<'_>, instance: InstanceId) -> Result<Vec<Step>, Error> {
    let active = world.active().ok_or_else(no_active)?.id;
    if active == instance {
        return Err(Error::cancelled("it is the active replica now, which the others are compared with"));
    }
    for id in [active, instance] {
        if let Some(why) = world.away(id) {
            return Err(Error::unavailable(format!("instance {id} cannot be asked: {why}")));
        }
    }
    let capabilities = |id| world.capabilities.get(&id);
    if capabilities(active).zip(capabilities(instance)).and_then(|(a, b)| common_form(a, b)).is_none() {
        return Err(Error::unsupported(
            "the drivers of both sides have no form of fingerprints in common, so that what they hold cannot be compared",
        ));
    }
    let common = world.seen(active).zip(world.seen(instance)).and_then(|(a, b)| newest_common(a, b));
    let point = common.ok_or_else(|| {
        Error::conflict("both sides have no point in common yet; verify it once it has been synced")
    })?;
    Ok(vec![Step::Compare { source: active, instance, point: point.id }])
}

fn no_active() -> Error {
    Error::conflict("the share has no active replica to follow")
}
