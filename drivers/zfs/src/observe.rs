//! What is really there: pools, instances, how full they are.

use std::fs;

use tandem_sdk::contract::{
    AttachKind, Capabilities, Epoch, Health, InstanceId, MigrationCapability, Observation, Pool,
    ReplicaReport, ReplicaState, ReplicationCapability, ResourceId, ResourceKind, ResumeToken, Role, Style,
    Transport,
};
use tandem_sdk::{Error, ErrorKind, Lock, OpContext, Result};

use crate::image::{Found, Image, Moment, Version};
use crate::lzc::Flags;
use crate::migration::{KEEPS_ACLS, SYSTEM, system};
use crate::token::Token;
use crate::{FORMAT, Inner, TOKEN, UNEMBEDDED, store, stream, tool};

/// Bytes that may be nothing but the beginning of an intent log; hardly more than the file system's own notes.
const LITTLE: u64 = 64 << 10;

/// What a pool can do; one that encrypts what it gets says by its formats what it cannot hold.
pub(crate) fn capabilities(inner: &Inner, encrypts: bool) -> Capabilities {
    let formats: &[&str] = if encrypts { &[UNEMBEDDED] } else { &[FORMAT, UNEMBEDDED] };
    let formats = formats.iter().map(|format| (*format).to_owned()).collect();
    let mut capabilities = Capabilities {
        resources: vec![ResourceKind::Share],
        share_protocols: vec!["NFS".to_owned()],
        access_enforcement: inner.exporter.enforcement(),
        access_types: inner.exporter.access_types(),
        extend: true,
        shrink: true,
        thin: true,
        replication: Some(ReplicationCapability {
            styles: vec![Style::Readable, Style::Dr],
            transport: Transport::Streamed { formats, resumable: true },
            domain: Some(inner.config.replication_domain.clone()),
            max_instances: None,
            quiesce: true,
            lag_bytes: false,
            converts: false,
            fingerprints: vec![tandem_sdk::mirror::FINGERPRINT_SCHEME.to_owned()],
        }),
        attach: Some(AttachKind::Tree),
        migration: Some(MigrationCapability { to_drivers: vec!["zfs".to_owned()], ..Default::default() }),
        ..Capabilities::default()
    };
    capabilities.extra.insert(SYSTEM.to_owned(), system().into());
    capabilities.extra.insert(KEEPS_ACLS.to_owned(), true.into());
    capabilities
}

impl Inner {
    /// The one pool.
    pub(crate) async fn pools(&self, cx: &OpContext) -> Result<Vec<Pool>> {
        let parent = &self.config.dataset;
        let listed = async |name: &str| {
            let args = [
                "list",
                "-Hp",
                "-r",
                "-d",
                "1",
                "-t",
                "filesystem",
                "-o",
                "name,used,avail,tandem:size",
                name,
            ];
            tool::zfs(cx, name, &args).await
        };
        let text = match listed(parent).await {
            // It comes with the first share.
            Err(e) if e.kind == ErrorKind::NotFound => listed(self.config.zpool()).await?,
            other => other?,
        };
        let (mut used, mut free, mut allocated) = (0u64, 0u64, 0u64);
        for (row, line) in text.lines().enumerate() {
            let mut fields = line.split('\t');
            let name = fields.next().unwrap_or_default();
            let mut number = || fields.next().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
            let (takes, left, size) = (number(), number(), number());
            if row == 0 {
                (used, free) = (takes, left);
            } else if store::listed(parent, name).is_some() {
                allocated = allocated.saturating_add(size);
            }
        }
        let total = used.saturating_add(free);
        Ok(vec![Pool {
            name: self.config.pool().to_owned(),
            total_bytes: Some(total),
            free_bytes: Some(free),
            allocated_bytes: Some(allocated),
            warning: self.warning(free, total),
            ..Pool::default()
        }])
    }

    fn warning(&self, free: u64, total: u64) -> Option<String> {
        let pool = self.config.zpool();
        let state = fs::read_to_string(format!("/proc/spl/kstat/zfs/{pool}/state")).unwrap_or_default();
        match state.trim() {
            "ONLINE" | "" => {
                (free < total / 10).then(|| format!("less than 10 % of `{}` is free", self.config.dataset))
            }
            other => Some(format!("the ZFS pool `{pool}` is {other}; see `zpool status {pool}`")),
        }
    }

    /// Every instance, leftovers included.
    pub(crate) async fn instances(&self, cx: &OpContext) -> Result<Vec<InstanceId>> {
        let parent = &self.config.dataset;
        let args = ["list", "-H", "-r", "-d", "1", "-t", "filesystem", "-o", "name", parent];
        match tool::zfs(cx, parent, &args).await {
            Err(e) if e.kind == ErrorKind::NotFound => Ok(Vec::new()),
            other => Ok(other?.lines().filter_map(|name| store::listed(parent, name)).collect()),
        }
    }

