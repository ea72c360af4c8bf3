//! Peers: told to each other, parted, told which side to keep.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tandem_sdk::contract::{ConnectPeers, DisconnectPeers, Endpoint, Outcome};
use tandem_sdk::{Error, InstanceId, OpContext, Result, Role};

use super::generation::{Generation, born};
use super::record::{Peer, Protocol, Record};
use super::report::split_brain;
use super::{PROTOCOL, status::Status};
use crate::Inner;
use crate::image::Image;

/// What a side tells its peer.
#[derive(Debug, Serialize, Deserialize)]
struct Address {
    at: SocketAddr,
    /// What the newest data here builds on, hexadecimal; absent where nobody can tell now.
    #[serde(default)]
    base: Option<String>,
    /// Both sides have one file system, and acknowledge alike; absent in what older drivers tell.
    #[serde(default)]
    filesystem: Option<String>,
    #[serde(default)]
    protocol: Option<String>,
}

impl Inner {
    /// This side's address.
    pub(crate) async fn address(&self, cx: &OpContext, id: InstanceId) -> Result<Endpoint> {
        let image = self.existing(cx, id).await?;
        let record = record_of(&image)?;
        let at = SocketAddr::new(self.drbd()?.address, record.port);
        let base = self.generation_now(cx, &image).await?.map(|g| format!("{:016X}", g.base));
        let (filesystem, protocol) = (image.meta.birth.filesystem.as_str(), record.protocol.as_str());
        let (filesystem, protocol) = (Some(filesystem.to_owned()), Some(protocol.to_owned()));
        let data = serde_json::to_value(Address { at, base, filesystem, protocol })
            .map_err(|e| Error::bug(format!("an address does not encode: {e}")))?;
        Ok(Endpoint { instance: id, protocol: PROTOCOL.to_owned(), data })
    }

    /// The generation of its disk, while that is attached.
    pub(crate) async fn generation_now(&self, cx: &OpContext, image: &Image) -> Result<Option<Generation>> {
        let status = self.status(cx, image.meta.birth.instance).await?;
        Ok(match status.filter(Status::is_attached).and_then(|status| status.minor) {
            Some(minor) => self.generation(cx, minor).await,
            None => None,
        })
    }

    pub(crate) async fn connect_peer(&self, cx: &OpContext, call: ConnectPeers) -> Result<Outcome<()>> {
        let id = call.instance;
        let (peer, address) = peer_of(&call)?;
        let base = address.base.as_ref().and_then(|base| u64::from_str_radix(base, 16).ok());
        let mut locked = self.lock_existing(cx, id).await?;
        let image = &mut locked.image;
        let mut record = record_of(image)?;
        require_alike(image, record.protocol, &address)?;
        let rose = image.meta.epoch.see(call.epoch)?;
        if image.meta.role == Role::Fenced {
            return Err(Error::conflict(format!(
                "instance {id} is fenced and follows nobody until it is demoted to a secondary"
            )));
        }
        match record.peer {
            Some(there) if there.instance != peer.instance => {
                return Err(Error::conflict(format!(
                    "instance {id} replicates with {} already, and DRBD 8.4 joins two instances, not three; delete one \
                     replica first",
                    there.instance
                )));
            }
            Some(there) if there.leads != peer.leads && !self.turned(cx, image, &peer).await? => {
                return Err(Error::conflict(format!(
                    "instance {id} is connected to {} the other way round; disconnect them first",
                    peer.instance
                )));
            }
            _ => {}
        }
        if self.lacks_room(&image.pool).is_some() {
            let status = self.status(cx, id).await?;
            if !status.as_ref().is_some_and(Status::is_attached) {
                self.require_fed(image, status.as_ref())?;
            }
        }
        self.leave_old_address(cx, image, &record, &peer).await?;
        self.save(cx, image).await?;
        let up = self.serve_stack(cx, image).await?;
        self.require_word(cx, image, &peer, call.give_up).await?;
        // Its minor may be another one now.
        record = record_of(image)?;
        let known = record.peer == Some(peer);
        if !known {
            record.peer = Some(peer);
            // Whoever follows is no longer where the newest data is.
            record.last &= peer.leads;
            image.meta.record = Some(record.clone());
        }
        self.save(cx, image).await?;
        self.arm(cx, image).await?;
        let changed = self.join(cx, image, &peer, base, call.give_up).await?;
        Ok(Outcome::of(rose || up || changed || !known, ()))
    }

