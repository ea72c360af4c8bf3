//! How fast the SQLite store is: commits, pages, families, at a hundred thousand instances.
//!
//! `cargo run --release -p tandem-manager --example store_speed [FOLDER [INSTANCES]]`; the folder (default: the
//! temporary one) must be on the disk to be measured. Prints one line a figure; the file is removed.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tandem_contract::{InstanceId, OpId, ResourceId};
use tandem_manager::clock::Timestamp;
use tandem_manager::model::*;
use tandem_manager::oplog::{Ending, Event, Logged};
use tandem_manager::store::sqlite::SqliteStore;
use tandem_manager::store::{Batch, InstanceQuery, Row, ShareQuery, Store};
use uuid::Uuid;

/// Instances of each share.
const REPLICAS: u64 = 2;
/// Projects that the shares are spread over.
const PROJECTS: u64 = 100;

fn id(kind: u64, n: u64) -> Uuid {
    // Spread as UUIDs are, so that indices are met in no order.
    Uuid::from_u64_pair(n.wrapping_mul(0x9e37_79b9_7f4a_7c15), kind)
}

fn share(n: u64) -> Row {
    let share: Share = serde_json::from_value(json!({
        "id": id(1, n), "project_id": format!("project-{}", n % PROJECTS), "user_id": "user",
        "name": format!("share {n}"), "description": "a share of a hundred thousand", "size_gb": 10,
        "protocol": "NFS", "share_type_id": id(0, 0), "is_public": false, "replication": "readable", "epoch": 1,
        "metadata": {"tier": "gold"}, "created_at": n, "updated_at": n,
    }))
    .unwrap();
    Row::Share(Box::new(share))
}

fn instance(n: u64) -> Row {
    let of = n / REPLICAS;
    let active = n.is_multiple_of(REPLICAS);
    let backend = ["alpha", "beta", "gamma"][usize::try_from(n % 3).unwrap()];
    let instance: Instance = serde_json::from_value(json!({
        "id": id(2, n), "share_id": id(1, of), "project_id": format!("project-{}", of % PROJECTS),
        "share_type_id": id(0, 0), "pool": {"host": "tower", "backend": backend, "pool": "main"},
        "availability_zone": "zone-a", "status": "available",
        "replica_state": if active { "active" } else { "in_sync" },
        "exports": [{"id": id(3, n), "path": format!("/srv/tandem/{}", id(2, n)), "preferred": true,
                     "admin_only": false, "created_at": n, "updated_at": null}],
        "point": {"info": {"id": id(4, n), "fingerprint": id(5, n), "held": true}, "made_at": n},
        "epoch": 1, "created_at": n, "updated_at": n, "scheduled_at": n, "launched_at": n,
    }))
    .unwrap();
    Row::Instance(Box::new(instance))
}

fn step(op: &Operation, seq: u64, event: Event, status: OpStatus) -> Batch {
    let operation = Operation { seq, status, ..op.clone() };
    let logged = Logged { op: op.id, seq, at: Timestamp(0), event, effects: Vec::new() };
    Batch { events: vec![logged], operations: vec![operation], ..Batch::default() }
}

fn operation(n: u64) -> Operation {
    Operation {
        id: OpId(id(6, n)),
        seq: 1,
        share_id: ResourceId(id(1, n)),
        project_id: "project-0".into(),
        intent: Intent::Sync { instance: InstanceId(id(2, n)), asked: false, point: None },
        request_id: None,
        status: OpStatus::Accepted,
        cancel: false,
        proceed: false,
        error: None,
        bytes: 0,
        resumed_bytes: 0,
        remarks: Vec::new(),
        created_at: Timestamp(n.cast_signed()),
        updated_at: Timestamp(n.cast_signed()),
    }
}

/// Seconds of processor time that this process took so far, in steps of the kernel's hundredth.
fn processor() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
        / 100.0
}

/// p50 and p99 of a call, and its processor time, which a busy machine does not stretch.
async fn measure<F: Future>(what: &str, times: u64, mut call: impl FnMut(u64) -> F) {
    let mut taken: Vec<Duration> = Vec::new();
    let before = processor();
    for n in 0..times {
        let start = Instant::now();
        call(n).await;
        taken.push(start.elapsed());
    }
    taken.sort();
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let processor = (processor() - before) / times as f64 * 1e3;
    println!("{what:<46} p50 {:9.3} ms   p99 {:9.3} ms   processor {processor:9.3} ms", at(50), at(99));
}

/// Resident memory in MiB, as the kernel counts it.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

