//! Mounting: by the driver alone, under its own folder. Nothing in /etc/fstab, and volumes are not activated by a boot, so
//! that nothing is mounted before the server has confirmed the epoch.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};
use tandem_sdk::files::failed;
use tandem_sdk::{Error, Exporter, Result, Retry};

use crate::{Filesystem, holders};

/// How often, and how far apart, a busy mount is tried: the kernel's NFS server may hold a file for some seconds after its
/// client was told off, and longer where the file system has stopped (4 s were seen in a guest).
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(50);
/// Neither devices nor programs that change the user come from a share.
const FLAGS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID);
/// How OCFS2 is mounted.
const HEARTBEAT: &str = "heartbeat=local";

/// What is mounted at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Major and minor number of the device.
    pub(crate) device: (u32, u32),
    /// Mounted read-only.
    pub(crate) read_only: bool,
    /// The file system takes no more writes since it met an error.
    pub(crate) stopped: bool,
}

/// What is mounted at a path.
pub(crate) fn mounted(path: &Path) -> Option<Mounted> {
    let mut there = read(&mountinfo(), path)?;
    there.stopped |= has_ext4_errors(there.device);
    Some(there)
}

/// Of this thread, which may see others than its process does.
fn mountinfo() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default()
}

/// Whether a mounted file system answers at all: XFS refuses everything after an error, and does not say so elsewhere.
pub(crate) fn answers(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none_or(|entry| entry.is_ok()))
}

/// Whether a node is there and is that of this device.
pub(crate) fn is_node_of(node: &str, device: Option<(u32, u32)>) -> bool {
    rustix::fs::stat(node).is_ok_and(|facts| {
        rustix::fs::FileType::from_raw_mode(facts.st_mode) == rustix::fs::FileType::BlockDevice
            && device == Some((rustix::fs::major(facts.st_rdev), rustix::fs::minor(facts.st_rdev)))
    })
}

/// Whether ext4 has met errors since it was last checked. It stops writing at the first one, as it was made to do; since
/// Linux 6.13 (and 6.1.y) it does not call itself read-only then.
fn has_ext4_errors(device: (u32, u32)) -> bool {
    ext4_says(device, "errors_count").is_some_and(|count| count != "0")
}

/// Whether the first error that ext4 met was one of its own data, not of the device below: `EFSBADCRC` or `EFSCORRUPTED`
/// (`EXT4_ERR_*` in fs/ext4/ext4.h). Such a one is not over when the device answers again.
pub(crate) fn is_damaged(there: Mounted) -> bool {
    ext4_says(there.device, "first_error_errcode").is_some_and(|code| ["4", "5"].contains(&code.as_str()))
}

/// A number that ext4 keeps of the file system on a device.
fn ext4_says((major, minor): (u32, u32), what: &str) -> Option<String> {
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let path = Path::new("/sys/fs/ext4").join(link.file_name()?).join(what);
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// How many mounts lie at a path, one on the other.
fn count(mountinfo: &str, path: &Path) -> usize {
    mountinfo.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path)).count()
}

/// See proc_pid_mountinfo(5).
fn read(mountinfo: &str, path: &Path) -> Option<Mounted> {
    let path = path.to_str()?;
    // The last one lies on top.
    mountinfo.lines().rev().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        if *fields.get(4)? != path {
            return None;
        }
        let (major, minor) = fields.get(2)?.split_once(':')?;
        let has = |options: &str, word: &str| options.split(',').any(|option| option == word);
        let read_only = has(fields.get(5)?, "ro");
        let options = filesystem.split(' ').nth(2)?;
        let device = (major.parse().ok()?, minor.parse().ok()?);
        Some(Mounted { device, read_only, stopped: !read_only && has(options, "ro") })
    })
}

