//! What accidents and people leave of a share, and the next call mends: a file system that stopped, a device that a command
//! which was cut left suspended or without a table, a growth or a removal that was begun.

use std::fs::{self, File};
use std::io::Write;

use serde_json::json;
use tandem_sdk::contract::*;

use crate::common::{Backend, MIB, degraded, failed, run, volumes};

/// Lets a client on this host in by NFS, who keeps a file open that nobody finds by its path any more.
async fn open_by_nfs(backend: &Backend, share: InstanceId) -> File {
    let access_to = "127.0.0.1".to_owned();
    let rule =
        AccessRule { id: share.0, access_type: "ip".to_owned(), access_to, access_level: AccessLevel::Rw };
    let access = AccessSpec { rules: vec![rule], read_only: false };
    backend.call(UpdateAccess { instance: share, epoch: Epoch(1), access }).await.unwrap();
    let folder = format!("/mnt/{share}");
    fs::create_dir_all(&folder).unwrap();
    let from = backend.observe(share).await.exports[0].path.clone();
    run("modprobe", &["nfsv4"]);
    let options = "vers=4.2,soft,timeo=30,retrans=1";
    run("mount", &["-t", "nfs4", "-o", options, &from, &folder]);
    let mut open = File::create(format!("{folder}/open")).unwrap();
    open.write_all(b"x").unwrap();
    open.sync_all().unwrap();
    run("umount", &["-l", &folder]);
    open
}

pub async fn an_xfs_that_stopped_is_recovered_and_can_be_deleted() {
    let export = json!({"kind": "nfs", "address": "127.0.0.1"});
    let alpha = Backend::open("alpha", "stopped", json!({ "export": export })).await;
    for recovered in [true, false] {
        let share = alpha.share(400 * MIB, "xfs").await;
        let folder = alpha.folder(share);
        let open = open_by_nfs(&alpha, share).await;
        fs::write(folder.join("kept"), b"x").unwrap();
        run("sync", &[]);
        run("xfs_io", &["-x", "-c", "shutdown", folder.to_str().unwrap()]);
        assert!(fs::metadata(&folder).is_err(), "an XFS that stopped answers nothing");
        let seen = alpha.observe(share).await;
        assert!(failed(&seen.health).contains("stopped after an error"), "{:?}", seen.health);
        if recovered {
            assert!(alpha.ensure(share).await.unwrap().is_changed());
            let seen = alpha.observe(share).await;
            assert_eq!((seen.health, seen.exports.len()), (Health::Ok, 1));
            assert_eq!(fs::read(folder.join("kept")).unwrap(), b"x");
            fs::write(folder.join("new"), b"x").unwrap();
            assert!(!alpha.ensure(share).await.unwrap().is_changed());
        }
        alpha.leaves_nothing(share).await;
        drop(open);
    }
}

pub async fn what_a_cut_command_left_of_a_device_is_mended() {
    let alpha = Backend::open("alpha", "devices", json!({})).await;
    let share = alpha.share(64 * MIB, "ext4").await;
    let (folder, volume) = (alpha.folder(share), alpha.volume(share));
    fs::write(folder.join("kept"), b"x").unwrap();
    let name = volume.replace("vg_alpha/", "").replace('-', "--");
    let (device, node) = (format!("vg_alpha-{name}"), format!("/dev/mapper/vg_alpha-{name}"));
    let serves = async || {
        alpha.ensure(share).await.unwrap();
        assert_eq!(alpha.observe(share).await.health, Health::Ok);
        assert_eq!(fs::read(folder.join("kept")).unwrap(), b"x");
    };

    // Suspended: whoever touched it would wait for ever.
    for target in [device.as_str(), "vg_alpha-pool-tpool"] {
        run("dmsetup", &["suspend", "--noflush", target]);
        let seen = alpha.observe(share).await;
        assert!(degraded(&seen.health).contains("suspended"), "{:?}", seen.health);
        serves().await;
        assert!(!run("dmsetup", &["info"]).contains("SUSPENDED"));
    }
    run("dmsetup", &["suspend", "--noflush", "vg_alpha-pool-tpool"]);
    let other = alpha.share(64 * MIB, "ext4").await;
    run("dmsetup", &["suspend", &format!("vg_alpha-tandem--{}", other.to_string().replace('-', "--"))]);
    alpha.leaves_nothing(other).await;

    // A device with a table that is loaded and not used yet, and one with none.
    let ids = run("lvs", &["--noheadings", "--separator", " ", "-o", "vg_uuid,lv_uuid", &volume]);
    let uuid = format!("LVM-{}", ids.replace(['-', ' ', '\n'], ""));
    for loaded in [true, false] {
        let table = run("dmsetup", &["table", &device]);
        alpha.unserve(share);
        run("dmsetup", &["create", &device, "--uuid", &uuid, "--notable"]);
        if loaded {
            run("dmsetup", &["load", &device, "--table", table.trim()]);
        }
        serves().await;
    }

    // A node that is gone, and one that leads to another device.
    let numbers = |node: &str| {
        let text = run("stat", &["-c", "%Hr %Lr", node]);
        let (major, minor) = text.trim().split_once(' ').unwrap();
        (major.to_owned(), minor.to_owned())
    };
    let (right, (major, minor)) = (numbers(&node), numbers("/dev/mapper/beta"));
    for wrong in [false, true] {
        run("umount", &[folder.to_str().unwrap()]);
        fs::remove_file(&node).unwrap();
        if wrong {
            run("mknod", &[&node, "b", &major, &minor]);
        }
        serves().await;
        assert_eq!(numbers(&node), right);
    }
    alpha.leaves_nothing(share).await;
}

