//! Random runs: clients that ask for anything at any time, faults at random places, managers that are killed. All of it
//! follows from the seed.

use std::time::Duration;

use tandem_contract::{ReplicaState, ResourceKind, Retry, Style};
use tandem_manager::model::{Instance, MigrationRequest, Needs, Share};
use tandem_manager::store::{InstanceQuery, ShareQuery, Store};
use uuid::Uuid;

use super::rng::Rng;
use super::scenario::admin;
use super::stage::{At, Fault, What};
use super::{Config, Life, SITES, Sim, Transport};

/// No more shares than this at a time.
const MOST_SHARES: usize = 3;

/// What came of a run.
pub struct Run {
    /// Every law that was broken.
    pub problems: Vec<String>,
    /// What happened.
    pub trace: Vec<String>,
}

/// Runs the simulation of a seed.
pub fn run(seed: u64) -> Run {
    let mut rng = Rng::new(seed);
    let transport = *rng.pick(&Transport::ALL).expect("there are transports");
    let style = if rng.chance(50) { Style::Readable } else { Style::Dr };
    run_as(seed, rng, transport, style)
}

/// The same with shares all of whose instances are active, and links that are cut between them.
pub fn run_writable(seed: u64) -> Run {
    run_as(seed, Rng::new(seed ^ 0x7772_6974_6162_6c65), Transport::Storage, Style::Writable)
}

fn run_as(seed: u64, mut rng: Rng, transport: Transport, style: Style) -> Run {
    let writable = style == Style::Writable;
    let twice = rng.chance(15);
    let sim = Sim::new(Config { seed, transport, twice, jitter: true, moves: !seed.is_multiple_of(4) });
    sim.stage.say(&format!("seed {seed}: {} {} twice={twice}", transport.word(), style.as_str()));
    let mut checks = Rng::new(seed ^ 0x7665_7269_6679);
    // Older seeds give what they gave.
    let mut more = Rng::new(seed ^ 0x6d6f_7265);
    let mut share_type = None;
    let mut left = 12 + rng.below(20);
    let rested = loop {
        let ended = sim.life(async |life| {
            if writable {
                life.answer_claims(rng.below(u64::MAX));
            }
            let share_type = match share_type {
                Some(id) => id,
                None => {
                    life.up().await;
                    let id = life.share_type(style).await;
                    share_type = Some(id);
                    life.stage().open(None, &[]);
                    id
                }
            };
            while left > 0 {
                left -= 1;
                if writable {
                    part(life, &mut rng).await;
                    strain(life, &mut more).await;
                }
                act(life, &mut rng, share_type).await;
                // The others are as they were before there was such a thing.
                if seed.is_multiple_of(2) {
                    check(life, &mut checks).await;
                }
                let pause = if rng.chance(40) { 300 } else { 6000 };
                life.sleep(Duration::from_millis(rng.below(pause))).await;
                life.stage().pass();
            }
            life.stage().close();
            life.rest().await
        });
        if let Some(rested) = ended {
            break rested;
        }
    };
    let mut problems = sim.stage.problems();
    problems.extend(rested.err().unwrap_or_default());
    Run { problems, trace: sim.stage.trace() }
}

/// One thing happens: a request, a fault that is to come, a host that goes away.
async fn act(life: &Life<'_>, rng: &mut Rng, share_type: Uuid) {
    life.stage().clients(|clients, _| clients.budget = 6);
    if rng.chance(30) {
        fault(life, rng);
    }
    let shares = life.sim.rows.shares(&ShareQuery::default()).await.expect("the store answers").items;
    if shares.len() < MOST_SHARES && (shares.is_empty() || rng.chance(15)) {
        say(life, "create a share", life.ask_share(share_type).await);
        return;
    }
    let Some(share) = rng.pick(&shares) else { return };
    let query = InstanceQuery { share_id: Some(share.id), ..InstanceQuery::default() };
    let rows = life.sim.rows.instances(&query).await.expect("the store answers").items;
    request(life, rng, share, &rows).await;
}

