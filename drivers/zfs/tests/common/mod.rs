//! Back ends of the driver on the pools `alpha` and `beta`, called as the manager calls them.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_driver_zfs::Zfs;
use tandem_sdk::contract::*;
use tandem_sdk::{BoxFuture, Dispatcher, Host, Result, Value};
use uuid::Uuid;

/// Whether the pools are not here: tests are passed by then.
pub fn elsewhere() -> bool {
    !["alpha", "beta"].into_iter().all(|pool| PathBuf::from("/proc/spl/kstat/zfs").join(pool).exists())
}

/// Tests by their names, with threads of their runtime; passed by where the pools are not.
#[macro_export]
macro_rules! trials {
    ($threads:expr; $($test:ident),* $(,)?) => {{
        let elsewhere = $crate::common::elsewhere();
        vec![$(libtest_mimic::Trial::test(stringify!($test), || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads($threads).enable_all().build()?;
            runtime.block_on($test());
            Ok(())
        })
        .with_ignored_flag(elsewhere)),*]
    }};
}

struct Quiet;

impl Host for Quiet {
    fn signal(&self, _: Signal) {}
    fn call(&self, _: Value) -> BoxFuture<'static, Result<Value>> {
        Box::pin(async { Ok(Value::Null) })
    }
}

static DELIVERY: AtomicU64 = AtomicU64::new(1);

