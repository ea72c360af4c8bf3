//! Instances: made, resized, served, attached, removed.

use std::os::unix::fs::PermissionsExt;

use tandem_sdk::contract::{
    AccessReport, Attach, AttachKind, Attachment, Capabilities, CreateInstance, DeleteInstance, Detach,
    EnsureInstance, InstanceId, InstanceInfo, InstanceSpec, Observation, ObserveInstance, Outcome, Pool,
    ResizeInstance, ResourceKind, Role, Style, UpdateAccess,
};
use tandem_sdk::{
    Attachable, Attached, Client, Driver, Error, ErrorKind, Exporter, Lock, OpContext, Result, settings,
};

use crate::image::{Found, Image};
use crate::meta::Meta;
use crate::{Config, Inner, TOKEN, Zfs, apart, error, lzc, names, observe, store, tool};
use tandem_sdk::files::failed;

impl Driver for Zfs {
    const NAME: &'static str = "zfs";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "ZFS datasets, mirrored by snapshots and streams, exported over NFS.";
    const TOKENS: &'static [(&'static str, u32)] = &[TOKEN];
    type Config = Config;

    async fn open(mut config: Config) -> Result<Self> {
        let share_mode = config.check()?;
        config.mounts = settings::real_folder("mounts", &config.mounts)?;
        let exporter = Exporter::new(&config.export)?;
        lzc::open()?;
        apart::counted()?;
        tool::alive(&config.dataset)?;
        let encrypts = lzc::encrypts(&config.dataset)
            .map_err(|errno| error::of_errno("look at", &config.dataset, errno))?;
        Ok(Self { inner: std::sync::Arc::new(Inner { config, share_mode, exporter }), encrypts })
    }

    fn capabilities(&self) -> Capabilities {
        observe::capabilities(&self.inner, self.encrypts)
    }

    async fn pools(&self, cx: &OpContext) -> Result<Vec<Pool>> {
        self.inner.pools(cx).await
    }

    async fn list_instances(&self, cx: &OpContext) -> Result<Vec<InstanceId>> {
        self.inner.instances(cx).await
    }

    async fn observe_instance(&self, cx: &OpContext, call: ObserveInstance) -> Result<Option<Observation>> {
        self.inner.observe(cx, call.instance).await
    }

    async fn create_instance(&self, cx: &OpContext, call: CreateInstance) -> Result<Outcome<InstanceInfo>> {
        self.inner.create(cx, call.spec, Role::Active).await
    }

    async fn resize_instance(&self, cx: &OpContext, call: ResizeInstance) -> Result<Outcome<InstanceInfo>> {
        self.inner.resize(cx, &call).await
    }

    async fn delete_instance(&self, cx: &OpContext, call: DeleteInstance) -> Result<Outcome<()>> {
        self.inner.delete(cx, call.instance).await
    }

    async fn update_access(&self, cx: &OpContext, call: UpdateAccess) -> Result<Outcome<AccessReport>> {
        let mut locked = self.inner.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        let report = self.inner.exporter.report(&call.access);
        let before = (image.meta.read_only, image.meta.clients.clone());
        image.meta.read_only = call.access.read_only;
        // As granted; what holds now is decided when it is served.
        let granted = tandem_sdk::contract::AccessSpec { read_only: false, ..call.access };
        image.meta.clients =
            if self.inner.exporter.access_types().is_empty() { Vec::new() } else { Client::all(&granted) };
        let changed = before != (image.meta.read_only, image.meta.clients.clone());
        self.inner.save(cx, image).await?;
        // Only what is served already: after a boot the epoch is to be confirmed first.
        let served = if self.inner.is_reachable(image) { self.inner.serve(cx, image).await? } else { false };
        Ok(Outcome::of(changed || served || rose, report))
    }

    async fn ensure_instance(&self, cx: &OpContext, call: EnsureInstance) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.inner.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        self.inner.save(cx, image).await?;
        let changed = self.inner.serve(cx, image).await?;
        Ok(Outcome::of(rose || changed, self.inner.info(image)))
    }
}

impl Attachable for Zfs {
    /// Without the instance's lock: it may come and go while a transfer holds that.
    async fn attach(&self, cx: &OpContext, call: Attach) -> Result<Outcome<Attachment>> {
        let inner = &self.inner;
        let mut image = inner.existing(cx, call.instance).await?;
        image.meta.epoch.see(call.epoch)?;
        let encrypted = crate::stream::content(&image)?.encrypted;
        if encrypted && call.read_only && !inner.config.copy_encrypted {
            return Err(Error::conflict(format!(
                "instance {} is encrypted, and a copy from host to host would not be; let its driver migrate it, or set \
                 `copy_encrypted = true` for its back end",
                call.instance
            ))
            .retry(tandem_sdk::Retry::AfterOperator));
        }
        let (attached, changed) = Attached::after(image.meta.attached, &call)?;
        image.meta.attached = Some(attached);
        inner.save(cx, &mut image).await?;
        if !inner.is_reachable(&image) {
            inner.unmount(cx, &image).await?;
            inner.mount(cx, &image).await?;
        }
        let path = inner.path(call.instance).to_string_lossy().into_owned();
        Ok(Outcome::of(changed, Attachment { kind: AttachKind::Tree, path, root_mode: None }))
    }

