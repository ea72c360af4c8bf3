//! What holds of every plan and of every way back.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use tandem_contract::{
    Capabilities, Demotion, Epoch, Health, InstanceId, Observation, PointId, ReplicaState,
    ReplicationCapability, ResourceId, ResumeToken, Role, Style, Transport,
};
use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::model::{AccessRulesStatus, Instance, InstanceStatus, Part, PoolAddress};

const OLD: InstanceId = InstanceId(Uuid::from_u128(1));
const NEW: InstanceId = InstanceId(Uuid::from_u128(2));

pub(crate) fn row(id: InstanceId, state: ReplicaState) -> Instance {
    Instance {
        id,
        version: 1,
        share_id: ResourceId(Uuid::nil()),
        project_id: "p".into(),
        share_type_id: Uuid::nil(),
        pool: Some(PoolAddress {
            host: "h".into(),
            backend: format!("b{}", id.0.as_u128()),
            pool: "pool".into(),
        }),
        availability_zone: None,
        status: InstanceStatus::Available,
        replica_state: Some(state),
        access_rules_status: AccessRulesStatus::Active,
        cast_rules_to_readonly: false,
        exports: Vec::new(),
        metadata: BTreeMap::new(),
        epoch: Epoch(1),
        unfenced: false,
        fenced: false,
        yields: false,
        part: Part::Whole,
        point: None,
        reason: None,
        checked: None,
        tried_at: None,
        damage: None,
        damaged_at: None,
        reset_by_admin: false,
        created_at: Timestamp(0),
        scheduled_at: None,
        launched_at: None,
        updated_at: None,
    }
}

fn seen(role: Role, resume: Option<PointId>) -> Link {
    Link::Seen(Some(Box::new(Observation {
        resource: ResourceId(Uuid::nil()),
        role,
        epoch: Epoch(1),
        size_bytes: 0,
        used_bytes: None,
        exports: Vec::new(),
        read_only: false,
        quiesced: false,
        points: Vec::new(),
        resume: resume.map(|to| ResumeToken {
            kind: "t".into(),
            version: 1,
            to: Some(to),
            data: serde_json::Value::Null,
        }),
        health: Health::Ok,
    })))
}

fn replication(storage: bool, quiesce: bool) -> Capabilities {
    let transport = if storage {
        Transport::Storage { protocols: vec!["x".into()] }
    } else {
        Transport::Streamed { formats: vec!["x".into()], resumable: true }
    };
    Capabilities {
        replication: Some(ReplicationCapability {
            styles: vec![Style::Readable, Style::Dr],
            transport,
            domain: None,
            max_instances: None,
            quiesce,
            lag_bytes: false,
            converts: false,
            fingerprints: Vec::new(),
        }),
        ..Capabilities::default()
    }
}

