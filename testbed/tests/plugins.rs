//! Drivers loaded from a file: what they do, and what becomes of the process when they misbehave.
//!
//! The model driver is loaded as any vendor's would be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is a failed test with its reason"
)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_contract::*;
use tandem_host::{
    Backend, CallContext, Chaos, ChaosRule, Deadlines, Fault, Library, Options, RetryPolicy, discover,
    transfer,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The library that cargo built for this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().join("libtandem_driver_fake.so")
}

/// A folder of drivers that is trusted.
fn drivers() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    install(folder.path(), "fake.so", &std::fs::read(library()).unwrap());
    folder
}

fn install(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
}

fn fake() -> Library {
    // One for the process: a library stays loaded.
    static FAKE: std::sync::OnceLock<(TempDir, Library)> = std::sync::OnceLock::new();
    let (_, library) = FAKE.get_or_init(|| {
        let folder = drivers();
        let found = discover(folder.path());
        assert!(found.refused.is_empty(), "{:?}", found.refused);
        let library = found.drivers["fake"].clone();
        (folder, library)
    });
    library.clone()
}

fn quick() -> Options {
    Options {
        deadlines: Deadlines { grace: Duration::from_millis(300), ..Deadlines::default() },
        retry: RetryPolicy { attempts: 1, ..RetryPolicy::default() },
        log: "debug".to_owned(),
        ..Options::default()
    }
}

async fn open(world: &Path, site: &str, faults: Value, options: Options) -> Backend {
    let settings = json!({"path": world, "site": site, "faults": faults});
    fake().open(site, &settings, options).await.unwrap()
}

fn cx() -> CallContext {
    CallContext::new(OpId(Uuid::now_v7()))
}

fn spec(style: Style) -> InstanceSpec {
    InstanceSpec {
        instance: InstanceId(Uuid::new_v4()),
        resource: ResourceId(Uuid::new_v4()),
        kind: ResourceKind::Share,
        pool: "pool".to_owned(),
        size_bytes: 1 << 30,
        protocol: "NFS".to_owned(),
        epoch: Epoch(1),
        replication: Some(ReplicationSpec { style, instances: 2 }),
        options: serde_json::Map::new(),
    }
}

