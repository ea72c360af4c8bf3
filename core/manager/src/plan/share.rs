//! Plans of what concerns a share as a whole.

use tandem_contract::{Capabilities, InstanceId, Transport};

use super::{Step, World};
use crate::model::{Instance, InstanceStatus, Part};

pub(super) fn create(instance: InstanceId) -> Vec<Step> {
    vec![Step::Place { instance }, Step::CreateInstance { instance }, Step::ApplyAccess { instance }]
}

/// Whatever the creation left, even when only its answer was lost.
pub(super) fn undo_create(instance: InstanceId, steps: &[Step], failed: usize) -> Vec<Step> {
    let reached = steps.iter().take(failed + 1).any(|s| matches!(s, Step::CreateInstance { .. }));
    if reached { vec![Step::DeleteInstance { instance }] } else { Vec::new() }
}

pub(super) fn delete(world: &World<'_>) -> Vec<Step> {
    world
        .instances
        .iter()
        .filter(|i| i.pool.is_some())
        .map(|i| Step::DeleteInstance { instance: i.id })
        .collect()
}

/// Growth reaches the secondaries first, and shrinking last: a secondary is never smaller than the active.
pub(super) fn resize(world: &World<'_>, from_gb: u64, to_gb: u64) -> Vec<Step> {
    let active = world.active().map(|a| a.id);
    let mut ids: Vec<InstanceId> = world.instances.iter().filter(|i| serves(i)).map(|i| i.id).collect();
    ids.sort_by_key(|id| Some(*id) == active);
    if to_gb < from_gb {
        ids.reverse();
    }
    ids.into_iter().map(|instance| Step::Resize { instance, size_gb: to_gb }).collect()
}

/// Everything back to the size that the share still has, where the driver can; or a replica of another size would become
/// active one day. A driver refuses a size below what is used.
pub(super) fn undo_resize(world: &World<'_>, from_gb: u64, steps: &[Step], failed: usize) -> Vec<Step> {
    let back = |step: &Step| match step {
        Step::Resize { instance, size_gb } => {
            let can = world.capabilities.get(instance)?;
            let able = if *size_gb > from_gb { can.shrink } else { can.extend };
            able.then_some(Step::Resize { instance: *instance, size_gb: from_gb })
        }
        _ => None,
    };
    steps.iter().take(failed + 1).rev().filter_map(back).collect()
}

/// The active instance first: that is where a rule that goes matters most.
pub(super) fn update_access(world: &World<'_>) -> Vec<Step> {
    let active = world.active().map(|a| a.id);
    let mut ids: Vec<InstanceId> = world
        .instances
        .iter()
        .filter(|i| serves(i) && !matches!(i.status, InstanceStatus::Creating | InstanceStatus::Deleting))
        .map(|i| i.id)
        .collect();
    ids.sort_by_key(|id| Some(*id) != active);
    ids.into_iter().map(|instance| Step::ApplyAccess { instance }).collect()
}

/// Whether it is placed, and no side of a migration that serves nobody.
fn serves(row: &Instance) -> bool {
    row.pool.is_some() && row.part == Part::Whole
}

pub(super) fn repair(world: &World<'_>, instance: InstanceId) -> Vec<Step> {
    let mut steps = vec![Step::Ensure { instance }, Step::ApplyAccess { instance }];
    if matches!(world.transport(instance), Some(Transport::Streamed { .. })) {
        // Points that an earlier operation could not let go.
        steps.push(Step::ReleasePoints);
    }
    let converts = |able: &Capabilities| able.replication.as_ref().is_some_and(|r| r.converts);
    if world.style.is_none() && world.capabilities.get(&instance).is_some_and(converts) {
        // What a migration could not take away below it.
        steps.push(Step::EndReplication { instance });
    }
    steps
}