fn retag(volume: &str, changes: &[(&str, &str)]) {
    for (from, to) in changes {
        let (from, to) = (format!("tandem:{from}"), format!("tandem:{to}"));
        run("lvchange", &["--deltag", &from, "--addtag", &to, volume]);
    }
}

pub async fn a_making_goes_on_over_its_own_half_removed_self() {
    let alpha = Backend::open("alpha", "again", json!({})).await;
    let spec = alpha.spec(64 * MIB, "ext4");
    let share = spec.instance;
    alpha.call(CreateInstance { spec: spec.clone() }).await.unwrap();
    // As a removal of a whole one that was cut: only a deletion may follow.
    retag(&alpha.volume(share), &[("deleting=no", "deleting=yes")]);
    let refused = alpha.call(CreateInstance { spec: spec.clone() }).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    // As a second making left it that was cut while it removed what the first had begun.
    retag(&alpha.volume(share), &[("made=yes", "made=no")]);
    assert!(alpha.call(CreateInstance { spec: spec.clone() }).await.unwrap().is_changed());
    assert_eq!(alpha.observe(share).await.health, Health::Ok);
    // Another one is a conflict all the same.
    retag(&alpha.volume(share), &[("deleting=no", "deleting=yes"), ("made=yes", "made=no")]);
    let other = InstanceSpec { size_bytes: 128 * MIB, ..spec };
    let refused = alpha.call(CreateInstance { spec: other }).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    alpha.leaves_nothing(share).await;
}

pub async fn a_growth_that_failed_keeps_nobody_out() {
    let alpha = Backend::open("alpha", "growth", json!({})).await;
    for filesystem in ["ext4", "xfs"] {
        // No multiple of anything.
        let size = 400_000_001;
        let share = alpha.share(size, filesystem).await;
        assert_eq!(alpha.observe(share).await.size_bytes, size);
        let grow = |size_bytes| ResizeInstance { instance: share, epoch: Epoch(1), size_bytes };
        assert!(alpha.call(grow(size + 77 * MIB)).await.unwrap().is_changed());
        assert!(!alpha.call(grow(size + 77 * MIB)).await.unwrap().is_changed());
        let size = size + 77 * MIB;

        // No volume becomes as large as this one is to be.
        let (whole, none) = (format!("size={size}"), format!("size={}", u64::MAX));
        retag(&alpha.volume(share), &[("growing=no", "growing=yes"), (&whole, &none)]);
        alpha.unserve(share);
        alpha.ensure(share).await.unwrap();
        let seen = alpha.observe(share).await;
        assert!(degraded(&seen.health).contains("growth") && seen.exports.len() == 1, "{:?}", seen.health);
        fs::write(alpha.folder(share).join("served"), b"x").unwrap();
        // Back to what the volume is: nothing shrinks by that. Below, it would.
        let smaller = alpha.call(grow(size - 77 * MIB)).await.unwrap_err();
        assert!(
            smaller.kind == ErrorKind::Unsupported && smaller.message.contains("cannot shrink"),
            "{smaller}"
        );
        assert!(alpha.call(grow(size)).await.unwrap().is_changed());
        let seen = alpha.observe(share).await;
        assert_eq!((seen.health, seen.size_bytes), (Health::Ok, size));
        alpha.leaves_nothing(share).await;
    }
}

