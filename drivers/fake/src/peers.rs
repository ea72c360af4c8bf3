//! Storage that replicates by itself: links between instances, and what flows over them.

use tandem_sdk::{
    ConnectPeers, EndReplication, Endpoint, Error, InstanceId, InstanceInfo, InstanceSpec, Outcome, Result,
    Role, Style,
};

use crate::driver::Fake;
use crate::instance::{Instance, find};
use crate::world::{Data, Sites};

/// The replication protocol.
pub(crate) const PROTOCOL: &str = "fake-link/1";
/// How many reports a resync takes.
pub(crate) const RESYNC: u32 = 2;

impl Fake {
    pub(crate) fn address(&self, id: InstanceId) -> Endpoint {
        let data = serde_json::json!({ "site": self.config.site });
        Endpoint { instance: id, protocol: PROTOCOL.to_owned(), data }
    }

    pub(crate) fn connect(&self, sites: &mut Sites, call: ConnectPeers) -> Result<Outcome<()>> {
        if call.peer.protocol != PROTOCOL {
            return Err(Error::invalid(format!("the protocol `{}` is not spoken here", call.peer.protocol)));
        }
        if call.peer.instance == call.instance {
            return Err(Error::invalid("an instance is no peer of itself"));
        }
        let instance = find(sites, &self.config.site, call.instance)?;
        instance.admit(call.epoch)?;
        if instance.style() == Some(Style::Writable)
            && let Some(other) = instance.peers.keys().find(|peer| **peer != call.peer.instance)
        {
            return Err(Error::conflict(format!(
                "instance {} serves beside {other} already, and the style `writable` joins two, not three",
                call.instance
            )));
        }
        if !call.authoritative
            && let Some(how) = split_brain(instance)
        {
            if !call.give_up {
                return Err(Error::conflict(format!(
                    "instance {} does not follow before it is told to give up what it has: {how}",
                    call.instance
                )));
            }
            instance.own = false;
            instance.up_to_date = false;
        }
        if !call.authoritative {
            instance.returns = None;
            instance.led_by = Some((call.peer.instance, call.epoch));
        }
        match instance.peers.get(&call.peer.instance) {
            Some(authoritative) if *authoritative == call.authoritative => return Ok(Outcome::Unchanged(())),
            Some(_) => {
                return Err(Error::conflict(format!(
                    "instance {} is connected to {} the other way round; disconnect them first",
                    call.instance, call.peer.instance
                )));
            }
            None => instance.peers.insert(call.peer.instance, call.authoritative),
        };
        link(sites, call.instance, call.peer.instance);
        Ok(Outcome::Changed(()))
    }

    pub(crate) fn disconnect(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        peer: InstanceId,
    ) -> Result<Outcome<()>> {
        // Who was cut off before waits to be told nevertheless.
        let suspended = waits(sites, id);
        let instance = find(sites, &self.config.site, id)?;
        Ok(match instance.peers.remove(&peer) {
            Some(_) => {
                if instance.role != Role::Active && !returns(instance) {
                    instance.up_to_date = false;
                }
                instance.split_brain = None;
                instance.paired &= suspended || !instance.peers.is_empty();
                Outcome::Changed(())
            }
            None => Outcome::Unchanged(()),
        })
    }

    /// An instance that was made without replication is as if it had been made with it.
    pub(crate) fn replicates_now(
        &self,
        sites: &mut Sites,
        spec: &InstanceSpec,
    ) -> Result<Outcome<InstanceInfo>> {
        if spec.replication.is_none() {
            return Err(Error::invalid("an instance that is to replicate needs to be told its style"));
        }
        self.check_style(spec)?;
        let instance = find(sites, &self.config.site, spec.instance)?;
        instance.admit(spec.epoch)?;
        require_active(instance)?;
        let begun = instance.spec.replication.is_none();
        if begun {
            instance.spec.replication.clone_from(&spec.replication);
        }
        let info = self.info(instance);
        Ok(if begun { Outcome::Changed(info) } else { Outcome::Unchanged(info) })
    }

    /// And as if it had been made without.
    pub(crate) fn replicates_no_more(
        &self,
        sites: &mut Sites,
        call: &EndReplication,
    ) -> Result<Outcome<InstanceInfo>> {
        let instance = find(sites, &self.config.site, call.instance)?;
        instance.admit(call.epoch)?;
        require_active(instance)?;
        if let Some(peer) = instance.peers.keys().next() {
            return Err(Error::conflict(format!(
                "instance {} replicates with {peer}; disconnect them first",
                call.instance
            )));
        }
        let ended = instance.spec.replication.take().is_some();
        (instance.own, instance.paired, instance.led_by) = (false, false, None);
        let info = self.info(instance);
        Ok(if ended { Outcome::Changed(info) } else { Outcome::Unchanged(info) })
    }
}

