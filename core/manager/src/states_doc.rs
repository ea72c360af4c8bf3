//! Writes `docs/states.md` from the tables, and fails when the page and the tables differ.
//! `UPDATE_DOCS=1 cargo test -p tandem-manager states_doc` writes it anew.

use std::collections::HashMap;
use std::fmt::Write as _;

use tandem_contract::{
    AttachKind, Capabilities, Compatibility, Epoch, Error, Health, InstanceId, Observation, PointId,
    PointInfo, ReplicaState, ReplicationCapability, ResourceId, ResourceKind, ResumeToken, Role, Style,
    Transport,
};
use uuid::Uuid;

use crate::model::{InstanceStatus, Intent, MigrationRequest, Needs, OpStatus};
use crate::oplog::{Ending, Event, OpState};
use crate::plan::{self, Link, Sides, Step, World};

const LAWS: &str = "\
## The laws of the manager

`tandem doctor` cites these numbers.

1. **No transient status without an owner.** Whatever says `creating`, `replication_change`, `deleting` … has a live
   operation. An admin's `reset_*` is the one exception: a logged override that reconciliation leaves alone until the
   next operation, and that doctor lists.
2. **The state machine is one pure table**, used while running and while recovering; this page is printed from it.
3. **The log is the truth about operations**, appended with a sequence number, compare-and-set, durable before the
   driver is called. Every status can be rebuilt from it; doctor does so and compares.
4. **Every driver call may come 0, 1, 2 or 3 times**, and reaches a driver that remembers nothing. A step that was
   started and has no end is observed first, then repeated.
5. **At most one instance holds the current epoch** for `readable` and `dr`, whatever crashes, hangs or is cut off.
   For `writable` all do while they are connected; of those cut off from each other exactly one, which the manager
   told: it raised the epoch in the same transaction, and who is at the one before serves nobody.
   A forced promotion leaves the old active *unfenced* until it is seen again; then it is *fenced*, and follows the new
   active only once a resync says so.
6. **Cancel is accepted in every state that is not terminal**, and ends in bounded time.
7. **Failure keeps the source.** Until its commit point (the start of `promote` for a promotion, the switch for a
   migration) a failed operation gives the source back, active and writable, at a new epoch where one was
   raised; after it, recovery goes forward. What a migration leaves, either side, is removed by an operation of its own.
8. **Progress is honest**: monotone bytes of a stated total; an error is never 100 %.
9. **A slow driver hurts nobody else**: order is kept by the queue, not by a lock held while a driver works.
10. **A bad plug-in hurts only its back end.**
";

fn page() -> String {
    let mut page = String::from(
        "# States\n\nPrinted from the tables in `core/manager` (`oplog.rs`, `plan/`, `model/instance.rs`); a test holds it\nagainst them. Do not edit: `UPDATE_DOCS=1 cargo test -p tandem-manager states_doc`.\n\n",
    );
    page += LAWS;
    statuses(&mut page);
    machine(&mut page);
    plans(&mut page);
    page
}

fn statuses(page: &mut String) {
    *page += "\n## Status of an instance\n\nManila's words. A transient one has an operation that owns it.\n\n| status | |\n|---|---|\n";
    for status in InstanceStatus::ALL {
        let kind = if status.is_transient() { "transient" } else { "at rest" };
        let _ = writeln!(page, "| `{status}` | {kind} |");
    }
}

/// Operations that stand in each status, for the events to be tried on.
fn states() -> Vec<(&'static str, OpState)> {
    let instance = InstanceId(Uuid::nil());
    let step = || Step::ApplyAccess { instance };
    let run =
        |events: &[Event]| events.iter().try_fold(OpState::default(), OpState::next).expect("a legal log");
    let accepted = Event::Accepted { intent: Intent::UpdateAccess };
    let planned = Event::Planned { steps: vec![step(), step()] };
    let started = Event::StepStarted { step: 0 };
    let failed = Event::StepFailed { step: 0, error: Error::bug("x"), undo: vec![step()] };
    vec![
        ("accepted", run(std::slice::from_ref(&accepted))),
        ("running, between steps", run(&[accepted.clone(), planned.clone()])),
        ("running, in a step", run(&[accepted.clone(), planned.clone(), started.clone()])),
        (
            "undoing, between steps",
            run(&[accepted.clone(), planned.clone(), started.clone(), failed.clone()]),
        ),
        (
            "undoing, in a step",
            run(&[accepted.clone(), planned, started, failed, Event::StepStarted { step: 1 }]),
        ),
        ("done, failed, cancelled", run(&[accepted, Event::Finished { ending: Ending::Done, error: None }])),
    ]
}

