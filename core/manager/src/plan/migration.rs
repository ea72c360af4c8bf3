//! Plans of migrations: by the driver where it understands the destination, else as a replica is carried (by points where both
//! drivers speak a format of streams, or by the storage where that replicates by itself), else by copying from host to host.
//!
//! Nothing here knows what kind of resource moves. Until the switch the source is what users reach, and everything can
//! be taken back; the switch is one commit of the store; what the loser leaves is removed by an operation of its own.

use tandem_contract::{Compatibility, Demotion, Error, InstanceId};

use super::{Sides, Step, World};
use crate::model::{MigrationRequest, Part};

/// How a resource goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Approach {
    /// By the source's driver, which promises this.
    Driver(Compatibility),
    /// As a replica is: points, carried by the streams of both drivers.
    Points,
    /// As a replica is: by storage that replicates by itself.
    Peers,
    /// By copying what both drivers attach.
    Host,
}

/// What is promised to what goes as a replica does: snapshots of other people stay behind, and users remount once.
pub(crate) const AS_A_REPLICA: Compatibility = Compatibility {
    compatible: true,
    writable: true,
    nondisruptive: false,
    preserve_metadata: true,
    preserve_snapshots: false,
};

/// How a resource would go.
///
/// # Errors
/// A sentence on why it cannot.
pub(crate) fn approach(request: &MigrationRequest, sides: &Sides) -> Result<Approach, Error> {
    let mut why = sides.remark.clone();
    if !request.host_assisted && sides.compatibility.compatible {
        let missing = request.needs.missing(&sides.compatibility);
        if missing.is_empty() {
            return Ok(Approach::Driver(sides.compatibility));
        }
        why = Some(format!("the driver does not promise {} for this destination", missing.join(", ")));
    }
    if !request.host_assisted && request.needs.missing(&AS_A_REPLICA).is_empty() {
        if sides.streams {
            return Ok(Approach::Points);
        }
        if sides.peers {
            return Ok(Approach::Peers);
        }
    }
    let why = why.unwrap_or_else(|| "the source's driver does not understand this destination".into());
    if request.needs.any() {
        return Err(Error::unsupported(format!(
            "{why}, and a copy from host to host promises none of writable, nondisruptive, preserve_metadata and \
             preserve_snapshots"
        )));
    }
    match sides.attach {
        (Some(here), Some(there)) if here == there => Ok(Approach::Host),
        (Some(_), Some(_)) => Err(Error::unsupported(
            "one side attaches a folder and the other a block device; a copy needs the same on both",
        )),
        _ => {
            Err(Error::unsupported(format!("{why}, and not both drivers can attach an instance for a copy")))
        }
    }
}

pub(super) fn migrate(
    world: &World<'_>,
    source: InstanceId,
    instance: InstanceId,
    request: &MigrationRequest,
) -> Result<Vec<Step>, Error> {
    let sides = world.sides.as_ref().ok_or_else(|| Error::bug("a migration is planned without its sides"))?;
    let mut steps = vec![Step::Place { instance }];
    let wait = |assisted| (!request.at_once).then_some(Step::AwaitProceed { assisted });
    match approach(request, sides)? {
        Approach::Driver(promise) => {
            steps.push(Step::Prepare { instance });
            if !promise.writable {
                steps.push(Step::Cast { instance: source, read_only: true });
            }
            steps.extend([Step::Assist { source, instance }, Step::Carry { source, instance }]);
            steps.extend(wait(true));
            steps.extend([
                Step::TakeOver { source, instance },
                Step::Switch { source, instance },
                Step::ApplyAccess { instance },
                Step::LetGo { source, instance },
            ]);
        }
        Approach::Points => {
            steps.extend(by_points(world, source, instance, request));
        }
        Approach::Peers => steps.extend(by_peers(source, instance, request)),
        Approach::Host => {
            let live = Step::Mirror { source, instance, last: false, fenced: false };
            let last = |fenced| Step::Mirror { source, instance, last: true, fenced };
            steps.extend([Step::CreateInstance { instance }, live.clone()]);
            if let Some(wait) = wait(false) {
                // What was written while it waited is carried before writers are held back.
                steps.extend([wait, live]);
            }
            steps.extend([Step::Cast { instance: source, read_only: true }, last(false)]);
            if world.can_fence(source) {
                // Whoever had a file open may have gone on writing it until here.
                steps.extend([Step::Withdraw { instance: source }, last(true)]);
            }
            steps.extend([
                Step::Detach { instance },
                Step::Ensure { instance },
                Step::Grant { instance },
                Step::Switch { source, instance },
            ]);
        }
    }
    Ok(steps)
}