fn require_active(instance: &Instance) -> Result<()> {
    match instance.role {
        Role::Active => Ok(()),
        _ => Err(Error::conflict(format!("instance {} is no active one", instance.spec.instance))),
    }
}

/// Whether a side that is to follow took writes that its peers lack, as a sentence.
pub(crate) fn split_brain(instance: &Instance) -> Option<String> {
    let parted = instance.own && instance.role == Role::Secondary && !returns(instance);
    parted.then(|| format!("instance {} holds changes that its peers lack", instance.spec.instance))
}

/// Once both sides know each other: who follows whom.
fn link(sites: &mut Sites, one: InstanceId, other: InstanceId) {
    let (Some(a), Some(b)) = (get(sites, one).cloned(), get(sites, other).cloned()) else { return };
    let (Some(a_wins), Some(b_wins)) = (a.peers.get(&other), b.peers.get(&one)) else { return };
    let same = a.data == b.data;
    match (a_wins, b_wins) {
        (true, false) => resync(sites, other, same),
        (false, true) => resync(sites, one, same),
        _ if same => [one, other].into_iter().for_each(|id| resync(sites, id, true)),
        // They were told of each other at different times: who takes no writes follows.
        _ if follows(&a) != follows(&b) => resync(sites, if follows(&a) { one } else { other }, false),
        _ => {
            for id in [one, other] {
                if let Some(instance) = get_mut(sites, id) {
                    instance.split_brain = Some("both sides hold changes that the other lacks".to_owned());
                }
            }
        }
    }
}

fn resync(sites: &mut Sites, id: InstanceId, same: bool) {
    if let Some(instance) = get_mut(sites, id) {
        instance.up_to_date = same;
        instance.resync_left = if same { 0 } else { RESYNC };
    }
}

/// One step of a resync, if one is needed and a source is there.
pub(crate) fn advance(sites: &mut Sites, site: &str, id: InstanceId) {
    let Some(instance) = get(sites, id) else { return };
    if !follows(instance) || sites.get(site).is_none_or(|s| s.down) {
        return;
    }
    let Some((source, data)) = source_of(sites, instance) else { return };
    let Some(instance) = get_mut(sites, id) else { return };
    // A peer that became active meanwhile may hold what this one never saw; real storage compares generations.
    instance.up_to_date &= instance.data == data;
    if instance.up_to_date {
        return;
    }
    if instance.resync_left == 0 {
        // It lost its source in between and starts again.
        instance.resync_left = RESYNC;
    }
    instance.resync_left -= 1;
    if instance.resync_left == 0 {
        instance.data = data;
        instance.up_to_date = true;
        if let Some(source) = get_mut(sites, source) {
            source.own = false;
        }
    }
}

/// Whether an instance has a link with an active one that it follows.
pub(crate) fn is_linked(sites: &Sites, id: InstanceId) -> bool {
    get(sites, id).is_some_and(|instance| source_of(sites, instance).is_some())
}

/// What an acknowledged write does to the peers: they get it now, or fall behind.
pub(crate) fn propagate(sites: &mut Sites, site: &str, id: InstanceId) {
    let Some(active) = sites.get(site).and_then(|s| s.instances.get(&id)).cloned() else { return };
    let mut is_alone = true;
    for peer in active.peers.keys() {
        let (linked, beside) = (reaches(sites, id, *peer), is_beside(sites, &active, *peer));
        if let Some(peer) = get_mut(sites, *peer)
            && (follows(peer) || is_writable(peer))
            && may_lead(&active, peer)
        {
            if linked && peer.up_to_date && (follows(peer) || beside) {
                peer.data.clone_from(&active.data);
                is_alone = false;
            } else if linked || !returns(peer) {
                // One whose host went down does not know what it missed before it is connected.
                peer.up_to_date = false;
            }
        }
    }
    if is_alone
        && !active.peers.is_empty()
        && let Some(active) = get_mut(sites, id)
    {
        active.own = true;
    }
}

