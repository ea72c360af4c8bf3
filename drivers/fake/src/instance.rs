//! One instance: what is stored of it, and the verbs that every driver has.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_sdk::{
    AccessReport, AccessSpec, Epoch, Error, ExportLocation, InstanceId, InstanceInfo, InstanceSpec, Outcome,
    PointId, PointInfo, ResourceKind, Result, Role, RuleReport, Style,
};

use crate::driver::Fake;
use crate::folder::files_of;
use crate::peers;
use crate::world::{Data, Sites};

/// One instance, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) spec: InstanceSpec,
    pub(crate) role: Role,
    /// The highest epoch seen. While active, the epoch at which it is.
    pub(crate) epoch: Epoch,
    pub(crate) size_bytes: u64,
    pub(crate) access: AccessSpec,
    pub(crate) quiesced: bool,
    /// Whether its host has confirmed that it may serve it.
    pub(crate) served: bool,
    /// Whether there is anything to show to who reads it as a secondary: storage that replicates by itself has something once
    /// it was seen up to date.
    #[serde(default)]
    pub(crate) shown: bool,
    /// Attached for a copy; whether read-only.
    pub(crate) attached: Option<bool>,
    #[serde(with = "crate::hex::named")]
    pub(crate) data: Data,
    /// Points it holds, oldest first.
    pub(crate) points: Vec<Point>,
    /// The newest whole point that `data` was made from; on a secondary.
    pub(crate) whole: Option<PointInfo>,
    /// What a cut receive left.
    pub(crate) partial: Option<Partial>,
    /// Instances that its storage replicates with, and whether its data won when they were connected.
    pub(crate) peers: BTreeMap<InstanceId, bool>,
    pub(crate) up_to_date: bool,
    /// The peer that it was last told to follow, and the epoch at which: that one may be at an older one.
    #[serde(default)]
    pub(crate) led_by: Option<(InstanceId, Epoch)>,
    /// Of a `writable` resource: it serves beside a peer, so that it takes no writes while they are cut off from each other,
    /// before somebody says that it goes on alone.
    #[serde(default)]
    pub(crate) paired: bool,
    /// Of a `writable` resource: the epoch at which it was active when its host went down. It came back as a secondary.
    #[serde(default)]
    pub(crate) returns: Option<Epoch>,
    /// Whether it took writes that none of its peers has.
    #[serde(default)]
    pub(crate) own: bool,
    /// Reports still to be made until a resync is done.
    pub(crate) resync_left: u32,
    pub(crate) split_brain: Option<String>,
    /// Where it is being moved to: the site, the instance there, and rounds that were made.
    #[serde(default)]
    pub(crate) moving: Option<(String, InstanceId, u32)>,
    /// Files that read otherwise than they were written.
    #[serde(default, with = "crate::hex::named")]
    pub(crate) rot: Data,
    /// The export that it took over from where it came from.
    #[serde(default)]
    pub(crate) export: Option<String>,
}

/// A point: a copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) id: PointId,
    pub(crate) fingerprint: String,
    #[serde(with = "crate::hex::named")]
    pub(crate) data: Data,
}

/// The part of a stream that has arrived.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Partial {
    pub(crate) to: PointId,
    pub(crate) from: Option<PointId>,
    #[serde(with = "crate::hex")]
    pub(crate) body: Vec<u8>,
}

impl Point {
    pub(crate) fn info(&self) -> PointInfo {
        PointInfo { id: self.id, fingerprint: self.fingerprint.clone(), held: true }
    }
}

