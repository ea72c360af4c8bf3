//! Roles: create, watch, promote, demote, delete, hold writers back.

use tandem_sdk::{
    Demotion, Epoch, Error, Health, InstanceId, InstanceInfo, InstanceSpec, Outcome, Progress, Promotion,
    ReplicaReport, ReplicaState, Result, Role, Style,
};

use crate::Mode;
use crate::driver::Fake;
use crate::instance::{Instance, find, fingerprint};
use crate::peers;
use crate::world::Sites;

impl Fake {
    pub(crate) fn styles(&self) -> Vec<Style> {
        match self.config.mode {
            Mode::Streamed => vec![Style::Readable, Style::Dr],
            Mode::Storage => vec![Style::Writable, Style::Readable, Style::Dr],
        }
    }

    pub(crate) fn check_style(&self, spec: &InstanceSpec) -> Result<()> {
        match &spec.replication {
            Some(replication) if !self.styles().contains(&replication.style) => Err(Error::invalid(format!(
                "the style `{}` is not offered in this mode",
                replication.style.as_str()
            ))),
            _ => Ok(()),
        }
    }

    pub(crate) fn make_replica(
        &self,
        sites: &mut Sites,
        spec: InstanceSpec,
    ) -> Result<Outcome<InstanceInfo>> {
        if spec.replication.is_none() {
            return Err(Error::invalid("a replica needs to be told its style"));
        }
        let id = spec.instance;
        let made = self.create(sites, spec, Role::Secondary)?;
        if !made.is_changed() {
            return Ok(made);
        }
        let instance = find(sites, &self.config.site, id)?;
        instance.up_to_date = false;
        instance.shown = self.config.mode == Mode::Streamed;
        Ok(Outcome::Changed(self.info(instance)))
    }

    pub(crate) fn report(&self, sites: &mut Sites, id: InstanceId, epoch: Epoch) -> Result<ReplicaReport> {
        find(sites, &self.config.site, id)?.check_epoch(epoch)?;
        if self.config.mode == Mode::Storage {
            peers::advance(sites, &self.config.site, id);
        }
        let linked = peers::is_linked(sites, id);
        let instance = find(sites, &self.config.site, id)?;
        let storage = self.config.mode == Mode::Storage;
        let split_brain =
            instance.split_brain.clone().or_else(|| peers::split_brain(instance).filter(|_| storage));
        let newest = instance.points.last().map(|point| point.info());
        // Only a link with the active one tells whether it has anything newer.
        let current =
            instance.up_to_date && split_brain.is_none() && (instance.role == Role::Active || linked);
        let follows = if storage { current } else { instance.whole.is_some() };
        if current {
            find(sites, &self.config.site, id)?.shown = true;
        }
        let suspended = peers::is_suspended(sites, id);
        let instance = find(sites, &self.config.site, id)?;
        let state = match instance.role {
            _ if split_brain.is_some() => ReplicaState::Error,
            Role::Active => ReplicaState::Active,
            Role::Secondary if follows => ReplicaState::InSync,
            _ => ReplicaState::OutOfSync,
        };
        let own = matches!(instance.role, Role::Active | Role::Fenced);
        let changed = instance.points.last().is_none_or(|point| point.data != instance.data);
        Ok(ReplicaReport {
            state,
            newest_point: if instance.role == Role::Active { newest } else { instance.whole.clone() },
            changed_since_point: (own && !storage).then_some(changed),
            lag_bytes: storage.then(|| u64::from(instance.resync_left)),
            up_to_date: storage.then_some(current),
            resync: (linked && instance.resync_left > 0).then(|| Progress {
                total: Some(u64::from(peers::RESYNC)),
                done: u64::from(peers::RESYNC - instance.resync_left.min(peers::RESYNC)),
                phase: "resync".to_owned(),
                ..Progress::default()
            }),
            split_brain,
            position: None,
            health: match suspended {
                true => Health::Degraded {
                    reason: "it is cut off from its peer, and waits to be told who goes on".into(),
                },
                false => Health::Ok,
            },
        })
    }

