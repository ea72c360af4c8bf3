//! Metadata laid at birth, and anew where a full sync is due.

use tandem_sdk::{InstanceId, OpContext, Result};

use super::{generation, stack, tools};
use crate::image::Image;
use crate::meta::MARK;
use crate::report::State;
use crate::{Inner, names};

/// The size of every metadata volume, in bytes: room for the bitmap of the largest share, so that it never grows. It is
/// thin, and only what describes the share's own size is ever written.
const META_BYTES: u64 = (2 << 30) + (4 << 20);

impl Inner {
    /// The volume of DRBD's metadata, as LVM's commands name it.
    pub(crate) fn metadata_of(&self, id: InstanceId) -> String {
        self.config.of_group(&names::metadata_of(id))
    }

    /// Makes the volume for the metadata, which must not be there.
    pub(crate) async fn make_metadata(&self, cx: &OpContext, id: InstanceId) -> Result<()> {
        let (name, size) = (names::metadata_of(id), format!("{META_BYTES}b"));
        let words = [
            "lvcreate",
            "-y",
            "--type",
            "thin",
            "-k",
            "y",
            "-K",
            "-n",
            &name,
            "-V",
            &size,
            "--addtag",
            MARK,
            "--thinpool",
            &self.config.thin_pool,
            &self.config.group,
        ];
        self.worker.run(cx, &words).await
    }

    /// Activates the volumes of data and metadata.
    pub(crate) async fn activate_volumes(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        self.activate_volume(cx, image).await?;
        self.activate_metadata(cx, image).await
    }

    /// Activates the volume of the metadata, and leaves that of the data as it is.
    pub(crate) async fn activate_metadata(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let state = image.metadata.as_ref().map_or(State::Active, |metadata| metadata.state);
        let volume = self.metadata_of(image.meta.birth.instance);
        match state {
            State::Active => return Ok(()),
            // What a command of LVM that was cut has left half done.
            State::Suspended => self.worker.run(cx, &["lvchange", "-y", "--refresh", &volume]).await?,
            State::Broken | State::Inactive => {
                self.worker.run(cx, &["lvchange", "-y", "-K", "-ay", &volume]).await?;
            }
        }
        self.refresh(cx, image).await
    }

    /// Takes the metadata's device away. `true` when there was one.
    pub(crate) async fn idle_metadata(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let Some(metadata) = image.metadata.as_mut().filter(|metadata| metadata.state != State::Inactive)
        else {
            return Ok(false);
        };
        self.worker.run(cx, &["lvchange", "-y", "-an", &self.metadata_of(image.meta.birth.instance)]).await?;
        (metadata.state, metadata.device) = (State::Inactive, None);
        Ok(true)
    }

    /// Lays metadata of the resource's first generation on volumes that were never written to: both sides are alike, and
    /// nothing has to be carried but what is written later.
    pub(crate) async fn lay(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let Some(record) = image.meta.record.clone() else { return Ok(()) };
        self.drbd()?.require()?;
        self.activate_volumes(cx, image).await?;
        let (data, meta) = self.nodes(image)?;
        let (name, minor) = (names::of_instance(image.meta.birth.instance), record.minor.to_string());
        let size = format!("--size={}s", stack::sectors(image.meta.size_bytes));
        tools::meta(cx, record.minor, &meta, &["create-md"]).await?;
        // The kernel writes the bitmap for the device's size, and marks all of it; nothing of it is true of new volumes.
        tools::setup(cx, &["new-resource", &name]).await?;
        tools::setup(cx, &["new-minor", &name, &minor, "0"]).await?;
        tools::setup(cx, &["attach", &minor, &data, &meta, "flexible", &size]).await?;
        tools::setup(cx, &["new-current-uuid", "--clear-bitmap", &minor]).await?;
        tools::setup(cx, &["down", &name]).await?;
        let born = generation::birth_words(image.meta.birth.resource);
        tools::meta(cx, record.minor, &meta, &["set-gi", &born]).await?;
        Ok(())
    }

    /// Lays metadata without any generation: the peer's data is carried whole.
    pub(crate) async fn lay_for_full_sync(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let Some(record) = image.meta.record.clone() else { return Ok(()) };
        self.stack_down(cx, image).await?;
        self.activate_volumes(cx, image).await?;
        let (_, meta) = self.nodes(image)?;
        tools::meta(cx, record.minor, &meta, &["create-md"]).await.map(drop)
    }
}
