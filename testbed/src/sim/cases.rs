//! The matrix: each kind of operation, carried out while one fault strikes at each place where one can.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use tandem_contract::{InstanceId, ReplicaState, ResourceId, ResourceKind, Retry, Style};
use tandem_driver_fake::{Fault as Scripted, What as Script};
use tandem_manager::model::{InstanceStatus, MigrationRequest, Needs};
use tandem_manager::store::Store;
use tandem_manager::{BackendState, Denied};
use uuid::Uuid;

use super::scenario::admin;
use super::stage::{At, Counts, Fault, What};
use super::{Config, Life, SITES, Sim, Transport};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // each is the operation of its name
pub enum Kind {
    CreateShare,
    CreateReplica,
    Sync,
    Verify,
    VerifyRotten,
    PromotePlanned,
    PromoteForced,
    DeleteReplica,
    DeleteShare,
    UpdateAccess,
    Extend,
    Shrink,
    ResyncFenced,
    Repair,
    Migrate,
    MigrateAsReplica,
    /// The same of a share whose type does not replicate, by storage that does.
    MigratePlain,
    Arbitrate,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::CreateShare,
        Self::CreateReplica,
        Self::Sync,
        Self::Verify,
        Self::VerifyRotten,
        Self::PromotePlanned,
        Self::PromoteForced,
        Self::DeleteReplica,
        Self::DeleteShare,
        Self::UpdateAccess,
        Self::Extend,
        Self::Shrink,
        Self::ResyncFenced,
        Self::Repair,
        Self::Migrate,
        Self::MigrateAsReplica,
        Self::MigratePlain,
        Self::Arbitrate,
    ];

    /// The operation's kind, as the log says it.
    const fn logged(self) -> &'static str {
        match self {
            Self::CreateShare => "create_share",
            Self::CreateReplica => "create_replica",
            Self::Sync | Self::ResyncFenced => "sync",
            Self::Verify | Self::VerifyRotten => "verify",
            Self::PromotePlanned | Self::PromoteForced => "promote",
            Self::DeleteReplica => "delete_replica",
            Self::DeleteShare => "delete_share",
            Self::UpdateAccess => "update_access",
            Self::Extend | Self::Shrink => "resize",
            Self::Repair => "repair",
            Self::Migrate | Self::MigrateAsReplica | Self::MigratePlain => "migrate",
            Self::Arbitrate => "arbitrate",
        }
    }
}

/// One simulation: an operation, and the fault that strikes meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The operation.
    pub kind: Kind,
    /// Who moves the data.
    pub transport: Transport,
    /// How the share replicates.
    pub style: Style,
    /// The fault.
    pub fault: Option<Fault>,
    /// Whether each changing call reaches the driver twice.
    pub twice: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} / {} / {}", self.kind, self.transport.word(), self.style.as_str())?;
        if self.twice {
            write!(f, " / each call twice")?;
        }
        match &self.fault {
            Some(fault) => write!(f, " / {fault}"),
            None => Ok(()),
        }
    }
}

/// What came of a case.
pub struct Outcome {
    /// How much happened while the operation ran.
    pub counts: Counts,
    /// The verbs that were called meanwhile.
    pub verbs: Vec<String>,
    /// Every law that was broken.
    pub problems: Vec<String>,
    /// What happened.
    pub trace: Vec<String>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, Default)]
struct Scene {
    share_type: Uuid,
    share: Option<ResourceId>,
    replica: Option<InstanceId>,
}

/// Runs a case.
pub fn run(case: &Case) -> Outcome {
    let moves = !matches!(case.kind, Kind::MigrateAsReplica | Kind::MigratePlain);
    let config = Config { seed: 1, transport: case.transport, twice: case.twice, jitter: false, moves };
    let sim = Sim::new(config);
    let counts = RefCell::new((Counts::default(), Vec::new()));
    let claims = case.style == Style::Writable;
    let mut rested = sim.life(async |life| {
        if claims {
            life.answer_claims(7);
        }
        let scene = prepare(life, case).await;
        let faults: Vec<Fault> = case.fault.into_iter().collect();
        life.stage().open(Some(case.kind.logged()), &faults);
        if let Err(denied) = request(life, case, &scene).await {
            return Err(vec![format!("the request was refused: {denied}")]);
        }
        life.idle().await;
        *counts.borrow_mut() = (life.stage().counts(), life.stage().verbs());
        life.rest().await?;
        went(life, case, &scene).await
    });
    while rested.is_none() {
        rested = sim.life(async |life| {
            if claims {
                life.answer_claims(7);
            }
            life.rest().await
        });
    }
    let mut problems = sim.stage.problems();
    problems.extend(rested.and_then(Result::err).unwrap_or_default());
    let (counts, verbs) = counts.into_inner();
    Outcome { counts, verbs, problems, trace: sim.stage.trace() }
}

