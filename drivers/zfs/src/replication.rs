//! Replicas and their roles.

use tandem_sdk::contract::{
    CreateReplica, DeleteReplica, DemoteReplica, Demotion, InstanceInfo, Outcome, PromoteReplica, Promotion,
    Quiesce, ReplicaReport, ResumeWrites, Role, UpdateReplicaState,
};
use tandem_sdk::{Error, OpContext, Quiescable, Replication, Result, Retry};

use crate::image::Image;
use crate::stream::content;
use crate::{Inner, Zfs, lzc, tool};

impl Replication for Zfs {
    async fn create_replica(&self, cx: &OpContext, call: CreateReplica) -> Result<Outcome<InstanceInfo>> {
        self.inner.create(cx, call.spec, Role::Secondary).await
    }

    async fn update_replica_state(&self, cx: &OpContext, call: UpdateReplicaState) -> Result<ReplicaReport> {
        self.inner.replica_state(cx, call.instance, call.epoch).await
    }

    async fn promote_replica(&self, cx: &OpContext, call: PromoteReplica) -> Result<Outcome<InstanceInfo>> {
        self.inner.promote(cx, &call).await
    }

    async fn demote_replica(&self, cx: &OpContext, call: DemoteReplica) -> Result<Outcome<InstanceInfo>> {
        self.inner.demote(cx, &call).await
    }

    async fn delete_replica(&self, cx: &OpContext, call: DeleteReplica) -> Result<Outcome<()>> {
        let active = self.inner.find(cx, call.instance).await?;
        if active.is_some_and(|i| i.meta.role == Role::Active && !i.meta.deleting) {
            return Err(Error::conflict(format!(
                "instance {} is the active one; promote another replica first, or delete the share",
                call.instance
            )));
        }
        self.inner.delete(cx, call.instance).await
    }
}

impl Quiescable for Zfs {
    async fn quiesce(&self, cx: &OpContext, call: Quiesce) -> Result<Outcome<()>> {
        let mut locked = self.inner.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        image.meta.epoch.see(call.epoch)?;
        image.meta.require_active("its writers are not held back")?;
        // Of a share that is not served yet after a power cut, what had been acknowledged is not written yet either.
        self.inner.replay(cx, image).await?;
        let was = image.meta.quiesced;
        if let Some(seconds) = call.wait_seconds.filter(|_| !was) {
            // Users are given this time to come to an end by themselves.
            let most = cx.remaining().map_or(seconds, |left| left.as_secs() / 2);
            cx.sleep(std::time::Duration::from_secs(seconds.min(most))).await?;
        }
        image.meta.quiesced = true;
        self.inner.save(cx, image).await?;
        self.inner.serve(cx, image).await?;
        self.inner.flush(cx).await?;
        Ok(Outcome::of(!was, ()))
    }

    async fn resume_writes(&self, cx: &OpContext, call: ResumeWrites) -> Result<Outcome<()>> {
        let mut locked = self.inner.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        image.meta.epoch.see(call.epoch)?;
        let was = image.meta.quiesced;
        image.meta.quiesced = false;
        self.inner.save(cx, image).await?;
        if was {
            self.inner.serve(cx, image).await?;
        }
        Ok(Outcome::of(was, ()))
    }
}

impl Inner {
    /// Waits until everything written so far is on the disks.
    pub(crate) async fn flush(&self, cx: &OpContext) -> Result<()> {
        tool::kernel(cx, "flush", self.config.zpool(), lzc::sync).await
    }

