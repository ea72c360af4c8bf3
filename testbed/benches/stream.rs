//! A transfer of the driver `directory` through one pipe in the server, against the same through a child process, and to
//! and from a driver host over TLS on loopback: in one run, in turns, medians.
//!
//! The relay, both ends of TLS and both drivers share the processors of one machine here; between two, they do not.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tandem_contract::{
    CreateInstance, CreateReplica, DeleteReplica, Epoch, InstanceId, InstanceSpec, MakePoint, OpId, PointId,
    PointInfo, Pools, ReceiveSpec, ReplicationSpec, ResourceId, ResourceKind, SendSpec, Style, Transport,
};
use tandem_host::{Backend, CallContext, Library, Options, transfer};
use tandem_testbed::artifacts;
use tandem_testbed::bench::{Figures, begin};
use tandem_testbed::far::{Far, InProcesses};
use uuid::Uuid;

/// Bytes of the file that is carried.
const BYTES: usize = 512 << 20;
/// Measurements of each way, in turns.
const ROUNDS: u32 = 7;

fn main() {
    begin(&format!("a stream of {} MiB: one pipe against a child process and a driver host", BYTES >> 20));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    let (far, children) = (Far::start(&["directory"]), InProcesses::new(&["directory"]));
    let library = Library::load(&artifacts::driver("directory")).unwrap();
    let root = |name: &str| json!({"root": folder.path().join(name)});
    let source = library.open("source", &root("source"), Options::default()).await.unwrap();
    let processes = children.processes();
    let host = far.registered(None);
    let ways = [
        ("one pipe", library.open("a", &root("a"), Options::default()).await.unwrap()),
        (
            "to a child process",
            processes.open("b", "directory", &root("b"), Options::default()).await.unwrap(),
        ),
        ("to a driver host", host.open("c", "directory", &root("c"), Options::default()).await.unwrap()),
    ];

    let pool = source.call(&cx(), Pools {}).await.unwrap().remove(0).name;
    let active = InstanceSpec {
        instance: InstanceId(Uuid::new_v4()),
        resource: ResourceId(Uuid::new_v4()),
        kind: ResourceKind::Share,
        pool,
        size_bytes: 1 << 30,
        protocol: "NFS".to_owned(),
        epoch: Epoch(1),
        replication: Some(ReplicationSpec { style: Style::Readable, instances: 2 }),
        options: serde_json::Map::new(),
    };
    let made = source.call(&cx(), CreateInstance { spec: active.clone() }).await.unwrap().into_inner();
    fill(&PathBuf::from(&made.exports[0].path).join("file"));
    let make = MakePoint { instance: active.instance, epoch: Epoch(1), point: PointId(Uuid::new_v4()) };
    let point = source.call(&cx(), make).await.unwrap().into_inner();

    let mut figures = [Figures::default(), Figures::default(), Figures::default()];
    for _ in 0..ROUNDS {
        for ((_, dest), figures) in ways.iter().zip(&mut figures) {
            once(&source, dest, &active, &point, figures).await;
        }
    }
    let pipe = figures[0].median();
    for ((name, _), figures) in ways.iter().zip(&figures) {
        #[expect(clippy::cast_precision_loss, reason = "a rate to three digits")]
        let rate = (BYTES >> 20) as f64 / figures.median();
        println!("{name:20} {figures}, {rate:.0} MiB/s, {:.2} of the pipe's rate", pipe / figures.median());
    }
}

fn fill(file: &Path) {
    let mut seed = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed.to_le_bytes()
    })
    .take(BYTES / 8)
    .flatten()
    .collect();
    std::fs::write(file, bytes).unwrap();
}

/// Carries the point to a new replica, and removes that.
async fn once(
    source: &Backend,
    dest: &Backend,
    active: &InstanceSpec,
    to: &PointInfo,
    figures: &mut Figures,
) {
    let replica = InstanceSpec { instance: InstanceId(Uuid::new_v4()), ..active.clone() };
    dest.call(&cx(), CreateReplica { spec: replica.clone() }).await.unwrap();
    let format = match source.capabilities().replication.as_ref().map(|r| &r.transport) {
        Some(Transport::Streamed { formats, .. }) => formats[0].clone(),
        _ => String::new(),
    };
    let send = SendSpec {
        instance: active.instance,
        epoch: Epoch(1),
        to: to.id,
        from: None,
        resume: None,
        format: format.clone(),
        bandwidth: None,
    };
    let receive = ReceiveSpec {
        instance: replica.instance,
        epoch: Epoch(1),
        to: to.clone(),
        from: None,
        resume: None,
        format,
    };
    let start = Instant::now();
    transfer(source, send, dest, receive, &cx()).await.unwrap();
    figures.add(start.elapsed());
    dest.call(&cx(), DeleteReplica { instance: replica.instance }).await.unwrap();
}

fn cx() -> CallContext {
    CallContext::new(OpId(Uuid::new_v4())).on_progress(|_| {})
}
