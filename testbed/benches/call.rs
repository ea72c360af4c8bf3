//! A driver call through the loaded library, against the same call of the same driver linked into this process.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Instant;

use serde_json::json;
use tandem_contract::{
    CreateInstance, Epoch, InstanceId, InstanceSpec, ObserveInstance, OpId, ResourceId, ResourceKind,
};
use tandem_driver_fake::Fake;
use tandem_host::{Backend, CallContext, Library, Options};
use tandem_sdk::InProcess;
use tandem_testbed::artifacts;
use tandem_testbed::bench::{Figures, begin, seconds};
use uuid::Uuid;

/// Calls in one measurement.
const CALLS: u32 = 20_000;
/// Measurements of each side, in turns.
const ROUNDS: u32 = 7;

fn main() {
    begin("a call through the ABI against the same in process (observe_instance of the driver fake)");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let loaded = Library::load(&artifacts::driver("fake")).unwrap();
    let linked = Library::linked::<InProcess<Fake>>().unwrap();
    let id = InstanceId(Uuid::new_v4());
    let sides = [(loaded, "loaded"), (linked, "linked")].map(|(library, name)| {
        let backend = runtime.block_on(async {
            let backend = library.open(name, &json!({"world": name}), Options::default()).await.unwrap();
            backend.call(&cx(), CreateInstance { spec: spec(id) }).await.unwrap();
            backend
        });
        (backend, Figures::default())
    });
    let [mut loaded, mut linked] = sides;
    for _ in 0..=ROUNDS {
        for (backend, figures) in [&mut loaded, &mut linked] {
            let start = Instant::now();
            runtime.block_on(calls(backend.clone(), id));
            figures.add(start.elapsed() / CALLS);
        }
    }
    let (loaded, linked) = (loaded.1, linked.1);
    println!("loaded from a file:     {loaded}");
    println!("linked in the process:  {linked}");
    println!(
        "ratio {:.2}: the boundary costs {} a call",
        loaded.median() / linked.median(),
        seconds((loaded.median() - linked.median()).max(0.0))
    );
}

async fn calls(backend: Backend, id: InstanceId) {
    let cx = cx();
    for _ in 0..CALLS {
        backend.call(&cx, ObserveInstance { instance: id }).await.unwrap();
    }
}

fn cx() -> CallContext {
    CallContext::new(OpId(Uuid::new_v4())).on_progress(|_| {})
}

fn spec(instance: InstanceId) -> InstanceSpec {
    InstanceSpec {
        instance,
        resource: ResourceId(Uuid::new_v4()),
        kind: ResourceKind::Share,
        pool: "pool".into(),
        size_bytes: 1 << 30,
        protocol: "NFS".into(),
        epoch: Epoch(1),
        replication: None,
        options: serde_json::Map::new(),
    }
}
