//! Brings activation, mounts and exports in line with what an instance is.
//!
//! What takes something away goes first: the export, then the mount, then the volume. What gives goes in the other order.

use tandem_sdk::{Error, ExportLocation, InstanceInfo, OpContext, Result, Role};

use crate::image::Image;
use crate::mount::Mounted;
use crate::report::State;
use crate::{Inner, mount};

impl Inner {
    /// The instance's own mount, where it is mounted.
    pub(crate) fn mounted(&self, image: &Image) -> Option<Mounted> {
        if image.meta.is_shown() {
            return self.view_there(image).map(|(_, there)| there);
        }
        let there = mount::mounted(&self.path(image.meta.birth.instance))?;
        (Some(there.device) == image.device()).then_some(there)
    }

    /// [`mounted`](Self::mounted), asked whether it works: a file system that answers nothing any more has stopped.
    pub(crate) async fn standing(&self, cx: &OpContext, image: &Image) -> Result<Option<Mounted>> {
        let Some(mut there) = self.mounted(image) else { return Ok(None) };
        let path = self.path(image.meta.birth.instance);
        let answers = cx.blocking(move |_| Ok(mount::answers(&path)));
        there.stopped |= !self.soon(cx, image, answers, true).await?;
        Ok(Some(there))
    }

    /// Whether users reach it now.
    pub(crate) fn is_exported(&self, image: &Image) -> bool {
        (image.meta.is_served() || image.meta.is_shown())
            && self.exporter.is_open(&image.meta.birth.instance.to_string())
            && self.mounted(image).is_some()
    }

    pub(crate) fn exports(&self, image: &Image) -> Vec<ExportLocation> {
        if !self.is_exported(image) {
            return Vec::new();
        }
        vec![self.exporter.location(&self.path(image.meta.birth.instance))]
    }

    pub(crate) fn info(&self, image: &Image) -> InstanceInfo {
        InstanceInfo { exports: self.exports(image), ..InstanceInfo::default() }
    }

    /// Opens the export of what is mounted.
    pub(crate) async fn open_export(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        let id = image.meta.birth.instance;
        let (path, clients) = (self.path(id), image.meta.clients_now());
        if image.meta.is_readable() {
            // What is mounted there changes below its users; and both sides, which may be one host, have one UUID.
            return self.exporter.open_as(cx, &id.to_string(), &path, &clients, id).await;
        }
        self.exporter.open(cx, &id.to_string(), &path, &clients).await
    }

    /// Serves the instance as its tags say. `true` when anything changed.
    pub(crate) async fn serve(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let id = image.meta.birth.instance;
        let (path, export) = (self.path(id), id.to_string());
        let (served, shown) = (image.meta.is_served(), image.meta.is_shown());
        let read_only = !image.meta.is_writable();
        let mut changed = false;
        self.require_told(cx, image).await?;
        self.wake(cx, image).await?;
        if !shown {
            changed |= self.hide(cx, image).await?;
        }
        let there = self.standing(cx, image).await?;
        if !(served || shown) || there.is_none_or(|there| there.stopped) {
            changed |= self.exporter.close(cx, &export, &path).await?;
        } else if !image.meta.is_writable() && self.exporter.is_open(&export) {
            changed |= self.open_export(cx, image).await?;
        }
        if image.meta.made && !image.meta.deleting && image.meta.role == Role::Secondary {
            // Nobody sees it, or a snapshot of it; and it follows.
            if !shown || there.is_none_or(|there| there.stopped) {
                changed |= self.exporter.close(cx, &export, &path).await?;
                changed |= self.unmount(cx, image).await?;
            } else {
                changed |= self.open_export(cx, image).await?;
            }
            return Ok(self.serve_stack(cx, image).await? || changed);
        }
        let wanted = served || (image.meta.attached.is_some() && image.meta.made && !image.meta.deleting);
        if !wanted {
            return Ok(self.take_away(cx, image).await? || changed);
        }
        if image.meta.record.is_some() {
            changed |= self.leave_bare(cx, image).await?;
            changed |= self.serve_stack(cx, image).await?;
        }
        match there.filter(|there| !there.stopped) {
            None => {
                // Something else may lie there, or an empty folder.
                self.unmount(cx, image).await?;
                self.mount(cx, image, read_only).await?;
                changed = true;
            }
            Some(there) if there.read_only != read_only => {
                let (path, exporter) = (path.clone(), self.exporter.clone());
                let filesystem = image.meta.birth.filesystem;
                cx.blocking(move |_| mount::remount(&path, filesystem, read_only, &exporter)).await?;
                changed = true;
            }
            Some(_) => {}
        }
        if let Err(error) = self.grow(cx, image).await {
            // It is served as large as it is; its health says so, and the next call tries again.
            cx.check()?;
            tracing::warn!(instance = %id, %error, "The share could not grow to its size.");
        }
        if served {
            changed |= self.open_export(cx, image).await?;
        }
        Ok(changed)
    }

