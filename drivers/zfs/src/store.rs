//! Instances on the pool: found, locked, changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tandem_sdk::{Error, InstanceId, Lock, OpContext, Result};

use crate::image::{self, Found, Image};
use crate::meta::Meta;
use crate::stream::{patiently, tolerate_gone};
use crate::{Inner, lzc, names, tool};

/// How long a lock is waited for: a look at what nobody serves has it for moments.
const PATIENCE: Duration = Duration::from_secs(5);

/// An instance that this call alone may change.
pub(crate) struct Locked {
    pub(crate) image: Image,
    /// Held until the call ends.
    _lock: Lock,
}

impl Inner {
    /// The dataset of an instance.
    pub(crate) fn name(&self, id: InstanceId) -> String {
        format!("{}/{id}", self.config.dataset)
    }

    /// Where an instance is mounted, when it is.
    pub(crate) fn path(&self, id: InstanceId) -> PathBuf {
        self.config.mounts.join(id.to_string())
    }

    /// What the pool says of an instance.
    pub(crate) async fn look(&self, cx: &OpContext, id: InstanceId) -> Result<Found> {
        let name = self.name(id);
        let tree = tool::kernel(cx, "look at", &name, lzc::look).await?;
        image::parse(&name, &tree)
    }

    /// An instance, to look at only.
    pub(crate) async fn find(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Image>> {
        match self.look(cx, id).await? {
            Found::Instance(image) => Ok(Some(*image)),
            Found::Nothing | Found::Leftover => Ok(None),
        }
    }

    /// [`find`](Self::find), where its absence is an error.
    pub(crate) async fn existing(&self, cx: &OpContext, id: InstanceId) -> Result<Image> {
        self.find(cx, id).await?.ok_or_else(|| self.missing(id))
    }

    /// An instance to change; `None` when it is not there. What a killed call left half-done is finished first.
    pub(crate) async fn lock(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Locked>> {
        if let Found::Nothing = self.look(cx, id).await? {
            return Ok(None);
        }
        let lock = Lock::within(cx, &self.config.run, id, PATIENCE).await?;
        // What was read before the lock may be old.
        let Some(mut image) = self.find(cx, id).await? else { return Ok(None) };
        image.was_mounted = self.is_reachable(&image);
        let mut locked = Locked { image, _lock: lock };
        self.recover(cx, &mut locked.image).await?;
        Ok(Some(locked))
    }

    /// What is said where an instance should be. It says where, since an operator looks for it with `zfs list`.
    pub(crate) fn missing(&self, id: InstanceId) -> Error {
        Error::not_found(format!("there is no dataset `{}` of a share", self.name(id)))
    }

    /// [`lock`](Self::lock), where its absence is an error.
    pub(crate) async fn lock_existing(&self, cx: &OpContext, id: InstanceId) -> Result<Locked> {
        let found = self.lock(cx, id).await?.ok_or_else(|| self.missing(id))?;
        if found.image.meta.deleting {
            return Err(Error::conflict(format!("instance {id} is being deleted")));
        }
        Ok(found)
    }

    /// Reads an instance again after it was changed.
    pub(crate) async fn refresh(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let now = self.existing(cx, image.meta.spec.instance).await?;
        let was_mounted = image.was_mounted && now.meta.version == image.meta.version;
        *image = Image { was_mounted, ..now };
        Ok(())
    }

    /// Makes what changed of the instance's data durable, all of it at once.
    pub(crate) async fn save(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let mut wanted = image.meta.properties()?;
        for name in image.stored.keys() {
            // Rules that are fewer now.
            wanted.entry(name.clone()).or_insert_with(|| ";".to_owned());
        }
        let changed: BTreeMap<String, String> = wanted
            .iter()
            .filter(|(name, value)| image.stored.get(*name) != Some(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        tool::kernel(cx, "note the state of", &image.name, move |name| lzc::set(name, &changed)).await?;
        image.stored = wanted;
        Ok(())
    }

    /// Finishes what a killed call left: a full copy that is whole takes its place, older ones go.
    pub(crate) async fn recover(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        if image.meta.deleting {
            return Ok(());
        }
        self.forget_moves(cx, image).await?;
        let whole = image.incoming().is_some_and(|v| v.token.is_none() && !v.points.is_empty());
        if whole && image.meta.role == tandem_sdk::Role::Secondary {
            let was_mounted = crate::mount::mounted(&self.path(image.meta.spec.instance)).is_some();
            image.meta.version = image.next();
            self.save(cx, image).await?;
            // What is served stays so, with the new content; what is not waits for its epoch to be confirmed.
            if was_mounted {
                self.serve(cx, image).await?;
            }
        }
        self.remove_old(cx, image).await
    }

    /// Removes versions before the current one. Those that bear snapshots of somebody else stay.
    pub(crate) async fn remove_old(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let version = image.meta.version;
        for old in image.versions.iter().filter(|v| v.number < version) {
            if let Some((_, foreign)) = &old.foreign {
                tracing::warn!(
                    dataset = %old.name, snapshot = %foreign,
                    "An old copy stays, since somebody else made a snapshot of it; destroy it by hand."
                );
                continue;
            }
            self.destroy(cx, old).await?;
        }
        image.versions.retain(|v| v.number >= version || v.foreign.is_some());
        Ok(())
    }

    /// Destroys a version with its points; not what somebody else made below it.
    pub(crate) async fn destroy(&self, cx: &OpContext, version: &image::Version) -> Result<()> {
        if version.token.is_some() {
            tool::zfs(cx, &version.name, &["receive", "-A", &version.name]).await?;
            if version.points.is_empty() && version.moves.is_empty() {
                return Ok(()); // there was nothing but what had arrived
            }
        }
        for moment in &version.points {
            self.destroy_point(cx, version, moment.point).await?;
        }
        self.destroy_moves(cx, version, |_| true).await?;
        self.destroy_dataset(cx, &version.name).await
    }

    /// Destroys a dataset that has nothing below it.
    pub(crate) async fn destroy_dataset(&self, cx: &OpContext, name: &str) -> Result<()> {
        // A look at its intent log may have it mounted aside this very moment.
        tool::kernel(cx, "destroy", name, |name| patiently(|| tolerate_gone(lzc::destroy(name)))).await
    }
}

/// The first data of a new instance.
pub(crate) fn creation(meta: &Meta, name: &str, options: &[String]) -> Result<Vec<String>> {
    let mut arguments: Vec<String> = ["create", "-u", "-o", "canmount=off", "-o", "mountpoint=legacy"]
        .into_iter()
        .map(str::to_owned)
        .collect();
    let readonly = if meta.is_writable() { "readonly=off" } else { "readonly=on" };
    let properties = meta.properties()?.into_iter().map(|(name, value)| format!("{name}={value}"));
    let fixed = [readonly.to_owned(), "com.sun:auto-snapshot=false".to_owned()];
    for property in fixed.into_iter().chain(options.iter().cloned()).chain(properties) {
        arguments.extend(["-o".to_owned(), property]);
    }
    arguments.push(name.to_owned());
    Ok(arguments)
}

/// Instances among the datasets below the parent.
pub(crate) fn listed(parent: &str, name: &str) -> Option<InstanceId> {
    names::instance_of(name.strip_prefix(parent)?.strip_prefix('/')?)
}
