//! Shares all of whose instances are active, where what the arbiter decides meets something else: a crash, a promotion by force,
//! a change of size or of rules, a migration, hosts that went down.

use std::collections::BTreeSet;
use std::time::Duration;

use tandem_contract::{Epoch, InstanceId, ReplicaState, ResourceId, Role, Style};
use tandem_driver_fake::{Fault as Scripted, Inspected, What as Script};
use tandem_manager::model::{InstanceStatus, MigrationRequest, Needs, OpStatus};
use tandem_manager::store::Store;
use tandem_manager::{BackendState, Denied, Verdict};
use tandem_testbed::sim::scenario::admin;
use tandem_testbed::sim::stage::{At, Fault, What};
use tandem_testbed::sim::{Config, Life, SITES, Sim, Transport};

use super::writable::{claim, row, with_pair, won, write};

const HERE: &str = SITES[0];
const THERE: &str = SITES[1];

fn cut(life: &Life<'_>, cut: bool) {
    life.sim.world.cut(HERE, THERE, cut);
}

fn seen(life: &Life<'_>, id: InstanceId) -> Option<Inspected> {
    life.sim.world.inspect().into_iter().find(|there| there.instance == id)
}

async fn until(life: &Life<'_>, what: &str, is: impl AsyncFn() -> bool) {
    for _ in 0..12_000 {
        if is().await {
            return;
        }
        life.sleep(Duration::from_millis(50)).await;
    }
    panic!("never {what}:\n{}", life.stage().trace().join("\n"));
}

async fn is_down(life: &Life<'_>, site: &str) {
    let down = |b: &tandem_manager::BackendView| b.name == site && b.state != BackendState::Up;
    until(life, "down", async || life.manager.backends().iter().any(down)).await;
}

async fn both_go_down(life: &Life<'_>) {
    for site in [HERE, THERE] {
        life.sim.world.down(site, true);
        is_down(life, site).await;
    }
}

/// The first side goes on at epoch 2, and the other has lost; they stay cut off from each other.
async fn first_wins(life: &Life<'_>, share: ResourceId, [old, new]: [InstanceId; 2]) {
    cut(life, true);
    assert_eq!(claim(life, share, old, 1).await, won(2));
    let asked = life.sim.world.claimants().into_iter().find(|c| c.instance == old).unwrap();
    life.sim.world.goes_on(&asked, Epoch(2));
    assert!(row(life, new).await.yields);
    until(life, "told", async || row(life, old).await.epoch == Epoch(2)).await;
}

#[test]
fn what_a_promotion_by_force_took_is_kept_although_it_failed() {
    with_pair(async |life, share, sides| {
        let [old, new] = sides;
        first_wins(life, share, sides).await;
        life.sim.world.down(HERE, true);
        is_down(life, HERE).await;
        let (verb, site) = ("promote_replica".to_owned(), THERE.to_owned());
        life.sim.world.script(Scripted { verb, site, skip: 0, times: 1000, what: Script::LoseAnswer });
        let op = life.manager.promote_replica(&admin(), new, None).await.unwrap();
        until(life, "taken", async || write(life, THERE, new)).await;
        let taken = life.sim.world.contents(THERE, new).unwrap();
        life.idle().await;
        assert_eq!(life.sim.rows.operation(op.id).await.unwrap().unwrap().status, OpStatus::Failed);
        life.sim.world.clear_faults();
        life.sim.world.down(HERE, false);
        cut(life, false);
        let parted = async || row(life, new).await.replica_state == Some(ReplicaState::Error);
        until(life, "said to be parted", parted).await;
        life.sleep(Duration::from_secs(60)).await;
        assert_eq!(life.sim.world.contents(THERE, new).unwrap(), taken, "nobody said that it is given up");
        assert!(row(life, new).await.reason.is_some());
        // Now somebody does.
        life.manager.resync_replica(&admin(), new).await.unwrap();
        life.in_sync(new).await;
        assert_eq!(row(life, old).await.replica_state, Some(ReplicaState::Active));
    });
}