pub async fn shares_are_mounted_through_a_link() {
    fs::create_dir_all("/srv/alpha-real").unwrap();
    std::os::unix::fs::symlink("/srv/alpha-real", "/srv/alpha-link").unwrap();
    let alpha = Backend::open("alpha", "link", json!({"mounts": "/srv/alpha-link"})).await;
    let share = alpha.share(64 * MIB, "ext4").await;
    assert!(!alpha.ensure(share).await.unwrap().is_changed());
    let seen = alpha.observe(share).await;
    assert_eq!(
        (seen.health, seen.exports[0].path.as_str()),
        (Health::Ok, &*format!("/srv/alpha-real/{share}"))
    );
    alpha.leaves_nothing(share).await;
}

pub async fn a_sleeping_pool_is_not_called_empty() {
    let beta = Backend::open("beta", "sleeps", json!({})).await;
    run("vgchange", &["-an", "vg_beta"]);
    let pool = beta.pool().await;
    assert_eq!((pool.free_bytes, &pool.extra["thin_data_percent"]), (None, &json!(null)));
    let share = beta.share(64 * MIB, "ext4").await;
    let pool = beta.pool().await;
    assert!(pool.free_bytes.is_some() && pool.extra["thin_data_percent"].is_number());
    // It may be changed at any time, not only before the server starts.
    run("lvchange", &["--zero", "n", "vg_beta/pool"]);
    let refused = beta.call(CreateInstance { spec: beta.spec(64 * MIB, "ext4") }).await.unwrap_err();
    assert!(refused.kind == ErrorKind::InvalidArgument && refused.message.contains("--zero y"), "{refused}");
    run("lvchange", &["--zero", "y", "vg_beta/pool"]);
    beta.leaves_nothing(share).await;
}

/// Tags of the group itself take the room that those of shares would.
pub async fn a_group_whose_metadata_is_full_says_so() {
    let gamma = Backend::open("gamma", "metadata", json!({"refuse_percent": 100})).await;
    assert_eq!(gamma.pool().await.warning, None);
    let mut tags = Vec::new();
    let change = |option: &str, tags: &[String]| {
        let mut vgchange = std::process::Command::new("vgchange");
        for tag in tags {
            vgchange.args([option, tag]);
        }
        vgchange.arg("vg_gamma").output().unwrap().status.success()
    };
    for batch in [64, 8, 1] {
        loop {
            let fresh: Vec<String> =
                (0..batch).map(|n| format!("{:x<1000}", format!("t{}-", tags.len() + n))).collect();
            if !change("--addtag", &fresh) {
                break;
            }
            tags.extend(fresh);
        }
    }
    assert!(tags.len() > 300, "{}", tags.len());
    let warning = gamma.pool().await.warning.unwrap();
    assert!(warning.contains("metadata area of the volume group `vg_gamma`"), "{warning}");
    let spec = gamma.spec(64 * MIB, "ext4");
    let full = gamma.call(CreateInstance { spec: spec.clone() }).await.unwrap_err();
    assert!(full.kind == ErrorKind::OutOfSpace && full.message.contains("metadata"), "{full}");
    assert_eq!(gamma.call(ObserveInstance { instance: spec.instance }).await.unwrap(), None);
    let refusing = Backend::open("gamma", "metadata", json!({})).await;
    let full = refusing.call(CreateInstance { spec: spec.clone() }).await.unwrap_err();
    assert!(full.kind == ErrorKind::OutOfSpace && full.message.contains("95 %"), "{full}");
    for batch in tags.chunks(64) {
        assert!(change("--deltag", batch));
    }
    let instance = spec.instance;
    gamma.call(CreateInstance { spec }).await.unwrap();
    gamma.leaves_nothing(instance).await;
    assert_eq!(volumes("vg_gamma"), ["pool"]);
}