    /// Makes a secondary the active one.
    async fn promote(&self, cx: &OpContext, call: &PromoteReplica) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        if image.meta.role == Role::Active {
            self.save(cx, image).await?;
            self.serve(cx, image).await?;
            return Ok(Outcome::of(rose, self.info(image)));
        }
        if self.is_switched(cx, image).await? {
            return Err(Error::conflict(format!(
                "instance {} has migrated, and its users are served where it went",
                call.instance
            )));
        }
        let Ok(current) = content(image) else {
            return Err(Error::conflict(format!(
                "instance {} holds no whole point yet, so that it cannot become active",
                call.instance
            )));
        };
        if let Promotion::Planned { point: Some(point) } = call.promotion
            && current.point(point).is_none()
        {
            return Err(Error::conflict(format!(
                "instance {} is not at point {point}; sync it first",
                call.instance
            )));
        }
        self.save(cx, image).await?;
        // What is half arrived would never be whole.
        self.discard(cx, image).await?;
        image.meta.role = Role::Active;
        image.meta.read_only = false;
        image.meta.quiesced = false;
        self.save(cx, image).await?;
        self.mark(cx, image).await?;
        self.serve(cx, image).await?;
        tracing::info!(instance = %call.instance, epoch = %call.epoch, "Promoted the replica.");
        Ok(Outcome::Changed(self.info(image)))
    }

    /// The points of a new active one get bookmarks: the next sync of every other replica starts there.
    async fn mark(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let Some(current) = image.current() else { return Ok(()) };
        for moment in &current.points {
            if current.bookmarks.iter().any(|m| m.point == moment.point) {
                continue;
            }
            let (snapshot, bookmark) = (current.snapshot(moment.point), current.bookmark(moment.point));
            tool::kernel(cx, "bookmark", &snapshot, move |snapshot| {
                match lzc::bookmark(&bookmark, snapshot) {
                    // The pool may lack the feature; the snapshot itself is held.
                    Err(crate::error::EEXIST | crate::error::ENOTSUP) => Ok(()),
                    other => other,
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Makes the active one a secondary, or fences it.
    async fn demote(&self, cx: &OpContext, call: &DemoteReplica) -> Result<Outcome<InstanceInfo>> {
        let mut locked = self.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        let role = match call.to {
            Demotion::Secondary => Role::Secondary,
            Demotion::Fenced => Role::Fenced,
        };
        self.save(cx, image).await?;
        if image.meta.role == role {
            self.serve(cx, image).await?;
            return Ok(Outcome::of(rose, self.info(image)));
        }
        if role == Role::Secondary && image.meta.spec.replication.is_none() {
            return Err(Error::conflict(format!("instance {} does not replicate", call.instance)));
        }
        if role == Role::Secondary && image.meta.role == Role::Active {
            // First nobody may write any more, then what was written up to now counts.
            self.serve_nobody(cx, image).await?;
            if image.meta.quiesced {
                // After a power cut what had been acknowledged may not be written yet.
                self.replay(cx, image).await?;
            }
            self.flush(cx).await?;
            self.refresh(cx, image).await?;
            self.nothing_lost(cx, image).await?;
        }
        image.meta.role = role;
        image.meta.quiesced = false;
        self.save(cx, image).await?;
        self.serve(cx, image).await?;
        tracing::info!(instance = %call.instance, epoch = %call.epoch, ?role, "Demoted the instance.");
        Ok(Outcome::Changed(self.info(image)))
    }

    /// A quiesced instance took no writes since its last point; should one have slipped through, the promotion is given
    /// up rather than the write.
    async fn nothing_lost(&self, cx: &OpContext, image: &Image) -> Result<()> {
        let Some(current) = image.current() else { return Ok(()) };
        let Some(moment) = current.newest() else { return Ok(()) };
        let written = self.written_since(cx, current, moment).await?;
        if written == 0 || !self.differs(cx, image, moment, written).await? {
            return Ok(());
        }
        if image.meta.quiesced {
            return Err(Error::conflict(format!(
                "{written} bytes were written to instance {} after point {}, although its writers were held back; sync \
                 it again",
                image.meta.spec.instance, moment.point
            ))
            .retry(Retry::Never));
        }
        tracing::warn!(
            instance = %image.meta.spec.instance, written,
            "The instance was written to after its newest point; that goes when it follows another one."
        );
        Ok(())
    }
}
