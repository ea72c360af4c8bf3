//! NFS clients of version 4 that keep files open: a file system cannot be unmounted while they do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CLIENTS: &str = "/proc/fs/nfsd/clients";

/// Expires every client with state in the file system at `path`. Without a running server there is none.
pub(super) fn expire(path: &Path) {
    if let Some(device) = device(path) {
        expire_device(device);
    }
}

/// Whether any client has state in the file system on a device.
pub(super) fn any(device: (u32, u32)) -> bool {
    with_state(device).next().is_some()
}

/// The folders of clients that have state in the file system on a device.
fn with_state((major, minor): (u32, u32)) -> impl Iterator<Item = PathBuf> {
    let clients = fs::read_dir(CLIENTS).into_iter().flatten().flatten();
    clients.map(|client| client.path()).filter(move |folder| {
        let states = fs::read(folder.join("states")).unwrap_or_default();
        names(&String::from_utf8_lossy(&states), major, minor)
    })
}

/// Expires every client with state in the file system on a device.
pub(super) fn expire_device(device: (u32, u32)) {
    for folder in with_state(device) {
        match fs::write(folder.join("ctl"), b"expire\n") {
            Ok(()) => tracing::info!(?device, "Expired an NFS client that kept files open."),
            Err(error) => {
                tracing::warn!(%error, client = %folder.display(), "Could not expire an NFS client.")
            }
        }
    }
}

/// The device of the file system at `path`. A file system that stopped after an error tells nothing of itself any more, but
/// the kernel's list of mounts does.
fn device(path: &Path) -> Option<(u32, u32)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounted(&mounts, path).or_else(|| {
        let device = fs::metadata(path).ok()?.dev();
        Some((rustix::fs::major(device), rustix::fs::minor(device)))
    })
}

/// The device of what is mounted at a path; see proc_pid_mountinfo(5).
fn mounted(mountinfo: &str, path: &Path) -> Option<(u32, u32)> {
    let path = path.to_str()?;
    // The last one lies on top.
    mountinfo.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (major, minor) = fields.next()?.split_once(':')?;
        (fields.nth(1)? == path).then_some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// Whether a client's states name a file of that device: `superblock: "00:2f:34"`, in hexadecimal, inode last.
fn names(states: &str, major: u32, minor: u32) -> bool {
    states.split("superblock: \"").skip(1).any(|rest| {
        let device = rest.split('"').next().unwrap_or_default();
        let mut parts = device.split(':').map(|part| u32::from_str_radix(part, 16).ok());
        parts.next().flatten() == Some(major) && parts.next().flatten() == Some(minor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_has_the_device() {
        let text = "22 1 0:20 / / rw - tmpfs none rw\n\
                    36 22 253:3 / /srv/a rw,nosuid shared:1 - xfs /dev/mapper/g-x rw\n\
                    38 36 253:5 / /srv/a rw,nosuid - xfs /dev/mapper/g-z rw\n";
        assert_eq!(mounted(text, Path::new("/srv/a")), Some((253, 5)));
        assert_eq!(mounted(text, Path::new("/")), Some((0, 20)));
        assert_eq!(mounted(text, Path::new("/srv")), None);
        assert!(device(Path::new("/")).is_some());
    }

    #[test]
    fn states_name_devices() {
        let states = "- 0x01: { type: open, access: rw, deny: --, superblock: \"00:2f:34\", filename: \"a/b\", owner: \
                      \"open id:\\x00\" }\n- 0x02: { type: lock, superblock: \"fd:10:13649\" }\n";
        assert!(names(states, 0, 0x2f));
        assert!(names(states, 0xfd, 0x10));
        assert!(!names(states, 0, 0x2e));
        assert!(!names("", 0, 0));
    }
}