    async fn detach(&self, cx: &OpContext, call: Detach) -> Result<Outcome<()>> {
        let inner = &self.inner;
        let Some(mut image) = inner.find(cx, call.instance).await? else {
            return Ok(Outcome::Unchanged(()));
        };
        let was = image.meta.attached.take();
        if was.is_some() && !image.meta.is_served() {
            inner.unmount(cx, &image).await?;
        }
        inner.save(cx, &mut image).await?;
        Ok(Outcome::of(was.is_some(), ()))
    }
}

/// The options of a share type that become properties of the dataset.
const OPTIONS: &[&str] = &["compression", "recordsize", "atime", "xattr", "acltype", "logbias", "sync"];
/// What a share gets where its type does not say otherwise. Not what is set above the datasets: a replica is to be what its
/// active one is, and streams carry no properties. Without the first two, what ACLs say would count on one side only.
const USUAL: &[(&str, &str)] = &[(ACLS, "posix"), ("xattr", "sa"), ("atime", "off")];
/// The property without which ACLs do not count.
pub(crate) const ACLS: &str = "acltype";
/// The option that says what a share's size counts.
const QUOTA: &str = "quota";

/// Whether a share's size counts its snapshots too (`zfs:quota = all`).
pub(crate) fn counts_snapshots(spec: &InstanceSpec) -> bool {
    spec.options.get(QUOTA).and_then(|v| v.as_str()) == Some("all")
}

/// The properties that a spec asks for.
fn options(spec: &InstanceSpec) -> Result<Vec<String>> {
    let mut properties: Vec<String> =
        USUAL.iter().map(|(property, value)| format!("{property}={value}")).collect();
    for (key, value) in &spec.options {
        let value = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if key == QUOTA {
            if !["data", "all"].contains(&value.as_str()) {
                return Err(Error::invalid(format!(
                    "the extra spec `zfs:quota` is `{value}`; it is `data` (a share's size counts its files) or `all` \
                     (its snapshots too)"
                )));
            }
            continue;
        }
        let plain =
            !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !OPTIONS.contains(&key.as_str()) || !plain {
            return Err(Error::invalid(format!(
                "the extra spec `zfs:{key}` = `{value}` is unknown; there are {} and {QUOTA}",
                OPTIONS.join(", ")
            )));
        }
        properties.retain(|p| !p.starts_with(&format!("{key}=")));
        properties.push(format!("{key}={value}"));
    }
    Ok(properties)
}

impl Inner {
    fn check(&self, spec: &InstanceSpec, role: Role) -> Result<()> {
        if spec.kind != ResourceKind::Share {
            return Err(Error::unsupported("the ZFS driver keeps shares only"));
        }
        if spec.protocol != "NFS" {
            return Err(Error::unsupported(format!(
                "the ZFS driver serves NFS only, not `{}`",
                spec.protocol
            )));
        }
        if spec.pool != self.config.pool() {
            return Err(Error::invalid(format!(
                "there is no pool `{}`; it is `{}`",
                spec.pool,
                self.config.pool()
            )));
        }
        if spec.size_bytes == 0 || spec.size_bytes > 1 << 60 {
            return Err(Error::invalid(format!("{} bytes are no size of a share", spec.size_bytes)));
        }
        match spec.replication.as_ref().map(|r| r.style) {
            None if role != Role::Secondary => Ok(()),
            None => Err(Error::invalid("a replica needs a replication style")),
            Some(Style::Readable | Style::Dr) => Ok(()),
            Some(style) => Err(Error::unsupported(format!(
                "ZFS replicates in the styles readable and dr, not {}; writable needs storage that replicates by itself",
                style.as_str()
            ))),
        }
    }