/// Now and then two sites cannot reach each other for a while, or one of several active instances is deleted.
async fn part(life: &Life<'_>, rng: &mut Rng) {
    if rng.chance(25) {
        let (one, other) = *rng.pick(&[(0, 1), (0, 1), (0, 2), (1, 2)]).expect("there are sites");
        life.stage().cut(SITES[one], SITES[other], 1 + rng.below(90));
    }
    if rng.chance(5) {
        let query = InstanceQuery { replicas_only: true, ..InstanceQuery::default() };
        let rows = life.sim.rows.instances(&query).await.expect("the store answers").items;
        if let Some(row) = rng.pick(&rows) {
            say(life, "delete any replica", life.manager.delete_replica(&admin(), row.id, false).await);
        }
    }
}

/// Now and then both hosts of two sides go down, one of them for longer; or what is asked of a share meets sides that are cut
/// off from each other.
async fn strain(life: &Life<'_>, rng: &mut Rng) {
    if rng.chance(6) {
        for site in [SITES[0], SITES[1]] {
            life.sim.world.down(site, true);
            life.stage().returns(site, 15 + rng.below(90));
            life.stage().say(&format!("{site} goes down"));
        }
    }
    if !rng.chance(20) {
        return;
    }
    let shares = life.sim.rows.shares(&ShareQuery::default()).await.expect("the store answers").items;
    let Some(share) = rng.pick(&shares) else { return };
    life.stage().cut(SITES[0], SITES[1], 1 + rng.below(60));
    let (manager, caller) = (&life.manager, admin());
    match rng.below(6) {
        0 | 1 => say(life, "extend", manager.extend_share(&caller, share.id, share.size_gb + 1).await),
        2 => say(life, "allow", life.ask_rule(share.id, &format!("10.1.0.{}", rng.below(4))).await),
        3 => {
            // Alone, and cut off from who was removed by force, it moves.
            let query = InstanceQuery { share_id: Some(share.id), ..InstanceQuery::default() };
            let rows = life.sim.rows.instances(&query).await.expect("the store answers").items;
            for row in rows.iter().skip(1) {
                say(life, "delete a replica", manager.delete_replica(&caller, row.id, true).await);
            }
            life.sleep(Duration::from_millis(rng.below(3000))).await;
            say(life, "migrate", manager.migrate(&caller, share.id, migration(rng)).await);
        }
        _ => {
            let query = InstanceQuery { share_id: Some(share.id), ..InstanceQuery::default() };
            let rows = life.sim.rows.instances(&query).await.expect("the store answers").items;
            if let Some(row) = rng.pick(&rows) {
                say(life, "promote any", manager.promote_replica(&caller, row.id, None).await);
            }
        }
    }
}

/// Now and then something of a replica rots, or a replica is checked.
async fn check(life: &Life<'_>, rng: &mut Rng) {
    let query = InstanceQuery { replicas_only: true, ..InstanceQuery::default() };
    let rows = life.sim.rows.instances(&query).await.expect("the store answers").items;
    let followers: Vec<&Instance> =
        rows.iter().filter(|row| row.replica_state != Some(ReplicaState::Active)).collect();
    let Some(row) = rng.pick(&followers) else { return };
    match (rng.below(10), row.backend()) {
        (0, Some(site)) => life.stage().rot(site, row.id),
        (1..=3, _) => say(life, "verify", life.manager.verify_replica(&admin(), row.id).await),
        _ => {}
    }
}

/// What was asked for and what was answered, into the history.
fn say<T, E: std::fmt::Display>(life: &Life<'_>, what: &str, answer: Result<T, E>) {
    match answer {
        Ok(_) => life.stage().say(&format!("asked to {what}")),
        Err(denied) => life.stage().say(&format!("asked to {what}: {denied}")),
    }
}

