//! Back ends of the driver, called as the manager calls them, and transfers between them.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tandem_driver_directory::Directory;
use tandem_sdk::contract::*;
use tandem_sdk::{BoxFuture, Dispatcher, Host, Result, Value};
use uuid::Uuid;

/// Hears what a driver tells of its progress.
#[derive(Default)]
struct Listening(Mutex<Vec<Progress>>);

impl Host for Listening {
    fn signal(&self, signal: Signal) {
        if let Signal::Progress { progress, .. } = signal {
            self.0.lock().unwrap().push(progress);
        }
    }
    fn call(&self, _: Value) -> BoxFuture<'static, Result<Value>> {
        Box::pin(async { Ok(Value::Null) })
    }
}

/// One back end.
pub struct Backend {
    pub root: PathBuf,
    pub driver: Dispatcher<Directory>,
    told: Arc<Listening>,
}

static DELIVERY: AtomicU64 = AtomicU64::new(1);

pub const GIB: u64 = 1 << 30;

impl Backend {
    pub async fn open(root: &Path) -> Self {
        let settings = serde_json::json!({ "root": root });
        let told = Arc::<Listening>::default();
        let driver = Dispatcher::open(Arc::clone(&told) as Arc<dyn Host>, settings).await.unwrap();
        Self { root: root.to_owned(), driver, told }
    }

    /// The furthest that was told in a phase.
    pub fn told(&self, phase: &str) -> Option<u64> {
        self.told.0.lock().unwrap().iter().filter(|p| p.phase == phase).map(|p| p.done).max()
    }

    pub async fn call<V: Verb>(&self, verb: V) -> Result<V::Reply> {
        self.with_stream(verb, None).await
    }

    pub async fn with_stream<V: Verb>(&self, verb: V, stream: Option<OwnedFd>) -> Result<V::Reply> {
        let request = Request {
            op: OpId(Uuid::new_v4()),
            delivery: DELIVERY.fetch_add(1, Ordering::Relaxed),
            deadline_ms: Some(120_000),
            verb: V::NAME.to_owned(),
            args: serde_json::to_value(&verb).unwrap(),
        };
        let answer = self.driver.call(request, stream.into_iter().collect()).await?;
        Ok(serde_json::from_value(answer).unwrap())
    }

    pub async fn observe(&self, instance: InstanceId) -> Option<Observation> {
        self.call(ObserveInstance { instance }).await.unwrap()
    }

    pub async fn create(&self, spec: &InstanceSpec) -> Outcome<InstanceInfo> {
        self.call(CreateInstance { spec: spec.clone() }).await.unwrap()
    }

    pub async fn create_replica(&self, spec: &InstanceSpec) -> Outcome<InstanceInfo> {
        self.call(CreateReplica { spec: spec.clone() }).await.unwrap()
    }

    pub async fn point(&self, instance: InstanceId, epoch: u64) -> PointInfo {
        let point = PointId(Uuid::new_v4());
        self.call(MakePoint { instance, epoch: Epoch(epoch), point }).await.unwrap().into_inner()
    }

    pub fn export(&self, instance: InstanceId) -> PathBuf {
        self.root.join("exports").join(instance.to_string())
    }
}

pub fn spec(resource: ResourceId, style: Style) -> InstanceSpec {
    InstanceSpec {
        instance: InstanceId(Uuid::new_v4()),
        resource,
        kind: ResourceKind::Share,
        pool: "pool".into(),
        size_bytes: GIB,
        protocol: "NFS".into(),
        epoch: Epoch(1),
        replication: Some(ReplicationSpec { style, instances: 2 }),
        options: Default::default(),
    }
}

/// Two back ends with an active instance and a secondary of one share.
pub struct Pair {
    pub dir: tempfile::TempDir,
    pub alpha: Backend,
    pub beta: Backend,
    pub active: InstanceId,
    pub replica: InstanceId,
}