    /// Makes an instance in the role it is born to.
    pub(crate) async fn create(
        &self,
        cx: &OpContext,
        spec: InstanceSpec,
        role: Role,
    ) -> Result<Outcome<InstanceInfo>> {
        self.check(&spec, role)?;
        let id = spec.instance;
        let properties = options(&spec)?;
        match self.look(cx, id).await? {
            Found::Instance(_) => return self.again(cx, spec, role).await,
            Found::Leftover => self.remove_leftover(cx, id).await?,
            Found::Nothing => {}
        }
        let lock = Lock::at(&self.config.run, id)?;
        let (meta, name) = (Meta::new(spec, role), self.name(id));
        self.make_parent(cx).await?;
        let arguments = store::creation(&meta, &name, &properties)?;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tool::zfs(cx, &name, &arguments).await?;
        let mut image = self.existing(cx, id).await?;
        self.fill(cx, &mut image).await?;
        drop(lock);
        Ok(Outcome::Changed(self.info(&image)))
    }

    /// The instance is there already.
    async fn again(&self, cx: &OpContext, spec: InstanceSpec, role: Role) -> Result<Outcome<InstanceInfo>> {
        let id = spec.instance;
        let mut locked = self.lock(cx, id).await?.ok_or_else(|| self.missing(id))?;
        let image = &mut locked.image;
        image.meta.epoch.admit(spec.epoch)?;
        let same = InstanceSpec { epoch: spec.epoch, ..image.meta.spec.clone() } == spec;
        if !same || image.meta.born != role || image.meta.deleting {
            return Err(Error::conflict(format!(
                "instance {id} exists already, and is not what this call would make; delete it or use another id"
            ))
            .with("exists_for_resource", image.meta.spec.resource)
            .with("exists_with_bytes", image.meta.spec.size_bytes));
        }
        let unfinished = image.meta.role == Role::Active && image.meta.version == 0;
        if unfinished {
            self.fill(cx, image).await?;
        } else if image.meta.role == role {
            self.serve(cx, image).await?;
        }
        Ok(Outcome::of(unfinished, self.info(image)))
    }

    /// Gives a new active instance its first content, and serves it.
    async fn fill(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        if image.meta.role == Role::Active {
            let name = format!("{}/{}", image.name, names::of_version(1));
            if image.incoming().is_none() {
                let (kind, other) = if counts_snapshots(&image.meta.spec) {
                    ("quota", "refquota")
                } else {
                    ("refquota", "quota")
                };
                let (size, none) = (format!("{kind}={}", image.meta.size_bytes), format!("{other}=none"));
                let args = ["create", "-u", "-o", "canmount=noauto", "-o", &size, "-o", &none, &name];
                tool::zfs(cx, &name, &args).await?;
            }
            self.refresh(cx, image).await?;
            // Nobody finds it before its root is as it should be.
            let (path, mode, dataset) = (self.path(image.meta.spec.instance), self.share_mode, name.clone());
            cx.blocking(move |_| {
                if crate::mount::mounted(&path).as_deref() != Some(&*dataset) {
                    crate::mount::mount(&dataset, &path)?;
                }
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                    .map_err(|e| failed("set the permissions of", &path, &e))
            })
            .await?;
            image.meta.version = 1;
            self.save(cx, image).await?;
            self.flush(cx).await?;
            self.refresh(cx, image).await?;
        }
        self.serve(cx, image).await.map(drop)
    }

    async fn make_parent(&self, cx: &OpContext) -> Result<()> {
        let parent = self.config.dataset.clone();
        let there = cx.blocking(move |_| Ok(lzc::exists(&parent))).await?;
        if there {
            return Ok(());
        }
        let parent = &self.config.dataset;
        let args = ["create", "-p", "-u", "-o", "canmount=off", "-o", "mountpoint=none", parent];
        match tool::zfs(cx, parent, &args).await {
            // Another call was faster.
            Err(e) if e.kind == ErrorKind::Conflict => Ok(()),
            other => other.map(drop),
        }
    }

