//! Drivers in a child process and on another host: what becomes of calls and streams when the process, the host or the
//! way to it goes, and who is let in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is a failed test with its reason"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tandem_contract::*;
use tandem_host::remote::DriverHost;
use tandem_host::{Backend, CallContext, Deadlines, Options, RetryPolicy, transfer};
use tandem_testbed::far::{Cable, Far, HOST, InProcesses, Paper, Pki, SERVER, a_moment};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn options() -> Options {
    Options {
        deadlines: Deadlines { grace: Duration::from_millis(500), ..Deadlines::default() },
        retry: RetryPolicy { attempts: 1, ..RetryPolicy::default() },
        ..Options::default()
    }
}

fn cx() -> CallContext {
    CallContext::new(OpId(Uuid::now_v7()))
}

fn site(world: &Path, site: &str, faults: &Value) -> Value {
    json!({"path": world, "site": site, "faults": faults})
}

fn spec() -> InstanceSpec {
    InstanceSpec {
        instance: InstanceId(Uuid::new_v4()),
        resource: ResourceId(Uuid::new_v4()),
        kind: ResourceKind::Share,
        pool: "pool".to_owned(),
        size_bytes: 1 << 30,
        protocol: "NFS".to_owned(),
        epoch: Epoch(1),
        replication: Some(ReplicationSpec { style: Style::Readable, instances: 2 }),
        options: serde_json::Map::new(),
    }
}

fn resize(instance: InstanceId, gib: u64) -> ResizeInstance {
    ResizeInstance { instance, epoch: Epoch(1), size_bytes: gib << 30 }
}

