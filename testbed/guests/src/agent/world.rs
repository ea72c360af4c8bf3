//! The file systems of a guest: the outside world's programs, read-only below a layer of memory, and nothing else of it.
//!
//! The root is a tmpfs and not an overlay, because kernel nfsd cannot export an overlay and NFSv4 begins at the root.

use super::{MODULES, SETUP_FILE, Setup};
use crate::Result;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, unmount};
use rustix::time::{ClockId, Timespec};
use std::ffi::CString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// An empty folder of every Linux system, where the new world is built.
const SCAFFOLD: &str = "/mnt";
/// What comes from outside.
const BORROWED: &[&str] = &["usr", "etc", "var", "opt", "home"];
/// What is a link into `/usr` on a merged system.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Empty folders.
const FRESH: &[&str] = &["dev", "proc", "sys", "run", "tmp", "root", "srv", "mnt", "media"];
/// State that must not be the outside world's, or that must not lie on an overlay.
const EMPTIED: &[&str] =
    &["/etc/zfs", "/etc/lvm/backup", "/etc/lvm/archive", "/var/lib/nfs", "/var/tmp", "/etc/exports.d"];

/// Reads what this guest is to be from a folder of the outside world, which a mount in the guest may hide.
pub(super) fn setup(folder: &str) -> Result<Setup> {
    attach("none", SCAFFOLD, "hostfs", folder)?;
    let file = Path::new(SCAFFOLD).join(SETUP_FILE);
    let text = std::fs::read(&file).map_err(|error| format!("reading {SETUP_FILE} in {folder}: {error}."))?;
    unmount(SCAFFOLD, UnmountFlags::empty()).map_err(|error| format!("unmounting {folder}: {error}."))?;
    serde_json::from_slice(&text).map_err(|error| format!("{SETUP_FILE} in {folder}: {error}."))
}

/// Builds it and makes it the root.
pub(super) fn build(setup: &Setup) -> Result<()> {
    tmpfs(SCAFFOLD)?;
    load_overlay()?;
    let scaffold = Path::new(SCAFFOLD);
    let (upper, work, over, root) =
        (scaffold.join("upper"), scaffold.join("work"), scaffold.join("over"), scaffold.join("root"));
    for folder in [&upper, &work, &over, &root] {
        folder_at(folder)?;
    }
    attach(
        "overlay",
        &over,
        "overlay",
        format!("lowerdir=/,upperdir={},workdir={}", text(&upper), text(&work)),
    )?;
    attach("tmpfs", &root, "tmpfs", "mode=755,size=50%")?;
    for name in FRESH {
        folder_at(&root.join(name))?;
    }
    std::fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o1777)).map_err(|e| e.to_string())?;
    for name in BORROWED.iter().filter(|name| over.join(name).is_dir()) {
        folder_at(&root.join(name))?;
        mount_bind(over.join(name), root.join(name)).map_err(|error| format!("binding /{name}: {error}."))?;
    }
    for name in MERGED {
        if let Ok(target) = std::fs::read_link(over.join(name)) {
            std::os::unix::fs::symlink(target, root.join(name))
                .map_err(|error| format!("/{name}: {error}."))?;
        }
    }
    share(setup, &root)?;
    std::env::set_current_dir(&root).map_err(|error| format!("entering the new root: {error}."))?;
    mount_move(".", "/").map_err(|error| format!("moving the new root: {error}."))?;
    rustix::process::chroot(".").map_err(|error| format!("changing the root: {error}."))?;
    std::env::set_current_dir("/").map_err(|error| format!("entering the new root: {error}."))?;
    furnish(setup)
}

/// The one module that is needed before `modprobe` can run.
fn load_overlay() -> Result<()> {
    let file = modules_of_kernel().join("kernel/fs/overlayfs/overlay.ko");
    let said = |error: &dyn std::fmt::Display| format!("loading {}: {error}.", file.display());
    let opened = std::fs::File::open(&file).map_err(|error| said(&error))?;
    match rustix::system::finit_module(&opened, c"", 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(said(&error)),
    }
}

/// The folder of modules of the kernel that runs here.
fn modules_of_kernel() -> PathBuf {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Path::new("/usr/lib/uml/modules").join(release)
}

/// Folders of the outside, each on a mount of its own so that it is writable and shows no layer.
fn share(setup: &Setup, root: &Path) -> Result<()> {
    for outside in &setup.shared {
        let inside = below(root, outside);
        folder_at(&inside)?;
        attach("none", &inside, "hostfs", text(outside))?;
    }
    Ok(())
}

fn furnish(setup: &Setup) -> Result<()> {
    attach("proc", "/proc", "proc", "")?;
    attach("sysfs", "/sys", "sysfs", "")?;
    attach("devtmpfs", "/dev", "devtmpfs", "")?;
    for (kind, folder, options) in [
        ("devpts", "/dev/pts", "ptmxmode=666,mode=620,gid=5"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
    ] {
        folder_at(Path::new(folder))?;
        attach(kind, folder, kind, options)?;
    }
    for folder in ["/run/lock", "/run/tandem"] {
        folder_at(Path::new(folder))?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "fd/0"),
        ("/dev/stdout", "fd/1"),
        ("/dev/stderr", "fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
    let _ = std::fs::remove_file("/etc/mtab");
    let _ = std::os::unix::fs::symlink("/proc/self/mounts", "/etc/mtab");
    for folder in EMPTIED {
        if folder_at(Path::new(folder)).is_ok() {
            tmpfs(folder)?;
        }
    }
    // `modprobe` looks only here.
    let modules = modules_of_kernel();
    folder_at(Path::new("/usr/lib/modules"))?;
    if let Some(release) = modules.file_name() {
        let _ = std::os::unix::fs::symlink(&modules, Path::new("/usr/lib/modules").join(release));
    }
    if let Some(outside) = &setup.modules {
        folder_at(Path::new(MODULES))?;
        attach("none", MODULES, "hostfs", text(outside))?;
    }
    rustix::system::sethostname(setup.name.as_bytes())
        .map_err(|error| format!("naming the guest: {error}."))?;
    let hosts = format!("127.0.0.1 localhost {}\n", setup.name);
    std::fs::write("/etc/hosts", hosts).map_err(|error| format!("/etc/hosts: {error}."))?;
    set_clock(setup.clock_offset)
}

fn set_clock(offset: i64) -> Result<()> {
    if offset == 0 {
        return Ok(());
    }
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let then = Timespec { tv_sec: now.tv_sec + offset, tv_nsec: now.tv_nsec };
    rustix::time::clock_settime(ClockId::Realtime, then)
        .map_err(|error| format!("setting the clock: {error}."))
}

/// `/a/b` below a root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn folder_at(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|error| format!("creating {}: {error}.", path.display()))
}

fn tmpfs(folder: &str) -> Result<()> {
    attach("tmpfs", folder, "tmpfs", "mode=755")
}

fn attach(what: &str, folder: impl AsRef<Path>, kind: &str, options: impl AsRef<str>) -> Result<()> {
    let folder = folder.as_ref();
    let options = CString::new(options.as_ref()).map_err(|error| error.to_string())?;
    mount(what, folder, kind, MountFlags::empty(), options.as_c_str())
        .map_err(|error| format!("mounting {kind} on {}: {error}.", folder.display()))
        .and_then(|()| {
            // Mounted over a folder that is there: looked at once, so that a broken mount is found here.
            rustix::fs::statat(CWD, folder, rustix::fs::AtFlags::empty())
                .map(drop)
                .map_err(|error| format!("{} after mounting {kind}: {error}.", folder.display()))
        })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