#[tokio::test]
async fn a_loaded_driver_serves_what_was_created_and_survives_being_opened_again() {
    let world = tempfile::tempdir().unwrap();
    let backend = open(world.path(), "a", json!([]), quick()).await;
    let spec = spec(Style::Readable);
    let made = backend.call(&cx(), CreateInstance { spec: spec.clone() }).await.unwrap();
    assert!(made.is_changed());
    let export = PathBuf::from(&made.into_inner().exports[0].path);
    std::fs::write(export.join("file"), "content").unwrap();

    let again = open(world.path(), "a", json!([]), quick()).await;
    assert!(!again.call(&cx(), CreateInstance { spec: spec.clone() }).await.unwrap().is_changed());
    let seen = again.call(&cx(), ObserveInstance { instance: spec.instance }).await.unwrap().unwrap();
    assert_eq!((seen.role, seen.used_bytes), (Role::Active, Some(7)));
    assert_eq!(again.capabilities(), backend.capabilities());
    again.shutdown(Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn settings_that_do_not_fit_name_the_key() {
    let refused = |settings: Value| async move { fake().open("x", &settings, quick()).await.unwrap_err() };
    let error = refused(json!({"pth": "/tmp"})).await;
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.message.contains("`pth`") && error.message.contains("did you mean `path`?"), "{error}");
    assert!(
        refused(json!({"path": 3})).await.message.contains("`path`: must be a string"),
        "as the type says"
    );
    assert!(refused(json!({"faults": [{"what": {"kind": "explode"}}]})).await.message.contains("faults[0]"));
    assert!(
        refused(json!({})).await.message.contains("exactly one of `world` and `path`"),
        "the driver's own words"
    );
}

#[tokio::test]
async fn what_is_no_driver_is_refused_and_the_others_work() {
    let folder = drivers();
    install(folder.path(), "copy.so", &std::fs::read(library()).unwrap());
    install(folder.path(), "text.so", b"hello");
    let libc = [
        "/lib/x86_64-linux-gnu/libm.so.6",
        "/lib64/libm.so.6",
        "/usr/lib/libm.so.6",
        "/lib/aarch64-linux-gnu/libm.so.6",
    ];
    if let Some(libm) = libc.iter().find(|path| Path::new(path).exists()) {
        install(folder.path(), "libm.so", &std::fs::read(libm).unwrap());
    }
    let found = discover(folder.path());
    assert_eq!(found.drivers.keys().collect::<Vec<_>>(), ["fake"]);
    let reasons: Vec<&str> = found.refused.iter().map(|r| r.reason.as_str()).collect();
    assert!(reasons.iter().any(|r| r.contains("holds a driver `fake` too")), "{reasons:?}");
    assert!(reasons.iter().any(|r| r.contains("cannot be loaded as a library")), "{reasons:?}");
    assert!(reasons.iter().any(|r| r.contains("is a library, but not a Tandem driver")), "{reasons:?}");
    assert!(reasons.iter().all(|r| !r.contains('\n')), "{reasons:?}");
}

/// The library with other numbers in its probe.
fn with_probe(generation: u32, contract: u32) -> Vec<u8> {
    let mut bytes = std::fs::read(library()).unwrap();
    let magic = b"tandem\0\x01";
    let ours: Vec<u8> = [&magic[..], &1u32.to_ne_bytes(), &CONTRACT_VERSION.0.to_ne_bytes()].concat();
    let at = bytes.windows(ours.len()).position(|window| window == ours).expect("the probe is in the file");
    bytes[at + 8..at + 12].copy_from_slice(&generation.to_ne_bytes());
    bytes[at + 12..at + 16].copy_from_slice(&contract.to_ne_bytes());
    bytes
}

#[tokio::test]
async fn another_generation_and_a_newer_contract_are_told_apart() {
    let folder = drivers();
    install(folder.path(), "a.so", &with_probe(2, CONTRACT_VERSION.0));
    install(folder.path(), "b.so", &with_probe(1, CONTRACT_VERSION.0 + 1));
    let found = discover(folder.path());
    let reasons: Vec<&str> = found.refused.iter().map(|r| r.reason.as_str()).collect();
    assert!(
        reasons[0].contains("speaks generation 2 of the binary interface, this program speaks 1"),
        "{reasons:?}"
    );
    assert!(
        reasons[1].contains("was built for contract 2.") && reasons[1].contains("upgrade the server"),
        "{reasons:?}"
    );
    assert_eq!(found.drivers.len(), 1, "the sound one is found");
}

#[tokio::test]
async fn a_panic_is_an_error_of_that_call() {
    let world = tempfile::tempdir().unwrap();
    let panics = json!([{"verb": "pools", "what": {"kind": "panic"}}]);
    let backend = open(world.path(), "a", panics, quick()).await;
    let error = backend.call(&cx(), Pools {}).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Bug);
    assert!(error.message.contains("injected: `pools` panics"), "{error}");
    assert!(backend.report().last_bug.is_some());
    assert_eq!(backend.call(&cx(), Pools {}).await.unwrap().len(), 1, "the next call works");

    let opens = json!({"path": world.path(), "faults": [{"verb": "open", "what": {"kind": "panic"}}]});
    let error = fake().open("b", &opens, quick()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Bug, "{error}");
}

#[tokio::test]
async fn a_hang_is_answered_in_time_and_blocks_only_its_instance() {
    let world = tempfile::tempdir().unwrap();
    let hangs = json!([{"verb": "resize_instance", "what": {"kind": "hang"}}]);
    let backend = open(world.path(), "a", hangs, quick()).await;
    let (one, other) = (spec(Style::Readable), spec(Style::Readable));
    for spec in [&one, &other] {
        backend.call(&cx(), CreateInstance { spec: spec.clone() }).await.unwrap();
    }
    let resize = |id| ResizeInstance { instance: id, epoch: Epoch(1), size_bytes: 2 << 30 };
    let late =
        backend.call(&cx().deadline(Duration::from_millis(200)), resize(one.instance)).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::Unavailable, "{late}");

    let next = backend.call(&cx(), resize(one.instance)).await.unwrap_err();
    assert_eq!(next.kind, ErrorKind::Unavailable);
    assert!(next.message.contains("`resize_instance` was not sent"), "{next}");
    assert_eq!(backend.report().hung[0].instance, one.instance);
    assert!(
        backend.call(&cx(), ObserveInstance { instance: one.instance }).await.unwrap().is_some(),
        "queries pass"
    );
    assert!(backend.call(&cx(), resize(other.instance)).await.unwrap().is_changed(), "others pass");
}

