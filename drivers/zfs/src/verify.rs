//! What an instance holds at a point, read again from the snapshot.
//!
//! The snapshot is mounted nowhere: the kernel hands out its root, to which no path leads, and lets it go with the last
//! open file, however this call or this process ends.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use tandem_sdk::contract::{ContentFingerprint, Progress, ReadFingerprint};
use tandem_sdk::mirror::{self, Control, FINGERPRINT_SCHEME, Recorded, Skipped, Tree};
use tandem_sdk::{Error, OpContext, Result, Retry, Verifiable};

use crate::image::Image;
use crate::{Inner, Zfs, tool};

impl Verifiable for Zfs {
    async fn fingerprint(&self, cx: &OpContext, call: ReadFingerprint) -> Result<ContentFingerprint> {
        self.inner.fingerprint(cx, &call).await
    }
}

impl Inner {
    async fn fingerprint(&self, cx: &OpContext, call: &ReadFingerprint) -> Result<ContentFingerprint> {
        if call.form != FINGERPRINT_SCHEME {
            return Err(Error::invalid(format!(
                "fingerprints of the form `{}` are unknown here; this driver takes `{FINGERPRINT_SCHEME}`",
                call.form
            )));
        }
        let image = self.existing(cx, call.instance).await?;
        // A full copy that arrives may have the point too, and is not whole yet.
        let version =
            image.current().filter(|version| version.point(call.point).is_some()).ok_or_else(|| {
                Error::not_found(format!("instance {} holds no point {}", call.instance, call.point))
            })?;
        let snapshot = version.snapshot(call.point);
        let told =
            tool::zfs(cx, &snapshot, &["get", "-Hpo", "value", "logicalreferenced", &snapshot]).await?;
        // Of data and of what describes it: about what there is to read.
        let total = told.trim().parse().ok();
        let bandwidth = call.bandwidth;
        cx.blocking(move |cx| {
            let tree = aside(&snapshot)?;
            let cancelled = || cx.is_cancelled();
            let tell = |step: mirror::Step<'_>| {
                let mut progress = Progress::of(step.phase, step.done, step.total);
                progress.estimate = true;
                progress.current = Some(step.current.to_owned()).filter(|current| !current.is_empty());
                cx.progress(progress);
            };
            let control = Control::new(&cancelled, &tell).reading_limited(bandwidth).expecting(total);
            let read = mirror::fingerprint(&tree, Recorded::Nothing, Skipped::default(), &control);
            let read = read.map_err(|e| match (&e, cx.check()) {
                (mirror::Error::Cancelled, Err(stop)) => stop,
                _ => Error::unavailable(format!("`{snapshot}` could not be read: {e}")),
            })?;
            Ok(ContentFingerprint {
                form: FINGERPRINT_SCHEME.to_owned(),
                parts: read.parts.into_iter().map(|(part, digest)| (part.to_owned(), digest)).collect(),
                entries: read.entries,
                bytes: read.bytes,
                damaged: read.damaged,
            })
        })
        .await
    }
}

impl Inner {
    /// What was acknowledged before a power cut lies in the dataset's intent log until it is mounted again; without that a
    /// snapshot lacks it.
    pub(crate) async fn replay(&self, cx: &OpContext, image: &Image) -> Result<()> {
        let Some(current) = image.current().filter(|_| !self.is_reachable(image)) else { return Ok(()) };
        let name = current.name.clone();
        tool::alive(&name)?;
        // Writable, where the dataset is: read-only, the log waits on.
        cx.blocking(move |_| opened(&name, mount(&name, false)).map(drop)).await
    }
}

/// A snapshot's root, to which no path leads.
fn aside(snapshot: &str) -> Result<Tree> {
    let root = opened(snapshot, mount(snapshot, true))?;
    Tree::at(root).map_err(|e| Error::unavailable(format!("`{snapshot}` could not be opened: {e}")))
}

fn opened(snapshot: &str, root: rustix::io::Result<OwnedFd>) -> Result<OwnedFd> {
    root.map_err(|errno| match errno {
        Errno::ACCESS => Error::conflict(format!(
            "`{snapshot}` cannot be read: its encryption key is not loaded; load it with `zfs load-key`, or give the back \
             end a `key_location`"
        ))
        .retry(Retry::AfterOperator),
        Errno::NOENT => Error::not_found(format!("`{snapshot}` is gone")),
        Errno::NOSYS => {
            Error::unsupported("content checks of ZFS need Linux 5.2 or newer, which can read a snapshot aside")
        }
        errno => Error::unavailable(format!("`{snapshot}` could not be opened: {errno}")),
    })
}

/// Mounts a dataset or snapshot where no path leads.
fn mount(name: &str, read_only: bool) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("zfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", name)?;
    if read_only {
        fsconfig_set_flag(&context, "ro")?;
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