/// What proves that two instances hold the same.
pub(crate) fn fingerprint(data: &Data) -> String {
    let mut hash = blake3::Hasher::new();
    for (name, content) in data {
        for part in [name.as_bytes(), content] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hash.finalize().to_hex().to_string()
}

impl Instance {
    pub(crate) fn new(spec: InstanceSpec, role: Role) -> Self {
        Self {
            role,
            epoch: spec.epoch,
            size_bytes: spec.size_bytes,
            access: AccessSpec { rules: Vec::new(), read_only: false },
            quiesced: false,
            served: true,
            shown: true,
            attached: None,
            data: Data::new(),
            points: Vec::new(),
            whole: None,
            partial: None,
            peers: BTreeMap::new(),
            up_to_date: role == Role::Active,
            led_by: None,
            paired: false,
            returns: None,
            own: false,
            resync_left: 0,
            split_brain: None,
            moving: None,
            rot: Data::new(),
            export: None,
            spec,
        }
    }

    pub(crate) fn style(&self) -> Option<Style> {
        self.spec.replication.as_ref().map(|r| r.style)
    }

    pub(crate) fn is_exported(&self) -> bool {
        self.served
            && match self.role {
                Role::Active => true,
                Role::Secondary => self.shown && self.style() == Some(Style::Readable),
                _ => false,
            }
    }

    pub(crate) fn is_writable(&self) -> bool {
        let attached = self.attached == Some(false);
        attached || (self.role == Role::Active && !self.access.read_only && !self.quiesced)
    }

    pub(crate) fn has_files(&self) -> bool {
        self.is_exported() || self.attached.is_some()
    }

    /// What is read of what was written.
    pub(crate) fn as_read(&self, written: &Data) -> Data {
        let mut read = written.clone();
        for (name, content) in &self.rot {
            if let Some(there) = read.get_mut(name) {
                there.clone_from(content);
            }
        }
        read
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.data.values().map(|content| content.len() as u64).sum()
    }

    pub(crate) fn point(&self, id: PointId) -> Option<&Point> {
        self.points.iter().find(|point| point.id == id)
    }

    /// Refuses a stale epoch.
    pub(crate) fn check_epoch(&self, epoch: Epoch) -> Result<()> {
        self.epoch.admit(epoch)
    }

    /// Refuses a stale epoch and remembers a newer one. An active instance is active at its epoch: a newer one means
    /// that another promotion is under way, and only `promote_replica` and `demote_replica` may bring it.
    pub(crate) fn admit(&mut self, epoch: Epoch) -> Result<()> {
        self.check_epoch(epoch)?;
        if self.role == Role::Active && epoch > self.epoch {
            return Err(Error::conflict(format!(
                "instance {} is active at epoch {}, not {epoch}: promote or demote it first",
                self.spec.instance, self.epoch
            )));
        }
        self.epoch = epoch;
        Ok(())
    }

    /// Whether a repeat of its creation asks for the same.
    fn is_as(&self, spec: &InstanceSpec, role: Role) -> bool {
        let mut mine = self.spec.clone();
        mine.epoch = spec.epoch;
        mine.size_bytes = self.size_bytes;
        mine == *spec && self.role == role
    }
}

pub(crate) fn find<'a>(sites: &'a mut Sites, site: &str, id: InstanceId) -> Result<&'a mut Instance> {
    sites.get_mut(site).and_then(|s| s.instances.get_mut(&id)).ok_or_else(|| missing(site, id))
}

pub(crate) fn missing(site: &str, id: InstanceId) -> Error {
    Error::not_found(format!("site `{site}` has no instance {id}"))
}

impl Fake {
    pub(crate) fn info(&self, instance: &Instance) -> InstanceInfo {
        InstanceInfo { exports: self.exports(instance), ..InstanceInfo::default() }
    }

    pub(crate) fn exports(&self, instance: &Instance) -> Vec<ExportLocation> {
        if !instance.is_exported() {
            return Vec::new();
        }
        vec![ExportLocation {
            path: instance.export.clone().unwrap_or_else(|| self.path_of(instance.spec.instance)),
            preferred: true,
            admin_only: false,
        }]
    }

    pub(crate) fn path_of(&self, id: InstanceId) -> String {
        self.path_at(&self.config.site, id)
    }

    /// Where an instance is reached that another site of the world keeps.
    pub(crate) fn path_at(&self, site: &str, id: InstanceId) -> String {
        match &self.config.path {
            Some(path) => files_of(path, site, id).display().to_string(),
            None => format!("fake:/{site}/{id}"),
        }
    }