/// Users write until the switch is asked for; what the last two points carry is what came meanwhile.
fn by_points(
    world: &World<'_>,
    source: InstanceId,
    instance: InstanceId,
    request: &MigrationRequest,
) -> Vec<Step> {
    let carry = |point| [Step::MakePoint { source, point }, Step::Transfer { source, instance, point }];
    let [first, second, last, since] = world.new_points;
    let quiesces = world.can_quiesce(source);
    // A rule that the destination refuses is known before anything is carried.
    let mut steps = vec![Step::CreateReplica { instance }, Step::Grant { instance }];
    steps.extend(carry(first));
    if !request.at_once {
        steps.push(Step::AwaitProceed { assisted: true });
    }
    steps.extend(carry(second));
    steps.push(if quiesces {
        Step::Quiesce { instance: source, wait_seconds: None }
    } else {
        Step::Cast { instance: source, read_only: true }
    });
    steps.extend(carry(last));
    steps.push(Step::Withdraw { instance: source });
    if !quiesces {
        // Whoever had a file open, or writes below a folder that rules do not reach, may have gone on until here.
        steps.extend(carry(since));
    }
    steps.extend([
        Step::Succeed { source, instance },
        Step::Switch { source, instance },
        Step::ApplyAccess { instance },
        Step::ReleasePoints,
    ]);
    steps
}

/// Users write until the switch is asked for, and what they write goes on to the destination at once. It may have been away
/// while it was waited for: so the two are brought together again then.
fn by_peers(source: InstanceId, instance: InstanceId, request: &MigrationRequest) -> Vec<Step> {
    let follow = Step::Follow { source, instance };
    let mut steps = vec![Step::CreateReplica { instance }, Step::Grant { instance }, follow.clone()];
    if !request.at_once {
        steps.extend([Step::AwaitProceed { assisted: true }, follow.clone()]);
    }
    steps.extend([
        Step::Cast { instance: source, read_only: true },
        follow,
        Step::Demote { instance: source, to: Demotion::Secondary },
        Step::Succeed { source, instance },
        Step::Switch { source, instance },
        Step::ApplyAccess { instance },
    ]);
    steps
}

/// The steps of another way, where the driver's attempt has failed in its first phase: what it began is ended, what it
/// made is removed, and the share goes by points, or else from host to host. `None` where that cannot be, or was not asked
/// for. The world's sides are those without the driver.
pub(crate) fn instead(
    world: &World<'_>,
    source: InstanceId,
    instance: InstanceId,
    request: &MigrationRequest,
    taken: &[Step],
) -> Option<Vec<Step>> {
    let steps = migrate(world, source, instance, request).ok()?;
    let again = taken.iter().any(|s| matches!(s, Step::Mirror { .. } | Step::CreateReplica { .. }));
    if again || steps.iter().any(|s| matches!(s, Step::Assist { .. })) {
        return None;
    }
    let mut first = undo(source, instance, taken, taken.len().saturating_sub(1));
    first.push(Step::DeleteInstance { instance });
    // It is placed.
    Some(first.into_iter().chain(steps.into_iter().skip(1)).collect())
}

/// Gives the source back as it was. The destination is removed by an operation of its own, which may take its time.
pub(super) fn undo(source: InstanceId, instance: InstanceId, steps: &[Step], failed: usize) -> Vec<Step> {
    let reached = |pick: &dyn Fn(&Step) -> bool| steps.iter().take(failed + 1).any(pick);
    if steps.iter().take(failed).any(|s| matches!(s, Step::Switch { .. })) {
        return Vec::new();
    }
    let mut undo = Vec::new();
    if reached(&|s| matches!(s, Step::Succeed { .. })) {
        // It may have become active although its answer was lost.
        undo.push(Step::Withdraw { instance });
    }
    if reached(&|s| matches!(s, Step::Assist { .. })) {
        undo.push(Step::Unwind { source, instance });
    }
    if reached(&|s| matches!(s, Step::Demote { .. })) {
        // It is the active one whether or not the destination can be told that it is not.
        undo.push(Step::Leave { instance: source, peer: instance });
    }
    if reached(&|s| matches!(s, Step::Withdraw { .. } | Step::Demote { .. })) {
        undo.push(Step::Ensure { instance: source });
    }
    if reached(&|s| matches!(s, Step::Quiesce { .. })) {
        undo.push(Step::ResumeWrites { instance: source });
    }
    if reached(&|s| matches!(s, Step::Cast { .. })) {
        undo.push(Step::Cast { instance: source, read_only: false });
    }
    if reached(&|s| matches!(s, Step::Mirror { .. })) {
        undo.push(Step::Detach { instance: source });
    }
    if reached(&|s| matches!(s, Step::MakePoint { .. })) {
        undo.push(Step::ReleasePoints);
    }
    undo
}

pub(super) fn release(world: &World<'_>, instance: InstanceId) -> Result<Vec<Step>, Error> {
    let Some(row) = world.instance(instance).filter(|i| i.pool.is_some()) else { return Ok(Vec::new()) };
    if row.part == Part::Whole {
        return Err(Error::cancelled("it is what the share's users reach now"));
    }
    let mut steps = Vec::new();
    // Where a driver cannot be asked, the step does.
    let may = |id| world.capabilities.get(&id).is_none_or(super::by_storage);
    if let Some(stays) = world.active().filter(|s| s.id != instance && may(s.id) && may(instance)) {
        steps.push(Step::Leave { instance: stays.id, peer: instance });
        if world.style.is_none() {
            steps.push(Step::EndReplication { instance: stays.id });
        }
    }
    steps.extend([Step::Detach { instance }, Step::DeleteInstance { instance }]);
    Ok(steps)
}