    /// What is there of an instance.
    pub(crate) async fn observe(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Observation>> {
        let image = match self.look(cx, id).await? {
            Found::Nothing => return Ok(None),
            Found::Leftover => return Ok(Some(leftover())),
            Found::Instance(image) => image,
        };
        let meta = &image.meta;
        Ok(Some(Observation {
            resource: meta.spec.resource,
            role: meta.role,
            epoch: meta.epoch,
            size_bytes: meta.size_bytes,
            used_bytes: Some(image.current().map_or(0, |v| v.referenced)),
            exports: self.exports(&image),
            read_only: !meta.is_writable(),
            quiesced: meta.quiesced,
            points: image.points(),
            resume: resume(&image),
            health: self.health(&image),
        }))
    }

    fn health(&self, image: &Image) -> Health {
        let meta = &image.meta;
        if meta.deleting {
            return Health::Failed { reason: "its deletion was interrupted; delete it again".to_owned() };
        }
        if meta.version > 0 && image.current().is_none() {
            let reason = format!("its dataset `{}/v{}` is missing", image.name, meta.version);
            return Health::Failed { reason };
        }
        if meta.version == 0 && meta.role == Role::Active {
            return Health::Failed { reason: "its making was interrupted; make or delete it again".into() };
        }
        if image.current().is_some_and(|v| v.key_missing) {
            return Health::Degraded {
                reason: format!(
                    "the encryption key of `{}` is not loaded; load it with `zfs load-key`",
                    image.name
                ),
            };
        }
        if meta.is_served() && !self.is_exported(image) {
            return Health::Degraded {
                reason: "it is not exported; it is once the server confirmed its epoch".to_owned(),
            };
        }
        Health::Ok
    }

    /// State and newest point; of one that has content of its own also whether anything changed since.
    pub(crate) async fn replica_state(
        &self,
        cx: &OpContext,
        id: InstanceId,
        epoch: Epoch,
    ) -> Result<ReplicaReport> {
        let mut image = self.existing(cx, id).await?;
        image.meta.epoch.admit(epoch)?;
        let role = image.meta.role;
        // Fenced, it is what it was when it was active.
        let own = matches!(role, Role::Active | Role::Fenced);
        // What nobody can read may be anything, and so may what a call is changing now.
        let unserved = own && !self.is_reachable(&image);
        let lock = if unserved { Lock::at(&self.config.run, id).ok() } else { None };
        let alone = !unserved || lock.is_some();
        let known = alone && (!unserved || self.is_all_written(cx, &mut image).await?);
        let meta = &image.meta;
        let mut newest = None;
        let mut changed = true;
        if let Some(current) = image.current()
            && let Some(moment) = current.newest()
        {
            newest = Some(moment.info());
            let written = self.written_since(cx, current, moment).await?;
            changed = written > 0 && !(own && alone && !self.differs(cx, &image, moment, written).await?);
        }
        drop(lock);
        let state = match role {
            _ if meta.deleting => ReplicaState::Error,
            Role::Active => ReplicaState::Active,
            Role::Secondary if newest.is_some() && !changed => ReplicaState::InSync,
            _ => ReplicaState::OutOfSync,
        };
        if role != Role::Active && changed {
            // It was active and was written to after that point: what it holds is no point.
            newest = None;
        }
        Ok(ReplicaReport {
            state,
            changed_since_point: (own && (known || changed)).then_some(changed),
            newest_point: newest,
            lag_bytes: None,
            up_to_date: None,
            resync: None,
            split_brain: None,
            position: None,
            health: self.health(&image),
        })
    }

    /// Has the kernel count what nobody serves, as it is after a power cut and once it is fenced: its intent log, and what was
    /// written last. `false` where its key is not there. For whoever has the instance's lock: a mount beside the fence of
    /// another call could take it for writable.
    async fn is_all_written(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        self.refresh(cx, image).await?;
        let Some(current) = image.current().filter(|_| !self.is_reachable(image)) else { return Ok(true) };
        if current.key_missing
            && (self.config.key_location.is_none() || self.load_key(cx, current).await.is_err())
        {
            return Ok(false);
        }
        self.replay(cx, image).await?;
        if image.meta.role == Role::Fenced {
            self.flush(cx).await?;
        }
        self.refresh(cx, image).await?;
        Ok(true)
    }

    /// Whether what nobody has mounted is another content than at a point. Bytes that were written since do not say so: a mount
    /// begins the intent log anew, and that counts.
    pub(crate) async fn differs(
        &self,
        cx: &OpContext,
        image: &Image,
        moment: &Moment,
        written: u64,
    ) -> Result<bool> {
        let Some(current) = image.current().filter(|_| written <= LITTLE && !self.is_reachable(image)) else {
            return Ok(true);
        };
        let (name, snapshot) = (current.name.clone(), current.snapshot(moment.point));
        let flags = Flags { raw: current.encrypted, ..Flags::whole() };
        tool::alive(&name)?;
        match cx.blocking(move |cx| stream::is_empty(cx, &name, &snapshot, flags)).await {
            // Somebody looks at it, and may do more.
            Err(e) if e.kind == ErrorKind::Busy => Ok(true),
            other => other.map(|is_empty| !is_empty),
        }
    }

    /// Bytes written since a point, as far as they are on the disks: at most a few seconds old.
    pub(crate) async fn written_since(
        &self,
        cx: &OpContext,
        version: &Version,
        moment: &Moment,
    ) -> Result<u64> {
        if !version.snapshot_since(moment.txg) {
            return Ok(version.written);
        }
        let property = format!("written@{}", crate::names::of_point(moment.point));
        let text = tool::property(cx, &property, &version.name).await?;
        text.parse().map_err(|_| Error::bug(format!("`zfs get {property}` printed `{text}`")))
    }
}

fn leftover() -> Observation {
    Observation {
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
            reason: "its dataset bears no data of Tandem's; make or delete it again, or rename the dataset"
                .into(),
        },
    }
}

/// Where a cut transfer continues.
fn resume(image: &Image) -> Option<ResumeToken> {
    let (_, text) = image.partial()?;
    let to = Token::parse(text).and_then(|token| token.point());
    Some(ResumeToken { kind: TOKEN.0.to_owned(), version: TOKEN.1, to, data: text.into() })
}
