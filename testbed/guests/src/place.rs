//! Where the kernel, its further modules and room for disks are on this machine.

use crate::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to say when something is missing.
const SETUP: &str = "type `cargo xtask testbed setup`";
/// The kernel, of Debian's package `user-mode-linux`.
pub const KERNEL: &str = "/usr/bin/linux.uml";
/// Room that disks of memory need.
const ROOM: u64 = 6 << 30;

/// The version of the installed kernel.
pub fn kernel() -> Result<String> {
    let output = Command::new(KERNEL)
        .arg("--version")
        .output()
        .map_err(|error| format!("{KERNEL} cannot be run ({error}); {SETUP}."))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The folder with `spl.ko` and `zfs.ko` for the installed kernel: named by `TANDEM_UML_MODULES`, or the newest of those that
/// `cargo xtask testbed setup` made.
pub fn zfs_modules() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TANDEM_UML_MODULES") {
        return Ok(folder.into());
    }
    let missing = || format!("there are no ZFS modules for {KERNEL}; {SETUP}.");
    let cache = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if Path::new(&cache).is_absolute() => PathBuf::from(cache),
        (_, Some(home)) => Path::new(&home).join(".cache"),
        _ => return Err(missing()),
    };
    let begins = format!("{}-", kernel()?);
    let entries = std::fs::read_dir(cache.join("tandem/uml-modules")).map_err(|_| missing())?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begins)))
        .filter(|path| ["spl.ko", "zfs.ko", "SHA256SUMS"].iter().all(|file| path.join(file).is_file()))
        .collect();
    found.sort();
    found.pop().ok_or_else(missing)
}

/// Where laboratories lie: in `TANDEM_LAB_ROOM`, in memory where there is much of it, or where temporary files do.
pub(crate) fn scratch() -> PathBuf {
    if let Some(folder) = std::env::var_os("TANDEM_LAB_ROOM") {
        return folder.into();
    }
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let writable = rustix::fs::access(memory, rustix::fs::Access::WRITE_OK).is_ok();
    if writable && free >= ROOM { memory.into() } else { std::env::temp_dir() }
}
