//! Instances: made, resized, served, attached, removed.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use tandem_sdk::contract::{
    AccessReport, AccessSpec, Attach, AttachKind, Attachment, Capabilities, CreateInstance, DeleteInstance,
    Detach, EnsureInstance, InstanceId, InstanceInfo, InstanceSpec, Observation, ObserveInstance, Outcome,
    Pool, ResizeInstance, ResourceKind, UpdateAccess,
};
use tandem_sdk::{
    Attachable, Attached, Client, Driver, Error, Exporter, Lock, News, OpContext, Result, Role, Style,
    settings,
};

use crate::drbd::handshake::Silent;
use crate::drbd::record::{Protocol, Record};
use crate::drbd::starved::Starved;
use crate::image::{Found, Image};
use crate::meta::{MARK, Meta};
use crate::report::{LVS, Volume};
use crate::worker::{Setup, Worker};
use crate::{Config, Filesystem, Inner, Lvm, names, o2cb, observe, program, store, system};
use tandem_sdk::files::failed;

/// The largest share. ext4 and XFS could be larger, but not checked or repaired in a time that anybody would wait.
const LARGEST: u64 = 64 << 40;

impl Driver for Lvm {
    const NAME: &'static str = "lvm";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str = "LVM thin volumes with ext4 or XFS, exported over NFS.";
    type Config = Config;

    async fn open(mut config: Config) -> Result<Self> {
        let share_mode = config.check()?;
        config.mounts = settings::real_folder("mounts", &config.mounts)?;
        let exporter = Exporter::new(&config.export)?;
        config.filesystem.require_tools()?;
        let udev = system::has_udev();
        let setup = Setup {
            program: program::find(program::WORKER, config.worker.as_deref())?,
            system: system::write(&config, udev)?,
            udev,
        };
        if let Some(drbd) = &config.drbd {
            drbd.require()?;
            drbd.claim(&config.run, &config.group)?;
            if drbd.writable.is_some() {
                o2cb::require()?;
                Filesystem::Ocfs2.require_tools()?;
            }
        }
        let (worker, silent, starved) = (Worker::new(setup), Silent::default(), Starved::default());
        let inner = Inner { worker, config, share_mode, exporter, silent, starved };
        let pool = inner.config.of_group(&inner.config.thin_pool);
        let words: Vec<&str> = LVS.iter().copied().chain([pool.as_str()]).collect();
        let report = inner.worker.report_at_open(&words).await?;
        inner.require_zeroes(inner.pool_of(&report)?)?;
        Ok(Self { inner: Arc::new(inner) })
    }

    fn capabilities(&self) -> Capabilities {
        observe::capabilities(&self.inner)
    }

    async fn watch(&self, news: News) {
        self.inner.watch(&news).await;
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
        self.inner.create(cx, &call.spec, Role::Active).await
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
        let granted = AccessSpec { read_only: false, ..call.access };
        image.meta.clients =
            if self.inner.exporter.access_types().is_empty() { Vec::new() } else { Client::all(&granted) };
        let changed = before != (image.meta.read_only, image.meta.clients.clone());
        self.inner.save(cx, image).await?;
        // Only what is served already: after a boot the epoch is to be confirmed first.
        let reachable = self.inner.mounted(image).is_some();
        let served = if reachable { self.inner.serve(cx, image).await? } else { false };
        Ok(Outcome::of(changed || served || rose, report))
    }

    async fn ensure_instance(&self, cx: &OpContext, call: EnsureInstance) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.inner.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        self.inner.save(cx, image).await?;
        let changed = self.inner.serve(cx, image).await?;
        let shown = self.inner.show(cx, image).await.or_else(|error| {
            // It follows nevertheless; its report says what users are not shown.
            cx.check()?;
            tracing::warn!(instance = %call.instance, %error, "Users are not shown what it holds.");
            Ok(false)
        })?;
        Ok(Outcome::of(rose || changed || shown, self.inner.info(image)))
    }
}

impl Attachable for Lvm {
    async fn attach(&self, cx: &OpContext, call: Attach) -> Result<Outcome<Attachment>> {
        let inner = &self.inner;
        let mut locked = inner.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        image.meta.epoch.see(call.epoch)?;
        if !image.meta.made {
            return Err(Error::conflict(format!("instance {} is not whole; make it again", call.instance)));
        }
        if image.meta.role != Role::Active {
            return Err(Error::conflict(format!(
                "instance {} is no active one, and DRBD shows its content on the active side only; attach that one",
                call.instance
            )));
        }
        let (attached, changed) = Attached::after(image.meta.attached, &call)?;
        image.meta.attached = Some(attached);
        inner.save(cx, image).await?;
        inner.wake(cx, image).await?;
        if inner.standing(cx, image).await?.is_none_or(|there| there.stopped) {
            inner.exporter.close(cx, &call.instance.to_string(), &inner.path(call.instance)).await?;
            inner.unmount(cx, image).await?;
            let read_only = !image.meta.is_writable();
            inner.mount(cx, image, read_only).await?;
        }
        let path = inner.path(call.instance).to_string_lossy().into_owned();
        Ok(Outcome::of(changed, Attachment { kind: AttachKind::Tree, path, root_mode: None }))
    }