/// Opens again, as the manager does: until it works.
async fn opened(host: &DriverHost, backend: &str, settings: &Value) -> Backend {
    let until = tokio::time::Instant::now() + tandem_testbed::wait::LONG;
    loop {
        match host.open(backend, "fake", settings, options()).await {
            Ok(backend) => return backend,
            Err(e) => assert!(tokio::time::Instant::now() < until, "{e}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_killed_loses_its_calls_and_is_started_again() {
    let (children, world) = (InProcesses::new(&["fake"]), tempfile::tempdir().unwrap());
    let waits = json!([{"verb": "pools", "what": {"kind": "wait_for_cancel"}}]);
    let open = |faults: Value| {
        let (processes, settings) = (children.processes(), site(world.path(), "a", &faults));
        async move { processes.open("a", "fake", &settings, options()).await.unwrap() }
    };
    let backend = open(waits).await;
    let spec = spec();
    backend.call(&cx(), CreateInstance { spec: spec.clone() }).await.unwrap();
    let calling = backend.clone();
    let call = tokio::spawn(async move { calling.call(&cx(), Pools {}).await });
    a_moment();
    for pid in children.pids() {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let error = call.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    assert!(
        error.message.contains("signal: 9") && error.message.contains("before the call was answered"),
        "{error}"
    );
    backend.lost().await;
    assert!(backend.is_lost());
    let again = open(json!([])).await;
    assert!(again.call(&cx(), ObserveInstance { instance: spec.instance }).await.unwrap().is_some());
    again.shutdown(Duration::from_secs(10)).await.unwrap();
    drop((backend, again));
    children.all_ended();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_in_a_child_ends_the_child_and_nothing_else() {
    let (children, world) = (InProcesses::new(&["fake"]), tempfile::tempdir().unwrap());
    let hangs = json!([{"verb": "resize_instance", "what": {"kind": "hang"}}]);
    let settings = site(world.path(), "a", &hangs);
    let backend = children.processes().open("a", "fake", &settings, options()).await.unwrap();
    let spec = spec();
    backend.call(&cx(), CreateInstance { spec: spec.clone() }).await.unwrap();
    let late = cx().deadline(Duration::from_millis(300));
    let error = backend.call(&late, resize(spec.instance, 2)).await.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
    assert!(error.message.contains("was ended, since it did not end `resize_instance`"), "{error}");
    assert!(backend.is_lost() && backend.report().hung.is_empty());
    let settings = site(world.path(), "a", &json!([]));
    let again = children.processes().open("a", "fake", &settings, options()).await.unwrap();
    assert!(
        again.call(&cx(), resize(spec.instance, 2)).await.unwrap().is_changed(),
        "the next one takes over"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_in_a_call_comes_back_to_a_fresh_open() {
    let (mut far, world) = (Far::start(&["fake"]), tempfile::tempdir().unwrap());
    let host = far.registered(None);
    let waits = json!([{"verb": "resize_instance", "what": {"kind": "wait_for_cancel"}, "times": 1}]);
    let backend = opened(&host, "a", &site(world.path(), "a", &waits)).await;
    let spec = spec();
    backend.call(&cx(), CreateInstance { spec: spec.clone() }).await.unwrap();
    let (calling, instance) = (backend.clone(), spec.instance);
    let call = tokio::spawn(async move { calling.call(&cx(), resize(instance, 2)).await });
    a_moment();
    far.kill();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("the connection to host `storage2`"), "{error}");
    let away = host.open("a", "fake", &site(world.path(), "a", &json!([])), options()).await.unwrap_err();
    assert!(
        away.message.starts_with("host `storage2` (127.0.0.1:") && away.message.contains("is away"),
        "{away}"
    );
    assert_eq!(host.report().away, Some(away.message));
    far.launch();
    let again = opened(&host, "a", &site(world.path(), "a", &json!([]))).await;
    assert!(again.call(&cx(), resize(spec.instance, 2)).await.unwrap().is_changed());
    assert_eq!(host.report().away, None);
    assert!(far.stop().success(), "it ends in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_lost_its_connection_is_cancelled_and_none_overtakes_it() {
    let (far, world) = (Far::start(&["fake"]), tempfile::tempdir().unwrap());
    let cable = Cable::to(far.address());
    let host = far.registered(Some(cable.address()));
    // The driver heeds no cancel at all.
    let hangs = json!([{"verb": "resize_instance", "what": {"kind": "hang"}, "times": 1}]);
    let settings = site(world.path(), "a", &hangs);
    let backend = opened(&host, "a", &settings).await;
    let (one, other) = (spec(), spec());
    for spec in [&one, &other] {
        backend.call(&cx(), CreateInstance { spec: spec.clone() }).await.unwrap();
    }
    let (calling, instance) = (backend.clone(), one.instance);
    let call = tokio::spawn(async move { calling.call(&cx(), resize(instance, 2)).await });
    a_moment();
    cable.cut();
    assert_eq!(call.await.unwrap().unwrap_err().kind, ErrorKind::Unavailable);
    cable.heal();
    let again = opened(&host, "a", &site(world.path(), "a", &json!([]))).await;
    let late = cx().deadline(Duration::from_millis(700));
    let error = again.call(&late, resize(one.instance, 3)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Cancelled), "{error}");
    let seen = again.call(&cx(), ObserveInstance { instance: one.instance }).await.unwrap();
    assert!(seen.is_some(), "queries pass");
    assert!(again.call(&cx(), resize(other.instance, 2)).await.unwrap().is_changed(), "others pass");
    far.logs("does not end a call that it was told to end");
    let error = again.call(&cx(), resize(one.instance, 3)).await.unwrap_err();
    assert!(error.message.contains("`resize_instance` was not sent"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_link_is_noticed_in_seconds() {
    let (far, world) = (Far::start(&["fake"]), tempfile::tempdir().unwrap());
    let cable = Cable::to(far.address());
    let host = far.registered(Some(cable.address()));
    let backend = opened(&host, "a", &site(world.path(), "a", &json!([]))).await;
    cable.silence();
    tokio::time::timeout(Duration::from_secs(120), backend.lost()).await.unwrap();
    far.logs("A connection ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_reaches_a_driver_on_another_host() {
    let (far, world) = (Far::start(&["fake"]), tempfile::tempdir().unwrap());
    let waits = json!([{"verb": "pools", "what": {"kind": "wait_for_cancel"}}]);
    let backend = opened(&far.registered(None), "a", &site(world.path(), "a", &waits)).await;
    let cancel = CancellationToken::new();
    let cx = cx().cancel(cancel.clone());
    let call = backend.call(&cx, Pools {});
    tokio::pin!(call);
    tokio::select! {
        _ = &mut call => panic!("it waits for its cancel"),
        () = tokio::time::sleep(Duration::from_millis(300)) => cancel.cancel(),
    }
    assert_eq!(call.await.unwrap_err().kind, ErrorKind::Cancelled);
}

/// An active instance at one place and its replica at another, of the driver `directory`.
struct Pair {
    _folder: TempDir,
    source: Backend,
    dest: Backend,
    active: InstanceSpec,
    replica: InstanceSpec,
    export: PathBuf,
    files: usize,
}

const FILES: usize = 24;
/// So many that what lies in buffers is the smaller part: a stream that is held early cannot have been sent to its end.
const MANY: usize = 96;

impl Pair {
    async fn new(source: &DriverHost, dest: &DriverHost) -> Self {
        Self::of(FILES, source, dest).await
    }

    /// With so many files of a mebibyte.
    async fn of(files: usize, source: &DriverHost, dest: &DriverHost) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = |name: &str| json!({"root": folder.path().join(name)});
        let source = source.open("one", "directory", &root("one"), options()).await.unwrap();
        let dest = dest.open("two", "directory", &root("two"), options()).await.unwrap();
        let pool = source.call(&cx(), Pools {}).await.unwrap().remove(0).name;
        let active = InstanceSpec { pool, ..spec() };
        let replica = InstanceSpec { instance: InstanceId(Uuid::new_v4()), ..active.clone() };
        let made = source.call(&cx(), CreateInstance { spec: active.clone() }).await.unwrap().into_inner();
        dest.call(&cx(), CreateReplica { spec: replica.clone() }).await.unwrap();
        let export = PathBuf::from(&made.exports[0].path);
        for n in 0..files {
            let mut bytes = vec![0; 1 << 20];
            let mut seed = n as u64 + 1;
            bytes.iter_mut().for_each(|byte| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 56) as u8;
            });
            std::fs::write(export.join(format!("file-{n}")), bytes).unwrap();
        }
        Self { _folder: folder, source, dest, active, replica, export, files }
    }

    async fn point(&self) -> PointInfo {
        let make =
            MakePoint { instance: self.active.instance, epoch: Epoch(1), point: PointId(Uuid::new_v4()) };
        self.source.call(&cx(), make).await.unwrap().into_inner()
    }

    /// A transfer as the manager makes it: from where the destination is, and anew when it was looked at while it still took
    /// in an earlier one.
    async fn sync(&self, dest: &Backend, to: &PointInfo) -> Result<tandem_host::Transferred> {
        let until = tokio::time::Instant::now() + tandem_testbed::wait::LONG;
        loop {
            match self.try_sync(dest, to).await {
                Err(e) if e.to_string().contains("is looked at again") => {
                    assert!(tokio::time::Instant::now() < until, "{e}");
                    assert!(e.kind == ErrorKind::Unavailable && e.retry == Retry::Safe, "{e:?}");
                }
                done => return done,
            }
        }
    }

    async fn try_sync(&self, dest: &Backend, to: &PointInfo) -> Result<tandem_host::Transferred> {
        let seen = dest.call(&cx(), ObserveInstance { instance: self.replica.instance }).await?.unwrap();
        let resume = seen.resume.filter(|token| token.to == Some(to.id));
        let formats = match self.source.capabilities().replication.as_ref().map(|r| &r.transport) {
            Some(Transport::Streamed { formats, .. }) => formats.clone(),
            _ => panic!("it streams"),
        };
        let send = SendSpec {
            instance: self.active.instance,
            epoch: Epoch(1),
            to: to.id,
            from: None,
            resume: resume.clone(),
            format: formats[0].clone(),
            bandwidth: None,
        };
        let receive = ReceiveSpec {
            instance: self.replica.instance,
            epoch: Epoch(1),
            to: to.clone(),
            from: None,
            resume,
            format: formats[0].clone(),
        };
        transfer(&self.source, send, dest, receive, &cx()).await
    }

    /// Opens the destination again, as the manager does: until it works.
    async fn reopened(&self, place: &DriverHost, backend: &str) -> Backend {
        let settings = json!({"root": self._folder.path().join(backend)});
        let until = tokio::time::Instant::now() + tandem_testbed::wait::LONG;
        loop {
            match place.open(backend, "directory", &settings, options()).await {
                Ok(opened) => return opened,
                Err(e) => assert!(tokio::time::Instant::now() < until, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A half transfer is here, and no point.
    async fn is_half(&self, dest: &Backend) {
        let seen =
            dest.call(&cx(), ObserveInstance { instance: self.replica.instance }).await.unwrap().unwrap();
        assert!(seen.points.is_empty(), "half a stream is no point: {seen:?}");
        assert!(seen.resume.is_some(), "what arrived is kept: {seen:?}");
    }

    async fn equal(&self, dest: &Backend, to: &PointInfo) {
        let seen =
            dest.call(&cx(), ObserveInstance { instance: self.replica.instance }).await.unwrap().unwrap();
        assert!(seen.points.iter().any(|p| p.id == to.id && p.fingerprint == to.fingerprint), "{seen:?}");
        let copy = PathBuf::from(&seen.exports[0].path);
        for n in 0..self.files {
            let name = format!("file-{n}");
            let same =
                std::fs::read(self.export.join(&name)).unwrap() == std::fs::read(copy.join(&name)).unwrap();
            assert!(same, "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_cut_anywhere_are_no_end_and_go_on() {
    let (one, two) = (Far::start(&["directory"]), Far::start(&["directory"]));
    let cable = Cable::to(two.address());
    let host = two.registered(Some(cable.address()));
    let pair = Pair::new(&one.registered(None), &host).await;
    let point = pair.point().await;
    let mut dest = pair.dest.clone();
    let before = cable.passed();
    for mib in [1, 5, 9] {
        cable.cut_after(mib << 20);
        let error = pair.sync(&dest, &point).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(cable.is_cut());
        cable.heal();
        dest = pair.reopened(&host, "two").await;
        let seen =
            dest.call(&cx(), ObserveInstance { instance: pair.replica.instance }).await.unwrap().unwrap();
        assert!(seen.points.is_empty(), "half a stream is no point: {seen:?}");
    }
    let done = pair.sync(&dest, &point).await.unwrap();
    assert!(done.received.into_inner().verified);
    pair.equal(&dest, &point).await;
    // What was cut is not sent again, but for what lay in buffers.
    let carried = cable.passed() - before;
    assert!(carried < 2 * (FILES << 20) as u64, "{carried} bytes for {FILES} MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_killed_amid_a_stream_leaves_no_whole_looking_one() {
    let (mut one, two) = (Far::start(&["directory"]), Far::start(&["directory"]));
    let cable = Cable::to(two.address());
    let (host, dest) = (one.registered(None), two.registered(Some(cable.address())));
    let mut pair = Pair::of(MANY, &host, &dest).await;
    let point = pair.point().await;
    // Its bytes go no further: it is in the midst of sending when it goes.
    cable.hold_after(40 << 20);
    let striking = tokio::task::spawn_blocking(move || {
        cable.is_held();
        one.kill();
        cable.heal();
        one.launch();
        (one, cable)
    });
    let error = pair.sync(&pair.dest, &point).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    let (_one, _cable) = striking.await.unwrap();
    pair.is_half(&pair.dest).await;
    pair.source = pair.reopened(&host, "one").await;
    let done = pair.sync(&pair.dest, &point).await.unwrap();
    assert!(done.received.into_inner().resumed_bytes > 0, "it goes on where it was");
    pair.equal(&pair.dest, &point).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_killed_amid_a_stream_ends_the_source_too() {
    let (one, mut two) = (Far::start(&["directory"]), Far::start(&["directory"]));
    let cable = Cable::to(one.address());
    let host = two.registered(None);
    let pair = Pair::of(MANY, &one.registered(Some(cable.address())), &host).await;
    let point = pair.point().await;
    // No more comes: it is in the midst of receiving when it goes.
    cable.hold_after(40 << 20);
    let striking = tokio::task::spawn_blocking(move || {
        cable.is_held();
        two.kill();
        cable.heal();
        two.launch();
        (two, cable)
    });
    let error = pair.sync(&pair.dest, &point).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    let (_two, _cable) = striking.await.unwrap();
    let dest = pair.reopened(&host, "two").await;
    pair.is_half(&dest).await;
    let done = pair.sync(&dest, &point).await.unwrap();
    assert!(done.received.into_inner().resumed_bytes > 0, "it goes on where it was");
    pair.equal(&dest, &point).await;
    assert!(pair.source.report().is_healthy(), "{:?}", pair.source.report());
}

async fn refused(host: &DriverHost) -> String {
    host.open("a", "fake", &json!({}), options()).await.unwrap_err().message
}

#[tokio::test(flavor = "multi_thread")]
async fn only_registered_hosts_come_in_and_each_refusal_says_why() {
    let far = Far::start(&["fake"]);
    let pki = far.pki();
    let ours = || pki.files(SERVER);

    let other = Pki::new(&far.folder().join("other"));
    other.issue(SERVER, &Paper::default());
    let mut files = other.files(SERVER);
    let why = refused(&far.registered_with(SERVER, HOST, None, files.clone())).await;
    assert!(why.contains("its certificate was not issued by the CA that is trusted here"), "{why}");
    // It trusts our CA, but shows what another one issued.
    files.ca = ours().ca;
    let why = refused(&far.registered_with(SERVER, HOST, None, files)).await;
    assert!(why.contains("cannot be used: its certificate was not issued by the CA"), "{why}");

    pki.issue("late", &Paper { name: Some(SERVER.into()), expired: true });
    let why = refused(&far.registered_with(SERVER, HOST, None, pki.files("late"))).await;
    assert!(why.contains("its certificate has expired"), "{why}");

    pki.issue("stranger", &Paper::default());
    let why = refused(&far.registered_with("stranger", HOST, None, pki.files("stranger"))).await;
    assert!(why.contains("`stranger` is not among the servers that may use host `storage2`"), "{why}");

    let why = refused(&far.registered_with(SERVER, HOST, None, pki.files("stranger"))).await;
    assert!(why.contains("its certificate is not for the name `storage1`"), "{why}");

    let why = refused(&far.registered_with(SERVER, "storage3", None, ours())).await;
    assert!(why.contains("its certificate is not for the name `storage3`"), "{why}");

    std::fs::set_permissions(&ours().key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let why = refused(&far.registered(None)).await;
    assert!(
        why.contains("can be read by its group or by others (mode 0640)") && why.contains("chmod 600"),
        "{why}"
    );
    std::fs::set_permissions(&ours().key, std::fs::Permissions::from_mode(0o600)).unwrap();

    let why = far.registered(None).open("a", "zfs9", &json!({}), options()).await.unwrap_err();
    assert!(
        why.kind == ErrorKind::NotFound && why.message.contains("has no driver `zfs9`; it has fake"),
        "{why}"
    );
    let world = tempfile::tempdir().unwrap();
    let wrong = json!({"pth": world.path()});
    let why = far.registered(None).open("a", "fake", &wrong, options()).await.unwrap_err();
    assert!(why.message.contains("`pth`") && why.message.contains("did you mean `path`?"), "{why}");
    let key = std::fs::read_to_string(ours().key).unwrap();
    let line = key.lines().nth(1).unwrap();
    assert!(!far.log().contains(line), "no key in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_at_the_door_disturbs_nobody() {
    let (far, world) = (Far::start(&["fake"]), tempfile::tempdir().unwrap());
    let backend = opened(&far.registered(None), "a", &site(world.path(), "a", &json!([]))).await;
    let garbage =
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 4096], &[0xff; 70_000], b"\x16\x03\x01\xff\xff"];
    for bytes in garbage {
        let mut socket = TcpStream::connect(far.address()).unwrap();
        // It may hang up in the midst of it.
        let _ = socket.write_all(bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        assert!(answer.len() < 100, "a stranger is told nothing");
    }
    far.logs("A connection was refused: it does not speak TLS");
    // Many that say nothing.
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(far.address()).unwrap()).collect();
    assert_eq!(backend.call(&cx(), Pools {}).await.unwrap().len(), 1);
    let other = opened(&far.registered(None), "b", &site(world.path(), "b", &json!([]))).await;
    assert_eq!(other.call(&cx(), Pools {}).await.unwrap().len(), 1);
    drop(silent);
}

#[test]
fn what_tandem_cert_makes_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let tandem = |arguments: &[&str]| {
        let program = tandem_testbed::artifacts::program("tandem");
        let done =
            std::process::Command::new(program).args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    tandem(&["cert", "ca"]);
    tandem(&["cert", "host", HOST]);
    let text = format!(
        "name = {HOST:?}\nservers = [{SERVER:?}]\n[tls]\ncertificate = \"tandem-ca/{HOST}.crt\"\n\
         key = \"tandem-ca/{HOST}.key\"\nca = \"tandem-ca/ca.crt\"\n"
    );
    let file = folder.path().join("driver-host.toml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let program = tandem_testbed::artifacts::program("tandem-driver-host");
        std::process::Command::new(program).arg("--check").arg("--settings").arg(&file).output().unwrap()
    };
    let good = check(&text);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let bad = check(&text.replace(&format!("name = {HOST:?}"), "name = \"storage3\""));
    let said = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(!bad.status.success() && said.contains("not for the name `storage3`"), "{said}");
}
