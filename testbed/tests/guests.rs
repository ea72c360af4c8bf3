//! Whole storage hosts with real ZFS, real NFS and a real `tandemd`, in guests whose power can be cut.
//!
//! Run by `cargo xtask test` after everything that is cheaper; `TANDEM_LONG=1` (`cargo xtask testbed --long`) repeats what
//! is random more often, `TANDEM_SEED` repeats one run of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tandem_guests::{Command, Host, nfs, zfs};
use tandem_testbed::api::{ended, word};
use tandem_testbed::chance::{dice, long};
use tandem_testbed::site::users::acknowledged;
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

const GIB: u64 = 1 << 30;

/// A share with some files, and a replica in sync.
fn pair(site: &Site, style: &str) -> (String, String, String) {
    let share = site.share(style);
    let active = site.api.only_replica(&share, "active");
    site.fill(&active, "first", 16);
    let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
    assert_eq!(site.api.in_sync(&share), [replica.as_str()]);
    site.api.settle();
    (share, active, replica)
}

#[test]
fn users_on_nfs_lose_no_acknowledged_record_in_a_planned_promotion() {
    let site = Site::start(Exports::Nfs, 3 * GIB);
    let guest = &*site.guest;
    let share = site.share("readable");
    let good = site.user_of(&share);
    let bad = nfs::Client::create(guest, "bad", "192.0.2.102").unwrap();
    let active = site.api.only_replica(&share, "active");
    let refused =
        |replica: &str| bad.mount(guest, &site.export(replica), "/mnt/bad", "hard").unwrap().status != 0;
    assert!(refused(&active), "without a rule");
    site.mount(&good, &active, "/mnt/good");

    let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
    site.api.in_sync(&share);
    site.mount(&good, &replica, "/mnt/copy");
    assert!(guest.run(&["touch", "/mnt/copy/new"]).is_err(), "a secondary is read-only");
    assert!(refused(&replica), "nor there");

    // A writer to whom every record is acknowledged, and a promotion in the middle of it.
    let program = tandem_guests::forward::PROGRAM;
    let writer = guest.spawn(&good.command(&[program, "records", "/mnt/good/records"])).unwrap();
    wait::until("some records", || {
        let text = guest.run(&["cat", "/mnt/good/records"]).ok()?;
        (text.lines().count() > 50).then_some(())
    });
    site.api.act(&replica, "promote").unwrap();
    wait::until("the promotion", || {
        let rows = site.api.replicas_of(&share);
        rows.iter().any(|row| row["id"] == replica.as_str() && row["replica_state"] == "active").then_some(())
    });
    let promised = acknowledged(&writer);
    assert!(promised.len() > 50, "{}", promised.len());
    site.api.settle();
    site.mount(&good, &replica, "/mnt/new");
    site.nothing_is_lost(&promised, "/mnt/new/records");
    guest.run(&["touch", "/mnt/new/new"]).expect("the promoted one is writable");
    for at in ["/mnt/good", "/mnt/copy", "/mnt/new"] {
        guest.run(&["umount", "-f", "-l", at]).unwrap();
    }
    // Both sides written at once is nothing that ZFS can do.
    let kind = site.api.create_type("both written", "writable", &[]).unwrap();
    let refused = site.api.create_share(&kind, POOLS[0].1).unwrap();
    site.api.settle();
    assert_eq!(site.api.share(&refused).unwrap()["status"], "error");
    let why = site.api.operations("kind=create_share&limit=1").unwrap()[0]["error"].to_string();
    assert!(why.contains("writable"), "{why}");
    site.api.delete_share(&refused).unwrap();
    wait::until("it to be gone", || (site.api.shares().unwrap().len() == 1).then_some(()));
    audit::at_rest(&site);
    audit::removed(&site);
}

/// Takes the rule of an address away, and waits until that holds.
fn deny(site: &Site, share: &str, address: &str) {
    let list = format!("v2/share-access-rules?share_id={share}");
    let rule = || {
        let rules = site.api.get(&list).unwrap();
        let all = rules["access_list"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|rule| rule["access_to"] == address)
    };
    let body = json!({"deny_access": {"access_id": rule().expect("a rule")["id"]}});
    site.api.post(&format!("v2/shares/{share}/action"), &body).unwrap();
    wait::until("the rule to be gone", || rule().is_none().then_some(()));
}

