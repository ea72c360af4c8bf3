//! An instance that was made without replication replicates for a while: so it moves to another host.
//!
//! DRBD's metadata lies on a volume of its own, so the layer is put below the file system, and taken away, without a byte of
//! the share being moved. Users wait while it is unmounted and mounted again.

use tandem_sdk::contract::{BeginReplication, EndReplication, InstanceInfo, Outcome};
use tandem_sdk::{Error, OpContext, Result, Retry, Role, Style};

use super::peers::require_peer;
use super::record::Record;
use super::{generation, stack, tools};
use crate::image::Image;
use crate::meta::MARK;
use crate::{Inner, mount};

impl Inner {
    pub(crate) async fn begin_replication(
        &self,
        cx: &OpContext,
        call: &BeginReplication,
    ) -> Result<Outcome<InstanceInfo>> {
        let spec = &call.spec;
        let (_, protocol) = self.check(spec)?;
        let style = match &spec.replication {
            Some(replication) if replication.style != Style::Writable => replication.style,
            Some(_) => {
                return Err(Error::unsupported(
                    "a share with one host's file system is not written to by two",
                ));
            }
            None => {
                return Err(Error::invalid("an instance that is to replicate needs to be told its style"));
            }
        };
        let mut locked = self.lock_existing(cx, spec.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(spec.epoch)?;
        require_active(image)?;
        self.save(cx, image).await?;
        let begun = image.meta.record.is_none();
        if begun {
            require_whole_blocks(image)?;
            call.peer.iter().try_for_each(|peer| require_peer(image, protocol, peer))?;
            self.ready_pool(cx).await?;
            let _numbers = self.lock_numbers(cx).await?;
            let (minor, port) = self.free_numbers(cx, self.drbd()?).await?;
            if image.metadata.is_none() {
                self.make_metadata(cx, spec.instance).await?;
                self.refresh(cx, image).await?;
            }
            self.lay_below(cx, image, minor).await?;
            if let Err(error) = self.set_aside(cx, image).await {
                // Its users go on without the layer, and are not asked to wait again.
                return Err(self.served_again(cx, image, error).await.retry(Retry::AfterOperator));
            }
            let record = Record { style, protocol, minor, port, peer: None, last: false, diskless: false };
            image.meta.record = Some(record);
            self.save(cx, image).await?;
        }
        self.save(cx, image).await?;
        let served = self.serve(cx, image).await?;
        Ok(Outcome::of(begun || rose || served, self.info(image)))
    }

    pub(crate) async fn end_replication(
        &self,
        cx: &OpContext,
        call: &EndReplication,
    ) -> Result<Outcome<InstanceInfo>> {
        let id = call.instance;
        let mut locked = self.lock_existing(cx, id).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        require_active(image)?;
        let ended = image.meta.record.is_some() || image.metadata.is_some();
        let metadata = image.metadata.clone();
        if let Some(record) = &image.meta.record {
            if let Some(peer) = record.peer {
                return Err(Error::conflict(format!(
                    "instance {id} replicates with {}; disconnect them first",
                    peer.instance
                )));
            }
            if record.style != Style::Dr || record.diskless {
                return Err(Error::conflict(format!(
                    "what lies below instance {id} is not all that its users have, or users read its replica; it goes on \
                     replicating"
                )));
            }
            let status = self.status(cx, id).await?;
            if let Some(status) = status.filter(|status| status.disk != "UpToDate") {
                return Err(Error::conflict(format!(
                    "the disk below instance {id} is {}, not UpToDate: its users would lose what it lacks; it goes on replicating",
                    if status.disk.is_empty() { "not there" } else { &status.disk }
                )));
            }
            let ended = match self.set_aside(cx, image).await {
                Ok(()) => self.stack_down(cx, image).await.map(drop),
                other => other,
            };
            if let Err(error) = ended {
                // Its users go on with the layer.
                return Err(self.served_again(cx, image, error).await);
            }
            image.meta.record = None;
        }
        self.save(cx, image).await?;
        let served = self.serve(cx, image).await?;
        if metadata.is_some() {
            let marked = format!("lv_tags={MARK}");
            self.worker.run(cx, &["lvremove", "-y", "-S", &marked, &self.metadata_of(id)]).await?;
            image.metadata = None;
        }
        Ok(Outcome::of(ended || rose || served, self.info(image)))
    }

    /// Nobody uses what is mounted any more.
    async fn set_aside(&self, cx: &OpContext, image: &Image) -> Result<()> {
        let id = image.meta.birth.instance;
        self.exporter.close(cx, &id.to_string(), &self.path(id)).await?;
        self.unmount(cx, image).await.map(drop)
    }

    /// Serves an instance whose layer could not be changed as it was; the error that it could not.
    async fn served_again(&self, cx: &OpContext, image: &mut Image, error: Error) -> Error {
        if let Err(why) = self.serve(cx, image).await {
            tracing::warn!(instance = %image.meta.birth.instance, error = %why, "The share is not served again yet.");
        }
        error
    }

    /// Metadata of a new generation, which says that the volume has everything and nobody else anything.
    async fn lay_below(&self, cx: &OpContext, image: &mut Image, minor: u32) -> Result<()> {
        self.activate_volumes(cx, image).await?;
        let (_, meta) = self.nodes(image)?;
        tools::meta(cx, minor, &meta, &["create-md"]).await?;
        tools::meta(cx, minor, &meta, &["set-gi", &generation::fresh_words()]).await.map(drop)
    }

    /// A share that begins to replicate may still be mounted without the layer: it is unmounted, so that the layer finds the
    /// volume free.
    pub(crate) async fn leave_bare(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        let path = self.path(image.meta.birth.instance);
        let bare = |there: mount::Mounted| Some(there.device) == image.volume.device;
        if image.meta.record.is_none() || !mount::mounted(&path).is_some_and(bare) {
            return Ok(false);
        }
        self.set_aside(cx, image).await.map(|()| true)
    }
}

fn require_active(image: &Image) -> Result<()> {
    let meta = &image.meta;
    if meta.role != Role::Active || !meta.made || meta.deleting || meta.attached.is_some() {
        return Err(Error::conflict(format!(
            "instance {} is no active one, or is attached for a copy; only what is just served begins to replicate, or ends it",
            meta.birth.instance
        )));
    }
    Ok(())
}

/// The file system is as large as the volume, and DRBD's device is as large as the share.
fn require_whole_blocks(image: &Image) -> Result<()> {
    let meta = &image.meta;
    if meta.growing || stack::sectors(meta.size_bytes) * 512 != image.volume.size_bytes {
        return Err(Error::conflict(format!(
            "the volume of instance {} is {} bytes large, and the share {}: it replicates once they are the same; resize it to \
             a multiple of the volume group's extents",
            meta.birth.instance, image.volume.size_bytes, meta.size_bytes
        )));
    }
    Ok(())
}
