//! Looking at everything that a world keeps, past every driver: for the assertions of simulations.

use tandem_sdk::{Epoch, InstanceId, PointId, ResourceId, Role, Style};

use crate::World;
use crate::world::Data;

/// One instance, as it lies on its storage.
#[derive(Clone, Debug, PartialEq)]
pub struct Inspected {
    /// The site that keeps it.
    pub site: String,
    /// The instance.
    pub instance: InstanceId,
    /// The resource that it is a copy of.
    pub resource: ResourceId,
    /// How its resource replicates.
    pub style: Option<Style>,
    /// What it is now.
    pub role: Role,
    /// The highest epoch seen.
    pub epoch: Epoch,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Whether its host serves it.
    pub served: bool,
    /// Whether writers are held back.
    pub quiesced: bool,
    /// Whether it takes no writes since it is cut off from the peer that it serves beside.
    pub suspended: bool,
    /// Whether rules grant at most read.
    pub read_only: bool,
    /// The rules that hold.
    pub rules: Vec<uuid::Uuid>,
    /// Points that it holds, oldest first.
    pub points: Vec<PointId>,
    /// The point that a cut receive was on the way to.
    pub partial: Option<PointId>,
    /// Instances that its storage replicates with.
    pub peers: Vec<InstanceId>,
    /// What it holds.
    pub data: Data,
    /// Whether it follows nobody before somebody says that it is to give up what it took by itself.
    pub parted: bool,
    /// Files that read otherwise than they were written.
    pub rotten: Vec<String>,
}

impl World {
    /// Every instance of a world in memory, by site and id.
    pub fn inspect(&self) -> Vec<Inspected> {
        let look = |sites: &mut crate::world::Sites| {
            let of = |(name, site): (&String, &crate::world::Site)| {
                let one = |i: &crate::instance::Instance| Inspected {
                    site: name.clone(),
                    instance: i.spec.instance,
                    resource: i.spec.resource,
                    style: i.style(),
                    role: i.role,
                    epoch: i.epoch,
                    size_bytes: i.size_bytes,
                    served: i.served,
                    quiesced: i.quiesced,
                    suspended: crate::peers::is_suspended(sites, i.spec.instance),
                    read_only: i.access.read_only,
                    rules: i.access.rules.iter().map(|rule| rule.id).collect(),
                    points: i.points.iter().map(|point| point.id).collect(),
                    partial: i.partial.as_ref().map(|partial| partial.to),
                    peers: i.peers.keys().copied().collect(),
                    data: i.data.clone(),
                    parted: crate::peers::split_brain(i).is_some(),
                    rotten: i.rot.keys().cloned().collect(),
                };
                site.instances.values().map(one).collect::<Vec<_>>()
            };
            Ok(sites.iter().flat_map(of).collect())
        };
        self.with(look).unwrap_or_default()
    }

    /// Cuts the links of an instance, as somebody would do by hand: it is behind from then on.
    pub fn part(&self, site: &str, instance: InstanceId) {
        let cut = |sites: &mut crate::world::Sites| {
            let found = crate::instance::find(sites, site, instance)?;
            found.peers.clear();
            found.up_to_date = false;
            Ok(())
        };
        // What is not there has no links.
        let _ = self.with(cut);
    }

    /// One file of an instance reads otherwise from now on than it was written, and nobody is told. `false` where it has
    /// none with content.
    pub fn rot(&self, site: &str, instance: InstanceId) -> bool {
        let spoil = |sites: &mut crate::world::Sites| {
            let instance = crate::instance::find(sites, site, instance)?;
            let Some((name, content)) = instance.data.iter().find(|(_, content)| !content.is_empty()) else {
                return Ok(false);
            };
            let (name, mut content) = (name.clone(), content.clone());
            content[0] ^= 1;
            instance.rot.insert(name, content);
            Ok(true)
        };
        self.with(spoil).unwrap_or(false)
    }

    /// Whether somebody has switched a site off, or cut the manager off from it.
    pub fn is_away(&self, site: &str) -> bool {
        self.with(|sites| Ok(crate::world::check_reachable(sites, site).is_err())).unwrap_or(true)
    }
}
