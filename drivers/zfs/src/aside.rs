//! Datasets and snapshots mounted where no path leads: the kernel hands out the root, and lets it go with the last open file,
//! however a call or this process ends.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use tandem_sdk::{Error, OpContext, Result, Retry};

use crate::image::Image;
use crate::{Inner, tool};

impl Inner {
    /// What was acknowledged before a power cut lies in the dataset's intent log until it is mounted again; without that a
    /// snapshot lacks it, and nothing tells that there is anything.
    ///
    /// A dataset that is `readonly=on` is mounted as one here. Mounted as usual, the kernel takes it for writable before it has
    /// read that property, refuses its own replay for it, and throws the log away (OpenZFS 2.1 to 2.4, `zfsvfs_setup` on Linux).
    pub(crate) async fn replay(&self, cx: &OpContext, image: &Image) -> Result<()> {
        let Some(current) = image.current().filter(|_| !image.was_mounted && !self.is_reachable(image))
        else {
            return Ok(());
        };
        self.load_key(cx, current).await?;
        let (name, is_read_only) = (current.name.clone(), image.readonly);
        tool::alive(&name)?;
        cx.blocking(move |_| mount(&name, is_read_only).map(drop).map_err(|errno| failed(&name, errno))).await
    }
}

/// The root of a snapshot.
pub(crate) fn read_only(snapshot: &str) -> Result<OwnedFd> {
    mount(snapshot, true).map_err(|errno| failed(snapshot, errno))
}

fn failed(name: &str, errno: Errno) -> Error {
    match errno {
        Errno::ACCESS => Error::conflict(format!(
            "`{name}` cannot be read: its encryption key is not loaded; load it with `zfs load-key`, or give the back \
             end a `key_location`"
        ))
        .retry(Retry::AfterOperator),
        Errno::NOENT => Error::not_found(format!("`{name}` is gone")),
        Errno::NOSYS => Error::unsupported(format!(
            "`{name}` cannot be read aside, which needs Linux 5.2 or newer: content checks do, and points of a share \
             that is not mounted"
        )),
        errno => Error::unavailable(format!("`{name}` could not be opened: {errno}")),
    }
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