/// Kills a manager after each commit of a side's way back; before the next one takes it up, the winner asks once more and does
/// not hear the answer.
#[test]
fn a_join_that_is_taken_again_after_a_decision_makes_no_two_sides_go_on() {
    let mut killed = 0;
    for n in 1.. {
        let config =
            Config { seed: 1, transport: Transport::Storage, twice: false, jitter: false, moves: true };
        let sim = Sim::new(config);
        let ids = std::cell::Cell::new(None);
        let whole = sim.life(async |life| {
            life.up().await;
            let (share, new) = life.mirrored(Style::Writable).await;
            let (old, _) = life.active(share).await;
            ids.set(Some((share, [old, new])));
            first_wins(life, share, [old, new]).await;
            life.idle().await;
            life.stage().open(None, &[Fault { at: At::Commit(n), what: What::KillAfter }]);
            cut(life, false);
            life.in_sync(new).await;
        });
        if whole.is_some() {
            break;
        }
        killed += 1;
        let (share, [old, new]) = ids.get().unwrap();
        let rested = sim.life(async |life| {
            // A question on its way since they were cut off; its answer is lost.
            let _ = life.manager.claim(share, old, Epoch(2)).await.unwrap();
            life.sleep(Duration::from_millis(700)).await;
            cut(life, true);
            // Both ask, and hear the answers at once.
            for claimant in life.sim.world.claimants() {
                let verdict = life.manager.claim(share, claimant.instance, claimant.epoch).await.unwrap();
                if let Verdict::Won { epoch } = verdict {
                    life.sim.world.goes_on(&claimant, epoch);
                }
            }
            let went_on =
                [(HERE, old), (THERE, new)].iter().filter(|(site, id)| write(life, site, *id)).count();
            assert!(went_on <= 1, "killed after commit {n}: both go on");
            life.answer_claims(u64::from(n));
            life.sleep(Duration::from_secs(20)).await;
            cut(life, false);
            life.rest().await
        });
        assert_eq!(rested, Some(Ok(())), "killed after commit {n}:\n{}", sim.stage.trace().join("\n"));
        assert_eq!(sim.stage.problems(), Vec::<String>::new(), "killed after commit {n}");
    }
    assert!(killed > 5, "only {killed} commits");
}

#[test]
fn a_claim_and_a_promotion_past_it_do_not_cross() {
    let mut outcomes = BTreeSet::new();
    for wait in [0, 1, 20, 500, 5000] {
        with_pair(async |life, share, sides| {
            let [old, new] = sides;
            first_wins(life, share, sides).await;
            life.idle().await;
            // The manager cannot reach it, and it reaches the manager.
            life.sim.world.isolate(HERE, true);
            is_down(life, HERE).await;
            let op = life.manager.promote_replica(&admin(), new, None).await.unwrap();
            if wait > 0 {
                life.sleep(Duration::from_millis(wait)).await;
            }
            let verdict = claim(life, share, old, 2).await;
            life.idle().await;
            let status = life.sim.rows.operation(op.id).await.unwrap().unwrap().status;
            let wins = matches!(verdict, Verdict::Won { .. });
            assert_eq!(
                status,
                if wins { OpStatus::Failed } else { OpStatus::Done },
                "after {wait} ms: {verdict:?}"
            );
            outcomes.insert(wins);
            let row = row(life, old).await;
            assert_eq!((row.replica_state == Some(ReplicaState::Active), row.unfenced), (wins, !wins));
            life.sim.world.isolate(HERE, false);
            cut(life, false);
        });
    }
    assert_eq!(outcomes, BTreeSet::from([false, true]));
}

#[test]
fn a_promotion_that_goes_past_nobody_refuses_no_claim() {
    with_pair(async |life, share, sides| {
        let [old, new] = sides;
        first_wins(life, share, sides).await;
        life.idle().await;
        let op = life.manager.promote_replica(&admin(), new, None).await.unwrap();
        life.sleep(Duration::from_millis(500)).await;
        assert_eq!(claim(life, share, old, 2).await, won(3));
        cut(life, false);
        life.idle().await;
        assert!(life.sim.rows.operation(op.id).await.unwrap().unwrap().status.is_finished());
        life.in_sync(new).await;
    });
}