/// Mounts a volume. `one_of_many`: snapshots of it may be mounted too, which for XFS are the same file system.
pub(crate) fn mount(
    node: &str,
    filesystem: Filesystem,
    path: &Path,
    read_only: bool,
    one_of_many: bool,
) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| failed("create", path, &e))?;
    let flags = if read_only { FLAGS | MountFlags::RDONLY } else { FLAGS };
    let options = (one_of_many && filesystem == Filesystem::Xfs).then_some(c"nouuid");
    rustix::mount::mount(node, path, filesystem.as_str(), flags, options).map_err(|errno| match errno {
        Errno::INVAL | Errno::UCLEAN | Errno::IO => Error::unavailable(format!(
            "the file system on `{node}` cannot be mounted ({errno}); see the kernel's log, and check it with fsck"
        ))
        .retry(Retry::AfterOperator),
        errno => failed("mount on", path, &errno.into()).with("device", node),
    })
}

/// Makes a mount read-only or writable. A file that somebody on this host has open for writing prevents the first.
pub(crate) fn remount(
    path: &Path,
    filesystem: Filesystem,
    read_only: bool,
    exporter: &Exporter,
) -> Result<()> {
    let flags = if read_only { FLAGS | MountFlags::RDONLY } else { FLAGS };
    // OCFS2 takes what is not said for another way of heartbeat, and refuses.
    let options = if filesystem.is_shared() { HEARTBEAT } else { "" };
    patiently(path, exporter, || rustix::mount::mount_remount(path, flags, options)).map_err(|errno| {
        match errno {
            Errno::BUSY => in_use(path),
            errno => failed("remount", path, &errno.into()),
        }
    })
}

/// Mounts a snapshot for readers, at no place yet: what is closed before it gets one leaves nothing.
pub(crate) fn detached(node: &str, filesystem: Filesystem) -> Result<OwnedFd> {
    let mounted = || {
        let context = fsopen(filesystem.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", node)?;
        fsconfig_set_flag(&context, "ro")?;
        if filesystem == Filesystem::Xfs {
            // The one before has the same, and on one host the active one too.
            fsconfig_set_flag(&context, "nouuid")?;
        }
        fsconfig_create(&context)?;
        let how = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, how)
    };
    mounted().map_err(|errno| {
        Error::unavailable(format!("the snapshot `{node}` cannot be mounted ({errno}); see the kernel's log"))
    })
}

/// Puts such a mount at a path, in the place of whatever is there: that one stays for who has files of it open, and goes with
/// the last of them. From Linux 6.5 on everybody finds one or the other. Before, a program that looks just between the two finds
/// an empty folder; NFS clients do not, since their server holds on to what it has until it is told.
pub(crate) fn replace(path: &Path, mount: &OwnedFd) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| failed("create", path, &e))?;
    let onto = |how| move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | how);
    if mounted(path).is_some() && onto(MoveMountFlags::MOVE_MOUNT_BENEATH).is_ok() {
        return uncover(path).map(drop);
    }
    leave(path)?;
    onto(MoveMountFlags::empty()).map_err(|errno| failed("mount on", path, &errno.into()))
}

/// Shows what lies beneath, where a swap came that far. `true` when it had.
pub(crate) fn uncover(path: &Path) -> Result<bool> {
    let mut was = false;
    while count(&mountinfo(), path) > 1 {
        was = true;
        detach(path)?;
    }
    Ok(was)
}

/// Takes the topmost mount away; it goes once nobody has a file of it open.
fn detach(path: &Path) -> Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        // Somebody else was faster.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(failed("unmount", path, &errno.into())),
    }
}

/// Takes what is mounted there out of everybody's sight.
pub(crate) fn leave(path: &Path) -> Result<bool> {
    let mut was = false;
    while mounted(path).is_some() {
        was = true;
        detach(path)?;
    }
    Ok(was)
}

/// Unmounts whatever is mounted there, and removes the folder.
pub(crate) fn unmount(path: &Path, exporter: &Exporter) -> Result<bool> {
    let mut was = false;
    while mounted(path).is_some() {
        was = true;
        match patiently(path, exporter, || rustix::mount::unmount(path, UnmountFlags::empty())) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(Errno::BUSY) => return Err(in_use(path)),
            Err(errno) => return Err(failed("unmount", path, &errno.into())),
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(was),
        Err(e) => Err(failed("remove", path, &e)),
    }
}