impl Pair {
    pub async fn new(style: Style) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let beta = dir.path().join("beta");
        Self::with(style, dir, &beta).await
    }

    /// The secondary's back end lies at `beta`.
    pub async fn with(style: Style, dir: tempfile::TempDir, beta: &Path) -> Self {
        let (alpha, beta) = (Backend::open(&dir.path().join("alpha")).await, Backend::open(beta).await);
        let resource = ResourceId(Uuid::new_v4());
        let (one, two) = (spec(resource, style), spec(resource, style));
        assert!(alpha.create(&one).await.is_changed());
        assert!(beta.create_replica(&two).await.is_changed());
        Self { dir, alpha, beta, active: one.instance, replica: two.instance }
    }

    /// The folder that users of the active one see.
    pub fn share(&self) -> PathBuf {
        self.alpha.export(self.active)
    }

    pub async fn sync(&self) -> (TransferReport, TransferReport) {
        let to = self.alpha.point(self.active, 1).await;
        let (sent, received) =
            transfer((&self.alpha, self.active), (&self.beta, self.replica), 1, &to, None).await;
        (sent.unwrap(), received.unwrap().into_inner())
    }
}

/// One transfer, as the manager makes it: from the newest common point, or on from where an earlier one was cut; cut
/// after so many bytes.
pub async fn transfer(
    from: (&Backend, InstanceId),
    to: (&Backend, InstanceId),
    epoch: u64,
    point: &PointInfo,
    cut: Option<u64>,
) -> (Result<TransferReport>, Result<Outcome<TransferReport>>) {
    let (there, here) = (from.0.observe(from.1).await.unwrap(), to.0.observe(to.1).await.unwrap());
    let common = there
        .points
        .iter()
        .rev()
        .find(|p| here.points.iter().any(|q| p.id == q.id && p.fingerprint == q.fingerprint))
        .cloned();
    let resume = here.resume.filter(|token| token.to == Some(point.id));
    let format = tandem_sdk::mirror::STREAM_FORMAT.to_owned();
    let send = SendStream {
        spec: SendSpec {
            instance: from.1,
            epoch: Epoch(epoch),
            to: point.id,
            from: common.clone(),
            resume: resume.clone(),
            format: format.clone(),
            bandwidth: None,
        },
    };
    let receive = Receive {
        spec: ReceiveSpec {
            instance: to.1,
            epoch: Epoch(epoch),
            to: point.clone(),
            from: common,
            resume,
            format,
        },
    };
    let (first, second) = rustix::pipe::pipe().unwrap();
    let (third, fourth) = rustix::pipe::pipe().unwrap();
    let relay = std::thread::spawn(move || {
        let (mut input, mut output) = (File::from(first).take(cut.unwrap_or(u64::MAX)), File::from(fourth));
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match input.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) if output.write_all(&buffer[..n]).is_err() => break,
                Ok(_) => {}
            }
        }
    });
    let answers =
        tokio::join!(from.0.with_stream(send, Some(second)), to.0.with_stream(receive, Some(third)));
    relay.join().unwrap();
    answers
}

/// Fails unless rsync finds no difference but the permissions of the root folder. Falls back to comparing fingerprints
/// where rsync is not installed.
pub fn assert_same(left: &Path, right: &Path) {
    let slashed = |p: &Path| format!("{}/", p.display());
    let run = Command::new("rsync")
        .args(["-naHAXSci", "--numeric-ids", "--modify-window=-1", "--delete"])
        .args([slashed(left), slashed(right)])
        .output();
    let out = match run {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("rsync is not installed; nothing independent was compared");
            return;
        }
        other => other.unwrap(),
    };
    let said = String::from_utf8_lossy(&out.stdout);
    let said: Vec<&str> = said.lines().filter(|line| *line != ".d...p..... ./").collect();
    assert!(
        out.status.success() && said.is_empty(),
        "rsync says: {said:#?} {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Repeatable bytes that do not repeat.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A tree with some of everything.
pub fn fill(root: &Path) {
    fs::create_dir_all(root.join("docs/deep/er")).unwrap();
    fs::write(root.join("docs/a file"), b"hello").unwrap();
    fs::hard_link(root.join("docs/a file"), root.join("docs/deep/same file")).unwrap();
    fs::write(root.join("docs/deep/er/empty"), b"").unwrap();
    std::os::unix::fs::symlink("docs/a file", root.join("link")).unwrap();
    fs::write(root.join("large"), noise(1, 5_000_000)).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 3_000_000).unwrap();
    sparse.set_len(9_000_000).unwrap();
    let odd: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"odd \xff\nname");
    fs::write(root.join(odd), b"x").unwrap();
    rustix::fs::setxattr(root.join("large"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    for i in 0..200 {
        fs::write(root.join(format!("docs/deep/{i:03}")), noise(i, 300 + i as usize)).unwrap();
    }
}