#[tokio::test]
async fn cancel_reaches_the_driver() {
    let world = tempfile::tempdir().unwrap();
    let waits = json!([{"verb": "pools", "what": {"kind": "wait_for_cancel"}}]);
    let backend = open(world.path(), "a", waits, quick()).await;
    let cancel = CancellationToken::new();
    let cx = cx().cancel(cancel.clone());
    let call = backend.call(&cx, Pools {});
    tokio::pin!(call);
    tokio::select! {
        _ = &mut call => panic!("it waits for its cancel"),
        () = tokio::time::sleep(Duration::from_millis(50)) => cancel.cancel(),
    }
    assert_eq!(call.await.unwrap_err().kind, ErrorKind::Cancelled);
    assert!(backend.report().is_healthy());
}

/// Writes what a subscriber is told into a string.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_drivers_log_arrives_under_the_calls_span() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    // For the process: the driver's lines come on threads of its own.
    let _ = tracing::subscriber::set_global_default(subscriber);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let op = OpId(Uuid::now_v7());
    runtime.block_on(async {
        let world = tempfile::tempdir().unwrap();
        let panics = json!([{"verb": "pools", "what": {"kind": "panic"}}]);
        let backend = open(world.path(), "logs", panics, quick()).await;
        backend.call(&CallContext::new(op), Pools {}).await.unwrap_err();
    });
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line = log.lines().find(|l| l.contains("panic: injected: `pools` panics")).expect(&log);
    assert!(line.contains("ERROR") && line.contains("driver_call{"), "{line}");
    assert!(line.contains(&format!("op={op}")) && line.contains("backend=logs"), "{line}");
    assert!(line.contains("code=\"tandem_sdk::log\"") && line.contains("drivers/fake/src"), "{line}");
}

struct Pair {
    _world: TempDir,
    source: Backend,
    dest: Backend,
    active: InstanceSpec,
    replica: InstanceSpec,
    export: PathBuf,
}

async fn pair(faults: Value, options: Options) -> Pair {
    let world = tempfile::tempdir().unwrap();
    let source = open(world.path(), "a", faults.clone(), options.clone()).await;
    let dest = open(world.path(), "b", faults, options).await;
    let active = spec(Style::Readable);
    let replica = InstanceSpec { instance: InstanceId(Uuid::new_v4()), ..active.clone() };
    let made = source.call(&cx(), CreateInstance { spec: active.clone() }).await.unwrap().into_inner();
    dest.call(&cx(), CreateReplica { spec: replica.clone() }).await.unwrap();
    let export = PathBuf::from(&made.exports[0].path);
    Pair { _world: world, source, dest, active, replica, export }
}

impl Pair {
    async fn point(&self) -> PointInfo {
        let point = PointId(Uuid::new_v4());
        let made = MakePoint { instance: self.active.instance, epoch: Epoch(1), point };
        self.source.call(&cx(), made).await.unwrap().into_inner()
    }

    async fn sync(
        &self,
        cx: &CallContext,
        to: &PointInfo,
        from: Option<&PointInfo>,
    ) -> Result<tandem_host::Transferred> {
        let seen = self.dest.call(cx, ObserveInstance { instance: self.replica.instance }).await?.unwrap();
        let resume = seen.resume.filter(|token| token.to == Some(to.id));
        let send = SendSpec {
            instance: self.active.instance,
            epoch: Epoch(1),
            to: to.id,
            from: from.cloned(),
            resume: resume.clone(),
            format: "fake/1".to_owned(),
            bandwidth: None,
        };
        let receive = ReceiveSpec {
            instance: self.replica.instance,
            epoch: Epoch(1),
            to: to.clone(),
            from: from.cloned(),
            resume,
            format: "fake/1".to_owned(),
        };
        transfer(&self.source, send, &self.dest, receive, cx).await
    }
}

#[tokio::test]
async fn a_transfer_carries_a_point_and_then_only_the_change() {
    let pair = pair(json!([]), Options { repeat: true, ..quick() }).await;
    std::fs::write(pair.export.join("big"), vec![7; 100_000]).unwrap();
    let first = pair.point().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let news = Arc::clone(&seen);
    let watched = cx().on_progress(move |p| news.lock().unwrap().push(p.done));
    let full = pair.sync(&watched, &first, None).await.unwrap();
    assert!(full.received.into_inner().verified && full.sent.bytes > 100_000);
    let seen = seen.lock().unwrap().clone();
    assert!(!seen.is_empty() && seen.is_sorted(), "{seen:?}");

    std::fs::write(pair.export.join("small"), "x").unwrap();
    let second = pair.point().await;
    let change = pair.sync(&cx(), &second, Some(&first)).await.unwrap();
    assert!(change.sent.bytes < 1000, "{change:?}");
    let again = pair.sync(&cx(), &second, Some(&first)).await.unwrap();
    assert!(!again.received.is_changed());
}

