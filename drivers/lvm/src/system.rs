//! LVM's settings for the worker: the devices of the group and no others, nothing that happens by itself.

use std::fs;
use std::path::{Path, PathBuf};

use tandem_sdk::Result;

use crate::Config;
use tandem_sdk::files::failed;

/// Where LVM keeps what it knew of groups, on machines that have it.
const BACKUP: &str = "/etc/lvm/backup";

/// Whether udev runs here; without it the nodes of volumes are made by LVM.
pub(crate) fn has_udev() -> bool {
    Path::new("/run/udev/control").exists()
}

/// Writes the settings, and returns their folder: the worker's `LVM_SYSTEM_DIR`.
pub(crate) fn write(config: &Config, udev: bool) -> Result<PathBuf> {
    let folder = config.run.join(format!("system-{}", config.group));
    fs::create_dir_all(&folder).map_err(|e| failed("create", &folder, &e))?;
    let file = folder.join("lvm.conf");
    let text = settings(&config.devices, udev, Path::new(BACKUP).is_dir());
    if fs::read_to_string(&file).is_ok_and(|there| there == text) {
        return Ok(folder);
    }
    // Another process may be reading it.
    let fresh = folder.join(format!(".lvm.conf.{}.new", std::process::id()));
    fs::write(&fresh, text).map_err(|e| failed("write", &fresh, &e))?;
    fs::rename(&fresh, &file).map_err(|e| failed("write", &file, &e))?;
    Ok(folder)
}

fn settings(devices: &[PathBuf], udev: bool, backup: bool) -> String {
    let pattern = |device: &PathBuf| {
        let escaped = device.to_string_lossy().replace('.', "\\\\.").replace('+', "\\\\+");
        format!("\"a|^{escaped}$|\",")
    };
    let filter: String = devices.iter().map(pattern).chain(["\"r|.*|\"".to_owned()]).collect();
    let (udev, backup) = (u8::from(udev), u8::from(backup));
    format!(
        "# Written by Tandem's driver for its own use. LVM reads it for nobody else.\n\
         devices {{\n\tdir=\"/dev\"\n\tscan=[\"/dev\"]\n\tuse_devicesfile=0\n\tobtain_device_list_from_udev=0\n\
         \texternal_device_info_source=\"none\"\n\tfilter=[{filter}]\n\tglobal_filter=[{filter}]\n}}\n\
         global {{\n\twait_for_locks=0\n\tevent_activation=0\n\tuse_lvmpolld=0\n}}\n\
         activation {{\n\tudev_sync={udev}\n\tudev_rules={udev}\n\tverify_udev_operations=0\n\tmonitoring=0\n}}\n\
         backup {{\n\tbackup={backup}\n\tbackup_dir=\"{BACKUP}\"\n\tarchive=0\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_devices_of_the_group_are_seen() {
        let text = settings(&["/dev/sdb".into(), "/dev/disk/by-id/a.b".into()], true, false);
        assert!(text.contains(r#"filter=["a|^/dev/sdb$|","a|^/dev/disk/by-id/a\\.b$|","r|.*|"]"#), "{text}");
        assert!(
            text.contains("udev_sync=1") && text.contains("wait_for_locks=0") && text.contains("backup=0")
        );
        assert!(settings(&[], false, true).contains("udev_rules=0"));
    }
}
