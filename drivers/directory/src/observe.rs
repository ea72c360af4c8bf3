//! What is really there: pools, instances, how full they are.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_sdk::contract::{
    AttachKind, Capabilities, Epoch, Health, InstanceId, MigrationCapability, Observation, PointId,
    PointInfo, Pool, Progress, ReplicaReport, ReplicaState, ReplicationCapability, ResourceId, ResumeToken,
    Role, Style, Transport,
};
use tandem_sdk::mirror::{self, Control, FINGERPRINT_SCHEME, ManifestReader, RootMode, STREAM_FORMAT};
use tandem_sdk::{OpContext, Result};

use crate::TOKEN;
use crate::config::Config;
use crate::migration::{SYSTEM, system};
use crate::store::{Instance, Meta, Store, from_mirror, io_error};

/// What a folder can do.
pub(crate) fn capabilities(config: &Config) -> Capabilities {
    Capabilities {
        resources: vec![tandem_sdk::contract::ResourceKind::Share],
        share_protocols: vec!["NFS".to_owned()],
        extend: true,
        shrink: true,
        thin: true,
        replication: Some(ReplicationCapability {
            styles: vec![Style::Readable, Style::Dr],
            transport: Transport::Streamed { formats: vec![STREAM_FORMAT.to_owned()], resumable: true },
            domain: Some(config.replication_domain.clone()),
            max_instances: None,
            quiesce: false,
            lag_bytes: false,
            converts: false,
            fingerprints: vec![FINGERPRINT_SCHEME.to_owned()],
        }),
        attach: Some(AttachKind::Tree),
        migration: Some(MigrationCapability {
            to_drivers: vec!["directory".to_owned()],
            ..Default::default()
        }),
        extra: [(SYSTEM.to_owned(), system().into())].into_iter().collect(),
        ..Capabilities::default()
    }
}

const GIB: u64 = 1 << 30;

/// Names looked at between two reports.
const OFTEN: u64 = 1024;

/// Tells that a walk over names, whose end nobody knows, moves.
pub(crate) struct Walk<'a> {
    cx: &'a OpContext,
    phase: &'static str,
    seen: AtomicU64,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(cx: &'a OpContext, phase: &'static str) -> Self {
        Self { cx, phase, seen: AtomicU64::new(0) }
    }

    /// Counts one more name; whether the walk is to end.
    pub(crate) fn is_to_end(&self) -> bool {
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        if seen.is_multiple_of(OFTEN) {
            self.cx.progress(Progress::of(self.phase, seen, None));
        }
        self.cx.is_cancelled()
    }
}

/// The one pool.
pub(crate) fn pools(store: &Store) -> Result<Vec<Pool>> {
    let root = &store.config.root;
    let disk = rustix::fs::statvfs(root).map_err(|e| io_error("stat", root, &e.into()))?;
    let mut allocated = 0u64;
    for id in instances(store)? {
        if let Some(instance) = store.find(id)? {
            allocated = allocated.saturating_add(instance.meta.size_bytes);
        }
    }
    let (mut total, mut free) = (disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize);
    if let Some(capacity) = store.config.capacity_gib.map(|gib| gib.saturating_mul(GIB)) {
        total = total.min(capacity);
        free = free.min(capacity.saturating_sub(allocated));
    }
    let warning = (free < total / 20).then(|| format!("less than 5 % of `{}` is free", root.display()));
    Ok(vec![Pool {
        name: store.config.pool.clone(),
        total_bytes: Some(total),
        free_bytes: Some(free),
        allocated_bytes: Some(allocated),
        warning,
        ..Pool::default()
    }])
}