    /// Whether the two changed who leads while the kernel kept them alike, as in a planned promotion: then the connection stays,
    /// and no moment passes in which users write to one disk only.
    async fn turned(&self, cx: &OpContext, image: &Image, peer: &Peer) -> Result<bool> {
        if (image.meta.role == Role::Active) != peer.leads {
            return Ok(false);
        }
        let status = self.status(cx, image.meta.birth.instance).await?;
        Ok(status.is_some_and(|status| status.is_up_to_date()))
    }

    /// A connection that was made with another address of either side is left: the kernel would go on trying it.
    async fn leave_old_address(
        &self,
        cx: &OpContext,
        image: &Image,
        record: &Record,
        peer: &Peer,
    ) -> Result<()> {
        let id = image.meta.birth.instance;
        let tries = self.status(cx, id).await?.is_some_and(|status| !status.stands_alone());
        if !tries || self.ends(cx, id).await?.is_none_or(|ends| Ok(ends) == self.addresses(record, peer)) {
            return Ok(());
        }
        match self.cut(cx, id).await {
            // Nobody uses it: it is made anew.
            Err(error) if image.meta.role == Role::Secondary => {
                tracing::warn!(instance = %id, %error, "The old connection does not end; the resource is made anew.");
                self.stack_down(cx, image).await.map(drop)
            }
            other => other,
        }
    }

    /// Refuses to follow while it holds what its peer lacks, unless somebody said that this is to be given up.
    async fn require_word(&self, cx: &OpContext, image: &Image, peer: &Peer, give_up: bool) -> Result<()> {
        let id = image.meta.birth.instance;
        if peer.leads || give_up {
            return Ok(());
        }
        let status = self.status(cx, id).await?.unwrap_or_default();
        match split_brain(image, &status, self.generation_now(cx, image).await?) {
            Some(how) => Err(Error::conflict(how)),
            None => Ok(()),
        }
    }

    /// Connects what is not connected; the side that follows gives up what it has of its own, since it was told to.
    async fn join(
        &self,
        cx: &OpContext,
        image: &mut Image,
        peer: &Peer,
        base: Option<u64>,
        give_up: bool,
    ) -> Result<bool> {
        let (id, resource) = (image.meta.birth.instance, image.meta.birth.resource);
        let own = self.generation_now(cx, image).await?;
        let blank = own.is_some_and(|own| own.is_blank(resource));
        let follows = image.meta.role == Role::Secondary && !peer.leads;
        let discard = give_up && follows && own.is_some_and(Generation::has_own);
        // What a new replica lacks is all that was ever written while the active one knows just that.
        let alike = base == Some(born(resource));
        let connected = self.status(cx, id).await?.is_some_and(|status| status.is_connected());
        if blank
            && !peer.leads
            && !alike
            && !connected
            && own.is_some_and(|own| own.current == born(resource))
        {
            self.lay_for_full_sync(cx, image).await?;
            tracing::info!(instance = %id, "The whole share is to be carried: the active one has had another peer.");
            return self.stack_up(cx, image).await;
        }
        let status = self.status(cx, id).await?;
        if status.as_ref().is_none_or(Status::stands_alone) {
            let record = record_of(image)?;
            self.connect(cx, image, &record, peer, discard).await?;
            if discard {
                tracing::warn!(instance = %id, peer = %peer.instance, "Gives up what was written here and not there.");
            } else if blank && alike {
                tracing::info!(instance = %id, "Only what was ever written to the share is carried.");
            }
            return Ok(true);
        }
        let differs = status.is_some_and(|s| follows && s.peer_is_primary && s.was_found_to_differ());
        // What tries to connect, or is about to, would refuse to give anything up. Where the two differ, the active side starts a
        // generation of its own when it is left, and carries that from there.
        let discard = discard && !connected;
        if discard || differs {
            if differs {
                tracing::warn!(instance = %id, "Differs from its peer, and is brought in line.");
            }
            let record = record_of(image)?;
            self.cut(cx, id).await?;
            self.connect(cx, image, &record, peer, discard).await?;
            return Ok(true);
        }
        Ok(false)
    }