fn machine(page: &mut String) {
    *page +=
        "\n## An operation\n\nWhich event may follow in which state, and where it leads; `–` is refused.\n\n";
    let token = ResumeToken { kind: "k".into(), version: 1, to: None, data: serde_json::Value::Null };
    let events: Vec<Box<dyn Fn(usize) -> Event>> = vec![
        Box::new(|_| Event::Planned { steps: Vec::new() }),
        Box::new(|step| Event::StepStarted { step }),
        Box::new(move |step| Event::Checkpoint { step, token: token.clone() }),
        Box::new(|step| Event::StepDone { step, bytes: None, resumed_bytes: None, remark: None }),
        Box::new(move |step| Event::StepFailed { step, error: Error::bug("x"), undo: Vec::new() }),
        Box::new(move |step| Event::Replanned { step, error: Error::bug("x"), steps: Vec::new() }),
        Box::new(|_| Event::CancelRequested),
        Box::new(|_| Event::ProceedRequested),
        Box::new(|_| Event::Finished { ending: Ending::Done, error: None }),
    ];
    let names: Vec<String> = events.iter().map(|e| format!("`{}`", e(0).name())).collect();
    let _ = writeln!(page, "| state | {} |\n|{}", names.join(" | "), "---|".repeat(names.len() + 1));
    for (name, state) in states() {
        let cells: Vec<&str> = events
            .iter()
            .map(|event| match state.clone().next(&event(state.next)) {
                Ok(after) => match after.status {
                    OpStatus::Done => "ended",
                    status => status.as_str(),
                },
                Err(_) => "–",
            })
            .collect();
        let _ = writeln!(page, "| {name} | {} |", cells.join(" | "));
    }
}

const OLD: InstanceId = InstanceId(Uuid::from_u128(1));
const NEW: InstanceId = InstanceId(Uuid::from_u128(2));

fn capabilities(storage: bool, quiesce: bool) -> Capabilities {
    let transport = if storage {
        Transport::Storage { protocols: Vec::new() }
    } else {
        Transport::Streamed { formats: Vec::new(), resumable: true }
    };
    let replication = ReplicationCapability {
        styles: vec![Style::Readable],
        transport,
        domain: None,
        max_instances: None,
        quiesce,
        lag_bytes: false,
        converts: true,
        fingerprints: vec!["x".into()],
    };
    Capabilities { replication: Some(replication), ..Capabilities::default() }
}

fn seen(role: Role) -> Link {
    Link::Seen(Some(Box::new(Observation {
        resource: ResourceId(Uuid::nil()),
        role,
        epoch: Epoch(1),
        size_bytes: 0,
        used_bytes: None,
        exports: Vec::new(),
        read_only: false,
        quiesced: false,
        points: vec![PointInfo { id: PointId(Uuid::from_u128(9)), fingerprint: String::new(), held: true }],
        resume: None,
        health: Health::Ok,
    })))
}

/// What both sides of a migration can do.
fn sides(name: &str) -> Sides {
    let by_driver = name.contains("by the driver");
    let compatibility = Compatibility {
        compatible: by_driver,
        writable: by_driver && !name.contains("read-only"),
        ..Compatibility::default()
    };
    let attach = (Some(AttachKind::Tree), Some(AttachKind::Tree));
    let (streams, peers) = (name.contains("by points"), name.contains("by the storage"));
    Sides { compatibility, remark: None, streams, peers, attach }
}