/// Every instance, those included whose making or removal was interrupted.
pub(crate) fn instances(store: &Store) -> Result<Vec<InstanceId>> {
    let dir = store.instances();
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(|e| io_error("list", &dir, &e))? {
        let name = entry.map_err(|e| io_error("list", &dir, &e))?.file_name();
        let name = name.to_string_lossy();
        if let Ok(id) = name.strip_prefix(".new-").unwrap_or(&name).parse() {
            found.push(id);
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Bytes that the current tree takes.
pub(crate) fn used(instance: &Instance, cx: &OpContext) -> Result<u64> {
    if instance.meta.version == 0 {
        return Ok(0);
    }
    let walk = Walk::new(cx, "count");
    let cancelled = || walk.is_to_end();
    let control = Control::new(&cancelled, &|_| {});
    mirror::usage(&instance.open_tree()?, &control).map_err(|e| from_mirror(&e))
}

/// The sentence about a share that outgrew its size.
pub(crate) fn over_size(meta: &Meta, used: u64) -> Option<String> {
    (used > meta.size_bytes).then(|| {
        format!(
            "over size: the share holds {used} bytes and its size is {}; a folder cannot stop it, but what is over \
             is not replicated; extend the share or delete files",
            meta.size_bytes
        )
    })
}

/// Points that the instance holds, oldest first.
fn points(instance: &Instance, cx: &OpContext) -> Result<Vec<PointInfo>> {
    let meta = &instance.meta;
    Ok(match meta.role {
        Role::Active => meta.points.clone(),
        Role::Fenced if meta.point.is_none() => meta.points.clone(),
        _ if has_strayed(instance, cx)? => Vec::new(),
        _ => meta.point.iter().cloned().collect(),
    })
}

/// Whether the tree of a secondary that was the active one is not its point any more: a file that was open for writing
/// when it was demoted, and root, are held back by no permissions.
pub(crate) fn has_strayed(instance: &Instance, cx: &OpContext) -> Result<bool> {
    let meta = &instance.meta;
    // A tree that arrived is described by no point of its own.
    match meta.point.as_ref().and_then(|at| meta.points.iter().find(|p| p.id == at.id)) {
        Some(point) if meta.role == Role::Secondary => changed_since(instance, Some(point), cx),
        _ => Ok(false),
    }
}

/// Where a cut transfer continues.
fn resume(instance: &Instance) -> Result<Option<ResumeToken>> {
    let Some(staged) = instance.staged()? else { return Ok(None) };
    let to = std::str::from_utf8(&staged.label).ok().and_then(|text| text.parse::<PointId>().ok());
    let data = serde_json::json!({
        "have": staged.resume.to_text(),
        "from": staged.base.map(|root| mirror::hex(&root)),
        "root": mirror::hex(&staged.root),
        "bytes": staged.bytes,
    });
    Ok(Some(ResumeToken { kind: TOKEN.0.to_owned(), version: TOKEN.1, to, data }))
}

fn health(instance: &Instance, used: u64) -> Health {
    let meta = &instance.meta;
    if meta.deleting {
        return Health::Failed { reason: "its deletion was interrupted; delete it again".to_owned() };
    }
    if meta.version > 0 && !instance.tree().is_dir() {
        let reason = format!("its folder `{}` is missing", instance.tree().display());
        return Health::Failed { reason };
    }
    if meta.is_served() && !instance.is_exported() {
        return Health::Degraded {
            reason: "it is not exported; it is once the server confirmed its epoch".to_owned(),
        };
    }
    over_size(meta, used).map_or(Health::Ok, |reason| Health::Degraded { reason })
}

/// What is there of an instance.
pub(crate) fn observe(store: &Store, id: InstanceId, cx: &OpContext) -> Result<Option<Observation>> {
    let Some(instance) = store.find(id)? else {
        let leftover = store.unfinished(id).exists() || store.instances().join(id.to_string()).exists();
        return Ok(leftover.then(|| Observation {
            resource: ResourceId(uuid::Uuid::nil()),
            role: Role::Unknown,
            epoch: Epoch(0),
            size_bytes: 0,
            used_bytes: None,
            exports: Vec::new(),
            read_only: true,
            quiesced: false,
            points: Vec::new(),
            resume: None,
            health: Health::Failed {
                reason: "its making or deletion was interrupted; make or delete it again".into(),
            },
        }));
    };
    let meta = &instance.meta;
    let used = if instance.tree().is_dir() { used(&instance, cx)? } else { 0 };
    Ok(Some(Observation {
        resource: meta.spec.resource,
        role: meta.role,
        epoch: meta.epoch,
        size_bytes: meta.size_bytes,
        used_bytes: Some(used),
        exports: instance.exports(),
        read_only: !meta.is_writable(),
        quiesced: false,
        points: points(&instance, cx)?,
        resume: resume(&instance)?,
        health: health(&instance, used),
    }))
}

/// State and newest point; of the active one also whether anything changed since.
pub(crate) fn replica_state(
    store: &Store,
    id: InstanceId,
    epoch: Epoch,
    cx: &OpContext,
) -> Result<ReplicaReport> {
    let instance = store.existing(id)?;
    let meta = &instance.meta;
    meta.epoch.admit(epoch)?;
    let newest = points(&instance, cx)?.pop();
    let state = match meta.role {
        _ if meta.deleting => ReplicaState::Error,
        Role::Active => ReplicaState::Active,
        Role::Secondary if newest.is_some() => ReplicaState::InSync,
        _ => ReplicaState::OutOfSync,
    };
    // Fenced, it is what it was when it was active.
    let own = meta.role == Role::Active || (meta.role == Role::Fenced && meta.point.is_none());
    let changed = if own { Some(changed_since(&instance, newest.as_ref(), cx)?) } else { None };
    let used = newest
        .as_ref()
        .and_then(|p| mirror::read_summary(&instance.point_file(p.id, "manifest")).ok())
        .map_or(0, |summary| summary.allocated);
    Ok(ReplicaReport {
        state,
        changed_since_point: changed,
        newest_point: newest,
        lag_bytes: None,
        up_to_date: None,
        resync: None,
        split_brain: None,
        position: None,
        health: health(&instance, used),
    })
}

/// Whether the live tree differs from a point of it.
pub(crate) fn changed_since(instance: &Instance, point: Option<&PointInfo>, cx: &OpContext) -> Result<bool> {
    let Some(point) = point else { return Ok(true) };
    // Files that were sent newer than the point says are changes since.
    if instance.point_file(point.id, "variants").exists() {
        return Ok(true);
    }
    let manifest =
        ManifestReader::open(&instance.point_file(point.id, "manifest")).map_err(|e| from_mirror(&e))?;
    let walk = Walk::new(cx, "compare");
    let cancelled = || walk.is_to_end();
    let control = Control::new(&cancelled, &|_| {});
    let root = if instance.meta.root_mode.is_some() { RootMode::Aside } else { RootMode::Counts };
    mirror::changed(&instance.open_tree()?, manifest, root, &control).map_err(|e| from_mirror(&e))
}