#[test]
fn rules_say_who_writes_who_reads_and_who_is_kept_out() {
    let site = Site::start(Exports::Nfs, GIB);
    let guest = &*site.guest;
    let share = site.share("readable");
    let active = site.api.only_replica(&share, "active");
    let writer = site.user_of(&share);
    let reader = nfs::Client::create(guest, "reader", "192.0.2.102").unwrap();
    let stranger = nfs::Client::create(guest, "stranger", "192.0.2.103").unwrap();
    site.allow(&share, reader.address(), "ro");
    site.mount(&writer, &active, "/mnt/writer");
    site.mount(&reader, &active, "/mnt/reader");
    let shut_out = |client: &nfs::Client| {
        client.mount(guest, &site.export(&active), "/mnt/nobody", "hard").unwrap().status != 0
    };
    assert!(shut_out(&stranger), "without a rule");

    guest.run(&["cp", "/etc/debian_version", "/mnt/writer/file"]).expect("`rw` writes");
    let written = guest.run(&["cat", "/etc/debian_version"]).unwrap();
    assert_eq!(guest.run(&["cat", "/mnt/reader/file"]).expect("`ro` reads"), written);
    for deed in [
        &["touch", "/mnt/reader/new"][..],
        &["rm", "/mnt/reader/file"],
        &["chmod", "0777", "/mnt/reader/file"],
    ] {
        let refused = guest.output(&Command::new(deed)).unwrap();
        let said = refused.stderr_text();
        assert!(refused.status != 0 && said.contains("Read-only file system"), "{deed:?}: {said}");
    }

    println!("-- a rule that is taken away counts at once, for what is mounted too");
    let read = ["timeout", "60", "dd", "if=/mnt/reader/file", "of=/dev/null", "iflag=direct", "bs=4096"];
    guest.run(&read).expect("it reads still");
    deny(&site, &share, reader.address());
    let refused = guest.output(&Command::new(&read)).unwrap();
    println!("{}", refused.stderr_text());
    assert!(refused.status != 0, "it reads without a rule");
    assert_ne!(refused.status, 124, "it hangs");
    assert!(shut_out(&reader) && shut_out(&stranger));
    guest.run(&["touch", "/mnt/writer/new"]).expect("the others go on");
    for at in ["/mnt/writer", "/mnt/reader"] {
        guest.run(&["umount", "-f", "-l", at]).unwrap();
    }
    audit::at_rest(&site);
    audit::removed(&site);
}

/// What is asked for when the power is cut.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Replica,
    Sync,
    Promote,
}

#[test]
fn a_power_cut_at_any_moment_is_recovered_from() {
    let mut dice = dice();
    let site = Site::start(Exports::None, 3 * GIB);
    let share = site.share("readable");
    site.fill(&site.api.only_replica(&share, "active"), "first", 16);
    let cuts = if long() { 30 } else { 6 };
    for cut in 0..cuts {
        let deed = [Deed::Replica, Deed::Sync, Deed::Promote][cut % 3];
        let active = site.api.only_replica(&share, "active");
        let secondary = site.api.in_sync(&share).pop();
        site.fill(&active, &format!("before cut {cut}"), 8);
        match (deed, secondary) {
            (Deed::Replica, secondary) => {
                if let Some(old) = secondary {
                    site.api.delete_replica(&old).unwrap();
                    wait::until("it to be gone", || (site.api.replicas_of(&share).len() == 1).then_some(()));
                }
                let zone = word(&site.api.replicas_of(&share)[0]["availability_zone"]);
                let other = POOLS.iter().find(|(_, name)| *name != zone).unwrap().1;
                site.api.create_replica(&share, other).unwrap();
            }
            (Deed::Sync, secondary) => site.api.act(&secondary.expect("a replica"), "resync").unwrap(),
            (Deed::Promote, secondary) => site.api.act(&secondary.expect("a replica"), "promote").unwrap(),
        }
        let moment = Duration::from_millis(dice.below(3000));
        std::thread::sleep(moment);
        println!("cut {cut}: {moment:?} into {deed:?}");
        site.cut_power();
        site.boot();
        audit::at_rest(&site);
    }
    audit::removed(&site);
}

