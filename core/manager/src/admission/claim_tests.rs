//! Whatever two sides ask, and however often: from one epoch on exactly one of them is ever told to go on.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use tandem_contract::PointId;
use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::model::{Share, Usage};
use crate::plan::Step;
use crate::plan::tests::row;
use crate::store::Family;

const SHARE: ResourceId = ResourceId(Uuid::from_u128(1));
const SIDES: [InstanceId; 2] = [InstanceId(Uuid::from_u128(2)), InstanceId(Uuid::from_u128(3))];

fn draft(style: Option<Style>) -> Draft {
    let share = Share {
        id: SHARE,
        version: 1,
        project_id: "p".into(),
        user_id: "u".into(),
        name: None,
        description: None,
        size_gb: 1,
        protocol: "NFS".into(),
        share_type_id: Uuid::nil(),
        is_public: false,
        metadata: BTreeMap::new(),
        availability_zone: None,
        replication: style,
        epoch: Epoch(1),
        arbitration: None,
        points: Vec::new(),
        task_state: None,
        snapshot_support: [false; 4],
        created_at: Timestamp(0),
        updated_at: None,
    };
    let family = Family {
        share: Some(share),
        instances: SIDES.map(|id| row(id, ReplicaState::Active)).to_vec(),
        rules: Vec::new(),
        share_type: None,
        operations: Vec::new(),
    };
    Draft::new(family, Usage::default(), None, Timestamp(0))
}

fn ask(draft: &mut Draft, side: usize, epoch: u64) -> Verdict {
    claim(draft, SHARE, SIDES[side], Epoch(epoch)).unwrap()
}

fn won(epoch: u64) -> Verdict {
    Verdict::Won { epoch: Epoch(epoch) }
}

/// What happens between claims.
#[derive(Clone, Copy, Debug)]
enum Happens {
    /// A side asks, at the epoch that it last served at, or at one before.
    Claims { side: usize, behind: u64 },
    /// A side that lost begins to join.
    Joins { side: usize },
    /// Its joining is put on record, where nothing was decided against it meanwhile.
    Joined { side: usize },
}

fn happens() -> impl Strategy<Value = Happens> {
    let side = 0..SIDES.len();
    prop_oneof![
        4 => (side.clone(), 0..3_u64).prop_map(|(side, behind)| Happens::Claims { side, behind }),
        1 => side.clone().prop_map(|side| Happens::Joins { side }),
        1 => side.prop_map(|side| Happens::Joined { side }),
    ]
}

proptest! {
    #[test]
    fn from_one_epoch_on_one_goes_on(history in proptest::collection::vec(happens(), 0..40)) {
        let mut draft = draft(Some(Style::Writable));
        let mut winners: HashMap<u64, usize> = HashMap::new();
        let mut joining: [Option<Epoch>; 2] = [None; 2];
        for what in history {
            let now = draft.share.as_ref().unwrap().epoch.0;
            match what {
                Happens::Claims { side, behind } => {
                    let epoch = now.saturating_sub(behind);
                    let before = draft.clone();
                    match ask(&mut draft, side, epoch) {
                        Verdict::Won { epoch: next } => {
                            prop_assert!(next.0 > epoch);
                            prop_assert_eq!(*winners.entry(epoch).or_insert(side), side);
                            let other = draft.instance(SIDES[1 - side]).unwrap();
                            prop_assert!(other.replica_state != Some(ReplicaState::Active) || next.0 != epoch + 1);
                        }
                        Verdict::Lost { why } => {
                            prop_assert!(!why.is_empty());
                            prop_assert_eq!(&draft.share, &before.share);
                            prop_assert_eq!(&draft.instances, &before.instances);
                        }
                    }
                    let again = ask(&mut draft, side, epoch);
                    if winners.get(&epoch) != Some(&side) {
                        let lost = matches!(again, Verdict::Lost { .. });
                        prop_assert!(lost);
                    }
                }
                Happens::Joins { side } => {
                    if draft.instance(SIDES[side]).unwrap().replica_state != Some(ReplicaState::Active) {
                        joining[side] = draft.share.as_ref().map(|share| share.epoch);
                        crate::run::mark(&mut draft, &Step::Join { instance: SIDES[side] });
                    }
                }
                Happens::Joined { side } => {
                    let now = draft.share.as_ref().map(|share| share.epoch);
                    if joining[side].take().is_some_and(|at| Some(at) == now) {
                        let row = draft.instance_mut(SIDES[side]).unwrap();
                        (row.replica_state, row.yields) = (Some(ReplicaState::Active), false);
                    }
                }
            }
        }
    }
}

#[test]
fn the_winner_gets_its_answer_again_until_another_side_may_serve() {
    let mut draft = draft(Some(Style::Writable));
    assert_eq!(ask(&mut draft, 0, 1), won(2));
    assert_eq!(ask(&mut draft, 0, 1), won(2));
    assert!(matches!(ask(&mut draft, 1, 1), Verdict::Lost { .. }));
    assert!(matches!(ask(&mut draft, 1, 2), Verdict::Lost { .. }), "it is no active one any more");
    crate::run::mark(&mut draft, &Step::Join { instance: SIDES[1] });
    // What it asks from before is no answer to what happens now.
    assert!(matches!(ask(&mut draft, 0, 1), Verdict::Lost { .. }));
    assert_eq!(ask(&mut draft, 0, 2), won(3));
}

