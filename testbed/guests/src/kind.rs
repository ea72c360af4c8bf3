//! Guests that are ready for one storage technology, as `cargo xtask testbed run zfs` gives them.

use crate::guest::{Guest, Plan};
use crate::host::Host;
use crate::{Result, lvm, place, zfs};

/// What a guest is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but disks.
    Plain,
    /// ZFS pools.
    Zfs,
    /// LVM volume groups with a thin pool each.
    Lvm,
}

/// The disks of a guest, and the pools or groups made of them.
pub const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];
/// The size of each.
pub const DISK: u64 = 3 << 30;

impl Kind {
    /// By its name on a command line.
    pub fn named(name: &str) -> Result<Self> {
        match name {
            "plain" => Ok(Self::Plain),
            "zfs" => Ok(Self::Zfs),
            "lvm" => Ok(Self::Lvm),
            other => Err(format!("there is no kind of guest {other:?}; there are plain, zfs and lvm.")),
        }
    }

    /// A plan with the disks [`NAMES`] and what the technology needs.
    pub fn plan(self, name: &str) -> Result<Plan> {
        let plan = NAMES.iter().fold(Plan::new(name).memory(1536), |plan, disk| plan.disk(disk, DISK));
        Ok(match self {
            Self::Zfs => plan.modules(&place::zfs_modules()?),
            Self::Plain | Self::Lvm => plan,
        })
    }

    /// After the first boot: makes the pools `alpha`, `beta` and `gamma` of the disks of that name.
    pub fn prepare(self, guest: &Guest) -> Result<()> {
        self.load(guest)?;
        for name in NAMES {
            let disk = guest.disk(name)?.path();
            match self {
                Self::Plain => {}
                Self::Zfs => zfs::create_pool(guest, name, &disk)?,
                Self::Lvm => lvm::create_group(guest, name, &disk)?,
            }
        }
        Ok(())
    }

    /// After every boot: what the technology needs of the kernel.
    pub fn load(self, host: &dyn Host) -> Result<()> {
        match self {
            Self::Plain => Ok(()),
            Self::Zfs => zfs::load(host),
            Self::Lvm => lvm::load(host),
        }
    }
}
