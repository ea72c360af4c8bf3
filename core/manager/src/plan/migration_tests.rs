//! What holds of every plan of a migration and of every way back.

use std::collections::HashMap;

use proptest::prelude::*;
use tandem_contract::{
    AttachKind, Capabilities, Compatibility, InstanceId, PointId, ReplicaState, ReplicationCapability,
    ResourceKind, Style, Transport,
};
use uuid::Uuid;

use super::*;
use crate::model::{MigrationRequest, Needs, Part};

const SOURCE: InstanceId = InstanceId(Uuid::from_u128(1));
const DEST: InstanceId = InstanceId(Uuid::from_u128(2));

fn request(host_assisted: bool, needs: Needs, at_once: bool) -> MigrationRequest {
    MigrationRequest {
        kind: ResourceKind::Share,
        host: "h@b2#pool".into(),
        host_assisted,
        needs,
        new_type: None,
        replicates: false,
        at_once,
    }
}

fn planned(request: &MigrationRequest, sides: Sides) -> Result<Vec<Step>, Error> {
    in_world(sides, |world| {
        let intent = Intent::Migrate { source: SOURCE, destination: DEST, request: request.clone() };
        plan(&intent, world)
    })
}

/// The source's driver can fence.
fn in_world<T>(sides: Sides, ask: impl FnOnce(&World<'_>) -> T) -> T {
    let mut dest = tests::row(DEST, ReplicaState::Active);
    (dest.part, dest.replica_state) = (Part::Incoming, None);
    let instances = [tests::row(SOURCE, ReplicaState::Active), dest];
    let replication = ReplicationCapability {
        styles: vec![Style::Dr],
        transport: Transport::Streamed { formats: vec!["x".into()], resumable: true },
        domain: None,
        max_instances: None,
        quiesce: false,
        lag_bytes: false,
        converts: false,
        fingerprints: Vec::new(),
    };
    let source = Capabilities { replication: Some(replication), ..Capabilities::default() };
    let (capabilities, links) = (HashMap::from([(SOURCE, source)]), HashMap::new());
    let world = World {
        instances: &instances,
        capabilities: &capabilities,
        links: &links,
        sides: Some(sides),
        style: None,
        epoch: tandem_contract::Epoch(1),
        size_gb: 0,
        new_points: [10, 11, 12, 13].map(|n| PointId(Uuid::from_u128(n))),
    };
    ask(&world)
}

fn needs() -> impl Strategy<Value = Needs> {
    any::<[bool; 4]>().prop_map(|[writable, nondisruptive, preserve_metadata, preserve_snapshots]| Needs {
        writable,
        nondisruptive,
        preserve_metadata,
        preserve_snapshots,
    })
}

fn promises() -> impl Strategy<Value = Compatibility> {
    any::<[bool; 5]>().prop_map(
        |[compatible, writable, nondisruptive, preserve_metadata, preserve_snapshots]| Compatibility {
            compatible,
            writable,
            nondisruptive,
            preserve_metadata,
            preserve_snapshots,
        },
    )
}

fn attaches() -> impl Strategy<Value = Option<AttachKind>> {
    prop_oneof![Just(None), Just(Some(AttachKind::Tree)), Just(Some(AttachKind::Block))]
}

fn at(steps: &[Step], pick: impl Fn(&Step) -> bool) -> Option<usize> {
    steps.iter().position(pick)
}

proptest! {
    /// By the driver where it promises all that is needed, else as a replica goes where that promises it (by points, or by the
    /// storage), else from host to host where nothing is needed, else not.
    #[test]
    fn the_approach_follows_from_promises_and_needs(
        forced: bool, at_once: bool, streams: bool, peers: bool, needs in needs(), promises in promises(),
        here in attaches(), there in attaches(),
    ) {
        let request = request(forced, needs, at_once);
        let sides = Sides { compatibility: promises, remark: None, streams, peers, attach: (here, there) };
        let planned = planned(&request, sides);
        let by_driver = !forced && promises.compatible && needs.missing(&promises).is_empty();
        let as_replica = !forced && !by_driver && !needs.nondisruptive && !needs.preserve_snapshots;
        let (by_points, by_peers) = (as_replica && streams, as_replica && !streams && peers);
        let by_host = !by_driver && !by_points && !by_peers && !needs.any() && here.is_some() && here == there;
        prop_assert_eq!(planned.is_ok(), by_driver || by_points || by_peers || by_host);
        let Ok(steps) = planned else { return Ok(()) };
        prop_assert_eq!(at(&steps, |s| matches!(s, Step::Assist { .. })).is_some(), by_driver);
        prop_assert_eq!(at(&steps, |s| matches!(s, Step::Mirror { .. })).is_some(), by_host);
        prop_assert_eq!(at(&steps, |s| matches!(s, Step::AwaitProceed { .. })).is_none(), at_once);
        let switch = at(&steps, |s| matches!(s, Step::Switch { .. })).unwrap();
        // Nothing that could fail the migration comes after the switch.
        prop_assert!(steps[switch + 1..].iter().all(Step::is_soft));
        if by_points {
            let hold = at(&steps, |s| matches!(s, Step::Quiesce { .. } | Step::Cast { read_only: true, .. })).unwrap();
            let away = at(&steps, |s| matches!(s, Step::Withdraw { .. })).unwrap();
            let succeed = at(&steps, |s| matches!(s, Step::Succeed { .. })).unwrap();
            prop_assert!(hold < away && away < succeed && succeed < switch);
            // What was written until writers were held back is carried, and the bulk of it before.
            let carried = |part: &[Step]| part.iter().filter(|s| matches!(s, Step::Transfer { .. })).count();
            prop_assert_eq!((carried(&steps[..hold]), carried(&steps[hold..away])), (2, 1));
            // The source's driver cannot quiesce: who had a file open wrote on.
            prop_assert_eq!(carried(&steps[away..]), 1);
            let wait = at(&steps, |s| matches!(s, Step::AwaitProceed { .. }));
            prop_assert!(wait.is_none_or(|wait| wait < hold && carried(&steps[wait..hold]) == 1));
            let grant = at(&steps, |s| matches!(s, Step::Grant { .. })).unwrap();
            prop_assert!(grant < hold);
        } else if by_peers {
            // Both are waited for before anybody waits, and once nobody writes any more.
            let cast = at(&steps, |s| matches!(s, Step::Cast { read_only: true, .. })).unwrap();
            let demote = at(&steps, |s| matches!(s, Step::Demote { .. })).unwrap();
            let succeed = at(&steps, |s| matches!(s, Step::Succeed { .. })).unwrap();
            prop_assert!(cast < demote && demote < succeed && succeed < switch);
            let follow = Step::Follow { source: SOURCE, instance: DEST };
            prop_assert_eq!((&steps[cast - 1], &steps[demote - 1]), (&follow, &follow));
            let grant = at(&steps, |s| matches!(s, Step::Grant { .. })).unwrap();
            prop_assert!(grant < cast);
        } else if by_host {
            let cast = at(&steps, |s| matches!(s, Step::Cast { read_only: true, .. })).unwrap();
            let last = at(&steps, |s| matches!(s, Step::Mirror { last: true, .. })).unwrap();
            let grant = at(&steps, |s| matches!(s, Step::Grant { .. })).unwrap();
            prop_assert!(cast < last && last < grant && grant < switch);
            // Whoever had a file open wrote on until nobody was served: what came of that is carried too.
            let away = at(&steps, |s| matches!(s, Step::Withdraw { .. })).unwrap();
            let since = at(&steps, |s| matches!(s, Step::Mirror { fenced: true, .. })).unwrap();
            prop_assert!(last < away && away < since && since < grant);
            let before = at(&steps[..cast], |s| matches!(s, Step::Mirror { last: false, .. }));
            prop_assert!(before.is_some());
            // A user who waits with migration_complete writes until then.
            let wait = at(&steps, |s| matches!(s, Step::AwaitProceed { .. }));
            prop_assert!(wait.is_none_or(|wait| wait < cast));
        } else {
            let cast = at(&steps, |s| matches!(s, Step::Cast { .. }));
            prop_assert_eq!(cast.is_none(), promises.writable);
            let taken = at(&steps, |s| matches!(s, Step::TakeOver { .. })).unwrap();
            prop_assert!(taken < switch);
        }
    }

    /// Where the driver's attempt fails, what it began is ended and the copy from host to host begins, once.
    #[test]
    fn a_driver_that_fails_leaves_the_other_way(promises in promises(), at_once: bool, needs in needs(), cut in 0_usize..5) {
        let request = request(false, needs, at_once);
        let attach = (Some(AttachKind::Tree), Some(AttachKind::Tree));
        let compatibility = Compatibility { compatible: true, ..promises };
        let sides = Sides { compatibility, remark: None, streams: false, peers: false, attach };
        let Ok(steps) = planned(&request, sides.clone()) else { return Ok(()) };
        let first = at(&steps, |s| matches!(s, Step::Carry { .. })).unwrap_or(0);
        let taken = &steps[..=cut.min(first)];
        let sides = Sides { compatibility: Compatibility::default(), ..sides };
        let other = in_world(sides.clone(), |w| instead(w, SOURCE, DEST, &request, taken));
        prop_assert_eq!(other.is_some(), !needs.any() && first > 0);
        let Some(other) = other else { return Ok(()) };
        let begun = taken.iter().any(|s| matches!(s, Step::Assist { .. }));
        prop_assert_eq!(other.contains(&Step::Unwind { source: SOURCE, instance: DEST }), begun);
        let removed = at(&other, |s| matches!(s, Step::DeleteInstance { .. })).unwrap();
        let made = at(&other, |s| matches!(s, Step::CreateInstance { .. })).unwrap();
        prop_assert!(removed < made);
        let cast = taken.contains(&Step::Cast { instance: SOURCE, read_only: true });
        let freed = at(&other[..made], |s| matches!(s, Step::Cast { read_only: false, .. }));
        prop_assert_eq!(freed.is_some(), cast);
        let all: Vec<Step> = taken.iter().cloned().chain(other).collect();
        prop_assert!(in_world(sides, |w| instead(w, SOURCE, DEST, &request, &all)).is_none());
    }

    /// Whatever fails before the switch, the source is written again and nothing of the driver's goes on.
    #[test]
    fn the_way_back_gives_the_source_back(
        promises in promises(), at_once: bool, streams: bool, peers: bool, cut in 0_usize..16
    ) {
        let request = request(false, Needs::default(), at_once);
        let attach = (Some(AttachKind::Tree), Some(AttachKind::Tree));
        let sides = Sides { compatibility: promises, remark: None, streams, peers, attach };
        let steps = planned(&request, sides).unwrap();
        let failed = cut.min(steps.len() - 1);
        let intent = Intent::Migrate { source: SOURCE, destination: DEST, request };
        let switched = steps[..failed].iter().any(|s| matches!(s, Step::Switch { .. }));
        let back = tests::with_world(false, false, false, |w| undo(&intent, &steps, failed, w));
        if switched {
            prop_assert!(back.is_empty());
            return Ok(());
        }
        let reached = |pick: &dyn Fn(&Step) -> bool| steps[..=failed].iter().any(pick);
        let cast = reached(&|s| matches!(s, Step::Cast { .. }));
        prop_assert_eq!(back.contains(&Step::Cast { instance: SOURCE, read_only: false }), cast);
        let away = reached(&|s| matches!(s, Step::Withdraw { .. }));
        let demoted = reached(&|s| matches!(s, Step::Demote { .. }));
        prop_assert_eq!(back.contains(&Step::Ensure { instance: SOURCE }), away || demoted);
        // It leaves its peer before it is the active one again.
        let leaves = at(&back, |s| *s == Step::Leave { instance: SOURCE, peer: DEST });
        prop_assert_eq!(leaves.is_some(), demoted);
        let served = at(&back, |s| matches!(s, Step::Ensure { .. }));
        prop_assert!(leaves.is_none_or(|n| served == Some(n + 1)));
        let begun = reached(&|s| matches!(s, Step::Assist { .. }));
        prop_assert_eq!(back.contains(&Step::Unwind { source: SOURCE, instance: DEST }), begun);
        let attached = reached(&|s| matches!(s, Step::Mirror { .. }));
        prop_assert_eq!(back.contains(&Step::Detach { instance: SOURCE }), attached);
        let pointed = reached(&|s| matches!(s, Step::MakePoint { .. }));
        prop_assert_eq!(back.contains(&Step::ReleasePoints), pointed);
        let risen = reached(&|s| matches!(s, Step::Succeed { .. }));
        prop_assert_eq!(back.first() == Some(&Step::Withdraw { instance: DEST }), risen);
        // Until the destination was told to be the active one, or is it, a cancel turns back.
        let commits = |s: &Step| matches!(s, Step::TakeOver { .. } | Step::Switch { .. });
        let is = steps[..failed].iter().any(|s| matches!(s, Step::Succeed { .. }));
        prop_assert_eq!(may_turn_back(&intent, &steps, failed, failed + 1), !reached(&commits) && !is);
    }
}
