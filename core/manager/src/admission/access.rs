//! Admission of access rules.

use std::collections::BTreeMap;

use tandem_contract::{AccessLevel, ResourceId};
use uuid::Uuid;

use super::new_op;
use crate::core::Core;
use crate::denied::Denied;
use crate::draft::Draft;
use crate::face::{Caller, MetadataChange, NewRule};
use crate::model::{
    AccessRule, AccessRulesStatus, Instance, InstanceStatus, Intent, OpStatus, Part, RuleState,
};

impl Core {
    /// Admits a rule.
    pub(crate) async fn allow_access(
        &self,
        caller: &Caller,
        share: ResourceId,
        new: NewRule,
    ) -> Result<AccessRule, Denied> {
        let id = crate::ids::random();
        self.change(share, |draft| {
            ready_for_rules(draft, share)?;
            if draft.rules.iter().any(|r| r.access_type == new.access_type && r.access_to == new.access_to) {
                return Err(Denied::RuleExists {
                    access_type: new.access_type.clone(),
                    access_to: new.access_to.clone(),
                });
            }
            let rule = AccessRule {
                id,
                version: 0,
                share_id: share,
                access_type: new.access_type.clone(),
                access_to: new.access_to.clone(),
                access_level: new.access_level,
                states: whole(draft).map(|i| (i.id, RuleState::QueuedToApply)).collect(),
                enforced: false,
                metadata: new.metadata.clone(),
                created_at: draft.now,
                updated_at: None,
            };
            draft.rules.push(rule.clone());
            admit_update(draft, Some(caller));
            Ok(rule)
        })
        .await
    }

    /// Admits the removal of a rule.
    pub(crate) async fn deny_access(
        &self,
        caller: &Caller,
        share: ResourceId,
        rule: Uuid,
    ) -> Result<(), Denied> {
        self.change(share, |draft| {
            let row = draft.need_share(share)?;
            match row.representative(&draft.instances) {
                Some(i) if i.status == InstanceStatus::Migrating => {
                    let needed = "available".into();
                    return Err(Denied::ShareStatus { share, status: i.status, needed });
                }
                _ => {}
            }
            let row = draft.rules.iter_mut().find(|r| r.id == rule).ok_or(Denied::NoRule(rule))?;
            for state in row.states.values_mut() {
                *state = RuleState::QueuedToDeny;
            }
            if row.states.is_empty() {
                draft.rules.retain(|r| r.id != rule);
            }
            admit_update(draft, Some(caller));
            Ok(())
        })
        .await
    }

    /// Admits another level of a rule.
    pub(crate) async fn set_access_level(
        &self,
        caller: &Caller,
        share: ResourceId,
        rule: Uuid,
        level: AccessLevel,
    ) -> Result<AccessRule, Denied> {
        self.change(share, |draft| {
            ready_for_rules(draft, share)?;
            let row = draft.rules.iter_mut().find(|r| r.id == rule).ok_or(Denied::NoRule(rule))?;
            row.access_level = level;
            for state in row.states.values_mut() {
                *state = RuleState::QueuedToApply;
            }
            let row = row.clone();
            admit_update(draft, Some(caller));
            Ok(row)
        })
        .await
    }

    /// Changes a rule's metadata.
    pub(crate) async fn set_rule_metadata(
        &self,
        share: ResourceId,
        rule: Uuid,
        change: MetadataChange,
    ) -> Result<BTreeMap<String, String>, Denied> {
        self.change(share, |draft| {
            let row = draft.rules.iter_mut().find(|r| r.id == rule).ok_or(Denied::NoRule(rule))?;
            change.apply(&mut row.metadata);
            Ok(row.metadata.clone())
        })
        .await
    }
}

/// The instances that users reach.
fn whole(draft: &Draft) -> impl Iterator<Item = &Instance> {
    draft.instances.iter().filter(|i| i.part == Part::Whole)
}

/// Rules change only on a share that serves.
fn ready_for_rules(draft: &Draft, id: ResourceId) -> Result<(), Denied> {
    let share = draft.need_share(id)?;
    let status = share.representative(&draft.instances).map_or(InstanceStatus::Error, |i| i.status);
    if status != InstanceStatus::Available {
        return Err(Denied::ShareStatus { share: id, status, needed: "available".into() });
    }
    draft.need_idle(id)
}

/// Admits an update of the rules, unless one waits that has not read them yet.
pub(crate) fn admit_update(draft: &mut Draft, caller: Option<&Caller>) {
    for instance in draft.instances.iter_mut().filter(|i| i.part == Part::Whole) {
        instance.access_rules_status = AccessRulesStatus::Syncing;
    }
    let waits = draft
        .unfinished()
        .iter()
        .any(|op| op.intent == Intent::UpdateAccess && op.status == OpStatus::Accepted);
    if waits {
        // It may begin at this very moment, and read the rules before this one is written.
        draft.touch();
    } else {
        draft.admit(new_op(), Intent::UpdateAccess, Vec::new(), caller);
    }
}