/// An undisturbed migration comes to where it was to go.
async fn went(life: &Life<'_>, case: &Case, scene: &Scene) -> Result<(), Vec<String>> {
    let moves = matches!(case.kind, Kind::Migrate | Kind::MigrateAsReplica | Kind::MigratePlain);
    let Some(share) = scene.share.filter(|_| moves && case.fault.is_none()) else { return Ok(()) };
    match life.active(share).await {
        (_, site) if site == SITES[1] => Ok(()),
        (_, site) => Err(vec![format!("an undisturbed migration left the share on {site}")]),
    }
}

async fn prepare(life: &Life<'_>, case: &Case) -> Scene {
    life.up().await;
    if case.kind == Kind::CreateShare {
        return Scene { share_type: life.share_type(case.style).await, ..Scene::default() };
    }
    let alone = [
        Kind::CreateReplica,
        Kind::DeleteShare,
        Kind::Repair,
        Kind::Migrate,
        Kind::MigrateAsReplica,
        Kind::MigratePlain,
    ];
    if alone.contains(&case.kind) {
        let style = Some(case.style).filter(|_| case.kind != Kind::MigratePlain);
        let share_type = life.share_type(style).await;
        let share = life.ask_share(share_type).await.expect("a share is admitted");
        life.idle().await;
        life.write(share, 3, 200).await;
        let replica = if case.kind == Kind::Repair { Some(broken(life, share).await) } else { None };
        return Scene { share_type, share: Some(share), replica };
    }
    let (share, replica) = life.mirrored(case.style).await;
    if matches!(case.kind, Kind::PromoteForced | Kind::ResyncFenced) {
        lose_active(life, share).await;
    } else if case.kind == Kind::VerifyRotten {
        life.stage().rot(SITES[1], replica);
    } else if case.kind != Kind::Verify {
        life.write(share, 2, 150).await;
    }
    if case.kind == Kind::Shrink {
        // One GiB is the least: what is shrunk was extended first.
        life.manager.extend_share(&admin(), share, 3).await.expect("growth is admitted");
        life.idle().await;
    }
    let mut scene = Scene { share_type: Uuid::nil(), share: Some(share), replica: Some(replica) };
    if case.kind == Kind::ResyncFenced {
        let (old, site) = life.active(share).await;
        life.manager.promote_replica(&admin(), replica, None).await.expect("a promotion is admitted");
        life.idle().await;
        life.sim.world.down(&site, false);
        for _ in 0..600 {
            life.sleep(Duration::from_millis(500)).await;
            let row = life.sim.rows.instance(old).await.expect("the store answers");
            if row.is_some_and(|row| row.fenced) && life.unfinished().await.is_empty() {
                scene.replica = Some(old);
                return scene;
            }
        }
        panic!("the old active was never fenced:\n{}", life.stage().trace().join("\n"));
    }
    scene
}

/// The active instance's host goes away, and the manager notices.
async fn lose_active(life: &Life<'_>, share: ResourceId) {
    let (_, site) = life.active(share).await;
    life.sim.world.down(&site, true);
    while life.manager.backends().iter().any(|b| b.name == site && b.state == BackendState::Up) {
        life.sleep(Duration::from_millis(500)).await;
    }
}

/// A replica whose creation failed, and whose undoing failed: it is in error, and whole on its storage.
async fn broken(life: &Life<'_>, share: ResourceId) -> InstanceId {
    let script = |verb: &str, what| {
        let fault = Scripted { verb: verb.into(), site: SITES[1].into(), skip: 0, times: 1000, what };
        life.sim.world.script(fault);
    };
    script("create_replica", Script::LoseAnswer);
    script("delete_replica", Script::Fail { error: "conflict".into() });
    // Keeps healing away until the stage is open.
    script("ensure_instance", Script::Fail { error: "conflict".into() });
    let replica = life.ask_replica(share, SITES[1]).await.expect("a replica is admitted");
    life.idle().await;
    let row = life.sim.rows.instance(replica).await.expect("the store answers").expect("the row stays");
    assert_eq!(row.status, InstanceStatus::Error);
    replica
}