fn plans(page: &mut String) {
    *page += "\n## Plans\n\n`old` is the active instance, `new` the one that the request names. After the bar: what takes everything back\nwhen the last step before the commit point fails.\n\n| request | steps | way back |\n|---|---|---|\n";
    let migrate = |at_once| Intent::Migrate {
        source: OLD,
        destination: NEW,
        request: MigrationRequest {
            kind: ResourceKind::Share,
            host: "h@b#p".into(),
            host_assisted: false,
            needs: Needs::default(),
            new_type: None,
            replicates: false,
            at_once,
        },
    };
    let cases: [(&str, Intent, bool, bool, bool); 23] = [
        ("create share", Intent::CreateShare { instance: OLD, only_host: None }, false, false, false),
        ("delete share", Intent::DeleteShare { force: false }, false, false, false),
        ("resize", Intent::Resize { from_gb: 1, to_gb: 2 }, false, false, false),
        ("update access", Intent::UpdateAccess, false, false, false),
        (
            "create replica, streamed",
            Intent::CreateReplica { instance: NEW, only_host: None },
            false,
            false,
            false,
        ),
        (
            "create replica, by the storage",
            Intent::CreateReplica { instance: NEW, only_host: None },
            true,
            false,
            false,
        ),
        (
            "delete replica, streamed",
            Intent::DeleteReplica { instance: NEW, force: false },
            false,
            false,
            false,
        ),
        ("sync, streamed", Intent::Sync { instance: NEW, asked: true, point: None }, false, false, false),
        (
            "sync, by the storage",
            Intent::Sync { instance: NEW, asked: true, point: None },
            true,
            false,
            false,
        ),
        (
            "sync, writable (both active at its end)",
            Intent::Sync { instance: NEW, asked: true, point: None },
            true,
            false,
            false,
        ),
        (
            "delete replica, writable",
            Intent::DeleteReplica { instance: NEW, force: false },
            true,
            false,
            false,
        ),
        ("verify", Intent::Verify { instance: NEW, asked: true }, false, false, false),
        (
            "promote, streamed, can quiesce",
            Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false },
            false,
            true,
            false,
        ),
        (
            "promote, streamed, cannot quiesce",
            Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false },
            false,
            false,
            false,
        ),
        (
            "promote, the active is away",
            Intent::Promote { instance: NEW, quiesce_wait_seconds: None, epoch: None, keep: false },
            false,
            false,
            true,
        ),
        ("migrate, by the driver", migrate(false), false, false, false),
        ("migrate, by the driver, which needs the source read-only", migrate(false), false, false, false),
        ("migrate, by points, can quiesce", migrate(false), false, true, false),
        ("migrate, by points, cannot quiesce, at once", migrate(true), false, false, false),
        ("migrate, by the storage", migrate(false), true, false, false),
        ("migrate, from host to host", migrate(false), false, false, false),
        ("migrate, from host to host, at once", migrate(true), false, false, false),
        (
            "release what a migration by the storage leaves",
            Intent::Release { instance: NEW, force: false },
            true,
            false,
            false,
        ),
    ];
    for (name, intent, storage, quiesce, away) in cases {
        let both = name == "delete replica, writable";
        let state = if both { ReplicaState::Active } else { ReplicaState::InSync };
        let mut instances =
            [crate::plan::tests::row(OLD, ReplicaState::Active), crate::plan::tests::row(NEW, state)];
        if matches!(intent, Intent::Release { .. }) {
            instances[1].part = crate::model::Part::Outgoing;
        }
        let capabilities = HashMap::from([OLD, NEW].map(|id| (id, capabilities(storage, quiesce))));
        let old = if away { Link::Away("away".into()) } else { seen(Role::Active) };
        let links = HashMap::from([(OLD, old), (NEW, seen(Role::Secondary))]);
        let world = World {
            instances: &instances,
            capabilities: &capabilities,
            links: &links,
            sides: Some(sides(name)),
            style: name.contains("writable").then_some(Style::Writable),
            epoch: Epoch(1),
            size_gb: 0,
            new_points: [1, 2, 3, 4].map(|n| PointId(Uuid::from_u128(n))),
        };
        let steps = plan::plan(&intent, &world).expect("a plan");
        let commits = |n: &usize| steps[*n].is_soft() || matches!(steps[*n], Step::Switch { .. });
        let last = (0..steps.len()).rev().find(|n| !commits(n)).unwrap_or(0);
        let back = plan::undo(&intent, &steps, last, &world);
        let _ = writeln!(page, "| {name} | {} | {} |", words(&steps), words(&back));
    }
}

