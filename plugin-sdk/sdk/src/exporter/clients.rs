//! NFS clients of version 4 that keep files open: a file system cannot be unmounted while they do.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const CLIENTS: &str = "/proc/fs/nfsd/clients";

/// Expires every client with state in the file system at `path`. Without a running server there is none.
pub(super) fn expire(path: &Path) {
    let Ok(meta) = fs::metadata(path) else { return };
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let Ok(clients) = fs::read_dir(CLIENTS) else { return };
    for client in clients.flatten() {
        let folder = client.path();
        let states = fs::read(folder.join("states")).unwrap_or_default();
        if !names(&String::from_utf8_lossy(&states), major, minor) {
            continue;
        }
        match fs::write(folder.join("ctl"), b"expire\n") {
            Ok(()) => tracing::info!(path = %path.display(), "Expired an NFS client that kept files open."),
            Err(error) => {
                tracing::warn!(%error, client = %folder.display(), "Could not expire an NFS client.")
            }
        }
    }
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
    use super::names;

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