#[tokio::test]
async fn a_cut_transfer_says_why_and_goes_on_from_there() {
    let cut = json!([{"verb": "send", "what": {"kind": "cut_stream", "after": 150_000}}]);
    let pair = pair(cut, quick()).await;
    std::fs::write(pair.export.join("big"), vec![7; 100_000]).unwrap();
    let point = pair.point().await;
    let error = pair.sync(&cx(), &point, None).await.unwrap_err();
    assert!(error.message.contains("the stream broke after 150000 bytes"), "{error}");
    let rest = pair.sync(&cx(), &point, None).await.unwrap();
    let received = rest.received.into_inner();
    assert!(received.resumed_bytes > 100_000 && received.verified, "{received:?}");
    assert!(received.bytes < 100_000, "{received:?}");
}

#[tokio::test]
async fn the_root_cause_is_told_and_both_sides_return() {
    let fails = json!([{"verb": "receive", "what": {"kind": "fail", "error": "out_of_space"}}]);
    let pair = pair(fails, quick()).await;
    std::fs::write(pair.export.join("big"), vec![7; 2_000_000]).unwrap();
    let point = pair.point().await;
    let error = pair.sync(&cx(), &point, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutOfSpace, "{error}");
    assert!(pair.source.report().is_healthy() && pair.dest.report().is_healthy());
}

#[tokio::test]
async fn a_cancelled_transfer_ends_and_leaves_the_replica_as_it_was() {
    let waits = json!([{"verb": "receive", "what": {"kind": "wait_for_cancel"}}]);
    let pair = pair(waits, quick()).await;
    std::fs::write(pair.export.join("big"), vec![7; 2_000_000]).unwrap();
    let point = pair.point().await;
    let cancel = CancellationToken::new();
    let later = cancel.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        later.cancel();
    });
    let error = pair.sync(&cx().cancel(cancel), &point, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");
    let seen =
        pair.dest.call(&cx(), ObserveInstance { instance: pair.replica.instance }).await.unwrap().unwrap();
    assert!(seen.points.is_empty());
}

/// The model driver linked in process, on a clock that only moves when everybody waits.
async fn linked(world: &str, options: Options) -> Backend {
    let library = Library::linked::<tandem_sdk::InProcess<tandem_driver_fake::Fake>>().unwrap();
    library.open("a", &json!({"world": world, "site": "a"}), options).await.unwrap()
}

fn world() -> (String, tandem_driver_fake::World) {
    let name = Uuid::new_v4().to_string();
    let world = tandem_driver_fake::World::named(&name);
    (name, world)
}

#[tokio::test(start_paused = true)]
async fn what_is_safe_to_repeat_is_repeated() {
    let (name, world) = world();
    let backend = linked(&name, Options::default()).await;
    let fail = |error: &str, times| tandem_driver_fake::Fault {
        verb: "pools".into(),
        site: String::new(),
        skip: 0,
        times,
        what: tandem_driver_fake::What::Fail { error: error.into() },
    };
    world.script(fail("unavailable", 3));
    assert!(backend.call(&cx(), Pools {}).await.is_ok());
    world.script(fail("unavailable", 4));
    assert_eq!(backend.call(&cx(), Pools {}).await.unwrap_err().kind, ErrorKind::Unavailable);
    world.script(fail("conflict", 1));
    assert_eq!(backend.call(&cx(), Pools {}).await.unwrap_err().kind, ErrorKind::Conflict);
    assert!(backend.call(&cx(), Pools {}).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn injected_faults_strike_as_told() {
    let (name, _world) = world();
    let rule =
        |verb: &str, times, fault| ChaosRule { verb: verb.into(), ratio: 1.0, times: Some(times), fault };
    let rules = vec![
        rule("pools", 1, Fault::Fail { error: ErrorKind::Conflict }),
        rule("pools", 1, Fault::Panic),
        rule("create_instance", 1, Fault::LoseAnswer),
        rule("list_instances", 1, Fault::Hang),
    ];
    let options = Options { chaos: Some(Chaos { seed: 1, rules }), ..Options::default() };
    let backend = linked(&name, options).await;
    assert_eq!(backend.call(&cx(), Pools {}).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(backend.call(&cx(), Pools {}).await.unwrap_err().kind, ErrorKind::Bug);
    assert!(backend.call(&cx(), Pools {}).await.is_ok());
    assert_eq!(backend.call(&cx(), ListInstances {}).await.unwrap_err().kind, ErrorKind::Unavailable);
    // The answer is lost, the retry finds that it is done.
    let made = backend.call(&cx(), CreateInstance { spec: spec(Style::Readable) }).await.unwrap();
    assert!(!made.is_changed());
}
