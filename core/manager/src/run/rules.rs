//! What the steps do to access rules' states. One place, since a step marks them when it starts, and again when it
//! ends, whichever way.

use std::collections::BTreeSet;

use tandem_contract::{AccessReport, InstanceId};
use uuid::Uuid;

use crate::draft::Draft;
use crate::model::{AccessRule, AccessRulesStatus, Part, RuleState};
use crate::oplog::Effect;
use crate::plan::Step;

/// A step starts: the task it is part of shows so, and the rules it will apply or remove are marked, so that those which come later are told apart.
pub(crate) fn mark(draft: &mut Draft, step: &Step) -> Vec<Effect> {
    super::migration::mark(draft, step);
    match step {
        Step::Join { instance } => super::writable::joining(draft, *instance),
        Step::Promote { instance, .. } => {
            // Whatever its answer, it may take writes from now on, which nobody gives up unasked.
            if let Some(row) = draft.instance_mut(*instance) {
                row.yields = false;
            }
        }
        _ => {}
    }
    if let Step::ApplyAccess { instance } | Step::Grant { instance } = step {
        for rule in &mut draft.rules {
            let denying = rule.is_denied();
            let state = rule.states.entry(*instance).or_insert(RuleState::QueuedToApply);
            *state = match *state {
                RuleState::QueuedToDeny | RuleState::Denying => RuleState::Denying,
                _ if denying => RuleState::Denying,
                RuleState::Active => RuleState::Active,
                _ => RuleState::Applying,
            };
        }
    }
    Vec::new()
}

/// The rules that are to hold on an instance now: none that was taken back, also where it is gone already.
pub(super) fn wanted(rules: &[AccessRule]) -> Vec<tandem_contract::AccessRule> {
    rules
        .iter()
        .filter(|r| !r.is_denied())
        .map(|r| tandem_contract::AccessRule {
            id: r.id,
            access_type: r.access_type.clone(),
            access_to: r.access_to.clone(),
            access_level: r.access_level,
        })
        .collect()
}

/// Of all rules these were granted, with this report. What was asked for while the call ran is not in it, and is of the next.
pub(super) fn applied(
    draft: &mut Draft,
    instance: InstanceId,
    granted: &BTreeSet<Uuid>,
    report: &AccessReport,
) {
    let mut failed = false;
    for rule in &mut draft.rules {
        let granted = granted.contains(&rule.id);
        match rule.states.get(&instance) {
            Some(RuleState::Denying) if !granted => {
                rule.states.remove(&instance);
            }
            Some(RuleState::Applying | RuleState::Active | RuleState::Error) if granted => {
                let told = report.rules.iter().find(|r| r.id == rule.id);
                let error = told.is_some_and(|r| r.error.is_some());
                failed |= error;
                rule.states.insert(instance, if error { RuleState::Error } else { RuleState::Active });
                rule.enforced |= told.is_some_and(|r| r.enforced);
            }
            _ => {}
        }
    }
    draft.rules.retain(|rule| !rule.states.is_empty());
    // What was asked for meanwhile is still to be done.
    let moves = |s: &RuleState| !matches!(s, RuleState::Active | RuleState::Error);
    let waits = draft.rules.iter().any(|rule| rule.states.get(&instance).is_some_and(moves));
    if let Some(row) = draft.instance_mut(instance) {
        row.access_rules_status = match (failed, waits) {
            (_, true) => AccessRulesStatus::Syncing,
            (true, false) => AccessRulesStatus::Error,
            (false, false) => AccessRulesStatus::Active,
        };
    }
}

/// Instances on which a rule waits to be applied or taken back.
pub(super) fn queued(draft: &Draft) -> Vec<InstanceId> {
    let waits = |id: InstanceId| {
        let mut states = draft.rules.iter().filter_map(|rule| rule.states.get(&id));
        states.any(|s| matches!(s, RuleState::QueuedToApply | RuleState::QueuedToDeny))
    };
    let whole = draft.instances.iter().filter(|row| row.part == Part::Whole);
    whole.map(|row| row.id).filter(|id| waits(*id)).collect()
}

/// The step failed for good: what it marked shows so.
pub(super) fn failed(draft: &mut Draft, step: &Step) -> Vec<Effect> {
    if let Step::ApplyAccess { instance } = step {
        give_up(draft, *instance);
    }
    Vec::new()
}

/// The rules of an instance were not brought in line; reconciliation will. What was to go is still to go: a rule that
/// a person took back is never granted again.
pub(super) fn give_up(draft: &mut Draft, instance: InstanceId) {
    for rule in &mut draft.rules {
        let Some(state) = rule.states.get_mut(&instance) else { continue };
        *state = match *state {
            RuleState::Applying | RuleState::QueuedToApply => RuleState::Error,
            RuleState::Denying => RuleState::QueuedToDeny,
            other => other,
        };
    }
    if let Some(row) = draft.instance_mut(instance) {
        row.access_rules_status = AccessRulesStatus::Error;
    }
}