    async fn detach(&self, cx: &OpContext, call: Detach) -> Result<Outcome<()>> {
        let inner = &self.inner;
        let Some(mut locked) = inner.lock(cx, call.instance).await? else {
            return Ok(Outcome::Unchanged(()));
        };
        let image = &mut locked.image;
        let was = image.meta.attached.take();
        // A share that is not exported was mounted for this alone.
        if was.is_some() && !inner.is_exported(image) {
            inner.take_away(cx, image).await?;
        }
        inner.save(cx, image).await?;
        Ok(Outcome::of(was.is_some(), ()))
    }
}

/// What the extra specs of a share type ask for.
fn options(spec: &InstanceSpec, usual: Filesystem) -> Result<(Filesystem, Protocol)> {
    let joint = spec.replication.as_ref().is_some_and(|replication| replication.style == Style::Writable);
    let usual = if joint { Filesystem::Ocfs2 } else { usual };
    let (mut filesystem, mut protocol) = (usual, Protocol::default());
    for (key, value) in &spec.options {
        let is = |what: &str| Error::invalid(format!("the extra spec `lvm:{key}` is {value}; it is {what}"));
        let text = value.as_str();
        match key.as_str() {
            "filesystem" => {
                let named = text.and_then(Filesystem::named).filter(|named| named.is_shared() == joint);
                let what = "`ext4` or `xfs`, and of shares in the style `writable` always `ocfs2`";
                filesystem = named.ok_or_else(|| is(what))?;
            }
            "protocol" => {
                let named = text.and_then(Protocol::named).filter(|named| !joint || *named == Protocol::C);
                let what = "`C` or `A`, and of shares in the style `writable` always `C`";
                protocol = named.ok_or_else(|| is(what))?;
            }
            _ => {
                return Err(Error::invalid(format!(
                    "the extra spec `lvm:{key}` = {value} is unknown; there are `lvm:filesystem` and `lvm:protocol`"
                )));
            }
        }
    }
    Ok((filesystem, protocol))
}