/// Tries again while it is busy; files that NFS clients keep open are let go.
fn patiently(path: &Path, exporter: &Exporter, act: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    for turn in 0..TRIES {
        match act() {
            Err(Errno::BUSY) => {
                if turn % 5 == 0 {
                    exporter.expire(path);
                }
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
    act()
}

fn in_use(path: &Path) -> Error {
    let path_shown = path.display();
    let held = holders::of(path);
    let by = if held.is_empty() { "something on this host".to_owned() } else { held.join(", ") };
    Error::busy(format!(
        "`{path_shown}` is in use by {by}, which keeps files or folders of it open; end it (`fuser -vm {path_shown}` shows \
         all)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let text = "22 1 0:20 / / rw - tmpfs none rw\n\
                    36 22 253:3 / /srv/a rw,nosuid shared:1 - ext4 /dev/mapper/g-x rw\n\
                    37 22 253:4 / /srv/ab rw - ext4 /dev/mapper/g-y rw\n\
                    38 36 253:5 / /srv/a rw,nosuid - ext4 /dev/mapper/g-z ro,errors=remount-ro\n\
                    39 22 253:6 / /srv/c ro - ext4 /dev/sda ro\n";
        let of = |path: &str| read(text, Path::new(path));
        assert_eq!(of("/srv/a"), Some(Mounted { device: (253, 5), read_only: false, stopped: true }));
        assert_eq!(of("/srv/c"), Some(Mounted { device: (253, 6), read_only: true, stopped: false }));
        assert_eq!(of("/srv/ab").map(|m| (m.read_only, m.stopped)), Some((false, false)));
        assert_eq!(of("/srv/d"), None);
        assert_eq!(read("", Path::new("/srv/a")), None);
        assert_eq!(["/srv/a", "/srv/c", "/srv/d"].map(|path| count(text, Path::new(path))), [2, 1, 0]);
    }

    /// A mount of its own with one file, at no place yet.
    fn moment(content: &str) -> OwnedFd {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_create(&context).unwrap();
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        let file = rustix::fs::openat(&mount, "file", flags, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        rustix::io::write(&file, content.as_bytes()).unwrap();
        mount
    }

    /// Whether this kernel swaps without a gap, and this process may try.
    fn swaps() -> bool {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        version >= (6, 5) && rustix::process::geteuid().is_root()
    }

    #[test]
    fn who_looks_while_a_moment_is_swapped_finds_one_or_the_other() {
        if !swaps() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("share");
        // In a world of its own: nothing is left in anybody's mounts.
        std::thread::spawn(move || {
            #[expect(unsafe_code, reason = "only this thread, which ends here, has other mounts then")]
            unsafe {
                rustix::thread::unshare_unsafe(
                    rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS,
                )
            }
            .unwrap();
            let private =
                rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            replace(&path, &moment("0")).unwrap();
            let stop = std::sync::atomic::AtomicBool::new(false);
            let ordering = std::sync::atomic::Ordering::Relaxed;
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut looks = 0_u32;
                    while !stop.load(ordering) {
                        fs::read(path.join("file")).unwrap();
                        looks += 1;
                    }
                    looks
                });
                for number in 1..=200 {
                    replace(&path, &moment(&number.to_string())).unwrap();
                }
                stop.store(true, ordering);
                assert!(reader.join().unwrap() > 0);
            });
            assert_eq!(fs::read(path.join("file")).unwrap(), b"200");
            // One that was cut between the two steps.
            let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
            move_mount(moment("next"), "", CWD, &path, how).unwrap();
            assert_eq!(fs::read(path.join("file")).unwrap(), b"200");
            assert!(uncover(&path).unwrap() && !uncover(&path).unwrap());
            assert_eq!(fs::read(path.join("file")).unwrap(), b"next");
            assert!(leave(&path).unwrap());
        })
        .join()
        .unwrap();
    }
}
