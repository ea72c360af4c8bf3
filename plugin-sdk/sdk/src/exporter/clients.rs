//! NFS clients of version 4 that keep files open: a file system cannot be unmounted while they do.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const CLIENTS: &str = "/proc/fs/nfsd/clients";
/// Takes a path: what clients have in the file system there is revoked, and nothing else of theirs. Earlier kernels have the
/// file too, and let go of locks of version 3 only (`write_unlock_fs` in fs/nfsd/nfsctl.c).
const UNLOCK: &str = "/proc/fs/nfsd/unlock_filesystem";
const UNLOCKS_SINCE: (u32, u32) = (6, 9);

/// Expires every client with state in the file system at `path`. Without a running server there is none.
pub(super) fn expire(path: &Path) {
    if let Some(device) = device(path) {
        expire_device(device);
    }
}

/// Whether any client has a file open, or locked, in the file system on a device. Where all that can be done is to expire a
/// client as a whole, one that only keeps a delegation is spared too.
pub(super) fn any(device: (u32, u32)) -> bool {
    let counts = if can_revoke() { is_used } else { names };
    clients().any(|client| counts(&states(&client), device))
}

/// The folders of all clients.
fn clients() -> impl Iterator<Item = PathBuf> {
    fs::read_dir(CLIENTS).into_iter().flatten().flatten().map(|client| client.path())
}

fn states(client: &Path) -> String {
    String::from_utf8_lossy(&fs::read(client.join("states")).unwrap_or_default()).into_owned()
}

/// The folders of clients that have state in the file system on a device.
fn with_state(device: (u32, u32)) -> impl Iterator<Item = PathBuf> {
    clients().filter(move |client| names(&states(client), device))
}

/// Whether the kernel can revoke what clients have in one file system alone.
pub(super) fn can_revoke() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version(&release).is_some_and(|version| version >= UNLOCKS_SINCE)
}

/// Revokes what clients have in the file system of an open folder, wherever that is mounted.
pub(super) fn revoke(root: &File) {
    // The last part of the path is not followed where it is a link.
    let path = format!("/proc/self/fd/{}/.\n", root.as_raw_fd());
    if let Err(error) = fs::write(UNLOCK, path) {
        tracing::warn!(%error, "What NFS clients have in a file system could not be revoked; the clients are expired.");
    }
}

/// `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
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
fn names(states: &str, (major, minor): (u32, u32)) -> bool {
    states.split("superblock: \"").skip(1).any(|rest| {
        let device = rest.split('"').next().unwrap_or_default();
        let mut parts = device.split(':').map(|part| u32::from_str_radix(part, 16).ok());
        parts.next().flatten() == Some(major) && parts.next().flatten() == Some(minor)
    })
}

/// The same, but for delegations: a client keeps one for each file that it has read, long after it closed it.
fn is_used(states: &str, device: (u32, u32)) -> bool {
    let states = states.split("type: ").skip(1);
    states.filter(|state| !state.starts_with("deleg")).any(|state| names(state, device))
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
        assert!(names(states, (0, 0x2f)));
        assert!(names(states, (0xfd, 0x10)));
        assert!(!names(states, (0, 0x2e)));
        assert!(!names("", (0, 0)));
    }

    #[test]
    fn a_delegation_is_no_reader() {
        let states = "- 0x01: { type: deleg, access: r, superblock: \"fd:10:13\", filename: \"a\" }\n- 0x02: { type: open, \
                      access: r-, deny: --, superblock: \"fd:11:14\", filename: \"b\" }\n";
        assert!(names(states, (0xfd, 0x10)) && !is_used(states, (0xfd, 0x10)));
        assert!(is_used(states, (0xfd, 0x11)) && !is_used("", (0, 0)));
    }

    #[test]
    fn releases_have_numbers() {
        for (release, known) in [
            ("6.1.0-18-amd64\n", Some((6, 1))),
            ("6.12.3+deb13", Some((6, 12))),
            ("7.0-rc1", Some((7, 0))),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(version(release), known, "{release}");
        }
    }
}