fn words(steps: &[Step]) -> String {
    let who = |id: &InstanceId| if *id == OLD { "old" } else { "new" };
    let word = |step: &Step| match step {
        Step::Place { instance } => format!("place {}", who(instance)),
        Step::CreateInstance { instance } => format!("create {}", who(instance)),
        Step::CreateReplica { instance } => format!("create {}", who(instance)),
        Step::Connect { instance } => format!("connect {}", who(instance)),
        Step::Disconnect { instance } => format!("disconnect {}", who(instance)),
        Step::Ensure { instance } => format!("ensure {}", who(instance)),
        Step::ApplyAccess { instance } => format!("apply access {}", who(instance)),
        Step::MakePoint { source, .. } => format!("make point on {}", who(source)),
        Step::Transfer { source, instance, .. } => format!("transfer {} to {}", who(source), who(instance)),
        Step::Compare { source, instance, .. } => {
            format!("compare {} with {}", who(instance), who(source))
        }
        Step::ReleasePoints => "release points".into(),
        Step::AwaitUpToDate { instance } => format!("await {} up to date", who(instance)),
        Step::Follow { source, instance } => format!("let {} follow {}", who(instance), who(source)),
        Step::Leave { instance, peer } => format!("let {} leave {}", who(instance), who(peer)),
        Step::EndReplication { instance } => format!("end the replication of {}", who(instance)),
        Step::Join { instance } => format!("join {}", who(instance)),
        Step::Quiesce { instance, .. } => format!("quiesce {}", who(instance)),
        Step::Cast { instance, read_only: true } => format!("cast {} read-only", who(instance)),
        Step::Cast { instance, .. } => format!("let {} be written", who(instance)),
        Step::ResumeWrites { instance } => format!("resume writes {}", who(instance)),
        Step::RaiseEpoch => "raise epoch".into(),
        Step::Demote { instance, .. } => format!("demote {}", who(instance)),
        Step::Promote { instance, forced } => {
            format!("promote {}{}", who(instance), if *forced { " by force" } else { "" })
        }
        Step::Prepare { instance } => format!("prepare {}", who(instance)),
        Step::Mirror { source, instance, last: false, .. } => {
            format!("copy {} onto {}", who(source), who(instance))
        }
        Step::Mirror { source, instance, fenced: true, .. } => {
            format!("copy what {} got since onto {}", who(source), who(instance))
        }
        Step::Mirror { source, instance, .. } => {
            format!("copy {} onto {} and prove it", who(source), who(instance))
        }
        Step::Withdraw { instance } => format!("serve {} to nobody", who(instance)),
        Step::Assist { source, .. } => format!("let the driver of {} begin", who(source)),
        Step::Carry { source, instance } => format!("driver carries {} to {}", who(source), who(instance)),
        Step::AwaitProceed { .. } => "await the word to go on".into(),
        Step::TakeOver { source, instance } => {
            format!("driver takes over from {} to {}", who(source), who(instance))
        }
        Step::Succeed { source, instance } => {
            format!("prove that {} has no more, promote {}", who(source), who(instance))
        }
        Step::Unwind { source, .. } => format!("let the driver of {} end it", who(source)),
        Step::LetGo { source, .. } => format!("let the driver forget {}", who(source)),
        Step::Detach { instance } => format!("detach {}", who(instance)),
        Step::Grant { instance } => format!("grant access to {}", who(instance)),
        Step::Switch { source, instance } => format!("switch from {} to {}", who(source), who(instance)),
        Step::Resize { instance, .. } => format!("resize {}", who(instance)),
        Step::DeleteInstance { instance } | Step::DeleteReplica { instance } => {
            format!("delete {}", who(instance))
        }
    };
    if steps.is_empty() { "nothing".into() } else { steps.iter().map(word).collect::<Vec<_>>().join(" → ") }
}

#[test]
fn states_doc() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/states.md");
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &page).expect("docs/states.md is written");
    }
    let stands = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        stands == page,
        "docs/states.md is not what the tables say; run UPDATE_DOCS=1 cargo test -p tandem-manager states_doc"
    );
}