#[test]
fn a_claim_is_one_operation_that_has_ended() {
    let mut draft = draft(Some(Style::Writable));
    ask(&mut draft, 1, 1);
    ask(&mut draft, 1, 1);
    let lost = draft.instance(SIDES[0]).unwrap();
    assert_eq!((lost.replica_state, lost.yields), (Some(ReplicaState::OutOfSync), true));
    assert!(lost.reason.as_ref().unwrap().contains("goes on at epoch 2"));
    let batch = draft.finish();
    let kinds: Vec<_> =
        batch.operations.iter().map(|op| (op.intent.kind(), op.status.is_finished())).collect();
    assert_eq!(kinds, [("arbitrate", true)]);
}

#[test]
fn who_asks_and_may_not_is_told_why() {
    let refused = |change: &dyn Fn(&mut Draft)| {
        let mut draft = draft(Some(Style::Writable));
        change(&mut draft);
        match ask(&mut draft, 0, 1) {
            Verdict::Lost { why } => why,
            won => panic!("{won:?}"),
        }
    };
    let admits = |intent: Intent| {
        move |draft: &mut Draft| drop(draft.admit(new_op(), intent.clone(), Vec::new(), None))
    };
    let [own, other] = SIDES;
    for intent in [
        Intent::DeleteReplica { instance: own, force: false },
        Intent::Fence { instance: own },
        Intent::DeleteShare { force: false },
    ] {
        assert!(refused(&admits(intent)).contains("decides otherwise"));
    }
    assert!(refused(&|draft| draft.instance_mut(own).unwrap().unfenced = true).contains("no active"));
    assert!(
        refused(&|draft| draft.instance_mut(own).unwrap().status = InstanceStatus::Error)
            .contains("in error")
    );
    assert!(refused(&|draft| draft.share.as_mut().unwrap().epoch = Epoch(4)).contains("at epoch 4"));
    // These decide nothing about who serves, or by the epoch.
    let mut draft = draft(Some(Style::Writable));
    draft.admit(new_op(), Intent::DeleteReplica { instance: other, force: false }, Vec::new(), None);
    draft.admit(
        new_op(),
        Intent::Sync { instance: other, asked: false, point: Some(PointId(Uuid::nil())) },
        Vec::new(),
        None,
    );
    let epoch = Some(Epoch(1));
    let promote = Intent::Promote { instance: other, quiesce_wait_seconds: None, epoch, keep: false };
    draft.admit(new_op(), promote, Vec::new(), None);
    draft.admit(new_op(), Intent::Resize { from_gb: 1, to_gb: 2 }, Vec::new(), None);
    assert_eq!(ask(&mut draft, 0, 1), won(2));
}

#[test]
fn only_sides_of_a_writable_share_are_heard() {
    for style in [None, Some(Style::Dr), Some(Style::Readable)] {
        let mut draft = draft(style);
        assert_eq!(claim(&mut draft, SHARE, SIDES[0], Epoch(1)), Err(Denied::NotArbitrated(SHARE)));
    }
    let mut draft = draft(Some(Style::Writable));
    let nobody = InstanceId(Uuid::nil());
    assert_eq!(claim(&mut draft, SHARE, nobody, Epoch(1)), Err(Denied::NoInstance(nobody)));
}

#[test]
fn of_two_that_a_given_up_promotion_left_behind_one_goes_on() {
    let mut draft = draft(Some(Style::Writable));
    draft.share.as_mut().unwrap().epoch = Epoch(3);
    assert!(matches!(ask(&mut draft, 0, 1), Verdict::Lost { .. }));
    assert_eq!(appoint(&mut draft, SIDES[1], Epoch(1)), None);
    let lost = draft.instance(SIDES[0]).unwrap();
    assert_eq!((lost.replica_state, lost.yields), (Some(ReplicaState::OutOfSync), true));
    for _ in 0..2 {
        assert!(appoint(&mut draft, SIDES[0], Epoch(1)).is_some());
        assert_eq!(appoint(&mut draft, SIDES[1], Epoch(1)), None, "told once more");
    }
    assert_eq!(ask(&mut draft, 1, 1), won(3), "so is its kernel");
    assert!(matches!(ask(&mut draft, 0, 1), Verdict::Lost { .. }));
}

#[test]
fn who_is_behind_one_that_serves_follows_it() {
    let mut draft = draft(Some(Style::Writable));
    draft.share.as_mut().unwrap().epoch = Epoch(3);
    draft.instance_mut(SIDES[1]).unwrap().epoch = Epoch(3);
    assert!(appoint(&mut draft, SIDES[0], Epoch(1)).unwrap().contains("serves at epoch 3"));
    let lost = draft.instance(SIDES[0]).unwrap();
    assert_eq!((lost.replica_state, lost.yields), (Some(ReplicaState::OutOfSync), true));
    assert!(draft.unfinished().iter().any(|op| op.intent.kind() == "sync"));
}

#[test]
fn while_a_migration_switches_nobody_is_told_to_go_on() {
    for (state, wins) in [(TaskState::DriverInProgress, true), (TaskState::Completing, false)] {
        let mut draft = draft(Some(Style::Writable));
        draft.share.as_mut().unwrap().task_state = Some(state.as_str().to_owned());
        let request = crate::model::MigrationRequest {
            kind: tandem_contract::ResourceKind::Share,
            host: "h@b".into(),
            host_assisted: false,
            needs: crate::model::Needs::default(),
            new_type: None,
            replicates: false,
            at_once: true,
        };
        let intent = Intent::Migrate { source: SIDES[0], destination: InstanceId(Uuid::nil()), request };
        draft.admit(new_op(), intent, Vec::new(), None);
        assert_eq!(ask(&mut draft, 0, 1) == won(2), wins, "{state}");
    }
}