async fn commits(store: &Arc<SqliteStore>) {
    measure("commit, an operation admitted", 300, |n| {
        let op = operation(n);
        let accepted = Event::Accepted { intent: op.intent.clone() };
        let batch = step(&op, 1, accepted, OpStatus::Accepted);
        async move { store.commit(batch).await.unwrap() }
    })
    .await;
    measure("commit, a step logged with its instance", 300, |n| async move {
        let row = store.instance(InstanceId(id(2, n))).await.unwrap().unwrap();
        let mut batch = step(&operation(n), 2, Event::Planned { steps: Vec::new() }, OpStatus::Running);
        batch.put.push(Row::Instance(Box::new(row)));
        store.commit(batch).await.unwrap();
    })
    .await;
    for callers in [8_u64, 64] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..callers)
            .map(|caller| {
                let store = Arc::clone(store);
                tokio::spawn(async move {
                    for n in 0..50 {
                        let op = operation(1_000_000 * callers + caller * 1000 + n);
                        let accepted = Event::Accepted { intent: op.intent.clone() };
                        store.commit(step(&op, 1, accepted, OpStatus::Accepted)).await.unwrap();
                        let last = Event::Finished { ending: Ending::Done, error: None };
                        store.commit(step(&op, 2, last, OpStatus::Done)).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let rate = (callers * 100) as f64 / start.elapsed().as_secs_f64();
        println!("{:<46} {rate:9.0} commits/s", format!("commits, {callers} callers at once"));
    }
}

async fn reads(store: &Arc<SqliteStore>, instances: u64) {
    for limit in [1_u64, 100, 1000] {
        measure(&format!("page of {limit} replicas"), 100, |_| async move {
            let query = InstanceQuery { replicas_only: true, limit: Some(limit), ..InstanceQuery::default() };
            assert_eq!(store.instances(&query).await.unwrap().items.len() as u64, limit);
        })
        .await;
    }
    measure("page of 1000 replicas of a project", 100, |n| async move {
        let project_id = Some(format!("project-{}", n % PROJECTS));
        let query = InstanceQuery { project_id, limit: Some(1000), ..InstanceQuery::default() };
        store.instances(&query).await.unwrap();
    })
    .await;
    measure("the last page of 1000 replicas", 20, |_| async move {
        let offset = instances - 1000;
        let query = InstanceQuery { offset, limit: Some(1000), count: true, ..InstanceQuery::default() };
        assert_eq!(store.instances(&query).await.unwrap().items.len(), 1000);
    })
    .await;
    measure("page of 1000 shares of a project, counted", 100, |n| async move {
        let project_id = Some(format!("project-{}", n % PROJECTS));
        let query = ShareQuery { project_id, limit: Some(1000), count: true, ..ShareQuery::default() };
        store.shares(&query).await.unwrap();
    })
    .await;
    measure("page of 100 shares sorted by status", 5, |_| async move {
        let query = ShareQuery {
            limit: Some(100),
            sort: tandem_manager::store::ShareSort::Status,
            ..ShareQuery::default()
        };
        store.shares(&query).await.unwrap();
    })
    .await;
    measure("family", 2000, |n| async move {
        let of = n.wrapping_mul(7919) % (instances / REPLICAS);
        assert_eq!(store.family(ResourceId(id(1, of))).await.unwrap().instances.len() as u64, REPLICAS);
    })
    .await;
    measure("promised", 10, |_| async move { assert_eq!(store.promised().await.unwrap().len(), 3) }).await;
    measure("following", 10, |_| async move { store.following().await.unwrap() }).await;
    measure("unfinished", 10, |_| async move { store.unfinished().await.unwrap() }).await;
    let start = Instant::now();
    let tasks: Vec<_> = (0..8_u64)
        .map(|caller| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                for n in 0..2000 {
                    let of = (caller * 2000 + n).wrapping_mul(7919) % (instances / REPLICAS);
                    store.family(ResourceId(id(1, of))).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    println!("{:<46} {:9.0} /s", "families, 8 callers at once", 16_000.0 / start.elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let instances: u64 = arguments.next().map_or(100_000, |text| text.parse().unwrap());
    let folder = tempfile::tempdir_in(folder).unwrap();
    let path = folder.path().join("tandem.db");

    let store = SqliteStore::open(&path).await.unwrap();
    let share_type = ShareType {
        id: id(0, 0),
        version: 0,
        name: "gold".into(),
        description: None,
        is_public: true,
        extra_specs: BTreeMap::from([("replication_type".into(), "readable".into())]),
        created_at: Timestamp(0),
        updated_at: None,
    };
    store.commit(Batch { put: vec![Row::Type(Box::new(share_type))], ..Batch::default() }).await.unwrap();
    let start = Instant::now();
    let rows: Vec<u64> = (0..instances).collect();
    for part in rows.chunks(1000) {
        let shares = part.iter().filter(|n| n.is_multiple_of(REPLICAS)).map(|n| share(n / REPLICAS));
        let put = shares.chain(part.iter().copied().map(instance)).collect();
        store.commit(Batch { put, ..Batch::default() }).await.unwrap();
    }
    let filled = start.elapsed().as_secs_f64();
    println!("{:<46} {filled:9.1} s", format!("filling with {instances} instances"));
    drop(store);

    let before = resident();
    let start = Instant::now();
    let store = Arc::new(SqliteStore::open(&path).await.unwrap());
    println!("{:<46} {:9.3} ms", "open", start.elapsed().as_secs_f64() * 1e3);
    reads(&store, instances).await;
    commits(&store).await;
    let size = std::fs::metadata(&path).unwrap().len() as f64 / 1048576.0;
    println!("{:<46} {size:9.1} MiB", "file");
    println!("{:<46} {before:9.1} MiB before the open, {:.1} MiB after all", "resident memory", resident());
}