    pub(crate) fn promote(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        epoch: Epoch,
        promotion: Promotion,
    ) -> Result<Outcome<InstanceInfo>> {
        let instance = find(sites, &self.config.site, id)?;
        instance.check_epoch(epoch)?;
        if instance.role == Role::Active {
            let outcome = if instance.epoch == epoch && instance.served {
                Outcome::Unchanged
            } else {
                Outcome::Changed
            };
            // Told to go on without those that stay at an older epoch.
            instance.paired &= instance.epoch == epoch;
            instance.epoch = epoch;
            instance.served = true;
            instance.quiesced = false;
            return Ok(outcome(self.info(instance)));
        }
        if instance.role == Role::Destination {
            return Err(Error::conflict(format!(
                "instance {id} receives a migration; it cannot be promoted"
            )));
        }
        self.check_promotion(instance, promotion)?;
        let joins =
            instance.style() == Some(Style::Writable) && matches!(promotion, Promotion::Planned { .. });
        let instance = find(sites, &self.config.site, id)?;
        let returns = joins && peers::returns(instance);
        // At a higher epoch than the one at which it was active it was decided for it.
        let alone = returns && instance.epoch < epoch;
        let beside = if joins && !alone { peers::lead_of(sites, id) } else { None };
        let instance = find(sites, &self.config.site, id)?;
        let has_peers = !instance.peers.is_empty();
        if joins && has_peers && !returns && instance.role == Role::Secondary && beside.is_none() {
            return Err(Error::conflict(format!("instance {id} is not connected to an active one")));
        }
        // One that was active at this epoch asks who goes on where it is cut off.
        instance.paired = beside.is_some() || (returns && !alone && instance.paired);
        instance.returns = None;
        instance.epoch = epoch;
        instance.role = Role::Active;
        instance.served = true;
        instance.quiesced = false;
        instance.partial = None;
        instance.up_to_date = true;
        instance.resync_left = 0;
        // What its users write and make points of is what they read.
        instance.rot.clear();
        let info = self.info(instance);
        if let Some(lead) = beside.and_then(|lead| peers::get_mut(sites, lead)) {
            lead.paired = true;
        }
        Ok(Outcome::Changed(info))
    }

    fn check_promotion(&self, instance: &Instance, promotion: Promotion) -> Result<()> {
        let id = instance.spec.instance;
        // Fenced while it was the active one, and given back: it follows nobody and lacks nothing.
        if instance.role == Role::Fenced && promotion == (Promotion::Planned { point: None }) {
            return Ok(());
        }
        match (self.config.mode, promotion) {
            (Mode::Streamed, _) if instance.whole.is_none() && instance.points.is_empty() => {
                Err(Error::conflict(format!("instance {id} holds no whole point; nothing could be served")))
            }
            (Mode::Streamed, Promotion::Planned { point: Some(point) }) => {
                let here = instance.whole.as_ref().is_some_and(|whole| {
                    whole.id == point && whole.fingerprint == fingerprint(&instance.data)
                });
                if here {
                    Ok(())
                } else {
                    Err(Error::conflict(format!("instance {id} is not at point {point}")))
                }
            }
            (Mode::Streamed, Promotion::Planned { point: None }) => {
                Err(Error::invalid("a planned promotion names the last point synced"))
            }
            (Mode::Storage, Promotion::Planned { .. }) if !instance.up_to_date => {
                Err(Error::conflict(format!("instance {id} is not up to date")))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn demote(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        epoch: Epoch,
        to: Demotion,
    ) -> Result<Outcome<InstanceInfo>> {
        let instance = find(sites, &self.config.site, id)?;
        instance.check_epoch(epoch)?;
        let role = match to {
            Demotion::Secondary => Role::Secondary,
            Demotion::Fenced => Role::Fenced,
        };
        if instance.role == role && instance.epoch == epoch {
            instance.returns = None;
            return Ok(Outcome::Unchanged(self.info(instance)));
        }
        if instance.role == Role::Destination {
            return Err(Error::conflict(format!("instance {id} receives a migration; it cannot be demoted")));
        }
        if instance.role == Role::Active {
            // What it holds is the newest point, where nothing was written since.
            let last = instance.points.last().filter(|point| point.data == instance.data);
            instance.whole = last.map(|point| point.info());
        }
        if instance.role == Role::Fenced {
            instance.up_to_date = false;
        }
        instance.epoch = epoch;
        instance.role = role;
        instance.paired = false;
        instance.returns = None;
        instance.quiesced = false;
        instance.shown = self.config.mode == Mode::Streamed;
        // The call confirms the epoch: it is served as its role says, if that is to be served at all.
        instance.served = true;
        Ok(Outcome::Changed(self.info(instance)))
    }

    pub(crate) fn delete_secondary(&self, sites: &mut Sites, id: InstanceId) -> Result<Outcome<()>> {
        if let Ok(instance) = find(sites, &self.config.site, id)
            && instance.role == Role::Active
            && instance.style() != Some(Style::Writable)
        {
            return Err(Error::conflict(format!("instance {id} is active; delete it with its resource")));
        }
        Ok(self.remove(sites, id))
    }

    pub(crate) fn hold(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        epoch: Epoch,
        quiesced: bool,
    ) -> Result<Outcome<()>> {
        let instance = find(sites, &self.config.site, id)?;
        instance.admit(epoch)?;
        if instance.role != Role::Active {
            return Err(Error::conflict(format!("instance {id} is not active; nobody writes to it")));
        }
        let changed = instance.quiesced != quiesced;
        instance.quiesced = quiesced;
        Ok(if changed { Outcome::Changed(()) } else { Outcome::Unchanged(()) })
    }
}