    async fn resize(&self, cx: &OpContext, call: &ResizeInstance) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        if call.size_bytes == 0 || call.size_bytes > 1 << 60 {
            return Err(Error::invalid(format!("{} bytes are no size of a share", call.size_bytes)));
        }
        let changed = image.meta.size_bytes != call.size_bytes;
        if call.size_bytes < image.meta.size_bytes {
            // What it could not hold afterwards would not be replayed either.
            self.replay(cx, image).await?;
            self.flush(cx).await?;
            self.refresh(cx, image).await?;
            image.meta.epoch.see(call.epoch)?;
            let used = image.current().map_or(0, |v| v.referenced);
            if call.size_bytes < used {
                return Err(Error::out_of_space(format!(
                    "instance {} holds {used} bytes; it cannot shrink to {}",
                    call.instance, call.size_bytes
                )));
            }
        }
        image.meta.size_bytes = call.size_bytes;
        self.save(cx, image).await?;
        if self.is_reachable(image) {
            self.serve(cx, image).await?;
        }
        Ok(Outcome::of(changed || rose, self.info(image)))
    }

    /// Removes an instance and every trace of it, but nothing that somebody else made.
    pub(crate) async fn delete(&self, cx: &OpContext, id: InstanceId) -> Result<Outcome<()>> {
        match self.look(cx, id).await? {
            Found::Nothing => {
                let (path, exporter) = (self.path(id), self.exporter.clone());
                // A killed deletion may have left its export, its folder or its lock.
                let closed = self.exporter.close(cx, &id.to_string(), &path).await?;
                let unmounted = if path.exists() {
                    cx.blocking(move |_| crate::mount::unmount(&path, &exporter)).await?
                } else {
                    false
                };
                self.forget_locks(id);
                return Ok(Outcome::of(closed || unmounted, ()));
            }
            Found::Leftover => {
                self.remove_leftover(cx, id).await?;
                return Ok(Outcome::Changed(()));
            }
            Found::Instance(_) => {}
        }
        let Some(mut locked) = self.lock(cx, id).await? else { return Ok(Outcome::Unchanged(())) };
        let image = &mut locked.image;
        let copied = self.copied(cx, image).await;
        image.foreign.retain(|name| !copied.contains(name));
        if let Some(foreign) = image.foreign.first().filter(|_| !self.config.delete_foreign_snapshots) {
            return Err(Error::conflict(format!(
                "instance {id} is not deleted, since `{foreign}` was made by somebody else; destroy or move it, or set \
                 `delete_foreign_snapshots`"
            ))
            .retry(tandem_sdk::Retry::AfterOperator));
        }
        image.meta.deleting = true;
        image.meta.attached = None;
        self.save(cx, image).await?;
        self.serve_nobody(cx, image).await?;
        for version in image.versions.clone().iter().rev() {
            if version.token.is_some() {
                tool::zfs(cx, &version.name, &["receive", "-A", &version.name]).await?;
            }
            for moment in &version.points {
                self.destroy_point(cx, version, moment.point).await?;
            }
            self.destroy_moves(cx, version, |_| true).await?;
        }
        for snapshot in &copied {
            self.destroy_snapshot(cx, snapshot, false).await?;
        }
        if image.foreign.is_empty() {
            for version in &image.versions {
                self.destroy_dataset(cx, &version.name).await?;
            }
            self.destroy_dataset(cx, &image.name).await?;
        } else {
            tool::zfs(cx, &image.name, &["destroy", "-r", &image.name]).await?;
        }
        self.forget_locks(id);
        tracing::info!(instance = %id, "Deleted the instance.");
        Ok(Outcome::Changed(()))
    }

    /// Removes the files of an instance's locks.
    fn forget_locks(&self, id: InstanceId) {
        Lock::remove(&self.config.run, id);
        Lock::remove(&self.moves(), id);
    }

    /// A dataset without our data, of an instance's name: gone if it is empty, else it is somebody else's.
    async fn remove_leftover(&self, cx: &OpContext, id: InstanceId) -> Result<()> {
        let name = self.name(id);
        let gone =
            tool::kernel(cx, "destroy", &name, |name| crate::stream::tolerate_gone(lzc::destroy(name)));
        match gone.await {
            Err(e) => Err(Error::conflict(format!(
                "the dataset `{name}` bears the name of an instance but none of Tandem's data, and is not empty; rename it"
            ))
            .with("because", e)),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(options: serde_json::Value) -> InstanceSpec {
        serde_json::from_value(serde_json::json!({
            "instance": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1",
            "resource": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a2",
            "kind": "share", "pool": "tank", "size_bytes": 1, "protocol": "NFS", "epoch": 3, "options": options
        }))
        .unwrap()
    }

    #[test]
    fn extra_specs_become_properties() {
        let of = |json| options(&spec(json));
        assert_eq!(of(serde_json::json!({})).unwrap(), ["acltype=posix", "xattr=sa", "atime=off"]);
        let all = of(
            serde_json::json!({"compression": "zstd-3", "recordsize": "1M", "atime": "on", "quota": "all", "acltype": "off"}),
        );
        assert_eq!(
            all.unwrap(),
            ["xattr=sa", "compression=zstd-3", "recordsize=1M", "atime=on", "acltype=off"]
        );
        for wrong in [
            serde_json::json!({"mountpoint": "x"}),
            serde_json::json!({"compression": ""}),
            serde_json::json!({"compression": "lz4 -o x=y"}),
            serde_json::json!({"quota": "some"}),
        ] {
            let error = of(wrong.clone()).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{wrong}");
        }
        assert!(counts_snapshots(&spec(serde_json::json!({"quota": "all"}))));
        assert!(!counts_snapshots(&spec(serde_json::json!({}))));
    }
}
