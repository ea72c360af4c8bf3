//! The abilities: replicas, their roles, their links.

use tandem_sdk::contract::{
    BeginReplication, ConnectPeers, CreateReplica, DeleteReplica, DemoteReplica, Demotion, DisconnectPeers,
    EndReplication, Endpoint, GetEndpoint, InstanceInfo, Outcome, PromoteReplica, Promotion, ReplicaReport,
    UpdateReplicaState,
};
use tandem_sdk::{Error, OpContext, Reachable, Replication, Result, Role, StorageReplicated, Style};

use super::peers::record_of;
use crate::image::Image;
use crate::{Inner, Lvm};

impl Replication for Lvm {
    async fn create_replica(&self, cx: &OpContext, call: CreateReplica) -> Result<Outcome<InstanceInfo>> {
        if call.spec.replication.is_none() {
            return Err(Error::invalid("a replica needs to be told its style"));
        }
        self.inner.create(cx, &call.spec, Role::Secondary).await
    }

    async fn update_replica_state(&self, cx: &OpContext, call: UpdateReplicaState) -> Result<ReplicaReport> {
        self.inner.report(cx, call.instance, call.epoch).await
    }

    async fn promote_replica(&self, cx: &OpContext, call: PromoteReplica) -> Result<Outcome<InstanceInfo>> {
        self.inner.promote(cx, &call).await
    }

    async fn demote_replica(&self, cx: &OpContext, call: DemoteReplica) -> Result<Outcome<InstanceInfo>> {
        self.inner.demote(cx, &call).await
    }

    async fn delete_replica(&self, cx: &OpContext, call: DeleteReplica) -> Result<Outcome<()>> {
        if let Some(image) = self.inner.find(cx, call.instance).await?
            && image.meta.role == Role::Active
            && !image.meta.deleting
        {
            return Err(Error::conflict(format!(
                "instance {} is active; delete it with its share, or promote another one first",
                call.instance
            )));
        }
        self.inner.delete(cx, call.instance).await
    }
}

impl Reachable for Lvm {
    async fn endpoint(&self, cx: &OpContext, call: GetEndpoint) -> Result<Endpoint> {
        self.inner.address(cx, call.instance).await
    }
}

impl StorageReplicated for Lvm {
    async fn connect_peers(&self, cx: &OpContext, call: ConnectPeers) -> Result<Outcome<()>> {
        self.inner.connect_peer(cx, call).await
    }

    async fn disconnect_peers(&self, cx: &OpContext, call: DisconnectPeers) -> Result<Outcome<()>> {
        self.inner.disconnect_peer(cx, call).await
    }

    async fn begin_replication(
        &self,
        cx: &OpContext,
        call: BeginReplication,
    ) -> Result<Outcome<InstanceInfo>> {
        self.inner.begin_replication(cx, &call).await
    }

    async fn end_replication(&self, cx: &OpContext, call: EndReplication) -> Result<Outcome<InstanceInfo>> {
        self.inner.end_replication(cx, &call).await
    }
}