    pub(crate) async fn disconnect_peer(&self, cx: &OpContext, call: DisconnectPeers) -> Result<Outcome<()>> {
        // What is gone replicates with nobody.
        let Some(mut locked) = self.lock(cx, call.instance).await? else {
            return Ok(Outcome::of(self.clear(cx, call.instance).await?, ()));
        };
        let image = &mut locked.image;
        let Some(mut record) = image
            .meta
            .record
            .clone()
            .filter(|record| record.peer.is_some_and(|peer| peer.instance == call.peer))
        else {
            return Ok(Outcome::Unchanged(()));
        };
        let status = self.status(cx, call.instance).await?;
        // Who was cut off before is set free by nobody's leaving.
        super::fence::require_free(image, status.as_ref())?;
        if let Some(status) = &status
            && image.meta.role == Role::Active
            && status.disk != "UpToDate"
            && status.peer_serves()
        {
            return Err(Error::conflict(format!(
                "the disk of instance {} is {}, and its users have what lies on the disk of {} alone: promote that one, or mend this \
                 one first",
                call.instance,
                if status.disk.is_empty() { "not there" } else { &status.disk },
                call.peer
            )));
        }
        if status.is_some_and(|status| !status.stands_alone()) {
            self.cut(cx, call.instance).await?;
        }
        self.disarm(cx, image).await?;
        record.peer = None;
        image.meta.record = Some(record);
        self.save(cx, image).await?;
        Ok(Outcome::Changed(()))
    }
}

/// How an instance replicates.
///
/// # Errors
/// `Conflict` when it does not.
pub(crate) fn record_of(image: &Image) -> Result<Record> {
    image.meta.record.clone().ok_or_else(|| {
        Error::conflict(format!(
            "instance {} was made without `replication_type` and has no metadata of DRBD; move the share to a type that \
             replicates",
            image.meta.birth.instance
        ))
    })
}

/// Refuses to begin where the other side could not be its peer.
pub(crate) fn require_peer(image: &Image, protocol: Protocol, peer: &Endpoint) -> Result<()> {
    require_alike(image, protocol, &address_of(peer)?)
}

/// Both sides have one file system, and acknowledge alike.
fn require_alike(image: &Image, protocol: Protocol, address: &Address) -> Result<()> {
    for (what, mine, theirs) in [
        ("lvm:filesystem", image.meta.birth.filesystem.as_str(), &address.filesystem),
        ("lvm:protocol", protocol.as_str(), &address.protocol),
    ] {
        if let Some(theirs) = theirs.as_ref().filter(|theirs| *theirs != mine) {
            return Err(Error::invalid(format!(
                "instance {} has `{what}` = `{mine}`, and the other side `{theirs}`; name it in the share type, or set both back \
                 ends alike, and make that side anew",
                image.meta.birth.instance
            )));
        }
    }
    Ok(())
}

fn address_of(peer: &Endpoint) -> Result<Address> {
    if peer.protocol != PROTOCOL {
        return Err(Error::invalid(format!(
            "the peer speaks `{}`, and this side `{PROTOCOL}`",
            peer.protocol
        )));
    }
    serde_json::from_value(peer.data.clone())
        .map_err(|e| Error::invalid(format!("the peer's address makes no sense: {e}")))
}

fn peer_of(call: &ConnectPeers) -> Result<(Peer, Address)> {
    if call.peer.instance == call.instance {
        return Err(Error::invalid("an instance is no peer of itself"));
    }
    let address = address_of(&call.peer)?;
    Ok((Peer { instance: call.peer.instance, at: address.at, leads: call.authoritative }, address))
}
