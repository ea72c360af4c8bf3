//! What a plan is made from: rows, what drivers can do, and what was just observed.

use std::collections::HashMap;

use tandem_contract::{
    AttachKind, Capabilities, Compatibility, Epoch, Error, InstanceId, Observation, PointId, PointInfo,
    ReplicationCapability, Role, Style, Transport,
};

use crate::draft::{active_beside, active_of};
use crate::model::Instance;

/// Whether an instance can be asked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Link {
    /// It answered; `None`: nothing is there.
    Seen(Option<Box<Observation>>),
    /// Neither it nor its host answers; a sentence.
    Away(String),
    /// It answers with a fault: nothing is known of it, and it may well be serving.
    Faulty(Error),
}

/// What the two sides of a migration can do for each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sides {
    /// What the source's driver promises.
    pub compatibility: Compatibility,
    /// Why it promises nothing, where that is known.
    pub remark: Option<String>,
    /// Whether both speak a format of streams, and the source serves an instance to nobody when it is told to.
    pub streams: bool,
    /// Whether the storage of both replicates by itself, with each other.
    pub peers: bool,
    /// What each attaches: source and destination.
    pub attach: (Option<AttachKind>, Option<AttachKind>),
}

/// What a plan is made from.
pub(crate) struct World<'a> {
    pub instances: &'a [Instance],
    /// By instance; absent where the instance is not placed or its driver never answered.
    pub capabilities: &'a HashMap<InstanceId, Capabilities>,
    /// By instance, for those that the operation is about.
    pub links: &'a HashMap<InstanceId, Link>,
    /// Of a migration.
    pub sides: Option<Sides>,
    /// How the share replicates.
    pub style: Option<Style>,
    /// The share's epoch.
    pub epoch: Epoch,
    /// The share's size in GiB.
    pub size_gb: u64,
    /// Names for new points, so that a plan is the same for the same world.
    pub new_points: [PointId; 4],
}

impl World<'_> {
    pub fn active(&self) -> Option<&Instance> {
        active_of(self.instances)
    }

    /// An active instance other than this one.
    pub fn active_beside(&self, id: InstanceId) -> Option<&Instance> {
        active_beside(self.instances, id)
    }

    /// Whether all instances are to be active.
    pub fn is_writable(&self) -> bool {
        self.style == Some(Style::Writable)
    }

    /// Whether an instance of a `writable` share serves its users at the newest epoch, though its row may not say so yet:
    /// who lost an arbitration is at an older one.
    pub fn has_joined(&self, id: InstanceId) -> bool {
        self.is_writable()
            && self.seen(id).is_some_and(|seen| seen.role == Role::Active && seen.epoch == self.epoch)
    }

    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.iter().find(|i| i.id == id)
    }

    pub fn transport(&self, id: InstanceId) -> Option<&Transport> {
        self.capabilities.get(&id)?.replication.as_ref().map(|r| &r.transport)
    }

    /// Whether the storage of this instance replicates by itself.
    pub fn by_storage(&self, id: InstanceId) -> bool {
        self.capabilities.get(&id).is_some_and(by_storage)
    }

    /// Whether its driver can serve one to nobody that does not replicate: storage that replicates by itself has no roles
    /// for it then.
    pub fn can_fence(&self, id: InstanceId) -> bool {
        matches!(self.transport(id), Some(Transport::Streamed { .. }))
    }

    pub fn can_quiesce(&self, id: InstanceId) -> bool {
        self.capabilities.get(&id).is_some_and(can_quiesce)
    }

    /// What was seen of an instance; `None` when it is away or not there.
    pub fn seen(&self, id: InstanceId) -> Option<&Observation> {
        match self.links.get(&id)? {
            Link::Seen(seen) => seen.as_deref(),
            Link::Away(_) | Link::Faulty(_) => None,
        }
    }

    /// Whether an instance's back end says that there is no such instance any more.
    pub fn is_lost(&self, id: InstanceId) -> bool {
        matches!(self.links.get(&id), Some(Link::Seen(None)))
    }

    /// Why an instance cannot be asked.
    pub fn away(&self, id: InstanceId) -> Option<String> {
        match self.links.get(&id) {
            Some(Link::Seen(Some(_))) => None,
            Some(Link::Seen(None)) => Some("its storage is gone".into()),
            Some(Link::Away(why)) => Some(why.clone()),
            Some(Link::Faulty(error)) => Some(error.to_string()),
            None => Some("it was never placed".into()),
        }
    }
}

/// The newest point of the destination that the source has too; the fingerprint proves that both mean the same moment.
pub(crate) fn newest_common(source: &Observation, dest: &Observation) -> Option<PointInfo> {
    dest.points
        .iter()
        .rev()
        .find(|p| source.points.iter().any(|s| s.id == p.id && s.fingerprint == p.fingerprint))
        .cloned()
}

/// Whether storage of this kind replicates by itself.
pub(crate) fn by_storage(capabilities: &Capabilities) -> bool {
    capabilities.replication.as_ref().is_some_and(|r| matches!(r.transport, Transport::Storage { .. }))
}

/// Whether its driver can hold writers back.
pub(crate) fn can_quiesce(capabilities: &Capabilities) -> bool {
    capabilities.replication.as_ref().is_some_and(|r| r.quiesce)
}

/// A form of fingerprints that both drivers take.
pub(crate) fn common_form(source: &Capabilities, dest: &Capabilities) -> Option<String> {
    first_common(source, dest, |r| r.fingerprints.clone())
}

/// A format of streams that both drivers speak.
pub(crate) fn common_format(source: &Capabilities, dest: &Capabilities) -> Option<String> {
    first_common(source, dest, |r| match &r.transport {
        Transport::Streamed { formats, .. } => formats.clone(),
        _ => Vec::new(),
    })
}

/// How storage on both sides replicates with each other: within one domain, by a protocol that both speak.
pub(crate) fn common_protocol(source: &Capabilities, dest: &Capabilities) -> Option<String> {
    let domain = |c: &Capabilities| c.replication.as_ref().and_then(|r| r.domain.clone());
    let common = first_common(source, dest, |r| match &r.transport {
        Transport::Storage { protocols } => protocols.clone(),
        _ => Vec::new(),
    });
    common.filter(|_| domain(source) == domain(dest))
}

/// The first word of the source's that is the destination's as well.
fn first_common(
    source: &Capabilities,
    dest: &Capabilities,
    words: impl Fn(&ReplicationCapability) -> Vec<String>,
) -> Option<String> {
    let of = |c: &Capabilities| c.replication.as_ref().map(&words).unwrap_or_default();
    let theirs = of(dest);
    of(source).into_iter().find(|word| theirs.contains(word))
}