impl Inner {
    pub(crate) fn check(&self, spec: &InstanceSpec) -> Result<(Filesystem, Protocol)> {
        if spec.kind != ResourceKind::Share {
            return Err(Error::unsupported("the LVM driver keeps shares only"));
        }
        if spec.protocol != "NFS" {
            return Err(Error::unsupported(format!(
                "the LVM driver serves NFS only, not `{}`",
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
        if let Some(replication) = &spec.replication {
            let drbd = self.drbd()?;
            drbd.require()?;
            if replication.style == Style::Writable && drbd.writable.is_none() {
                return Err(Error::unsupported(
                    "this back end replicates in the styles `readable` and `dr`; for `writable` give it the setting \
                     `drbd.writable`",
                ));
            }
            if replication.instances > 2 {
                return Err(Error::unsupported(format!(
                    "DRBD 8.4 joins two instances of a share, not {}",
                    replication.instances
                )));
            }
        }
        let (filesystem, protocol) = options(spec, self.config.filesystem)?;
        check_size(spec.size_bytes, filesystem)?;
        filesystem.require_tools()?;
        Ok((filesystem, protocol))
    }

    pub(crate) async fn create(
        &self,
        cx: &OpContext,
        spec: &InstanceSpec,
        role: Role,
    ) -> Result<Outcome<InstanceInfo>> {
        let (filesystem, protocol) = self.check(spec)?;
        let (id, mut meta) = (spec.instance, Meta { role, ..Meta::new(spec, filesystem) });
        let lock = Lock::at(&self.config.run, id)?;
        match self.look(cx, id).await? {
            Found::Foreign => {
                return Err(Error::conflict(format!(
                    "the volume `{}` bears the name of an instance but none of Tandem's tags; rename it",
                    self.of(id)
                )));
            }
            Found::Instance(mut image) => {
                let style = spec.replication.as_ref().map(|replication| replication.style);
                let other = image.meta.record.as_ref().map(|record| record.style) != style
                    || image.meta.record.as_ref().is_some_and(|record| record.protocol != protocol);
                if let Some(done) = self.again(cx, &mut image, &meta, other).await? {
                    return Ok(done);
                }
            }
            Found::Nothing => {}
        }
        let pool = self.ready_pool(cx).await?;
        if let Some(replication) = &spec.replication {
            let _numbers = self.lock_numbers(cx).await?;
            let (minor, port) = self.free_numbers(cx, self.drbd()?).await?;
            let (style, peer) = (replication.style, None);
            meta.record = Some(Record { style, protocol, minor, port, peer, last: false, diskless: false });
            self.make(cx, &pool, &meta).await?;
            self.make_metadata(cx, id).await?;
        } else {
            self.make(cx, &pool, &meta).await?;
        }
        let mut image = self.existing(cx, id).await?;
        self.lay(cx, &mut image).await?;
        if role == Role::Secondary {
            image.meta.made = true;
            self.save(cx, &mut image).await?;
            self.serve(cx, &mut image).await?;
        } else {
            self.fill(cx, &mut image).await?;
        }
        drop(lock);
        Ok(Outcome::Changed(self.info(&image)))
    }

    /// The instance is there already. `None` when it was half made, and is gone now.
    async fn again(
        &self,
        cx: &OpContext,
        image: &mut Image,
        meta: &Meta,
        other: bool,
    ) -> Result<Option<Outcome<InstanceInfo>>> {
        image.meta.epoch.admit(meta.epoch)?;
        // Its own removal by an earlier one of these calls may have been cut.
        if other || image.meta.birth != meta.birth || (image.meta.deleting && image.meta.made) {
            return Err(Error::conflict(format!(
                "instance {} exists already, and is not what this call would make; delete it or use another id",
                meta.birth.instance
            ))
            .with("exists_for_resource", image.meta.birth.resource)
            .with("exists_with_bytes", image.meta.birth.size_bytes));
        }
        if !image.meta.made {
            // Nobody has ever used it, and only a volume that was never written to reads as zeros.
            self.remove(cx, image).await?;
            return Ok(None);
        }
        self.serve(cx, image).await?;
        Ok(Some(Outcome::Unchanged(self.info(image))))
    }

    /// Makes the volume, with all its tags from the first moment on.
    async fn make(&self, cx: &OpContext, pool: &Volume, meta: &Meta) -> Result<()> {
        let name = names::of_instance(meta.birth.instance);
        let size = format!("{}b", pool.rounded(meta.size_bytes));
        let tags = meta.tags()?;
        // A boot does not activate it (-k y), this does (-K).
        let mut words = vec!["lvcreate", "-y", "--type", "thin", "-k", "y", "-K", "-n", &name, "-V", &size];
        words.extend(tags.iter().flat_map(|tag| ["--addtag", tag.as_str()]));
        words.extend(["--thinpool", &self.config.thin_pool, &self.config.group]);
        self.worker.run(cx, &words).await
    }

    /// Gives a new instance its file system, and serves it.
    async fn fill(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        self.activate(cx, image).await?;
        self.make_filesystem(cx, image).await?;
        self.mount(cx, image, false).await?;
        // Nobody finds it before its root is as it should be, and on the disks.
        let (path, mode) = (self.path(image.meta.birth.instance), self.share_mode);
        cx.blocking(move |_| {
            // fsck makes it anew when it needs it.
            let _ = std::fs::remove_dir(path.join("lost+found"));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .map_err(|e| failed("set the permissions of", &path, &e))?;
            let root = std::fs::File::open(&path).map_err(|e| failed("open", &path, &e))?;
            rustix::fs::syncfs(&root).map_err(|e| failed("flush", &path, &e.into()))
        })
        .await?;
        image.meta.made = true;
        self.save(cx, image).await?;
        self.serve(cx, image).await.map(drop)
    }

    async fn resize(&self, cx: &OpContext, call: &ResizeInstance) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        check_size(call.size_bytes, image.meta.birth.filesystem)?;
        // While a growth has not been ended the volume may still be as small as it was.
        let wanted = image.volume.rounded(call.size_bytes);
        let shrinks = if image.meta.growing {
            wanted < image.volume.size_bytes
        } else {
            call.size_bytes < image.meta.size_bytes
        };
        if shrinks {
            return Err(Error::unsupported(format!(
                "instance {} is {} bytes large and cannot shrink to {}: file systems on LVM grow only; make a smaller \
                 share and move the files",
                call.instance, image.meta.size_bytes, call.size_bytes
            )));
        }
        if wanted > image.volume.size_bytes {
            self.ready_pool(cx).await?;
        }
        let differs = call.size_bytes != image.meta.size_bytes;
        if differs {
            image.meta.size_bytes = call.size_bytes;
            image.meta.growing = true;
        }
        // What another side began, before this one was promoted, is not known here.
        image.meta.growing |=
            image.meta.record.is_some() && image.meta.role == Role::Active && self.lags(cx, image).await?;
        self.save(cx, image).await?;
        self.wake(cx, image).await?;
        let grown = image.meta.growing;
        self.grow(cx, image).await?;
        Ok(Outcome::of(differs || grown || rose, self.info(image)))
    }

    /// Removes an instance and every trace of it.
    pub(crate) async fn delete(&self, cx: &OpContext, id: InstanceId) -> Result<Outcome<()>> {
        let Some(mut locked) = self.lock(cx, id).await? else {
            return Ok(Outcome::of(self.clear(cx, id).await?, ()));
        };
        self.remove(cx, &mut locked.image).await?;
        Lock::remove(&self.config.run, id);
        tracing::info!(instance = %id, "Deleted the instance.");
        Ok(Outcome::Changed(()))
    }

    /// Takes an instance away and removes its volume.
    async fn remove(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let id = image.meta.birth.instance;
        image.meta.deleting = true;
        image.meta.attached = None;
        self.save(cx, image).await?;
        self.require_told(cx, image).await?;
        self.wake(cx, image).await?;
        self.exporter.close(cx, &id.to_string(), &self.path(id)).await?;
        self.unmount(cx, image).await?;
        self.end_views(cx, image).await?;
        self.stack_down(cx, image).await?;
        // By name and mark: should it have become somebody else's meanwhile, it stays.
        let marked = format!("lv_tags={MARK}");
        if image.metadata.is_some() {
            self.worker.run(cx, &["lvremove", "-y", "-S", &marked, &self.metadata_of(id)]).await?;
        }
        self.worker.run(cx, &["lvremove", "-y", "-S", &marked, &self.of(id)]).await?;
        match self.look(cx, id).await? {
            Found::Instance(_) => Err(store::still_there(id)),
            Found::Nothing | Found::Foreign => Ok(()),
        }
    }
}

fn check_size(bytes: u64, filesystem: Filesystem) -> Result<()> {
    if (filesystem.smallest()..=LARGEST).contains(&bytes) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{bytes} bytes are no size of a share with {}: it is at least {} MiB and at most {} TiB large",
        filesystem.as_str(),
        filesystem.smallest() >> 20,
        LARGEST >> 40
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_sdk::ErrorKind;
    use tandem_sdk::contract::ReplicationSpec;

    fn spec(options: serde_json::Value) -> InstanceSpec {
        serde_json::from_value(serde_json::json!({
            "instance": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1",
            "resource": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a2",
            "kind": "share", "pool": "g", "size_bytes": 1, "protocol": "NFS", "epoch": 3, "options": options
        }))
        .unwrap()
    }

    #[test]
    fn extra_specs_name_the_file_system() {
        let of = |json| options(&spec(json), Filesystem::Ext4).map(|(filesystem, _)| filesystem);
        assert_eq!(of(serde_json::json!({})).unwrap(), Filesystem::Ext4);
        assert_eq!(of(serde_json::json!({"filesystem": "xfs"})).unwrap(), Filesystem::Xfs);
        for wrong in [
            serde_json::json!({"filesystem": "btrfs"}),
            serde_json::json!({"filesystem": 4}),
            serde_json::json!({"protocol": "B"}),
            serde_json::json!({"chunk": "64k"}),
        ] {
            assert_eq!(of(wrong.clone()).unwrap_err().kind, ErrorKind::InvalidArgument, "{wrong}");
        }
    }

    #[test]
    fn what_two_hosts_write_to_is_ocfs2_by_protocol_c() {
        let of = |json| {
            let replication = Some(ReplicationSpec { style: Style::Writable, instances: 2 });
            options(&InstanceSpec { replication, ..spec(json) }, Filesystem::Xfs)
        };
        for fine in [serde_json::json!({}), serde_json::json!({"filesystem": "ocfs2", "protocol": "C"})] {
            assert_eq!(of(fine).unwrap(), (Filesystem::Ocfs2, Protocol::C));
        }
        for wrong in [serde_json::json!({"filesystem": "ext4"}), serde_json::json!({"protocol": "A"})] {
            assert!(of(wrong.clone()).unwrap_err().message.contains("writable"), "{wrong}");
        }
        let alone = options(&spec(serde_json::json!({"filesystem": "ocfs2"})), Filesystem::Ext4);
        assert_eq!(alone.unwrap_err().kind, ErrorKind::InvalidArgument);
    }

    #[test]
    fn sizes_have_bounds() {
        for (bytes, fs, fine) in [
            (1 << 30, Filesystem::Xfs, true),
            (100 << 20, Filesystem::Xfs, false),
            (100 << 20, Filesystem::Ext4, true),
            (0, Filesystem::Ext4, false),
            (u64::MAX, Filesystem::Ext4, false),
        ] {
            assert_eq!(check_size(bytes, fs).is_ok(), fine, "{bytes}");
        }
    }
}
