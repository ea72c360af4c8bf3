//! Sides that are cut off from each other, and what they are told: the part of a kernel that asks who goes on.

use tandem_sdk::{Epoch, InstanceId, ResourceId};

use crate::{World, peers};

/// An instance that takes no writes before it is told whether it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// Its site.
    pub site: String,
    /// The instance.
    pub instance: InstanceId,
    /// The resource that it is a copy of.
    pub resource: ResourceId,
    /// The epoch at which it served.
    pub epoch: Epoch,
}

impl World {
    /// Cuts the link between the storages of two sites, or joins it again. Users and the manager still reach both.
    pub fn cut(&self, one: &str, other: &str, cut: bool) {
        let set = |sites: &mut crate::world::Sites| {
            for (here, there) in [(one, other), (other, one)] {
                let from = &mut sites.entry(here.to_owned()).or_default().cut_from;
                if cut {
                    from.insert(there.to_owned())
                } else {
                    from.remove(there)
                };
            }
            Ok(())
        };
        // It cannot fail in memory, and a folder knows no links.
        let _ = self.with(set);
    }

    /// Whoever waits to be told and can ask: its host has power, and the way to the manager is open.
    pub fn claimants(&self) -> Vec<Claimant> {
        let look = |sites: &mut crate::world::Sites| {
            let mut all = Vec::new();
            for (name, site) in sites.iter().filter(|(_, site)| !site.down && !site.isolated) {
                let waits = |id: &&InstanceId| peers::is_suspended(sites, **id);
                let of = |id: &InstanceId| {
                    let found = &site.instances[id];
                    let (site, instance) = (name.clone(), *id);
                    Claimant { site, instance, resource: found.spec.resource, epoch: found.epoch }
                };
                all.extend(site.instances.keys().filter(waits).map(of));
            }
            Ok(all)
        };
        self.with(look).unwrap_or_default()
    }

    /// Tells a claimant that it goes on at this epoch. One that is connected again, or was told otherwise meanwhile, stays as
    /// it is.
    pub fn goes_on(&self, claimant: &Claimant, epoch: Epoch) {
        let tell = |sites: &mut crate::world::Sites| {
            if peers::is_suspended(sites, claimant.instance)
                && let Ok(found) = crate::instance::find(sites, &claimant.site, claimant.instance)
                && found.epoch == claimant.epoch
            {
                found.paired = false;
                found.epoch = epoch;
            }
            Ok(())
        };
        let _ = self.with(tell);
    }
}