/// The sync must fail, and say this.
fn fails(op: &Value, says: &[&str]) {
    assert_eq!(op["status"], "failed", "{op:#}");
    let text = op.to_string().to_lowercase();
    assert!(says.iter().any(|word| text.contains(word)), "it says none of {says:?}: {op:#}");
}

#[test]
fn a_full_destination_fails_in_words_and_recovers_when_there_is_room() {
    let site = Site::start(Exports::None, GIB / 2);
    let (share, active, replica) = pair(&site, "readable");
    site.fill(&active, "too much", 700);
    let op = site.api.resync(&replica);
    println!("{op:#}");
    fails(&op, &["space", "full", "room"]);
    assert!(site.path(&active).starts_with('/'), "the source stays reachable");
    site.fill(&active, "still writable", 1);
    site.guest.run(&["rm", &format!("{}/too much", site.path(&active))]).unwrap();
    site.guest.run(&["zpool", "sync"]).unwrap();
    wait::until("a sync that works", || (site.api.resync(&replica)["status"] == "done").then_some(()));
    site.api.in_sync(&share);
    audit::at_rest(&site);
    audit::removed(&site);
}

#[test]
fn pools_snapshots_and_clocks_that_others_meddle_with() {
    let site = Site::start(Exports::None, 3 * GIB);
    let (share, active, replica) = pair(&site, "readable");
    let guest = &*site.guest;

    println!("-- an admin destroys the common snapshot on the source");
    let points = |pool: &str| {
        let list = guest.run(&[
            "zfs",
            "list",
            "-H",
            "-t",
            "snapshot",
            "-o",
            "name",
            "-r",
            &format!("{pool}/tandem"),
        ]);
        list.unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for point in points("alpha") {
        let holds = guest.run(&["zfs", "holds", "-H", &point]).unwrap();
        for tag in holds.lines().filter_map(|line| line.split('\t').nth(1)) {
            guest.run(&["zfs", "release", tag, &point]).unwrap();
        }
        guest.run(&["zfs", "destroy", &point]).unwrap();
    }
    site.fill(&active, "second", 4);
    wait::until("a sync that works", || (site.api.resync(&replica)["status"] == "done").then_some(()));
    audit::at_rest(&site);

    println!("-- somebody else's snapshots are left alone");
    let foreign = |pool: &str, id: &str| {
        let text =
            guest.run(&["zfs", "list", "-H", "-o", "name", "-r", &format!("{pool}/tandem/{id}")]).unwrap();
        let dataset = text.lines().last().unwrap().to_owned();
        guest.run(&["zfs", "snapshot", &format!("{dataset}@daily")]).unwrap();
        format!("{dataset}@daily")
    };
    let kept = foreign("alpha", &active);
    site.fill(&active, "third", 4);
    assert_eq!(site.api.resync(&replica)["status"], "done");
    assert!(guest.succeeds(&["zfs", "list", &kept]).unwrap());
    guest.run(&["zfs", "destroy", &kept]).unwrap();
    audit::at_rest(&site);

    println!("-- the destination's pool is exported under our feet");
    guest.run(&["zpool", "export", "-f", "beta"]).unwrap();
    let op = site.api.resync(&replica);
    println!("{op:#}");
    fails(&op, &["beta"]);
    site.fill(&active, "fourth", 4);
    zfs::import_pool(guest, "beta").unwrap();
    wait::until("a sync that works", || (site.api.resync(&replica)["status"] == "done").then_some(()));
    audit::at_rest(&site);

    println!("-- two promotions at once");
    let body = serde_json::json!({"promote": null});
    let path = format!("v2/share-replicas/{replica}/action");
    let both: Vec<u16> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| site.api.attempt("POST", &path, &body).unwrap());
        [ask(), ask()].map(|asked| asked.join().unwrap()).into()
    });
    assert!(both.iter().filter(|status| **status < 300).count() >= 1, "{both:?}");
    site.api.settle();
    assert_eq!(site.api.only_replica(&share, "active"), replica);
    audit::at_rest(&site);

    println!("-- the clock is an hour off after a boot, and right after the next");
    for offset in [3600, -3600, 0] {
        site.cut_power();
        guest.set_clock_offset(offset);
        site.boot();
        let now = site.api.only_replica(&share, "active");
        site.fill(&now, &format!("at {offset}"), 2);
        for secondary in site.api.in_sync(&share) {
            wait::until("a sync that works", || {
                (site.api.resync(&secondary)["status"] == "done").then_some(())
            });
        }
        audit::at_rest(&site);
    }
    audit::removed(&site);
}