/// Whether an instance takes no writes because it is cut off from the peer that it serves beside.
pub(crate) fn is_suspended(sites: &Sites, id: InstanceId) -> bool {
    let Some(instance) = get(sites, id).filter(|i| is_writable(i) && i.paired) else { return false };
    // One that left in order holds nobody back while it can be told what is written.
    let fine = |peer: &InstanceId| {
        is_beside(sites, instance, *peer)
            || (reaches(sites, id, *peer) && get(sites, *peer).is_some_and(follows))
    };
    !instance.peers.keys().any(fine)
}

/// Whether it takes no writes before it is told to, now or once it is active again.
pub(crate) fn waits(sites: &Sites, id: InstanceId) -> bool {
    is_suspended(sites, id) || get(sites, id).is_some_and(|i| i.paired && returns(i))
}

/// The active peer that an instance is connected to. At which epoch that one is its storage does not know.
pub(crate) fn lead_of(sites: &Sites, id: InstanceId) -> Option<InstanceId> {
    let peers = get(sites, id)?.peers.keys().copied();
    let leads = |peer: &InstanceId| get(sites, *peer).is_some_and(|p| p.role == Role::Active);
    peers.into_iter().find(|peer| leads(peer) && reaches(sites, id, *peer))
}

/// Its host goes down: who served beside others comes back as a secondary.
pub(crate) fn stops(instance: &mut Instance) {
    if is_writable(instance) && !instance.peers.is_empty() {
        instance.role = Role::Secondary;
        instance.returns = Some(instance.epoch);
    }
}

/// Whether a secondary was active at the epoch that it has when its host went down.
pub(crate) fn returns(instance: &Instance) -> bool {
    instance.role == Role::Secondary && instance.returns == Some(instance.epoch)
}

/// Whether both serve and tell each other what they write.
fn is_beside(sites: &Sites, instance: &Instance, peer: InstanceId) -> bool {
    let joined = |other: &Instance| is_writable(other) && other.paired;
    instance.paired && reaches(sites, instance.spec.instance, peer) && get(sites, peer).is_some_and(joined)
}

/// An active instance of a resource all of whose instances are.
fn is_writable(instance: &Instance) -> bool {
    instance.role == Role::Active && instance.style() == Some(Style::Writable)
}

fn follows(instance: &Instance) -> bool {
    instance.role == Role::Secondary && !instance.own
}

/// The data of the active peer that an instance follows.
fn source_of(sites: &Sites, instance: &Instance) -> Option<(InstanceId, Data)> {
    let id = instance.spec.instance;
    instance.peers.keys().find_map(|peer| {
        let up = site_of(sites, *peer).is_some_and(|s| sites.get(&s).is_some_and(|s| !s.down));
        get(sites, *peer)
            .filter(|p| up && p.role == Role::Active && p.up_to_date && may_lead(p, instance))
            .filter(|p| p.peers.contains_key(&id) && !is_cut(sites, id, *peer))
            .map(|p| (*peer, p.data.clone()))
    })
}

/// Whether one is followed by another: at its epoch or before, or because that one was told so at its own.
fn may_lead(active: &Instance, follower: &Instance) -> bool {
    follower.epoch <= active.epoch || follower.led_by == Some((active.spec.instance, follower.epoch))
}

/// Whether both know each other, and nothing lies between them.
fn reaches(sites: &Sites, one: InstanceId, other: InstanceId) -> bool {
    let up = |id| site_of(sites, id).is_some_and(|s| sites.get(&s).is_some_and(|s| !s.down));
    up(other) && get(sites, other).is_some_and(|o| o.peers.contains_key(&one)) && !is_cut(sites, one, other)
}

/// Whether somebody cut the link between two sites.
fn is_cut(sites: &Sites, one: InstanceId, other: InstanceId) -> bool {
    let (Some(here), Some(there)) = (site_of(sites, one), site_of(sites, other)) else { return true };
    sites.get(&here).is_some_and(|site| site.cut_from.contains(&there))
}

fn site_of(sites: &Sites, id: InstanceId) -> Option<String> {
    sites.iter().find(|(_, site)| site.instances.contains_key(&id)).map(|(name, _)| name.clone())
}

pub(crate) fn get(sites: &Sites, id: InstanceId) -> Option<&Instance> {
    sites.values().find_map(|site| site.instances.get(&id))
}

pub(crate) fn get_mut(sites: &mut Sites, id: InstanceId) -> Option<&mut Instance> {
    sites.values_mut().find_map(|site| site.instances.get_mut(&id))
}
