//! Moving an instance to another site of the world: rounds of copying while users write, then the switch.

use tandem_sdk::{
    Compatibility, Endpoint, Error, MigrationProgress, MigrationSpec, Outcome, Progress, Result, Role,
    Switched,
};

use crate::driver::Fake;
use crate::instance::{Instance, find};
use crate::world::{Sites, check_reachable};

/// The site of the destination, which its endpoint names.
fn site_of(spec: &MigrationSpec) -> Result<String> {
    let endpoint: Option<Endpoint> = serde_json::from_value(spec.endpoint.clone()).ok();
    let site = endpoint.and_then(|e| e.data.get("site")?.as_str().map(str::to_owned));
    site.ok_or_else(|| Error::invalid("the destination has no address"))
}

/// The destination, where both sites can be reached.
fn destination<'a>(sites: &'a mut Sites, spec: &MigrationSpec) -> Result<&'a mut Instance> {
    let site = site_of(spec)?;
    check_reachable(sites, &site)?;
    find(sites, &site, spec.destination)
}

impl Fake {
    /// What is promised for a destination that need not be there yet.
    pub(crate) fn promise(&self, sites: &mut Sites, spec: &MigrationSpec) -> Result<Compatibility> {
        find(sites, &self.config.site, spec.source)?.check_epoch(spec.epoch)?;
        let ours = spec.destination_driver.get("driver").and_then(|d| d.as_str()) == Some("fake");
        Ok(match self.config.migration.filter(|_| ours) {
            None => Compatibility::default(),
            Some(promises) => Compatibility {
                compatible: true,
                writable: promises.writable,
                nondisruptive: promises.nondisruptive,
                preserve_metadata: promises.preserve_metadata,
                preserve_snapshots: promises.preserve_snapshots,
            },
        })
    }

    pub(crate) fn start_moving(&self, sites: &mut Sites, spec: &MigrationSpec) -> Result<Outcome<()>> {
        let site = site_of(spec)?;
        let role = destination(sites, spec)?.role;
        let source = find(sites, &self.config.site, spec.source)?;
        source.check_epoch(spec.epoch)?;
        match &source.moving {
            Some((to, instance, _)) if *to == site && *instance == spec.destination => {
                return Ok(Outcome::Unchanged(()));
            }
            Some((_, instance, _)) => {
                return Err(Error::conflict(format!("it is being moved to instance {instance} already")));
            }
            None => {}
        }
        if role != Role::Destination || source.role != Role::Active {
            return Err(Error::conflict("only an active instance moves, and only to a destination"));
        }
        source.moving = Some((site, spec.destination, 0));
        Ok(Outcome::Changed(()))
    }

    /// Makes so many rounds, and tells how far it is.
    pub(crate) fn move_on(
        &self,
        sites: &mut Sites,
        spec: &MigrationSpec,
        rounds: u32,
    ) -> Result<MigrationProgress> {
        let all = self.config.migration.map_or(1, |p| p.rounds.max(1));
        if rounds > 0 {
            destination(sites, spec)?;
        }
        let source = find(sites, &self.config.site, spec.source)?;
        source.check_epoch(spec.epoch)?;
        let Some((_, _, made)) = &mut source.moving else {
            return Err(Error::conflict("it is not being moved; start the migration first"));
        };
        *made = made.saturating_add(rounds).min(all);
        let (made, data) = (*made, source.data.clone());
        let total = source.used_bytes();
        if rounds > 0 {
            destination(sites, spec)?.data = data;
        }
        Ok(MigrationProgress {
            progress: Progress::of("carry", total * u64::from(made) / u64::from(all), Some(total)),
            first_phase_done: made >= all,
            ..MigrationProgress::default()
        })
    }

    pub(crate) fn take_over(&self, sites: &mut Sites, spec: &MigrationSpec) -> Result<Outcome<Switched>> {
        let dest = destination(sites, spec)?;
        if dest.role == Role::Active {
            let exports = self.exports_at(dest, &site_of(spec)?);
            return Ok(Outcome::Unchanged(Switched { exports }));
        }
        let stays = self.config.migration.is_some_and(|p| p.nondisruptive);
        let source = find(sites, &self.config.site, spec.source)?;
        source.check_epoch(spec.epoch)?;
        if source.moving.as_ref().is_none_or(|(_, to, _)| *to != spec.destination) {
            return Err(Error::conflict("it is not being moved; start the migration first"));
        }
        source.role = Role::Fenced;
        source.moving = None;
        let (data, access) = (source.data.clone(), source.access.clone());
        let path = source.export.clone().unwrap_or_else(|| self.path_of(spec.source));
        let dest = destination(sites, spec)?;
        dest.data = data;
        dest.role = Role::Active;
        dest.served = true;
        dest.up_to_date = true;
        dest.access = tandem_sdk::AccessSpec { read_only: false, ..access };
        dest.export = stays.then_some(path);
        let exports = self.exports_at(dest, &site_of(spec)?);
        Ok(Outcome::Changed(Switched { exports }))
    }

    /// The exports of an instance at another site of the same world.
    fn exports_at(&self, instance: &Instance, site: &str) -> Vec<tandem_sdk::ExportLocation> {
        let mut exports = self.exports(instance);
        for export in exports.iter_mut().filter(|_| instance.export.is_none()) {
            export.path = self.path_at(site, instance.spec.instance);
        }
        exports
    }

    pub(crate) fn let_go(&self, sites: &mut Sites, spec: &MigrationSpec) -> Result<Outcome<()>> {
        let Ok(source) = find(sites, &self.config.site, spec.source) else {
            return Ok(Outcome::Unchanged(()));
        };
        if source.role == Role::Active {
            return Err(Error::conflict("it has not been switched away from; complete the migration first"));
        }
        Ok(self.remove(sites, spec.source))
    }

    pub(crate) fn go_back(&self, sites: &mut Sites, spec: &MigrationSpec) -> Result<Outcome<Switched>> {
        let dest = destination(sites, spec)?;
        let back = dest.role == Role::Active;
        dest.role = Role::Destination;
        let data = dest.data.clone();
        let source = find(sites, &self.config.site, spec.source)?;
        if back {
            source.role = Role::Active;
            source.data = data;
        } else if source.role != Role::Active {
            return Err(Error::conflict("neither side is active"));
        }
        let exports = self.exports(source);
        Ok(if back {
            Outcome::Changed(Switched { exports })
        } else {
            Outcome::Unchanged(Switched { exports })
        })
    }

    pub(crate) fn stop_moving(&self, sites: &mut Sites, spec: &MigrationSpec) -> Result<Outcome<()>> {
        // The destination may be away: the source tells.
        let source = find(sites, &self.config.site, spec.source)?;
        if source.role != Role::Active {
            return Err(Error::conflict("it has been switched already; revert or release it"));
        }
        Ok(match source.moving.take() {
            Some(_) => Outcome::Changed(()),
            None => Outcome::Unchanged(()),
        })
    }
}