#[test]
fn who_restarts_beside_one_that_serves_is_seen_and_follows() {
    with_pair(async |life, _, [old, new]| {
        // Long after anything happened to this share.
        life.sleep(Duration::from_secs(150)).await;
        // Shorter than anybody notices by itself.
        life.sim.world.down(THERE, true);
        life.sim.world.down(THERE, false);
        assert_eq!(seen(life, new).unwrap().role, Role::Secondary);
        until(life, "served", async || seen(life, new).is_some_and(|s| s.role == Role::Active && s.served))
            .await;
        life.in_sync(new).await;
        assert!(write(life, HERE, old) && write(life, THERE, new));
    });
}

#[test]
fn of_two_hosts_that_went_down_the_one_that_is_back_serves() {
    with_pair(async |life, _, [old, new]| {
        both_go_down(life).await;
        life.sim.world.down(THERE, false);
        until(life, "repaired", async || seen(life, new).is_some_and(|s| s.role == Role::Active)).await;
        assert!(!write(life, THERE, new), "it asks first");
        until(life, "told", async || {
            let findings = life.manager.doctor().await.unwrap();
            let waits =
                |f: &tandem_manager::Finding| f.severity == "notice" && f.message.contains("takes no writes");
            findings.iter().any(|f| f.subject.contains(&new.to_string()) && waits(f))
        })
        .await;
        life.answer_claims(1);
        until(life, "served", async || write(life, THERE, new)).await;
        life.sim.world.down(HERE, false);
        life.in_sync(old).await;
    });
}

/// Nobody tells whether a promotion took effect, and what undoes it cannot be done: where the side was active before, it is taken
/// for none any more, and fenced.
#[test]
fn an_active_side_whose_promotion_could_not_be_undone_is_fenced() {
    with_pair(async |life, _, [old, new]| {
        both_go_down(life).await;
        let scripted = |verb: &str, what| {
            let (verb, site) = (verb.to_owned(), THERE.to_owned());
            life.sim.world.script(Scripted { verb, site, skip: 0, times: 1000, what });
        };
        scripted("promote_replica", Script::LoseAnswer);
        scripted("demote_replica", Script::Fail { error: "conflict".to_owned() });
        life.sim.world.down(THERE, false);
        until(life, "admitted", async || {
            life.manager
                .promote_replica(&admin(), new, None)
                .await
                .is_ok_and(|op| op.status != OpStatus::Done)
        })
        .await;
        until(life, "given up", async || row(life, new).await.unfenced).await;
        assert_eq!(row(life, new).await.replica_state, Some(ReplicaState::OutOfSync));
        life.sim.world.clear_faults();
        life.sim.world.down(HERE, false);
        life.answer_claims(1);
        until(life, "fenced", async || !row(life, new).await.unfenced).await;
        until(life, "served", async || write(life, HERE, old)).await;
    });
}

#[test]
fn who_lost_does_not_serve_while_the_winner_is_away() {
    with_pair(async |life, share, sides| {
        let [old, new] = sides;
        first_wins(life, share, sides).await;
        both_go_down(life).await;
        life.sim.world.down(THERE, false);
        life.answer_claims(1);
        life.sleep(Duration::from_secs(120)).await;
        assert_eq!(row(life, new).await.replica_state, Some(ReplicaState::OutOfSync));
        assert!(!write(life, THERE, new));
        let findings = life.manager.doctor().await.unwrap();
        let told = findings.iter().find(|f| f.subject.contains(&new.to_string())).unwrap();
        assert!(told.message.contains("promote"), "{}", told.message);
        life.sim.world.down(HERE, false);
        cut(life, false);
        life.in_sync(new).await;
        assert!(write(life, HERE, old));
    });
}

