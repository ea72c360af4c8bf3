//! OpenZFS in a guest: modules that were built for its kernel, and pools that are named and never searched for.

use crate::Result;
use crate::agent::MODULES;
use crate::host::Host;

/// Bytes of cache; the rest of a guest's memory is for the programs under test.
const CACHE: &str = "zfs_arc_max=268435456";

/// Loads the modules.
pub fn load(host: &dyn Host) -> Result<()> {
    // What they use of the kernel's own modules.
    for module in ["zlib_deflate", "zlib_inflate"] {
        let _ = host.succeeds(&["modprobe", module])?;
    }
    host.run(&["insmod", &format!("{MODULES}/spl.ko")])?;
    host.run(&["insmod", &format!("{MODULES}/zfs.ko"), CACHE]).map(drop)
}

/// Makes a pool on a whole device, whose file systems are mounted below `/NAME`.
pub fn create_pool(host: &dyn Host, name: &str, device: &str) -> Result<()> {
    host.run(&["zpool", "create", "-o", "cachefile=none", "-O", "atime=off", name, device]).map(drop)
}

/// Imports a pool after a boot; nothing of it is mounted.
pub fn import_pool(host: &dyn Host, name: &str) -> Result<()> {
    host.run(&["zpool", "import", "-N", "-f", "-o", "cachefile=none", "-d", "/dev/mapper", name]).map(drop)
}