    /// Nobody reaches it and nothing of it is in use any more: no export, no mount, no active volume.
    pub(crate) async fn take_away(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let id = image.meta.birth.instance;
        self.require_told(cx, image).await?;
        self.wake(cx, image).await?;
        let mut changed = self.exporter.close(cx, &id.to_string(), &self.path(id)).await?;
        changed |= self.unmount(cx, image).await?;
        changed |= self.stack_down(cx, image).await?;
        changed |= self.idle_metadata(cx, image).await?;
        if image.volume.state != State::Inactive {
            self.worker.run(cx, &["lvchange", "-y", "-an", &self.of(id)]).await?;
            (image.volume.state, image.volume.device) = (State::Inactive, None);
            changed = true;
        }
        Ok(changed)
    }

    /// Ends what a command of LVM that was cut has left half done: a suspended device, at which everybody waits, or one
    /// whose table is not in use yet.
    pub(crate) async fn wake(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        if self.wake_pool(cx, &image.pool).await? {
            image.pool.state = State::Active;
        }
        let volume = self.of(image.meta.birth.instance);
        match image.volume.state {
            State::Active | State::Inactive => return Ok(()),
            State::Suspended => self.worker.run(cx, &["lvchange", "-y", "--refresh", &volume]).await?,
            State::Broken => {
                if let Err(error) = self.worker.run(cx, &["lvchange", "-y", "-K", "-ay", &volume]).await {
                    // Nobody waits at it: what comes next either does without, or says what it lacks.
                    cx.check()?;
                    tracing::warn!(volume, %error, "The volume's device is not whole.");
                }
            }
        }
        self.refresh(cx, image).await
    }

    /// Activates the volume and what lies over it, so that the file system has a node.
    pub(crate) async fn activate(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        match image.meta.record {
            Some(_) => self.serve_stack(cx, image).await.map(drop),
            None => self.activate_volume(cx, image).await,
        }
    }

    /// Activates the volume, so that it has a node that is its own.
    pub(crate) async fn activate_volume(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        self.wake(cx, image).await?;
        if mount::is_node_of(&image.volume.node, image.volume.device) && image.volume.state == State::Active {
            return Ok(());
        }
        let volume = self.of(image.meta.birth.instance);
        match image.volume.state {
            // All but its node.
            State::Active | State::Suspended => {
                self.worker.run(cx, &["lvchange", "-y", "--refresh", &volume]).await?;
            }
            State::Broken => {
                self.worker.run(cx, &["lvchange", "-y", "-an", &volume]).await?;
                self.worker.run(cx, &["lvchange", "-y", "-K", "-ay", &volume]).await?;
            }
            State::Inactive => self.worker.run(cx, &["lvchange", "-y", "-K", "-ay", &volume]).await?,
        }
        self.refresh(cx, image).await?;
        let (node, device) = (&image.volume.node, image.volume.device);
        if image.volume.state == State::Active && mount::is_node_of(node, device) {
            return Ok(());
        }
        Err(Error::unavailable(format!(
            "the volume `{volume}` was activated, but `{node}` is not its device; see `dmsetup info` and `ls -l {node}`"
        )))
    }

    /// Mounts the volume, which is not mounted.
    pub(crate) async fn mount(&self, cx: &OpContext, image: &mut Image, read_only: bool) -> Result<()> {
        self.activate(cx, image).await?;
        let (node, filesystem) = (image.node(), image.meta.birth.filesystem);
        // One that was made this moment is in order.
        if image.meta.made {
            filesystem.repair(cx, &node).await?;
        }
        let path = self.path(image.meta.birth.instance);
        if filesystem.is_shared() {
            return self.mount_shared(cx, image, &path, read_only).await;
        }
        let one_of_many = image.meta.is_readable();
        cx.blocking(move |_| mount::mount(&node, filesystem, &path, read_only, one_of_many)).await
    }

    pub(crate) async fn unmount(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        let (path, exporter) = (self.path(image.meta.birth.instance), self.exporter.clone());
        // Who reads a snapshot of it may go on.
        let is_view = self.view_there(image).is_some();
        let shared = image.meta.shared_minor();
        cx.blocking(move |_| {
            let left = is_view && mount::leave(&path)?;
            let was = mount::unmount(&path, &exporter)? || left;
            shared.map_or(Ok(()), Self::end_heartbeat)?;
            Ok(was)
        })
        .await
    }

    /// Lets volume and file system be as large as they should be, where that was begun. The file system grows while it is
    /// mounted and written to; until then it waits.
    pub(crate) async fn grow(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        if !image.meta.growing {
            return Ok(());
        }
        let id = image.meta.birth.instance;
        self.require_told(cx, image).await?;
        if image.volume.size_bytes < image.meta.size_bytes {
            let size = format!("{}b", image.volume.rounded(image.meta.size_bytes));
            self.worker.run(cx, &["lvextend", "-y", "-L", &size, &self.of(id)]).await?;
        }
        if image.meta.role == Role::Secondary {
            // The active side makes DRBD and the file system use it.
            image.meta.growing = false;
            self.save(cx, image).await?;
            return self.refresh(cx, image).await;
        }
        if self.mounted(image).is_none_or(|there| there.read_only) {
            return Ok(());
        }
        if !self.grow_stack(cx, image).await? {
            // The other active side, whose volume grows later, ends it for both.
            return Ok(());
        }
        if image.meta.birth.filesystem.is_shared() {
            self.ready_cluster(cx).await?;
        }
        image.meta.birth.filesystem.grow(cx, &image.node(), &self.path(id)).await?;
        image.meta.growing = false;
        self.save(cx, image).await?;
        self.refresh(cx, image).await
    }
}