/// Asks `ask` of a world of one active and one secondary.
pub(super) fn with_world<T>(
    storage: bool,
    quiesce: bool,
    old_away: bool,
    ask: impl FnOnce(&World<'_>) -> T,
) -> T {
    let instances = [row(OLD, ReplicaState::Active), row(NEW, ReplicaState::InSync)];
    let capabilities = HashMap::from([OLD, NEW].map(|id| (id, replication(storage, quiesce))));
    let old = if old_away { Link::Away("unplugged".into()) } else { seen(Role::Active, None) };
    let links = HashMap::from([(OLD, old), (NEW, seen(Role::Secondary, None))]);
    let new_points = [10, 11, 12, 13].map(|n| PointId(Uuid::from_u128(n)));
    ask(&World {
        instances: &instances,
        capabilities: &capabilities,
        links: &links,
        sides: None,
        style: None,
        epoch: Epoch(1),
        size_gb: 0,
        new_points,
    })
}

fn at(steps: &[Step], pick: impl Fn(&Step) -> bool) -> Option<usize> {
    steps.iter().position(pick)
}

proptest! {
    /// The order that keeps acknowledged bytes and one active: hold writers back, carry, raise, demote, promote.
    #[test]
    fn a_planned_promotion_keeps_its_order(storage: bool, quiesce: bool) {
        let intent = Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false };
        let steps = with_world(storage, quiesce, false, |w| plan(&intent, w)).unwrap();
        let raise = at(&steps, |s| *s == Step::RaiseEpoch).unwrap();
        let demote = at(&steps, |s| matches!(s, Step::Demote { instance: OLD, to: Demotion::Secondary })).unwrap();
        let promote = at(&steps, |s| matches!(s, Step::Promote { instance: NEW, forced: false })).unwrap();
        prop_assert!(raise < demote && demote < promote);
        let held = at(&steps, |s| matches!(s, Step::Quiesce { .. } | Step::Cast { read_only: true, .. })).unwrap();
        // Something is carried, or waited for, after writers were held back and before the switch.
        let carried = steps.iter().enumerate().any(|(i, s)| {
            i > held && i < raise && matches!(s, Step::Transfer { .. } | Step::AwaitUpToDate { .. })
        });
        prop_assert!(carried);
    }

    /// Wherever a promotion fails before its commit point, the way back ends with the source active and writable; and
    /// never with both sides active at one epoch.
    #[test]
    fn a_failed_promotion_gives_the_source_back(storage: bool, quiesce: bool, failed in 0_usize..20) {
        let intent = Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false };
        with_world(storage, quiesce, false, |world| {
            let steps = plan(&intent, world).unwrap();
            let failed = failed % steps.len();
            if is_soft(&intent, &steps, failed) {
                return Ok(());
            }
            let back = undo(&intent, &steps, failed, world);
            let demoted = steps[..=failed].iter().any(|s| matches!(s, Step::Demote { .. }));
            let promoted = matches!(steps[failed], Step::Promote { .. });
            let quiesced = steps[..=failed].iter().any(|s| matches!(s, Step::Quiesce { .. }));
            let again = at(&back, |s| matches!(s, Step::Promote { instance: OLD, .. }));
            prop_assert_eq!(again.is_some(), demoted);
            if let Some(again) = again {
                prop_assert_eq!(at(&back, |s| *s == Step::RaiseEpoch), Some(0));
                if promoted {
                    let fenced = at(&back, |s| matches!(s, Step::Demote { instance: NEW, .. })).unwrap();
                    prop_assert!(fenced < again);
                }
            }
            let resumed = back.contains(&Step::ResumeWrites { instance: OLD });
            prop_assert_eq!(resumed, quiesced);
            let cast = steps[..=failed].iter().any(|s| matches!(s, Step::Cast { .. }));
            let given_back = back.contains(&Step::Cast { instance: OLD, read_only: false });
            prop_assert!(given_back || !cast);
            Ok(())
        })?;
    }

    /// A point that was made is let go of again, whatever fails.
    #[test]
    fn no_plan_leaks_a_point(failed in 0_usize..20, quiesce: bool, promote: bool) {
        let intent = if promote {
            Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false }
        } else {
            Intent::Sync { instance: NEW, asked: false, point: None }
        };
        with_world(false, quiesce, false, |world| {
            let steps = plan(&intent, world).unwrap();
            let failed = failed % steps.len();
            let made = steps[..=failed].iter().any(|s| matches!(s, Step::MakePoint { .. }));
            let released = steps.contains(&Step::ReleasePoints)
                && (steps[failed].is_soft() || undo(&intent, &steps, failed, world).contains(&Step::ReleasePoints));
            prop_assert!(!made || released);
            Ok(())
        })?;
    }
}

#[test]
fn an_active_that_cannot_be_asked_is_promoted_past_by_force() {
    let intent = Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false };
    let steps = with_world(false, true, true, |w| plan(&intent, w)).unwrap();
    assert_eq!(steps[0], Step::RaiseEpoch);
    assert_eq!(steps[1], Step::Promote { instance: NEW, forced: true });
}

