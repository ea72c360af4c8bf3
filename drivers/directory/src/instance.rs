//! Instances: made, resized, served, attached, removed.

use std::fs;

use tandem_sdk::contract::{
    AccessReport, Attach, AttachKind, Attachment, Capabilities, CreateInstance, DeleteInstance, Detach,
    EnsureInstance, InstanceId, InstanceInfo, InstanceSpec, Observation, ObserveInstance, Outcome, Pool,
    ResizeInstance, ResourceKind, Role, RuleReport, Style, UpdateAccess,
};
use tandem_sdk::{Attachable, Driver, Error, ErrorKind, OpContext, Result, mirror};

use crate::store::{Meta, Store, from_mirror, io_error, sync_dir};
use crate::{Config, Directory, TOKEN, observe};

impl Directory {
    /// Runs `work` on a thread that may block.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        cx: &OpContext,
        work: impl FnOnce(&Store, &OpContext) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.store.clone();
        cx.blocking(move |cx| work(&store, cx)).await
    }
}

impl Driver for Directory {
    const NAME: &'static str = "directory";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SUMMARY: &'static str =
        "Plain folders on any Linux file system; needs nothing installed and no root.";
    const TOKENS: &'static [(&'static str, u32)] = &[TOKEN];
    type Config = Config;

    async fn open(config: Config) -> Result<Self> {
        Ok(Self { store: Store::open(config)? })
    }

    fn capabilities(&self) -> Capabilities {
        observe::capabilities(&self.store.config)
    }

    async fn pools(&self, cx: &OpContext) -> Result<Vec<Pool>> {
        self.run(cx, |store, _| observe::pools(store)).await
    }

    async fn list_instances(&self, cx: &OpContext) -> Result<Vec<InstanceId>> {
        self.run(cx, |store, _| observe::instances(store)).await
    }

    async fn observe_instance(&self, cx: &OpContext, call: ObserveInstance) -> Result<Option<Observation>> {
        self.run(cx, move |store, cx| observe::observe(store, call.instance, cx)).await
    }

    async fn create_instance(&self, cx: &OpContext, call: CreateInstance) -> Result<Outcome<InstanceInfo>> {
        self.run(cx, move |store, _| create(store, call.spec, Role::Active)).await
    }

    async fn resize_instance(&self, cx: &OpContext, call: ResizeInstance) -> Result<Outcome<InstanceInfo>> {
        self.run(cx, move |store, cx| resize(store, &call, cx)).await
    }

    async fn delete_instance(&self, cx: &OpContext, call: DeleteInstance) -> Result<Outcome<()>> {
        self.run(cx, move |store, cx| delete(store, call.instance, cx)).await
    }

    async fn update_access(&self, cx: &OpContext, call: UpdateAccess) -> Result<Outcome<AccessReport>> {
        self.run(cx, move |store, _| access(store, &call)).await
    }

    async fn ensure_instance(&self, cx: &OpContext, call: EnsureInstance) -> Result<Outcome<InstanceInfo>> {
        self.run(cx, move |store, _| {
            let mut instance = store.lock_existing(call.instance)?;
            let rose = instance.meta.epoch.see(call.epoch)?;
            if rose {
                instance.save()?;
            }
            let was = instance.is_exported();
            instance.serve()?;
            Ok(Outcome::of(rose || was != instance.is_exported(), instance.info()))
        })
        .await
    }
}

impl Attachable for Directory {
    async fn attach(&self, cx: &OpContext, call: Attach) -> Result<Outcome<Attachment>> {
        self.run(cx, move |store, _| attach(store, &call)).await
    }

    async fn detach(&self, cx: &OpContext, call: Detach) -> Result<Outcome<()>> {
        self.run(cx, move |store, _| {
            let Some(instance) = store.find(call.instance)? else { return Ok(Outcome::Unchanged(())) };
            let file = instance.dir.join(ATTACHED);
            match fs::remove_file(&file) {
                Ok(()) => Ok(Outcome::Changed(())),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Outcome::Unchanged(())),
                Err(e) => Err(io_error("remove", &file, &e)),
            }
        })
        .await
    }
}

/// Says that an instance is attached, and how. A file of its own, since it may come and go while a transfer holds the
/// instance.
const ATTACHED: &str = "attached";

fn attach(store: &Store, call: &Attach) -> Result<Outcome<Attachment>> {
    let mut instance = store.existing(call.instance)?;
    if call.epoch != instance.meta.epoch {
        instance = store.lock_existing(call.instance)?;
        instance.meta.epoch.see(call.epoch)?;
        instance.save()?;
    }
    instance.open_tree()?;
    let how = if call.read_only { "read-only" } else { "read-write" };
    let file = instance.dir.join(ATTACHED);
    let was = match fs::read_to_string(&file) {
        Ok(was) => Some(was),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => return Err(io_error("read", &file, &e)),
    };
    match was.as_deref() {
        Some(was) if was != how => {
            return Err(Error::conflict(format!(
                "instance {} is attached {was}; detach it before it is attached {how}",
                call.instance
            )));
        }
        Some(_) => {}
        None => mirror::write_whole(&instance.dir, ATTACHED, how.as_bytes()).map_err(|e| from_mirror(&e))?,
    }
    let path = instance.tree().to_string_lossy().into_owned();
    let attachment = Attachment { kind: AttachKind::Tree, path, root_mode: instance.meta.root_mode };
    Ok(Outcome::of(was.is_none(), attachment))
}