    /// Makes an instance in `role`, or finds that it is there.
    pub(crate) fn create(
        &self,
        sites: &mut Sites,
        spec: InstanceSpec,
        role: Role,
    ) -> Result<Outcome<InstanceInfo>> {
        if spec.pool != self.config.pool {
            return Err(Error::invalid(format!(
                "there is no pool `{}`, only `{}`",
                spec.pool, self.config.pool
            )));
        }
        if spec.kind != ResourceKind::Share {
            return Err(Error::invalid("only shares are kept here"));
        }
        self.check_style(&spec)?;
        let site = sites.entry(self.config.site.clone()).or_default();
        if let Some(existing) = site.instances.get_mut(&spec.instance) {
            existing.check_epoch(spec.epoch)?;
            if !existing.is_as(&spec, role) {
                return Err(Error::conflict(format!(
                    "instance {} exists with other arguments",
                    spec.instance
                )));
            }
            return Ok(Outcome::Unchanged(self.info(existing)));
        }
        let taken: u64 = site.instances.values().map(|i| i.size_bytes).sum();
        let free = self.config.size_bytes.saturating_sub(taken);
        if spec.size_bytes > free {
            return Err(Error::out_of_space(format!(
                "{} bytes are asked for, {free} are free",
                spec.size_bytes
            )));
        }
        let id = spec.instance;
        let made = Instance::new(spec, role);
        let info = self.info(&made);
        site.instances.insert(id, made);
        Ok(Outcome::Changed(info))
    }

    pub(crate) fn resize(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        epoch: Epoch,
        size: u64,
    ) -> Result<Outcome<InstanceInfo>> {
        let taken: u64 = sites
            .get(&self.config.site)
            .map(|s| s.instances.values().map(|i| i.size_bytes).sum())
            .unwrap_or(0);
        let instance = find(sites, &self.config.site, id)?;
        instance.admit(epoch)?;
        if instance.size_bytes == size {
            return Ok(Outcome::Unchanged(self.info(instance)));
        }
        if size < instance.used_bytes() {
            return Err(Error::conflict(format!(
                "{} bytes are in use, more than {size}",
                instance.used_bytes()
            )));
        }
        let free = self.config.size_bytes.saturating_sub(taken - instance.size_bytes);
        if size > free {
            return Err(Error::out_of_space(format!("{size} bytes are asked for, {free} are free")));
        }
        instance.size_bytes = size;
        Ok(Outcome::Changed(self.info(instance)))
    }

    /// Removes an instance and its links.
    pub(crate) fn remove(&self, sites: &mut Sites, id: InstanceId) -> Outcome<()> {
        let others: Vec<InstanceId> =
            peers::get(sites, id).map_or(Vec::new(), |i| i.peers.keys().copied().collect());
        let waits: Vec<bool> = others.iter().map(|other| peers::waits(sites, *other)).collect();
        let removed = sites.get_mut(&self.config.site).and_then(|site| site.instances.remove(&id));
        for instance in sites.values_mut().flat_map(|site| site.instances.values_mut()) {
            let here = others.iter().position(|other| *other == instance.spec.instance);
            if instance.peers.remove(&id).is_some() {
                // Who was cut off before waits to be told nevertheless.
                instance.paired &= here.is_some_and(|at| waits[at]) || !instance.peers.is_empty();
            }
        }
        if removed.is_some() { Outcome::Changed(()) } else { Outcome::Unchanged(()) }
    }

    pub(crate) fn set_access(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        epoch: Epoch,
        access: AccessSpec,
    ) -> Result<Outcome<AccessReport>> {
        let instance = find(sites, &self.config.site, id)?;
        instance.admit(epoch)?;
        let rules = access.rules.iter().map(|rule| {
            let known = ["ip", "user"].contains(&rule.access_type.as_str());
            let error = (!known).then(|| format!("access type `{}` is not known here", rule.access_type));
            RuleReport { id: rule.id, enforced: known, error }
        });
        let report = AccessReport { rules: rules.collect() };
        if instance.access == access {
            return Ok(Outcome::Unchanged(report));
        }
        instance.access = access;
        Ok(Outcome::Changed(report))
    }

    pub(crate) fn ensure(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        epoch: Epoch,
    ) -> Result<Outcome<InstanceInfo>> {
        let instance = find(sites, &self.config.site, id)?;
        instance.admit(epoch)?;
        if instance.served {
            return Ok(Outcome::Unchanged(self.info(instance)));
        }
        instance.served = true;
        Ok(Outcome::Changed(self.info(instance)))
    }
}
