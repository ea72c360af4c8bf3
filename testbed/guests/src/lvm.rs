//! LVM and DRBD in a guest: without udev, and looking at nothing but the guest's own disks.

use crate::Result;
use crate::host::{Command, Host};

/// Where its settings are; every command that is not run through here needs `LVM_SYSTEM_DIR` of this value.
pub const SYSTEM: &str = "/run/tandem/lvm";
const SETTINGS: &str = "\
devices { use_devicesfile=0 dir=\"/dev\" scan=[\"/dev/mapper\"] filter=[\"a|^/dev/mapper/|\",\"r|.*|\"] }
global { event_activation=0 use_lvmpolld=0 }
activation { udev_sync=0 udev_rules=0 monitoring=0 verify_udev_operations=0 }
backup { backup=0 archive=0 }
";

/// Loads the modules and writes the settings.
pub fn load(host: &dyn Host) -> Result<()> {
    for module in ["dm-thin-pool", "dm-snapshot"] {
        host.run(&["modprobe", module])?;
    }
    // Else the kernel calls `drbdadm`, which knows no resource that was not made from its files.
    host.run(&["modprobe", "drbd", "usermode_helper=disabled"])?;
    host.run(&["mkdir", "-p", SYSTEM, "/run/lock", "/var/lib/drbd"])?;
    let tee = host.spawn(&Command::new(&["tee", &format!("{SYSTEM}/lvm.conf")]).input())?;
    tee.input(SETTINGS.as_bytes())?;
    tee.input(b"")?;
    match tee.wait()? {
        output if output.status == 0 => Ok(()),
        output => Err(format!("writing the settings of LVM: {}", output.stderr_text())),
    }
}

/// Makes a volume group of a device, nearly all of it one thin pool, `pool`.
pub fn create_group(host: &dyn Host, name: &str, device: &str) -> Result<()> {
    run(host, &["pvcreate", "-y", device])?;
    let group = format!("vg_{name}");
    run(host, &["vgcreate", "-y", &group, device])?;
    run(host, &["lvcreate", "-y", "--type", "thin-pool", "-l", "90%FREE", "-n", "pool", &group]).map(drop)
}

/// Runs a command of LVM with these settings, which must succeed; what it printed.
pub fn run(host: &dyn Host, argv: &[&str]) -> Result<String> {
    let output = host.output(&Command::new(argv).env("LVM_SYSTEM_DIR", SYSTEM))?;
    match output.status {
        0 => Ok(output.stdout_text()),
        _ => Err(format!("`{}` on {}: {}", argv.join(" "), host.name(), output.stderr_text())),
    }
}
