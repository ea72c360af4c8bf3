//! Brings mounts, exports and the kernel's `readonly` in line with what an instance is.
//!
//! What takes something away goes first: the export, then the dataset's `readonly`, which the kernel holds against
//! everybody at once, then the mount. What gives goes in the other order.

use tandem_sdk::{ExportLocation, InstanceInfo, OpContext, Result, Role};

use crate::image::{Image, Version};
use crate::{Inner, mount, tool};

impl Inner {
    /// Whether the current content is mounted.
    pub(crate) fn is_reachable(&self, image: &Image) -> bool {
        let at = mount::mounted(&self.path(image.meta.spec.instance));
        at.is_some() && at.as_deref() == image.current().map(|v| v.name.as_str())
    }

    /// Whether users reach it now.
    pub(crate) fn is_exported(&self, image: &Image) -> bool {
        image.meta.is_served()
            && self.exporter.is_open(&image.meta.spec.instance.to_string())
            && self.is_reachable(image)
    }

    pub(crate) fn exports(&self, image: &Image) -> Vec<ExportLocation> {
        if !self.is_exported(image) {
            return Vec::new();
        }
        vec![self.exporter.location(&self.path(image.meta.spec.instance))]
    }

    pub(crate) fn info(&self, image: &Image) -> InstanceInfo {
        InstanceInfo { exports: self.exports(image), ..InstanceInfo::default() }
    }

    /// Serves the instance as its role says. `true` when anything changed.
    pub(crate) async fn serve(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let id = image.meta.spec.instance;
        let (path, export) = (self.path(id), id.to_string());
        let served = image.meta.is_served();
        let mut changed = false;
        let reachable = self.is_reachable(image);
        if !served || !reachable {
            changed |= self.exporter.close(cx, &export, &path).await?;
        } else if !image.meta.is_writable() && self.exporter.is_open(&export) {
            changed |= self.exporter.open(cx, &export, &path, &image.meta.clients_now()).await?;
        }
        changed |= self.set_readonly(cx, image).await?;
        changed |= self.set_quota(cx, image).await?;
        let wanted = served || (image.meta.attached.is_some() && image.current().is_some());
        if !wanted || !reachable {
            changed |= self.unmount(cx, image).await?;
        }
        if wanted && !reachable {
            self.mount(cx, image).await?;
            changed = true;
        }
        if served {
            changed |= self.exporter.open(cx, &export, &path, &image.meta.clients_now()).await?;
        }
        Ok(changed)
    }

    /// Nobody reaches it, and nobody can write to it.
    pub(crate) async fn serve_nobody(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let id = image.meta.spec.instance;
        self.exporter.close(cx, &id.to_string(), &self.path(id)).await?;
        if !image.readonly {
            match self.write_back(cx, image).await {
                // What is fenced must not be served, whatever its disks say.
                Err(error) if image.meta.role != Role::Active && !cx.is_cancelled() => {
                    tracing::warn!(instance = %id, %error, "What was written last could not be written back.");
                }
                other => other?,
            }
            tool::zfs(cx, &image.name, &["set", "readonly=on", &image.name]).await?;
            image.readonly = true;
        }
        self.unmount(cx, image).await.map(drop)
    }

    async fn set_readonly(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let readonly = !image.meta.is_writable();
        if image.readonly == readonly {
            return Ok(false);
        }
        if readonly {
            self.write_back(cx, image).await?;
        }
        let property = if readonly { "readonly=on" } else { "readonly=off" };
        tool::zfs(cx, &image.name, &["set", property, &image.name]).await?;
        image.readonly = readonly;
        Ok(true)
    }

    /// What was written through a mapping of a file lies in memory until the kernel writes it back, which it does not once the
    /// dataset is read-only.
    async fn write_back(&self, cx: &OpContext, image: &Image) -> Result<()> {
        if !self.is_reachable(image) {
            return Ok(());
        }
        tool::alive(&image.name)?;
        let path = self.path(image.meta.spec.instance);
        cx.blocking(move |_| mount::write_back(&path)).await
    }

    /// The active one's size is a quota; what a secondary receives has been counted where it came from.
    async fn set_quota(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let active = image.meta.role == Role::Active;
        let size = if active { image.meta.size_bytes } else { 0 };
        let all = crate::instance::counts_snapshots(&image.meta.spec);
        let Some(current) = image.current() else { return Ok(false) };
        let wanted = if all { (0, size) } else { (size, 0) };
        if (current.refquota, current.quota) == wanted {
            return Ok(false);
        }
        let name = current.name.clone();
        // Zero is not taken for none.
        let shown = |size: u64| if size == 0 { "none".to_owned() } else { size.to_string() };
        let (refquota, quota) =
            (format!("refquota={}", shown(wanted.0)), format!("quota={}", shown(wanted.1)));
        tool::zfs(cx, &name, &["set", &refquota, &quota, &name]).await?;
        if let Some(current) = image.versions.iter_mut().find(|v| v.name == name) {
            (current.refquota, current.quota) = wanted;
        }
        Ok(true)
    }

    pub(crate) async fn mount(&self, cx: &OpContext, image: &Image) -> Result<()> {
        let Some(current) = image.current() else { return Ok(()) };
        self.load_key(cx, current).await?;
        if image.readonly {
            self.replay(cx, image).await?;
        }
        let (dataset, path) = (current.name.clone(), self.path(image.meta.spec.instance));
        tool::alive(&dataset)?;
        cx.blocking(move |_| mount::mount(&dataset, &path)).await
    }

    /// Loads the key of an encrypted dataset, where the settings say where it is.
    pub(crate) async fn load_key(&self, cx: &OpContext, version: &Version) -> Result<()> {
        if let (true, Some(location)) = (version.key_missing, &self.config.key_location) {
            // A dataset below an encrypted one has its key, and none of its own.
            let root = tool::property(cx, "encryptionroot", &version.name).await?;
            tool::zfs(cx, &root, &["load-key", "-L", location, &root]).await?;
        }
        Ok(())
    }

    pub(crate) async fn unmount(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        let (path, exporter) = (self.path(image.meta.spec.instance), self.exporter.clone());
        if !path.exists() {
            return Ok(false);
        }
        cx.blocking(move |_| mount::unmount(&path, &exporter)).await
    }
}
