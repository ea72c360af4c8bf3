//! Mounting: by the driver alone, under its own folder. The datasets' `mountpoint` is `legacy`, so that nothing mounts
//! them by itself, neither at boot nor on import.

use std::ffi::CString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tandem_sdk::files::failed;
use tandem_sdk::{Error, Exporter, Result, Retry};

use crate::folder;

/// How often, and how far apart, a busy mount is tried before it is detached.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// The dataset that is mounted at a path.
pub(crate) fn mounted(path: &Path) -> Option<String> {
    source(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), path)
}

fn source(mountinfo: &str, path: &Path) -> Option<String> {
    let path = path.to_str()?;
    // The last one lies on top.
    mountinfo.lines().rev().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let found = mount.split(' ').nth(4)? == path && filesystem.next()? == "zfs";
        found.then(|| filesystem.next().map(str::to_owned))?
    })
}

/// Writes back everything of what is mounted there.
pub(crate) fn write_back(path: &Path) -> Result<()> {
    let folder = fs::File::open(path).map_err(|e| failed("open", path, &e))?;
    rustix::fs::syncfs(&folder).map_err(|errno| failed("write back", path, &errno.into()))
}

/// Mounts a dataset.
pub(crate) fn mount(dataset: &str, path: &Path) -> Result<()> {
    if mounted(path).is_none() {
        folder::make(path)?;
    }
    let data = CString::new(format!("mntpoint={}", path.display()))
        .map_err(|_| Error::bug("a mount point with a zero byte"))?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    for _ in 1..TRIES {
        match rustix::mount::mount(dataset, path, "zfs", flags, data.as_c_str()) {
            // It is mounted aside this very moment.
            Err(Errno::BUSY) => std::thread::sleep(PAUSE),
            done => return done.map_err(|errno| refused(dataset, path, errno)),
        }
    }
    rustix::mount::mount(dataset, path, "zfs", flags, data.as_c_str())
        .map_err(|errno| refused(dataset, path, errno))
}

fn refused(dataset: &str, path: &Path, errno: Errno) -> Error {
    match errno {
        Errno::ACCESS => Error::conflict(format!(
            "`{dataset}` cannot be mounted: its encryption key is not loaded; load it with `zfs load-key {dataset}`, or \
             give the back end a `key_location`"
        ))
        .retry(Retry::AfterOperator),
        errno => failed("mount on", path, &errno.into()).with("dataset", dataset),
    }
}

/// Unmounts whatever is mounted there, and removes the folder. A mount that somebody keeps busy is detached: nobody
/// finds it any more, and whoever still has files open in it is held back by the dataset's own `readonly`.
pub(crate) fn unmount(path: &Path, exporter: &Exporter) -> Result<bool> {
    let mut was = false;
    let mut busy = 0;
    while mounted(path).is_some() {
        was = true;
        let flags = if busy < TRIES { UnmountFlags::empty() } else { UnmountFlags::DETACH };
        match rustix::mount::unmount(path, flags) {
            Ok(()) => {
                if busy >= TRIES {
                    tracing::warn!(path = %path.display(), "The mount was busy and was detached.");
                }
            }
            Err(Errno::BUSY) if busy < TRIES => {
                if busy % 5 == 0 {
                    exporter.expire(path);
                }
                busy += 1;
                std::thread::sleep(PAUSE);
            }
            // Somebody else was faster.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(failed("unmount", path, &errno.into())),
        }
    }
    Ok(folder::remove(path)? || was)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let text = "22 1 0:20 / / rw - tmpfs none rw\n\
                    36 22 0:31 / /srv/a rw,nosuid shared:1 - zfs tank/t/x/v1 rw,xattr\n\
                    37 22 0:32 / /srv/ab rw - zfs tank/t/y/v1 rw\n\
                    38 36 0:33 / /srv/a rw - zfs tank/t/x/v2 ro\n\
                    39 22 0:34 / /srv/c rw - ext4 /dev/sda rw\n";
        assert_eq!(source(text, Path::new("/srv/a")).as_deref(), Some("tank/t/x/v2"));
        assert_eq!(source(text, Path::new("/srv/ab")).as_deref(), Some("tank/t/y/v1"));
        assert_eq!(source(text, Path::new("/srv/c")), None);
        assert_eq!(source("", Path::new("/srv/a")), None);
    }
}
