//! Back ends of the driver on the groups `vg_alpha`, `vg_beta` and `vg_gamma`, called as the manager calls them.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tandem_driver_lvm::Lvm;
use tandem_sdk::contract::*;
use tandem_sdk::{BoxFuture, Dispatcher, Host, Result, Value};
use uuid::Uuid;

struct Quiet;

impl Host for Quiet {
    fn signal(&self, _: Signal) {}
    fn call(&self, _: Value) -> BoxFuture<'static, Result<Value>> {
        Box::pin(async { Ok(Value::Null) })
    }
}

static DELIVERY: AtomicU64 = AtomicU64::new(1);

pub const MIB: u64 = 1 << 20;

/// Why it is degraded.
pub fn degraded(health: &Health) -> &str {
    match health {
        Health::Degraded { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// Why it has failed.
pub fn failed(health: &Health) -> &str {
    match health {
        Health::Failed { reason } => reason,
        other => panic!("{other:?}"),
    }
}

/// Runs a tool, which must succeed; what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// One back end.
pub struct Backend {
    pub group: String,
    pub settings: Value,
    pub mounts: PathBuf,
    pub driver: Dispatcher<Lvm>,
}

impl Backend {
    /// Of the disk's own group, with further settings.
    pub async fn open(disk: &str, test: &str, more: Value) -> Self {
        let settings = Self::settings(disk, test, more);
        let driver = Dispatcher::open(Arc::new(Quiet), settings.clone()).await.unwrap();
        let mounts = settings["mounts"].as_str().unwrap().into();
        Self { group: settings["group"].as_str().unwrap().to_owned(), settings, mounts, driver }
    }

    /// Opening with these settings fails.
    pub async fn fails(disk: &str, more: Value) -> Error {
        match Dispatcher::<Lvm>::open(Arc::new(Quiet), Self::settings(disk, "fails", more)).await {
            Ok(_) => panic!("it opened"),
            Err(e) => e,
        }
    }

    fn settings(disk: &str, test: &str, more: Value) -> Value {
        let mut settings = serde_json::json!({
            "group": format!("vg_{disk}"),
            "devices": [format!("/dev/mapper/{disk}")],
            "mounts": format!("/srv/{disk}-{test}"),
        });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    }

    /// The driver, opened anew with the same settings: what another process would see.
    pub async fn again(&mut self) {
        self.driver = Dispatcher::open(Arc::new(Quiet), self.settings.clone()).await.unwrap();
    }

    pub async fn call<V: Verb>(&self, verb: V) -> Result<V::Reply> {
        self.within(verb, 300_000).await
    }

    pub async fn within<V: Verb>(&self, verb: V, deadline_ms: u64) -> Result<V::Reply> {
        let request = Request {
            op: OpId(Uuid::new_v4()),
            delivery: DELIVERY.fetch_add(1, Ordering::Relaxed),
            deadline_ms: Some(deadline_ms),
            verb: V::NAME.to_owned(),
            args: serde_json::to_value(&verb).unwrap(),
        };
        let answer = Box::pin(self.driver.call(request, Vec::new())).await?;
        Ok(serde_json::from_value(answer).unwrap())
    }

    pub fn spec(&self, size_bytes: u64, filesystem: &str) -> InstanceSpec {
        let options = serde_json::json!({ "filesystem": filesystem });
        InstanceSpec {
            instance: InstanceId(Uuid::new_v4()),
            resource: ResourceId(Uuid::new_v4()),
            kind: ResourceKind::Share,
            pool: self.group.clone(),
            size_bytes,
            protocol: "NFS".into(),
            epoch: Epoch(1),
            replication: None,
            options: options.as_object().unwrap().clone(),
        }
    }

    /// A new share.
    pub async fn share(&self, size_bytes: u64, filesystem: &str) -> InstanceId {
        let spec = self.spec(size_bytes, filesystem);
        let id = spec.instance;
        self.call(CreateInstance { spec }).await.unwrap();
        id
    }

    pub async fn observe(&self, instance: InstanceId) -> Observation {
        self.call(ObserveInstance { instance }).await.unwrap().unwrap()
    }

    pub async fn ensure(&self, instance: InstanceId) -> Result<Outcome<InstanceInfo>> {
        self.call(EnsureInstance { instance, epoch: Epoch(1) }).await
    }

    pub async fn pool(&self) -> Pool {
        self.call(Pools {}).await.unwrap().remove(0)
    }

    /// The folder of a share that is mounted.
    pub fn folder(&self, instance: InstanceId) -> PathBuf {
        self.mounts.join(instance.to_string())
    }

    /// The volume of a share, as LVM names it.
    pub fn volume(&self, instance: InstanceId) -> String {
        format!("{}/tandem-{instance}", self.group)
    }

    /// What a boot leaves of a share: its volume.
    pub fn unserve(&self, instance: InstanceId) {
        run("umount", &[self.folder(instance).to_str().unwrap()]);
        run("lvchange", &["-an", &self.volume(instance)]);
    }

    /// Deletes it; tried again while something has it open, as the manager does.
    async fn deleted(&self, instance: InstanceId) -> Outcome<()> {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            match self.call(DeleteInstance { instance }).await {
                Ok(done) => return done,
                Err(e) if e.kind == ErrorKind::Busy && Instant::now() < until => {
                    eprintln!("deleting {instance}: {e}\n{}", who_holds());
                }
                Err(e) => panic!("{e}\n{}", who_holds()),
            }
        }
    }

    /// It is deleted, and nothing of it is left anywhere.
    pub async fn leaves_nothing(&self, instance: InstanceId) {
        assert!(self.deleted(instance).await.is_changed());
        assert!(!self.call(DeleteInstance { instance }).await.unwrap().is_changed());
        let id = instance.to_string();
        assert!(!volumes(&self.group).iter().any(|name| name.contains(&id)));
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&id));
        assert!(!run("dmsetup", &["ls"]).contains(&id.replace('-', "--")));
        assert!(!self.folder(instance).exists());
        assert!(!Path::new(&format!("/run/tandem/lvm/{id}.lock")).exists());
    }
}

/// What there is to know of devices that are in use.
fn who_holds() -> String {
    let what = "dmsetup info -c; grep -h /srv /proc/*/mountinfo | sort | uniq -c; grep nfs /proc/mounts; cat \
                /proc/net/rpc/nfsd.export/content; for client in /proc/fs/nfsd/clients/*; do cat $client/info \
                $client/states; done; fuser -v -m /dev/mapper/*read? 2>&1";
    String::from_utf8_lossy(&Command::new("sh").args(["-c", what]).output().unwrap().stdout).into_owned()
}

/// The volumes of a group.
pub fn volumes(group: &str) -> Vec<String> {
    let text = run("lvs", &["--noheadings", "-o", "lv_name", group]);
    text.split_whitespace().map(str::to_owned).collect()
}

/// The processes that run LVM for drivers of this one.
pub fn workers() -> Vec<i32> {
    let me = std::process::id().to_string();
    let of = |pid: i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        (name.starts_with("tandem-lvm") && state != "Z" && parent == me).then_some(pid)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(of).collect()
}

/// Replaces what a disk of the guest does: its own table, or errors.
pub fn set_table(disk: &str, table: &str) {
    run("dmsetup", &["suspend", "--noflush", "--nolockfs", disk]);
    run("dmsetup", &["load", disk, "--table", table]);
    run("dmsetup", &["resume", disk]);
}