/// Turns a bit of what lies on a disk, in the block that begins with these bytes.
fn rot(disk: &Path, block: &[u8]) {
    const SECTOR: usize = 512;
    let file = File::options().read(true).write(true).open(disk).unwrap();
    let mut buffer = vec![0; 4 << 20];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at).unwrap();
        assert!(read > 0, "what was written is not on the disk");
        if let Some(n) = buffer[..read].chunks(SECTOR).position(|sector| sector.starts_with(block)) {
            let byte = at + (n * SECTOR) as u64 + 100;
            let mut old = [0];
            file.read_exact_at(&mut old, byte).unwrap();
            return file.write_all_at(&[old[0] ^ 0x10], byte).unwrap();
        }
        at += read as u64;
    }
}

#[test]
fn a_byte_that_rots_in_a_replica_is_found_told_and_mended() {
    let site = Site::start(Exports::None, GIB);
    let guest = &*site.guest;
    // A check takes some seconds, in which the server can be killed.
    site.kill();
    site.set("[verify]\nbandwidth = 4000000\n");
    site.launch(&[]);
    let (share, active, replica) = pair(&site, "readable");
    let check = || word(&site.tandem(&["replica", "verify", &replica])["id"]);
    let end = |id: &str| {
        wait::until("the check to end", || Some(site.tandem(&["operation", "show", id])).filter(ended))
    };
    // One that gave way to something is asked for again.
    let verdict = |mut op: Value| {
        while op["status"] == "cancelled" {
            op = end(&check());
        }
        op
    };

    println!("-- killed amid a check, which leaves nothing mounted");
    let first = format!("{}/first", site.path(&active));
    let block = guest.output(&Command::new(&["head", "-c", "64", &first])).unwrap().stdout;
    let mut op = check();
    wait::until("it to read", || {
        let now = site.tandem(&["operation", "show", &op]);
        if ended(&now) {
            op = check();
        }
        (now["progress"]["done"].as_u64() > Some(0)).then_some(())
    });
    site.kill();
    guest.run(&["umount", "-a", "-t", "zfs"]).unwrap();
    wait::until("the pool to be free", || {
        guest.succeeds(&["zpool", "export", "beta"]).unwrap().then_some(())
    });

    println!("-- the replica's disk loses a byte meanwhile");
    rot(guest.disk("beta").unwrap().file(), &block);
    zfs::import_pool(guest, "beta").unwrap();
    site.launch(&[]);
    // The check is carried on, and finds it.
    let mut found = verdict(end(&op));
    if found["status"] == "done" {
        // It had come to its end before the kill.
        found = verdict(end(&check()));
    }
    println!("{found:#}");
    fails(&found, &["does not hold"]);
    assert!(found.to_string().contains("first"), "it names the file: {found:#}");

    println!("-- and everything is carried again, without a hand");
    let told = |op: &Value| op["status"] == "done" && op.to_string().contains("everything was carried again");
    wait::until("a sync that says so", || site.api.syncs(&replica).iter().any(told).then_some(()));
    assert_eq!(site.api.in_sync(&share), [replica.as_str()]);
    assert!(site.tandem(&["replica", "show", &replica])["damage"].is_null());
    let whole = verdict(end(&check()));
    assert_eq!(whole["status"], "done", "{whole:#}");
    assert!(site.tandem(&["replica", "show", &replica])["verified_at"].is_string());
    audit::at_rest(&site);
    audit::removed(&site);
}
