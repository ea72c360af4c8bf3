//! Storage that replicates by itself: nothing that only one side has is given up before somebody says so, and nobody is
//! gone past who may be serving.

use std::time::Duration;

use tandem_contract::{InstanceId, ReplicaState, ResourceId, Role, Style};
use tandem_driver_fake::{Fault, What};
use tandem_manager::BackendState;
use tandem_manager::model::{Instance, OpStatus, Operation};
use tandem_manager::store::Store;
use tandem_testbed::sim::scenario::admin;
use tandem_testbed::sim::{Config, Life, SITES, Sim, Transport};

/// The site of the share, and that of its replica.
const OLD: &str = SITES[0];
const NEW: &str = SITES[1];

/// A share and its replica in sync, and a manager at rest before and after `work`.
fn with_pair(work: impl AsyncFnOnce(&Life<'_>, ResourceId, [InstanceId; 2])) {
    let sim =
        Sim::new(Config { seed: 1, transport: Transport::Storage, twice: false, jitter: false, moves: true });
    let rested = sim.life(async |life| {
        life.up().await;
        let (share, new) = life.mirrored(Style::Dr).await;
        let (old, site) = life.active(share).await;
        assert_eq!(site, OLD);
        work(life, share, [old, new]).await;
        life.rest().await
    });
    assert_eq!(rested, Some(Ok(())), "{}", sim.stage.trace().join("\n"));
    assert_eq!(sim.stage.problems(), Vec::<String>::new());
}

fn script(life: &Life<'_>, verb: &str, site: &str, what: What) {
    let (verb, site) = (verb.to_owned(), site.to_owned());
    life.sim.world.script(Fault { verb, site, skip: 0, times: 100_000, what });
}

fn fails(error: &str) -> What {
    What::Fail { error: error.into() }
}

async fn until(life: &Life<'_>, what: &str, is: impl AsyncFn() -> bool) {
    for _ in 0..12_000 {
        if is().await {
            return;
        }
        life.sleep(Duration::from_millis(100)).await;
    }
    panic!("never {what}:\n{}", life.stage().trace().join("\n"));
}

async fn ended(life: &Life<'_>, op: &Operation) -> OpStatus {
    let status = async || life.sim.rows.operation(op.id).await.unwrap().unwrap().status;
    until(life, "ended", async || status().await.is_finished()).await;
    status().await
}

async fn row(life: &Life<'_>, id: InstanceId) -> Instance {
    life.sim.rows.instance(id).await.unwrap().unwrap()
}

fn role(life: &Life<'_>, id: InstanceId) -> Role {
    life.sim.world.inspect().into_iter().find(|seen| seen.instance == id).unwrap().role
}

fn write(life: &Life<'_>, site: &str, id: InstanceId) -> bool {
    life.stage().clients(|clients, world| clients.write(world, site, id, 30))
}

/// The new side is promoted past one that is away, takes writes, and the promotion is taken back.
async fn part(life: &Life<'_>, [_, new]: [InstanceId; 2]) {
    life.sim.world.down(OLD, true);
    let is_up =
        |name: &str| life.manager.backends().iter().any(|b| b.name == name && b.state == BackendState::Up);
    until(life, "away", async || !is_up(OLD)).await;
    script(life, "promote_replica", NEW, What::LoseAnswer);
    let op = life.manager.promote_replica(&admin(), new, None).await.unwrap();
    until(life, "written to", async || write(life, NEW, new)).await;
    assert_eq!(ended(life, &op).await, OpStatus::Failed);
    life.sim.world.clear_faults();
    assert_eq!(role(life, new), Role::Secondary);
    life.sim.world.down(OLD, false);
}

#[test]
fn what_only_a_replica_has_is_kept_until_somebody_asks_for_a_resync() {
    with_pair(async |life, share, ids| {
        part(life, ids).await;
        let held = life.sim.world.contents(NEW, ids[1]).unwrap();
        let is_told = async || {
            let row = row(life, ids[1]).await;
            row.replica_state == Some(ReplicaState::Error) && row.reason.is_some()
        };
        until(life, "told", is_told).await;
        until(life, "served", async || write(life, OLD, ids[0])).await;
        assert_eq!(life.active(share).await.0, ids[0]);
        for _ in 0..600 {
            life.sleep(Duration::from_secs(1)).await;
            assert_eq!(life.sim.world.contents(NEW, ids[1]).as_ref(), Some(&held), "nobody asked");
        }
        assert!(is_told().await);
        // One that nobody asked for is on its way: what is asked for now is not taken for it.
        life.manager.resync_replica(&admin(), ids[1]).await.unwrap().expect("it is admitted");
        life.in_sync(ids[1]).await;
        let active = life.sim.world.contents(OLD, ids[0]);
        assert_eq!(life.sim.world.contents(NEW, ids[1]), active);
    });
}

#[test]
fn what_only_a_replica_has_is_given_up_where_its_share_type_says_so() {
    with_pair(async |life, share, ids| {
        let of = life.sim.rows.family(share).await.unwrap().share_type.unwrap().id;
        let policy = ("replication:split_brain".to_owned(), "discard-secondary".to_owned());
        life.manager.set_extra_specs(of, [policy].into()).await.unwrap();
        part(life, ids).await;
        until(life, "served", async || write(life, OLD, ids[0])).await;
        life.in_sync(ids[1]).await;
        assert_eq!(life.active(share).await.0, ids[0]);
        assert_eq!(life.sim.world.contents(NEW, ids[1]), life.sim.world.contents(OLD, ids[0]));
    });
}

#[test]
fn what_only_a_replica_has_is_kept_where_an_admin_promotes_it() {
    with_pair(async |life, share, [old, new]| {
        part(life, [old, new]).await;
        let held = life.sim.world.contents(NEW, new).unwrap();
        let told = async |id| row(life, id).await.replica_state == Some(ReplicaState::Error);
        until(life, "told", async || told(new).await).await;
        until(life, "served", async || write(life, OLD, old)).await;
        let given_up = life.sim.world.contents(OLD, old).unwrap();

        let op = life.manager.promote_replica(&admin(), new, None).await.unwrap();
        assert_eq!(ended(life, &op).await, OpStatus::Done);
        assert_eq!((role(life, old), role(life, new)), (Role::Secondary, Role::Active));
        assert_eq!(life.active(share).await.0, new);
        assert_eq!(life.sim.world.contents(NEW, new).unwrap(), held);
        // Nor is the other side's given up before somebody says so.
        until(life, "told of the other one", async || told(old).await).await;
        life.sleep(Duration::from_secs(300)).await;
        assert_eq!(life.sim.world.contents(OLD, old).unwrap(), given_up);
        assert!(write(life, NEW, new) && !write(life, OLD, old));
        life.manager.resync_replica(&admin(), old).await.unwrap().expect("it is admitted");
        life.in_sync(old).await;
        assert_eq!(life.sim.world.contents(OLD, old), life.sim.world.contents(NEW, new));
    });
}

#[test]
fn a_resync_that_is_asked_for_is_admitted_beside_one_that_nobody_asked_for() {
    with_pair(async |life, _, [_, new]| {
        // Behind, and nothing moves: the manager connects it by itself, and waits.
        script(life, "connect_peers", NEW, What::Delay { ms: 5_000 });
        life.sim.world.part(NEW, new);
        let syncs = async || {
            let ops = life.unfinished().await;
            ops.iter().filter(|op| op.intent.kind() == "sync" && op.intent.instance() == Some(new)).count()
        };
        until(life, "synced", async || syncs().await == 1).await;
        let asked = life.manager.resync_replica(&admin(), new).await.unwrap();
        assert!(asked.is_some(), "an unasked one gives up nothing");
        assert!(life.manager.resync_replica(&admin(), new).await.unwrap().is_none(), "once is enough");
        life.sim.world.clear_faults();
    });
}

#[test]
fn one_that_answers_nothing_once_is_not_gone_past_by_force() {
    with_pair(async |life, share, [old, new]| {
        script(life, "observe_instance", OLD, fails("unavailable"));
        let op = life.manager.promote_replica(&admin(), new, None).await.unwrap();
        assert_eq!(ended(life, &op).await, OpStatus::Failed);
        assert_eq!(life.active(share).await.0, old);
        assert_eq!((role(life, old), role(life, new)), (Role::Active, Role::Secondary));
        assert!(write(life, OLD, old));
        life.sim.world.clear_faults();
    });
}

#[test]
fn the_old_side_is_not_given_back_before_it_is_known_that_the_new_one_serves_nobody() {
    with_pair(async |life, share, [old, new]| {
        script(life, "promote_replica", NEW, What::LoseAnswer);
        let op = life.manager.promote_replica(&admin(), new, None).await.unwrap();
        until(life, "promoted", async || role(life, new) == Role::Active).await;
        life.sim.world.isolate(NEW, true);
        assert_eq!(ended(life, &op).await, OpStatus::Failed);
        for _ in 0..300 {
            life.sleep(Duration::from_secs(1)).await;
            assert_ne!(role(life, old), Role::Active, "the new one serves its users");
            assert!(write(life, NEW, new));
        }
        life.sim.world.clear_faults();
        life.sim.world.isolate(NEW, false);
        until(life, "taken over", async || row(life, new).await.replica_state == Some(ReplicaState::Active))
            .await;
        assert_eq!(life.active(share).await.0, new);
        life.in_sync(old).await;
    });
}

#[test]
fn a_replica_whose_storage_has_gone_is_deleted_without_force() {
    with_pair(async |life, _, [_, new]| {
        script(life, "disconnect_peers", NEW, fails("not_found"));
        let op = life.manager.delete_replica(&admin(), new, false).await.unwrap().unwrap();
        assert_eq!(ended(life, &op).await, OpStatus::Done);
        life.sim.world.clear_faults();
    });
}