impl Inner {
    async fn promote(&self, cx: &OpContext, call: &PromoteReplica) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        record_of(image)?;
        let forced = matches!(call.promotion, Promotion::Forced { .. });
        if image.meta.role == Role::Active {
            let status = self.status(cx, call.instance).await?;
            if forced && rose && status.is_some_and(|status| status.is_suspended) {
                // With the epoch: a call that was interrupted after that finds that it is to go on alone.
                image.meta.record = Some(super::record::Record { peer: None, ..record_of(image)? });
            }
            self.save(cx, image).await?;
            if forced {
                // Where it was interrupted.
                self.stack_up(cx, image).await?;
                self.arm(cx, image).await?;
                self.set_primary(cx, image, true, true).await?;
            }
            let alone = forced && record_of(image)?.peer.is_none();
            if rose || alone {
                self.go_on(cx, image, forced).await?;
            }
            let served = self.serve(cx, image).await?;
            return Ok(Outcome::of(rose || served, self.info(image)));
        }
        self.require_data(cx, image, forced).await?;
        image.meta.epoch.see(call.epoch)?;
        let mut record = record_of(image)?;
        (record.last, record.diskless) = (false, false);
        if forced {
            // The other side is not asked, and gets nothing of what is written here before somebody says who follows whom.
            record.peer = None;
        }
        image.meta.role = Role::Active;
        image.meta.record = Some(record);
        self.save(cx, image).await?;
        self.stack_up(cx, image).await?;
        self.arm(cx, image).await?;
        // By force the kernel starts a generation of its own: should the other side have gone on, both know.
        self.set_primary(cx, image, true, forced).await?;
        if forced {
            // It was held back when it was told to step down.
            self.go_on(cx, image, true).await?;
        }
        // The other side may have grown what lies below the file system, and not come to that.
        let large = self.status(cx, call.instance).await?.unwrap_or_default().size_kib.saturating_mul(2);
        image.meta.growing |= large >= super::stack::sectors(image.meta.size_bytes);
        self.serve(cx, image).await?;
        Ok(Outcome::Changed(self.info(image)))
    }

    /// Refuses to make active what holds nothing whole, or, as planned, what may lack something.
    async fn require_data(&self, cx: &OpContext, image: &mut Image, forced: bool) -> Result<()> {
        let id = image.meta.birth.instance;
        let record = record_of(image)?;
        if image.meta.role == Role::Fenced {
            // Nothing of it is in the kernel; it is looked at without its peer.
            let without = super::record::Record { peer: None, ..record.clone() };
            image.meta.record = Some(without);
            self.save(cx, image).await?;
        }
        let was_up = self.status(cx, id).await?.is_some();
        if !was_up {
            self.stack_up(cx, image).await?;
        }
        let status = match record.peer {
            // What has been there for long tries by itself, and has found whom there is to find.
            Some(peer) if !was_up && image.meta.role != Role::Fenced => self.handshake(cx, id, &peer).await?,
            _ => self.status(cx, id).await?.unwrap_or_default(),
        };
        let own = self.generation_now(cx, image).await?;
        // Of a disk that is not there nobody knows anything; its peer's is then what is served.
        let blank = status.is_attached() && own.is_none_or(|own| own.is_blank(image.meta.birth.resource));
        let whole = status.is_whole() || (!forced && !status.is_attached() && status.peer_serves());
        // It had the newest data, and nobody has gone past it: the other side would tell.
        let last = record.last && !status.resyncs();
        let beside = record.style == Style::Writable && !forced;
        let refusal = if !beside && status.is_connected() && status.peer_is_primary {
            format!(
                "the other side of instance {id} is connected and serves its users: demote it first; where its host cannot \
                 be asked, switch it off or cut its link, and promote then"
            )
        } else if !forced && !status.is_up_to_date() && !last {
            format!(
                "instance {id} is not up to date (disk {}, connection {}): a planned promotion could lose something; let it \
                 follow first, or promote it by force",
                or_none(&status.disk),
                or_none(&status.connection)
            )
        } else if blank {
            format!("instance {id} never received anything; nothing could be served")
        } else if !whole {
            format!(
                "instance {id} holds no whole moment of the share (disk {}): a resync was cut short; let it end first",
                or_none(&status.disk)
            )
        } else {
            return Ok(());
        };
        if !was_up && image.meta.role == Role::Fenced {
            self.take_away(cx, image).await?;
        }
        Err(Error::conflict(refusal))
    }

    async fn demote(&self, cx: &OpContext, call: &DemoteReplica) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        let mut record = record_of(image)?;
        let role = match call.to {
            Demotion::Secondary => Role::Secondary,
            Demotion::Fenced => Role::Fenced,
        };
        let before = image.meta.role;
        let status = self.status(cx, call.instance).await?;
        if before != role {
            // The other side of a writable share goes on.
            let beside = record.style == Style::Writable && record.peer.is_some();
            record.last = before == Role::Active && role == Role::Secondary && !record.diskless && !beside;
            record.diskless = false;
            if role == Role::Fenced || before == Role::Fenced {
                // Nobody is followed before somebody says whom.
                record.peer = None;
            }
            image.meta.role = role;
            image.meta.attached = None;
            image.meta.record = Some(record);
        }
        self.save(cx, image).await?;
        super::fence::require_free(image, status.as_ref())?;
        let mut changed = rose || before != role;
        if status.is_some() || self.mounted(image).is_some() || before != role {
            changed |= self.serve(cx, image).await?;
        }
        Ok(Outcome::of(changed, self.info(image)))
    }
}

fn or_none(word: &str) -> &str {
    if word.is_empty() { "none" } else { word }
}