async fn request(life: &Life<'_>, case: &Case, scene: &Scene) -> Result<(), Denied> {
    let (caller, manager) = (admin(), &life.manager);
    let share = scene.share.unwrap_or(ResourceId(Uuid::nil()));
    let replica = scene.replica.unwrap_or(InstanceId(Uuid::nil()));
    match case.kind {
        Kind::CreateShare => life.ask_share(scene.share_type).await.map(drop),
        Kind::CreateReplica => life.ask_replica(share, SITES[1]).await.map(drop),
        Kind::Sync | Kind::ResyncFenced => manager.resync_replica(&caller, replica).await.map(drop),
        Kind::Verify | Kind::VerifyRotten => manager.verify_replica(&caller, replica).await.map(drop),
        Kind::PromotePlanned => manager.promote_replica(&caller, replica, None).await.map(drop),
        Kind::PromoteForced => {
            // The old active comes back a while after the promotion, or in the middle of it.
            SITES
                .iter()
                .filter(|site| life.sim.world.is_away(site))
                .for_each(|site| life.stage().returns(site, 45));
            manager.promote_replica(&caller, replica, None).await.map(drop)
        }
        Kind::DeleteReplica => manager.delete_replica(&caller, replica, false).await.map(drop),
        Kind::DeleteShare => manager.delete_share(&caller, share, false).await.map(drop),
        Kind::UpdateAccess => life.ask_rule(share, "10.0.0.1").await,
        Kind::Extend => manager.extend_share(&caller, share, 3).await.map(drop),
        Kind::Shrink => manager.shrink_share(&caller, share, 1).await.map(drop),
        Kind::Migrate | Kind::MigrateAsReplica | Kind::MigratePlain => {
            // The model driver promises nothing by itself.
            let replica = case.kind != Kind::Migrate;
            let needs = Needs { writable: replica, preserve_metadata: replica, ..Needs::default() };
            let there = format!("sim@{}", SITES[1]);
            let request = MigrationRequest { needs, ..migration(there) };
            manager.migrate(&caller, share, request).await.map(drop)
        }
        Kind::Arbitrate => {
            life.stage().cut(SITES[0], SITES[1], 20);
            parted_and_joined(life, share).await;
            Ok(())
        }
        Kind::Repair => {
            life.sim.world.clear_faults();
            for _ in 0..40 {
                life.sleep(Duration::from_millis(250)).await;
                if !life.unfinished().await.is_empty() {
                    break;
                }
            }
            Ok(())
        }
    }
}

/// Waits until one of two lost, and both are active again; not for ever: the laws of rest say what is wrong then.
async fn parted_and_joined(life: &Life<'_>, share: ResourceId) {
    let mut parted = false;
    for _ in 0..1200 {
        life.sleep(Duration::from_millis(250)).await;
        life.stage().pass();
        let rows = life.sim.rows.family(share).await.expect("the store answers").instances;
        let active = rows.iter().all(|row| row.replica_state == Some(ReplicaState::Active));
        parted |= !active;
        if parted && active {
            return;
        }
    }
}

/// By the driver, and at once: nobody is there to tell it to go on.
fn migration(host: String) -> MigrationRequest {
    MigrationRequest {
        kind: ResourceKind::Share,
        host,
        host_assisted: false,
        needs: Needs::default(),
        new_type: None,
        replicates: false,
        at_once: true,
    }
}

/// Faults at every commit.
pub fn at_commits(counts: Counts) -> Vec<Fault> {
    let each =
        |n| [What::KillBefore, What::KillAfter, What::Cancel].map(|what| Fault { at: At::Commit(n), what });
    (1..=counts.commits).flat_map(each).collect()
}

/// Faults at every driver call.
pub fn at_calls(counts: Counts, verbs: &[String]) -> Vec<Fault> {
    let all = [
        What::KillAfter,
        What::Cancel,
        What::Fail { retry: Retry::Never, times: 1 },
        What::FailUntilMended,
        What::Fail { retry: Retry::Safe, times: 3 },
        What::FailUntilCancelled,
        What::Lose,
        What::Panic,
        What::Away(7),
        What::Away(150),
        What::Off(90),
        What::Hang(10),
        What::Hang(100),
    ];
    let mut faults = Vec::new();
    for n in 1..=counts.calls {
        let at = At::Call(n);
        faults.extend(all.map(|what| Fault { at, what }));
        let verb = verbs.get(n as usize - 1).map(String::as_str);
        if matches!(verb, Some("send" | "receive")) {
            faults.extend([0, 1, 150, 400].map(|after| Fault { at, what: What::Cut(after) }));
        }
    }
    faults
}

/// Faults at every report of progress.
pub fn at_progress(counts: Counts) -> Vec<Fault> {
    let each = |n| [What::Cancel, What::KillAfter].map(|what| Fault { at: At::Progress(n), what });
    (1..=counts.progress).flat_map(each).collect()
}

/// The state that a replica in sync has.
pub const IN_SYNC: Option<ReplicaState> = Some(ReplicaState::InSync);