async fn request(life: &Life<'_>, rng: &mut Rng, share: &Share, rows: &[Instance]) {
    let (manager, caller) = (&life.manager, admin());
    let followers: Vec<&Instance> =
        rows.iter().filter(|row| row.replica_state != Some(ReplicaState::Active)).collect();
    let follower = rng.pick(&followers).map(|row| row.id);
    match (rng.below(19), follower) {
        (0 | 1, _) | (2..=8, None) => {
            let site = *rng.pick(&SITES).expect("there are sites");
            say(life, "create a replica", life.ask_replica(share.id, site).await);
        }
        (2..=5, Some(id)) => say(life, "promote", manager.promote_replica(&caller, id, None).await),
        (6, Some(id)) => {
            let force = rng.chance(30);
            say(life, "delete a replica", manager.delete_replica(&caller, id, force).await);
        }
        (7 | 8, Some(id)) => say(life, "resync", manager.resync_replica(&caller, id).await),
        (9, _) => say(life, "allow", life.ask_rule(share.id, &format!("10.0.0.{}", rng.below(4))).await),
        (10, _) => {
            let rules = life.sim.rows.rules(share.id).await.expect("the store answers");
            if let Some(rule) = rng.pick(&rules) {
                say(life, "deny", manager.deny_access(&caller, share.id, rule.id).await);
            }
        }
        (11, _) => say(life, "extend", manager.extend_share(&caller, share.id, share.size_gb + 1).await),
        (12, _) => {
            let to = share.size_gb.saturating_sub(1);
            say(life, "shrink", manager.shrink_share(&caller, share.id, to).await);
        }
        (13, _) => {
            let force = rng.chance(20);
            say(life, "delete the share", manager.delete_share(&caller, share.id, force).await);
        }
        (14, _) => {
            if let Some(op) = rng.pick(&life.unfinished().await) {
                say(life, &format!("cancel {}", op.intent.kind()), manager.cancel(op.id).await);
            }
        }
        (15, _) => say(life, "migrate", manager.migrate(&caller, share.id, migration(rng)).await),
        (16, _) if rng.chance(50) => {
            say(life, "complete the migration", manager.complete_migration(share.id).await);
        }
        (16, _) => say(life, "cancel the migration", manager.cancel_migration(share.id).await),
        _ => {
            let size = 50 + usize::try_from(rng.below(800)).unwrap_or(0);
            for row in rows {
                if let Some(site) = row.backend() {
                    life.stage().clients(|clients, world| clients.write(world, site, row.id, size));
                }
            }
        }
    }
}

/// To anywhere, also to where it is.
fn migration(rng: &mut Rng) -> MigrationRequest {
    let site = *rng.pick(&SITES).expect("there are sites");
    MigrationRequest {
        kind: ResourceKind::Share,
        host: format!("sim@{site}"),
        host_assisted: false,
        needs: Needs { writable: rng.chance(30), ..Needs::default() },
        new_type: None,
        replicates: false,
        at_once: rng.chance(60),
    }
}

/// A fault that strikes soon.
fn fault(life: &Life<'_>, rng: &mut Rng) {
    let counts = life.stage().counts();
    let soon = u32::try_from(1 + rng.below(10)).unwrap_or(1);
    let fault = if rng.chance(35) {
        let what = if rng.chance(50) { What::KillBefore } else { What::KillAfter };
        Fault { at: At::Commit(counts.commits + soon), what }
    } else {
        let what = match rng.below(11) {
            0 | 1 => What::KillAfter,
            2 => What::Fail { retry: Retry::Never, times: 1 },
            3 => What::Fail { retry: Retry::Safe, times: 1 + u32::try_from(rng.below(9)).unwrap_or(0) },
            4 => What::FailUntilMended,
            5 => What::Lose,
            6 => What::Panic,
            7 => What::Cut(rng.below(500)),
            8 => What::Away(1 + rng.below(120)),
            // A host does not come back within the time in which its absence is noticed.
            9 => What::Off(15 + rng.below(120)),
            _ => What::Hang(1 + rng.below(120)),
        };
        Fault { at: At::Call(counts.calls + soon), what }
    };
    life.stage().say(&format!("to come: {fault}"));
    life.stage().add(fault);
}
