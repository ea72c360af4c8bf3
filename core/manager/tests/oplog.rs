//! The fold of the operation log is total, and its ends are ends.

use proptest::prelude::*;
use tandem_contract::{Error, InstanceId};
use tandem_manager::model::{Intent, OpStatus};
use tandem_manager::oplog::{Ending, Event, OpState};
use tandem_manager::plan::Step;
use uuid::Uuid;

fn event() -> impl Strategy<Value = Event> {
    let instance = InstanceId(Uuid::nil());
    let steps = proptest::collection::vec(Just(Step::ApplyAccess { instance }), 0..4);
    prop_oneof![
        Just(Event::Accepted { intent: Intent::CreateShare { instance, only_host: None } }),
        steps.clone().prop_map(|steps| Event::Planned { steps }),
        (0_usize..6).prop_map(|step| Event::StepStarted { step }),
        (0_usize..6).prop_map(|step| Event::StepDone {
            step,
            bytes: Some(1),
            resumed_bytes: Some(2),
            remark: None
        }),
        (0_usize..6, steps).prop_map(|(step, undo)| Event::StepFailed { step, error: Error::bug("x"), undo }),
        Just(Event::CancelRequested),
        Just(Event::ProceedRequested),
        Just(Event::Finished { ending: Ending::Done, error: None }),
        Just(Event::Finished { ending: Ending::Failed, error: Some(Error::bug("x")) }),
    ]
}

proptest! {
    #[test]
    fn the_fold_is_total_and_counts_what_it_takes(events in proptest::collection::vec(event(), 0..60)) {
        let mut state = OpState::default();
        let mut taken = 0;
        for event in &events {
            match state.clone().next(event) {
                Ok(next) => {
                    taken += 1;
                    prop_assert!(!state.status.is_finished(), "nothing follows an end");
                    prop_assert!(next.next <= next.steps.len());
                    prop_assert!(next.undo_from.is_none_or(|from| from <= next.steps.len()));
                    prop_assert!(next.cancel || !state.cancel, "a cancel is never forgotten");
                    state = next;
                }
                Err(illegal) => prop_assert!(illegal.to_string().contains(event.name())),
            }
            prop_assert_eq!(state.seq, taken);
        }
    }

    /// Events survive being stored.
    #[test]
    fn events_come_back_from_json(event in event()) {
        let text = serde_json::to_string(&event).unwrap();
        prop_assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}

#[test]
fn a_failing_way_back_is_passed_over_and_remembered() {
    let instance = InstanceId(Uuid::nil());
    let undo = vec![Step::DeleteInstance { instance }, Step::ReleasePoints];
    let log = [
        Event::Accepted { intent: Intent::CreateShare { instance, only_host: None } },
        Event::Planned { steps: vec![Step::CreateInstance { instance }] },
        Event::StepStarted { step: 0 },
        Event::StepFailed { step: 0, error: Error::out_of_space("full"), undo },
        Event::StepStarted { step: 1 },
        Event::StepFailed { step: 1, error: Error::unavailable("away"), undo: Vec::new() },
        Event::StepStarted { step: 2 },
        Event::StepDone { step: 2, bytes: None, resumed_bytes: None, remark: None },
        Event::Finished { ending: Ending::Failed, error: None },
    ];
    let end = log.iter().try_fold(OpState::default(), OpState::next).unwrap();
    assert_eq!(end.status, OpStatus::Failed);
    assert_eq!(end.error.unwrap().message, "full");
    assert_eq!(end.remarks.len(), 1);
}