/// Its disk was replaced by a blank one, while its users went on with the other one's.
#[test]
fn an_active_whose_storage_is_gone_is_told_to_leave_before_it_is_gone_past() {
    let intent = Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false };
    for storage in [true, false] {
        let steps = with_world(storage, false, true, |world| {
            let links = HashMap::from([(OLD, Link::Seen(None)), (NEW, seen(Role::Secondary, None))]);
            plan(&intent, &World { links: &links, sides: None, ..*world })
        });
        let steps = steps.unwrap();
        assert_eq!(steps.contains(&Step::Disconnect { instance: NEW }), storage, "{steps:?}");
        assert!(
            steps[usize::from(storage)..]
                .starts_with(&[Step::RaiseEpoch, Step::Promote { instance: NEW, forced: true }])
        );
    }
}

#[test]
fn a_cut_transfer_is_continued_with_its_point() {
    let point = PointId(Uuid::from_u128(7));
    let instances = [row(OLD, ReplicaState::Active), row(NEW, ReplicaState::OutOfSync)];
    let capabilities = HashMap::from([OLD, NEW].map(|id| (id, replication(false, false))));
    let mut source = seen(Role::Active, None);
    if let Link::Seen(Some(seen)) = &mut source {
        seen.points.push(tandem_contract::PointInfo { id: point, fingerprint: "f".into(), held: true });
    }
    let links = HashMap::from([(OLD, source), (NEW, seen(Role::Secondary, Some(point)))]);
    let new_points = [10, 11, 12, 13].map(|n| PointId(Uuid::from_u128(n)));
    let world = World {
        instances: &instances,
        capabilities: &capabilities,
        links: &links,
        sides: None,
        style: None,
        epoch: Epoch(1),
        size_gb: 0,
        new_points,
    };
    let steps = plan(&Intent::Sync { instance: NEW, asked: true, point: None }, &world).unwrap();
    assert_eq!(steps[0], Step::MakePoint { source: OLD, point });
}

#[test]
fn a_replica_that_went_past_the_point_gets_a_newer_one() {
    let (point, later) = (PointId(Uuid::from_u128(7)), PointId(Uuid::from_u128(8)));
    let instances = [row(OLD, ReplicaState::Active), row(NEW, ReplicaState::OutOfSync)];
    let capabilities = HashMap::from([OLD, NEW].map(|id| (id, replication(false, false))));
    let new_points = [10, 11, 12, 13].map(|n| PointId(Uuid::from_u128(n)));
    let asked = |held: &[PointId]| {
        let mut replica = seen(Role::Secondary, None);
        if let Link::Seen(Some(seen)) = &mut replica {
            let info =
                |id: &PointId| tandem_contract::PointInfo { id: *id, fingerprint: "f".into(), held: true };
            seen.points = held.iter().map(info).collect();
        }
        let links = HashMap::from([(OLD, seen(Role::Active, None)), (NEW, replica)]);
        let world = World {
            instances: &instances,
            capabilities: &capabilities,
            links: &links,
            sides: None,
            style: None,
            epoch: Epoch(1),
            size_gb: 0,
            new_points,
        };
        plan(&Intent::Sync { instance: NEW, asked: false, point: Some(point) }, &world).unwrap().remove(0)
    };
    let made = |point| Step::MakePoint { source: OLD, point };
    assert_eq!(asked(&[]), made(point));
    assert_eq!(asked(&[later, point]), made(point));
    assert_eq!(asked(&[point, later]), made(new_points[0]));
}

#[test]
fn growth_reaches_secondaries_first_and_shrinking_last() {
    let order = |from_gb, to_gb| {
        with_world(false, false, false, |w| plan(&Intent::Resize { from_gb, to_gb }, w))
            .unwrap()
            .into_iter()
            .map(|s| match s {
                Step::Resize { instance, .. } => instance,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(order(1, 2), [NEW, OLD]);
    assert_eq!(order(2, 1), [OLD, NEW]);
}