#[test]
fn rules_hold_on_who_joins_before_it_serves() {
    with_pair(async |life, share, sides| {
        let [_, new] = sides;
        life.ask_rule(share, "10.0.0.1").await.unwrap();
        life.idle().await;
        first_wins(life, share, sides).await;
        let script = |times| {
            let (verb, site) = ("update_access".to_owned(), THERE.to_owned());
            let what = Script::Fail { error: "unavailable".into() };
            life.sim.world.script(Scripted { verb, site, skip: 0, times, what });
        };
        script(100_000);
        let gone = life.sim.rows.rules(share).await.unwrap().remove(0).id;
        life.manager.deny_access(&admin(), share, gone).await.unwrap();
        life.ask_rule(share, "10.0.0.2").await.unwrap();
        cut(life, false);
        life.sleep(Duration::from_secs(120)).await;
        assert_ne!(
            seen(life, new).unwrap().role,
            Role::Active,
            "its rules are not those that were asked for"
        );
        life.sim.world.clear_faults();
        until(life, "served", async || seen(life, new).is_some_and(|s| s.role == Role::Active)).await;
        let wanted: Vec<_> = life.sim.rows.rules(share).await.unwrap().iter().map(|rule| rule.id).collect();
        assert!(!seen(life, new).unwrap().rules.contains(&gone));
        assert!(
            wanted.iter().filter(|id| **id != gone).all(|id| seen(life, new).unwrap().rules.contains(id))
        );
        life.in_sync(new).await;
    });
}

#[test]
fn a_share_grows_amid_a_decision_and_who_lost_gets_its_size() {
    for told in [false, true] {
        with_pair(async |life, share, [old, new]| {
            let (verb, site) = ("resize_instance".to_owned(), THERE.to_owned());
            life.sim.world.script(Scripted {
                verb,
                site,
                skip: 0,
                times: 1,
                what: Script::Delay { ms: 3000 },
            });
            let op = life.manager.extend_share(&admin(), share, 2).await.unwrap();
            life.sleep(Duration::from_millis(500)).await;
            cut(life, true);
            assert_eq!(claim(life, share, old, 1).await, won(2));
            if told {
                let asked = life.sim.world.claimants().into_iter().find(|c| c.instance == old).unwrap();
                life.sim.world.goes_on(&asked, Epoch(2));
            }
            life.idle().await;
            assert_eq!(life.sim.rows.operation(op.id).await.unwrap().unwrap().status, OpStatus::Done);
            assert_eq!(row(life, old).await.status, InstanceStatus::Available);
            // Once more, while the other one is away.
            life.sim.world.down(THERE, true);
            is_down(life, THERE).await;
            life.manager.extend_share(&admin(), share, 3).await.unwrap();
            life.idle().await;
            assert_eq!(life.sim.rows.share(share).await.unwrap().unwrap().size_gb, 3);
            life.sim.world.down(THERE, false);
            cut(life, false);
            life.in_sync(new).await;
            assert_eq!(seen(life, new).unwrap().size_bytes, 3 << 30);
        });
    }
}

#[test]
fn a_share_moves_amid_a_decision() {
    for wait in [0, 300, 1000, 3000] {
        with_pair(async |life, share, [old, new]| {
            life.answer_claims(5);
            life.sim.world.down(THERE, true);
            is_down(life, THERE).await;
            life.manager.delete_replica(&admin(), new, true).await.unwrap();
            life.idle().await;
            let request = MigrationRequest {
                kind: tandem_contract::ResourceKind::Share,
                host: format!("sim@{}", SITES[2]),
                host_assisted: false,
                needs: Needs::default(),
                new_type: None,
                replicates: false,
                at_once: true,
            };
            life.manager.migrate(&admin(), share, request).await.unwrap();
            life.sleep(Duration::from_millis(wait)).await;
            let epoch = life.sim.rows.share(share).await.unwrap().unwrap().epoch;
            let verdict = life.manager.claim(share, old, epoch).await;
            // It may be there no more.
            assert!(matches!(verdict, Ok(_) | Err(Denied::NoInstance(_))), "{verdict:?}");
            life.idle().await;
            let (_, site) = life.active(share).await;
            assert!(site == SITES[2] || site == HERE);
            life.sim.world.down(THERE, false);
        });
    }
}