/// Makes an instance in the role it is born to.
pub(crate) fn create(store: &Store, spec: InstanceSpec, role: Role) -> Result<Outcome<InstanceInfo>> {
    check(store, &spec, role)?;
    let id = spec.instance;
    let Some(mut instance) = store.lock(id)? else {
        let dir = store.instances().join(id.to_string());
        if dir.exists() {
            // Only a deletion that was killed at its very end leaves a folder without meta data.
            mirror::remove_path(&dir, &|| false).map_err(|e| from_mirror(&e))?;
        }
        let mut made = store.make(Meta::new(spec, role))?;
        if role == Role::Destination {
            crate::migration::lay(&mut made)?;
        }
        return Ok(Outcome::Changed(made.info()));
    };
    instance.meta.epoch.admit(spec.epoch)?;
    let same = InstanceSpec { epoch: spec.epoch, ..instance.meta.spec.clone() } == spec;
    if !same || instance.meta.born != role || instance.meta.deleting {
        return Err(Error::conflict(format!(
            "instance {id} exists already, and is not what this call would make; delete it or use another id"
        ))
        .with("exists_for_resource", instance.meta.spec.resource)
        .with("exists_with_bytes", instance.meta.spec.size_bytes));
    }
    if instance.meta.role == Role::Destination {
        crate::migration::lay(&mut instance)?;
    }
    if instance.meta.role == role {
        instance.serve()?;
    }
    Ok(Outcome::Unchanged(instance.info()))
}

fn check(store: &Store, spec: &InstanceSpec, role: Role) -> Result<()> {
    if spec.kind != ResourceKind::Share {
        return Err(Error::unsupported("the directory driver keeps shares only"));
    }
    if spec.protocol != "NFS" {
        return Err(Error::unsupported(format!(
            "the directory driver serves NFS only, not `{}`",
            spec.protocol
        )));
    }
    if spec.pool != store.config.pool {
        return Err(Error::invalid(format!(
            "there is no pool `{}`; it is `{}`",
            spec.pool, store.config.pool
        )));
    }
    match spec.replication.as_ref().map(|r| r.style) {
        None if matches!(role, Role::Active | Role::Destination) => Ok(()),
        None => Err(Error::invalid("a replica needs a replication style")),
        Some(Style::Readable | Style::Dr) => Ok(()),
        Some(style) => Err(Error::unsupported(format!(
            "folders replicate in the styles readable and dr, not {}; writable needs storage that replicates by itself",
            style.as_str()
        ))),
    }
}

fn resize(store: &Store, call: &ResizeInstance, cx: &OpContext) -> Result<Outcome<InstanceInfo>> {
    let mut instance = store.lock_existing(call.instance)?;
    let rose = instance.meta.epoch.see(call.epoch)?;
    let changed = instance.meta.size_bytes != call.size_bytes;
    if call.size_bytes < instance.meta.size_bytes {
        let used = observe::used(&instance, cx)?;
        if call.size_bytes < used {
            return Err(Error::out_of_space(format!(
                "instance {} holds {used} bytes; it cannot shrink to {}",
                call.instance, call.size_bytes
            )));
        }
    }
    instance.meta.size_bytes = call.size_bytes;
    if changed || rose {
        instance.save()?;
    }
    Ok(Outcome::of(changed, instance.info()))
}

/// Removes an instance and every trace of it.
pub(crate) fn delete(store: &Store, id: InstanceId, cx: &OpContext) -> Result<Outcome<()>> {
    let walk = observe::Walk::new(cx, "remove");
    let cancelled = || walk.is_to_end();
    let remove = |path: &std::path::Path| mirror::remove_path(path, &cancelled).map_err(|e| from_mirror(&e));
    let unfinished = store.unfinished(id);
    let mut changed = unfinished.exists();
    remove(&unfinished)?;
    let dir = store.instances().join(id.to_string());
    if let Some(mut instance) = store.lock(id)? {
        changed = true;
        if !instance.meta.deleting {
            instance.meta.deleting = true;
            match instance.save() {
                // Where there is no room to say so, it goes all the same: that makes room.
                Err(e) if e.kind == ErrorKind::OutOfSpace => {}
                other => other?,
            }
        }
        instance.unexport()?;
        // The meta data last: until then every call knows what this was.
        for entry in fs::read_dir(&dir).map_err(|e| io_error("list", &dir, &e))? {
            let entry = entry.map_err(|e| io_error("list", &dir, &e))?;
            if entry.file_name() != "meta.json" {
                remove(&entry.path())?;
            }
        }
        remove(&dir)?;
    } else if dir.exists() {
        changed = true;
        remove(&dir)?;
    }
    let link = store.config.root.join("exports").join(format!(".{id}.new"));
    remove(&link)?;
    if changed {
        sync_dir(&store.instances())?;
    }
    Ok(Outcome::of(changed, ()))
}

/// A folder enforces no rules and says so; only read access for all can be had, by the permissions of its root.
fn access(store: &Store, call: &UpdateAccess) -> Result<Outcome<AccessReport>> {
    let mut instance = store.lock_existing(call.instance)?;
    let rose = instance.meta.epoch.see(call.epoch)?;
    let read_only = call.access.read_only;
    let changed = instance.meta.role == Role::Active && instance.meta.read_only != read_only;
    if changed {
        instance.meta.read_only = read_only;
    }
    if changed || rose {
        instance.save()?;
    }
    if changed {
        instance.serve()?;
    }
    let rules =
        call.access.rules.iter().map(|r| RuleReport { id: r.id, enforced: false, error: None }).collect();
    Ok(Outcome::of(changed, AccessReport { rules }))
}
