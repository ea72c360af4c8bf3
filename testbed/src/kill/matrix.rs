//! A kill at each logged event of an operation: before it is written, and after.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use super::lab::{Beneath, Lab, was_killed};
use super::{Kind, Row, Table, audit};
use crate::api::word;
use crate::wait;

/// On which side of the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Nothing of it was written.
    Before,
    /// It was written, and nobody heard of it.
    After,
}

impl Side {
    fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// Steps of a migration in which the driver carries and switches.
const BY_DRIVER: [&str; 2] = ["carry", "take_over"];

/// Kills an operation of this kind at every event that it logs, each time from the same state, and notes what came of
/// it.
///
/// After every event; and before every event that follows work of the driver (before the others nothing has happened
/// since the one that came before). With `long`, before each. Over ZFS only before those, unless `long`; of a migration by
/// the driver only where it carried and where it switched.
///
/// # Panics
/// When one of the kills does not recover.
pub fn run(kind: Kind, beneath: Beneath, long: bool, table: &Table) {
    let mut lab = Lab::prepare(kind.stage(), beneath);
    let script = record(&mut lab, kind);
    let mut broken = Vec::new();
    for (index, event) in script.iter().enumerate() {
        let seq = index as u64 + 1;
        let follows_work =
            event.starts_with("step_done") || event.starts_with("accepted") || seq == script.len() as u64;
        let by_driver = BY_DRIVER.iter().any(|step| *event == format!("step_done {step}"));
        let sides: &[Side] = match beneath {
            Beneath::Zfs if !long && kind == Kind::Assist && !by_driver => &[],
            // The kernel's own storage is slow: where work was done and nobody knows of it.
            Beneath::Zfs if !long && follows_work => &[Side::Before],
            Beneath::Zfs if !long => &[],
            _ if long || follows_work => &[Side::Before, Side::After],
            _ => &[Side::After],
        };
        for side in sides {
            let outcome = catch_unwind(AssertUnwindSafe(|| point(&mut lab, kind, seq, *side)));
            let outcome = outcome.map_err(|panic| reason(&*panic));
            if let Err(why) = &outcome {
                let point = format!("{} {seq} {event}", side.word());
                broken.push(format!("{} {point}: {why}\n{}", kind.word(), lab.server.log_end()));
                end(&mut lab);
            }
            let point = format!("{:6} {seq:2} {event}", side.word());
            table.note(Row { driver: beneath.word(), kind: kind.word(), point, outcome });
        }
    }
    assert!(broken.is_empty(), "{} kills do not recover:\n{}", broken.len(), broken.join("\n"));
}

/// Lets the operation run undisturbed: the events that it logs.
fn record(lab: &mut Lab, kind: Kind) -> Vec<String> {
    lab.restore();
    kind.before_start(lab);
    lab.server.launch();
    lab.backends_are_up();
    kind.act(lab).unwrap();
    wait::until("the operation to be admitted", || lab.has_ended(kind.word()).then_some(()));
    let op = lab.fresh(kind.word()).remove(0);
    let op = lab.ask(|api| api.operation(&word(&op["id"])));
    assert_eq!(op["status"], "done", "undisturbed, it ends well: {op:#}");
    let script = events(&op);
    // Accepted, planned, at least one step's beginning and end, finished: a shorter log would prove little.
    assert!(script.len() >= 5, "{script:?}");
    lab.server.kill();
    script
}

/// The events of an operation's log, in words: `step_started promote`.
pub fn events(op: &Value) -> Vec<String> {
    let steps = op["steps"].as_array().cloned().unwrap_or_default();
    let named = |event: &Value| {
        let name = word(&event["event"]);
        let step = event["step"].as_u64().and_then(|step| steps.get(usize::try_from(step).ok()?));
        match step.and_then(|step| step["step"].as_str()) {
            Some(step) => format!("{name} {step}"),
            None => name,
        }
    };
    op["events"].as_array().unwrap().iter().map(named).collect()
}

/// One kill, the next start, and the judgement.
fn point(lab: &mut Lab, kind: Kind, seq: u64, side: Side) -> String {
    lab.restore();
    kind.before_start(lab);
    killed_at(lab, kind, seq, side, true);
    lab.server.launch();
    lab.backends_are_up();
    lab.settle();
    let lost = seq == 1 && side == Side::Before;
    let outcome = judge(lab, kind, lost);
    audit::at_rest(lab);
    audit::usable(lab);
    assert!(lab.server.stop().success(), "SIGTERM ends it in order");
    outcome
}

/// Starts the server so that it dies at that point, asks for the operation when it must be, and waits for the death.
fn killed_at(lab: &mut Lab, kind: Kind, seq: u64, side: Side, act: bool) {
    let at = format!("{}:{seq}:{}", kind.word(), side.word());
    lab.server.spawn(&[("TANDEM_KILL_AT", &at)]);
    let mut ended = lab.server.ready_or_ended();
    if ended.is_none() && act {
        lab.backends_are_up_or_gone();
        // It may die in the middle of its answer.
        let _ = kind.act(lab);
    }
    if ended.is_none() {
        ended = wait::until("the server to kill itself", || match lab.server.try_ended() {
            Some(status) => Some(Some(status)),
            // What has come to its end has passed the point.
            None => lab.has_ended(kind.word()).then_some(None),
        });
    }
    let status = ended.unwrap_or_else(|| panic!("{at} was never reached"));
    assert!(was_killed(status), "it ended with {status}, not by a kill:\n{}", lab.server.log_end());
}

/// What the interrupted operation came to.
fn judge(lab: &Lab, kind: Kind, lost: bool) -> String {
    // The schedule looks at once and asks again for the sync that was never accepted.
    if kind == Kind::Sync {
        wait::until("the sync to end", || lab.has_ended(kind.word()).then_some(()));
    }
    lab.settle();
    let Some(op) = lab.fresh(kind.word()).into_iter().next() else {
        assert!(lost, "the operation was accepted, and is not in the log");
        unchanged(lab, kind);
        return "nothing was accepted, nothing has changed".into();
    };
    assert_eq!(op["status"], "done", "the next start carries it to its end: {op:#}");
    let shares = lab.ask(crate::api::Api::shares);
    match kind {
        Kind::CreateShare => assert_eq!(shares.len(), 1),
        Kind::CreateReplica => assert_eq!(lab.in_sync(lab.share()).len(), 1),
        Kind::Sync => assert_eq!(lab.in_sync(lab.share()), [lab.replica()]),
        Kind::Promote => {
            assert_eq!(lab.only_replica(lab.share(), "active"), lab.replica());
            assert_eq!(lab.in_sync(lab.share()), [lab.active()]);
            // A promotion that was planned loses nothing of what was written before it was asked for.
            let kept = || lab.export(lab.replica()).join("last word").exists();
            assert!(!lab.beneath.holds_files() || kept(), "an acknowledged write is lost");
        }
        Kind::DeleteReplica => assert_eq!(lab.replicas_of(lab.share()).len(), 1),
        Kind::DeleteShare => assert!(shares.is_empty()),
        Kind::Migrate | Kind::Assist => {
            let now = lab.only_replica(lab.share(), "active");
            assert_ne!(now, lab.active(), "it is where it was");
            let share = lab.ask(|api| api.share(lab.share()));
            assert_eq!(share["task_state"], "migration_success", "{share}");
            assert!(lab.export(&now).join("last word").exists(), "an acknowledged write is lost");
        }
    }
    format!("{} by the next start", word(&op["status"]))
}

/// A request that was never accepted has changed nothing.
fn unchanged(lab: &Lab, kind: Kind) {
    let shares = lab.ask(crate::api::Api::shares);
    match kind {
        Kind::CreateShare => assert!(shares.is_empty()),
        Kind::CreateReplica | Kind::DeleteShare => assert_eq!(lab.replicas_of(lab.share()).len(), 1),
        Kind::Migrate | Kind::Assist => assert_eq!(lab.only_replica(lab.share(), "active"), lab.active()),
        Kind::Sync | Kind::Promote | Kind::DeleteReplica => {
            assert_eq!(lab.only_replica(lab.share(), "active"), lab.active());
            assert_eq!(lab.in_sync(lab.share()), [lab.replica()]);
        }
    }
}

/// One event a life: the server dies after every single event, so that the operation gets on by one each time.
pub fn one_event_a_life(kind: Kind, beneath: Beneath, table: &Table) {
    let mut lab = Lab::prepare(kind.stage(), beneath);
    let script = record(&mut lab, kind);
    lab.restore();
    kind.before_start(&lab);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for seq in 1..=script.len() as u64 {
            killed_at(&mut lab, kind, seq, Side::After, seq == 1);
        }
        lab.server.launch();
        lab.backends_are_up();
        judge(&lab, kind, false);
        audit::at_rest(&lab);
        audit::usable(&lab);
        format!("{} lives", script.len() + 1)
    }));
    let outcome = outcome.map_err(|panic| reason(&*panic));
    let failed = outcome.clone().err();
    let point = "after  each, one event a life".to_owned();
    table.note(Row { driver: beneath.word(), kind: kind.word(), point, outcome });
    if let Some(why) = failed {
        panic!("{why}\n{}", lab.server.log_end());
    }
}

/// Makes sure that no server runs.
fn end(lab: &mut Lab) {
    if lab.server.runs() && lab.server.try_ended().is_none() {
        lab.server.kill();
    }
}

/// What a panic said.
pub fn reason(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "it panicked".into())
}