/// Runs `zfs`, which must succeed; what it printed.
pub fn zfs(args: &[&str]) -> String {
    let out = Command::new("/usr/sbin/zfs").args(args).output().unwrap();
    assert!(out.status.success(), "zfs {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// One back end.
pub struct Backend {
    pub pool: String,
    pub dataset: String,
    pub mounts: PathBuf,
    pub driver: Dispatcher<Zfs>,
}

impl Backend {
    pub async fn open(pool: &str, test: &str, more: &[(&str, &str)]) -> Self {
        let (dataset, mounts) = (format!("{pool}/{test}"), PathBuf::from(format!("/srv/{pool}-{test}")));
        let mut settings = serde_json::json!({ "dataset": dataset, "mounts": mounts });
        for (key, value) in more {
            settings[key] = (*value).into();
        }
        let driver = Dispatcher::open(Arc::new(Quiet), settings).await.unwrap();
        Self { pool: pool.to_owned(), dataset, mounts, driver }
    }

    /// Opening with this dataset fails.
    pub async fn fails(dataset: &str) -> Error {
        let settings = serde_json::json!({ "dataset": dataset });
        match Dispatcher::<Zfs>::open(Arc::new(Quiet), settings).await {
            Ok(_) => panic!("`{dataset}` opened"),
            Err(e) => e,
        }
    }

    pub async fn call<V: Verb>(&self, verb: V) -> Result<V::Reply> {
        self.with_stream(verb, None).await
    }

    pub async fn with_stream<V: Verb>(&self, verb: V, stream: Option<OwnedFd>) -> Result<V::Reply> {
        self.call_for(300_000, verb, stream).await
    }

    /// A call that is given so many milliseconds.
    pub async fn call_for<V: Verb>(&self, ms: u64, verb: V, stream: Option<OwnedFd>) -> Result<V::Reply> {
        let request = Request {
            op: OpId(Uuid::new_v4()),
            delivery: DELIVERY.fetch_add(1, Ordering::Relaxed),
            deadline_ms: Some(ms),
            verb: V::NAME.to_owned(),
            args: serde_json::to_value(&verb).unwrap(),
        };
        let answer = Box::pin(self.driver.call(request, stream.into_iter().collect())).await?;
        Ok(serde_json::from_value(answer).unwrap())
    }

    pub async fn observe(&self, instance: InstanceId) -> Observation {
        self.call(ObserveInstance { instance }).await.unwrap().unwrap()
    }

    pub async fn point(&self, instance: InstanceId, epoch: u64) -> PointInfo {
        let point = PointId(Uuid::new_v4());
        self.call(MakePoint { instance, epoch: Epoch(epoch), point }).await.unwrap().into_inner()
    }

    pub async fn demote(&self, instance: InstanceId, epoch: u64, to: Demotion) {
        self.call(DemoteReplica { instance, epoch: Epoch(epoch), to }).await.unwrap();
    }

    pub async fn promote(&self, instance: InstanceId, epoch: u64, promotion: Promotion) {
        self.call(PromoteReplica { instance, epoch: Epoch(epoch), promotion }).await.unwrap();
    }

    /// The folder of an instance that is mounted.
    pub fn folder(&self, instance: InstanceId) -> PathBuf {
        self.mounts.join(instance.to_string())
    }

    /// The dataset of an instance's content.
    pub fn content(&self, instance: InstanceId, version: u64) -> String {
        format!("{}/{instance}/v{version}", self.dataset)
    }

    /// Everything on the pool that belongs to the back end.
    pub fn left(&self) -> Vec<String> {
        let all = zfs(&["list", "-H", "-o", "name", "-t", "all", "-r", &self.dataset]);
        all.lines().map(str::to_owned).filter(|name| *name != self.dataset).collect()
    }
}

/// Two back ends with an active instance and a secondary of one share.
pub struct Pair {
    pub alpha: Backend,
    pub beta: Backend,
    pub active: InstanceId,
    pub replica: InstanceId,
    /// The active one's, as it was made.
    pub spec: InstanceSpec,
}

impl Pair {
    pub async fn new(test: &str, style: Style) -> Self {
        Self::with(test, style, &[]).await
    }

    pub async fn with(test: &str, style: Style, more: &[(&str, &str)]) -> Self {
        let alpha = Backend::open("alpha", test, more).await;
        Self::between(alpha, Backend::open("beta", test, more).await, style).await
    }

    pub async fn between(alpha: Backend, beta: Backend, style: Style) -> Self {
        let resource = ResourceId(Uuid::new_v4());
        let spec = |backend: &Backend| InstanceSpec {
            instance: InstanceId(Uuid::new_v4()),
            resource,
            kind: ResourceKind::Share,
            pool: backend.pool.clone(),
            size_bytes: 1 << 30,
            protocol: "NFS".into(),
            epoch: Epoch(1),
            replication: Some(ReplicationSpec { style, instances: 2 }),
            options: Default::default(),
        };
        let (one, two) = (spec(&alpha), spec(&beta));
        alpha.call(CreateInstance { spec: one.clone() }).await.unwrap();
        beta.call(CreateReplica { spec: two.clone() }).await.unwrap();
        Self { alpha, beta, active: one.instance, replica: two.instance, spec: one }
    }

    pub async fn sync(&self) -> (PointInfo, Result<TransferReport>, Result<Outcome<TransferReport>>) {
        let to = self.alpha.point(self.active, 1).await;
        let (sent, received) = transfer((&self.alpha, self.active), (&self.beta, self.replica), 1, &to).await;
        (to, sent, received)
    }

    /// [`sync`](Self::sync), which must succeed: the point, and the bytes that went.
    pub async fn must_sync(&self) -> (PointInfo, u64) {
        let (to, sent, received) = self.sync().await;
        assert!(received.unwrap().into_inner().verified);
        (to, sent.unwrap().bytes)
    }

    /// Both sides are deleted.
    pub async fn leave(&self) {
        self.beta.call(DeleteReplica { instance: self.replica }).await.unwrap();
        self.alpha.call(DeleteInstance { instance: self.active }).await.unwrap();
    }

    /// Both sides are deleted, and nothing of them is left anywhere.
    pub async fn leaves_nothing(self) {
        self.leave().await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for (backend, id) in [(&self.alpha, self.active), (&self.beta, self.replica)] {
            assert_eq!(backend.left(), Vec::<String>::new());
            assert!(!mounts.contains(&id.to_string()) && !backend.folder(id).exists());
            assert!(!PathBuf::from(format!("/run/tandem/zfs/{id}.lock")).exists());
        }
    }
}

/// An active instance on one back end, and an empty destination on the other.
pub struct Move {
    pub alpha: Backend,
    pub beta: Backend,
    /// As it was made.
    pub source: InstanceSpec,
    pub spec: MigrationSpec,
}

impl Move {
    pub async fn new(test: &str, alpha: &[(&str, &str)], beta: &[(&str, &str)]) -> Self {
        let alpha = Backend::open("alpha", test, alpha).await;
        Self::between(alpha, Backend::open("beta", test, beta).await).await
    }

    pub async fn between(alpha: Backend, beta: Backend) -> Self {
        let source = InstanceSpec {
            instance: InstanceId(Uuid::new_v4()),
            resource: ResourceId(Uuid::new_v4()),
            kind: ResourceKind::Share,
            pool: alpha.pool.clone(),
            size_bytes: 1 << 30,
            protocol: "NFS".into(),
            epoch: Epoch(1),
            replication: None,
            options: Default::default(),
        };
        alpha.call(CreateInstance { spec: source.clone() }).await.unwrap();
        let spec = Self::destination(&beta, &source).await;
        Self { alpha, beta, source, spec }
    }

    /// A new empty destination for a source.
    pub async fn destination(beta: &Backend, source: &InstanceSpec) -> MigrationSpec {
        let instance = InstanceId(Uuid::new_v4());
        let spec =
            InstanceSpec { instance, pool: beta.pool.clone(), epoch: source.epoch.next(), ..source.clone() };
        beta.call(PrepareDestination { spec }).await.unwrap();
        let endpoint = beta.call(GetEndpoint { instance }).await.unwrap();
        let capabilities = serde_json::to_value(beta.driver.capabilities()).unwrap();
        let driver = [("driver".to_owned(), "zfs".into()), ("capabilities".to_owned(), capabilities)];
        MigrationSpec {
            resource: source.resource,
            kind: source.kind,
            source: source.instance,
            destination: instance,
            epoch: source.epoch,
            endpoint: serde_json::to_value(endpoint).unwrap(),
            destination_driver: driver.into_iter().collect(),
        }
    }

    pub fn here(&self) -> PathBuf {
        self.alpha.folder(self.spec.source)
    }

    pub fn there(&self) -> PathBuf {
        self.beta.folder(self.spec.destination)
    }

    pub async fn start(&self) {
        self.alpha.call(MigrationStart { migration: self.spec.clone() }).await.unwrap();
    }

    /// One round of the first phase.
    pub async fn round(&self) -> Result<MigrationProgress> {
        self.alpha.call(MigrationContinue { migration: self.spec.clone() }).await
    }

    pub async fn complete(&self) -> Result<Outcome<Switched>> {
        self.alpha.call(MigrationComplete { migration: self.spec.clone() }).await
    }

    pub async fn cancel(&self) -> Result<Outcome<()>> {
        // As the manager asks where the destination may be away.
        let migration = MigrationSpec {
            endpoint: Value::Null,
            destination_driver: Default::default(),
            ..self.spec.clone()
        };
        self.alpha.call(MigrationCancel { migration }).await
    }

    /// Removes the source after the switch; nothing of it or of the migration is left, on either side.
    pub async fn release(&self) {
        self.alpha.call(MigrationRelease { migration: self.spec.clone() }).await.unwrap();
        assert_eq!(self.alpha.left(), Vec::<String>::new());
        self.no_traces();
    }

    /// Nothing that a migration makes is anywhere.
    pub fn no_traces(&self) {
        for backend in [&self.alpha, &self.beta] {
            let left = backend.left();
            assert!(!left.iter().any(|name| name.contains("tandem-")), "{left:?}");
            let tokens = ["get", "-H", "-o", "value", "-r", "receive_resume_token", &backend.dataset];
            assert!(zfs(&tokens).lines().all(|token| token == "-"), "half a transfer is left");
        }
    }

    /// Removes both; nothing is left.
    pub async fn remove(self) {
        self.alpha.call(DeleteInstance { instance: self.spec.source }).await.unwrap();
        self.beta.call(DeleteInstance { instance: self.spec.destination }).await.unwrap();
        for backend in [&self.alpha, &self.beta] {
            assert_eq!(backend.left(), Vec::<String>::new());
        }
        for id in [self.spec.source, self.spec.destination] {
            let lock = |folder: &str| PathBuf::from(format!("/run/tandem/zfs{folder}/{id}.lock")).exists();
            assert!(!lock("") && !lock("/moves"));
        }
    }
}

/// One transfer, as the manager makes it: from the newest common point.
pub async fn transfer(
    from: (&Backend, InstanceId),
    to: (&Backend, InstanceId),
    epoch: u64,
    point: &PointInfo,
) -> (Result<TransferReport>, Result<Outcome<TransferReport>>) {
    transfer_at(from, to, epoch, point, None).await
}

/// The same with so many bytes a second at most.
pub async fn transfer_at(
    from: (&Backend, InstanceId),
    to: (&Backend, InstanceId),
    epoch: u64,
    point: &PointInfo,
    bandwidth: Option<u64>,
) -> (Result<TransferReport>, Result<Outcome<TransferReport>>) {
    let (send, receive) = halves(from, to, epoch, point, bandwidth).await;
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    tokio::join!(from.0.with_stream(send, Some(writer)), to.0.with_stream(receive, Some(reader)))
}

/// The two calls of a transfer.
pub async fn halves(
    from: (&Backend, InstanceId),
    to: (&Backend, InstanceId),
    epoch: u64,
    point: &PointInfo,
    bandwidth: Option<u64>,
) -> (SendStream, Receive) {
    let (there, here) = (from.0.observe(from.1).await, to.0.observe(to.1).await);
    let common = there
        .points
        .iter()
        .rev()
        .find(|p| here.points.iter().any(|q| p.id == q.id && p.fingerprint == q.fingerprint))
        .cloned();
    let (ours, theirs) = (formats(from.0), formats(to.0));
    let format = ours.into_iter().find(|format| theirs.contains(format)).unwrap();
    let epoch = Epoch(epoch);
    let send = SendSpec {
        instance: from.1,
        epoch,
        to: point.id,
        from: common.clone(),
        resume: None,
        format: format.clone(),
        bandwidth,
    };
    let receive =
        ReceiveSpec { instance: to.1, epoch, to: point.clone(), from: common, resume: None, format };
    (SendStream { spec: send }, Receive { spec: receive })
}

/// The formats of streams that a back end speaks.
fn formats(backend: &Backend) -> Vec<String> {
    match backend.driver.capabilities().replication.as_ref().map(|r| &r.transport) {
        Some(Transport::Streamed { formats, .. }) => formats.clone(),
        _ => Vec::new(),
    }
}

/// Writes to a file through a mapping of it, without a word to the kernel that it should be kept.
#[allow(unsafe_code)]
pub fn write_mapped(file: &std::path::Path, bytes: &[u8]) {
    use std::os::fd::AsRawFd;
    let open =
        std::fs::File::options().read(true).write(true).create(true).truncate(false).open(file).unwrap();
    open.set_len(bytes.len() as u64).unwrap();
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of as many bytes as the file has, written within them and given back.
    unsafe {
        let at =
            libc::mmap(std::ptr::null_mut(), bytes.len(), protection, libc::MAP_SHARED, open.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), at.cast::<u8>(), bytes.len());
        assert_eq!(libc::munmap(at, bytes.len()), 0);
    }
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}
