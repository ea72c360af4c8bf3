//! Migrations to and from ZFS over real NFS, in a guest: a client writes until it may not, and reads throughout.
//!
//! `TANDEM_LONG=1` adds migrations from pool to pool by the driver, with the server killed and the power cut in their
//! midst; `TANDEM_SEED` repeats a run.
//! Run by `cargo xtask test` with the other scenarios that boot guests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tandem_guests::{Command, Host, Running, nfs};
use tandem_testbed::api::word;
use tandem_testbed::chance::{dice, long};
use tandem_testbed::kill::matrix::events;
use tandem_testbed::kill::storm::Dice;
use tandem_testbed::site::users::{numbers, said};
use tandem_testbed::site::{Exports, Site};

const GIB: u64 = 1 << 30;

/// Every file below a folder of the guest, as an independent tool sees it: kind, mode, owner, size, time, links, content.
fn listing(site: &Site, folder: &str) -> Vec<String> {
    let run = |argv: &[&str]| {
        let output = site.guest.output(&Command::new(argv).dir(folder)).unwrap();
        assert_eq!(output.status, 0, "{argv:?}: {}", output.stderr_text());
        output.stdout_text()
    };
    let stats = run(&["find", ".", "-mindepth", "1", "-printf", "%p %y %m %U:%G %s %T@ %n %l\\n"]);
    // ZFS and ext4 have folders of other sizes.
    let folder = |line: &&str| line.split(' ').nth(1) == Some("d");
    let stats = stats.lines().filter(|line| !folder(line)).map(str::to_owned);
    let sums = run(&["find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+"]);
    let mut all: Vec<String> = stats.chain(sums.lines().map(str::to_owned)).collect();
    all.sort();
    all
}

/// What copying gets wrong, written by the guest itself.
fn plant(site: &Site, at: &str) {
    let run = |argv: &[&str]| site.guest.output(&Command::new(argv).dir(at)).unwrap();
    let must = |argv: &[&str]| {
        let output = run(argv);
        assert_eq!(output.status, 0, "{argv:?}: {}", output.stderr_text());
    };
    must(&["mkdir", "-p", "deep/deeper"]);
    must(&["dd", "if=/dev/urandom", "of=deep/large", "bs=1M", "count=40", "status=none"]);
    must(&["cp", "-r", "/usr/include/linux", "many"]);
    must(&["ln", "deep/large", "deep/deeper/large too"]);
    must(&["ln", "-s", "deep/large", "a link"]);
    must(&["mkfifo", "fifo"]);
    must(&["truncate", "-s", "200M", "sparse"]);
    must(&["chown", "1234:4321", "deep/large"]);
    must(&["chmod", "4751", "deep/large"]);
    must(&["touch", "-d", "1999-12-31T23:59:59.123456789", "many"]);
}

/// A share with all of that in it, and a client that may use it.
struct Planted {
    share: String,
    active: String,
    client: nfs::Client,
    before: Vec<String>,
}

impl Planted {
    fn on(site: &Site) -> Self {
        let share = site.share("readable");
        let client = site.user_of(&share);
        let active = site.api.only_replica(&share, "active");
        plant(site, &site.path(&active));
        let before = listing(site, &site.path(&active));
        Self { share, active, client, before }
    }
}

/// Who uses the share, and where: a client over NFS, or a user of the host, whose writer ends by itself.
struct User<'a> {
    mounted: &'a str,
    client: Option<&'a nfs::Client>,
}

impl User<'_> {
    fn spawn(&self, site: &Site, argv: &[&str]) -> Running {
        let command = match self.client {
            Some(client) => client.command(argv),
            None => Command::new(argv),
        };
        site.guest.spawn(&command).unwrap()
    }
}

/// Who carries a share.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// Its driver, of which everything is wanted that it can promise.
    Driver,
    /// The manager, from host to host.
    Host,
}

/// Moves the share while it is written and read.
fn move_under_load(site: &Site, user: &User<'_>, share: &str, backend: &str, by: By) {
    let guest = &*site.guest;
    let host = site.api.pool_of(backend);
    let (driver, first) = (
        by == By::Driver,
        if by == By::Driver { "migration_driver_phase1_done" } else { "data_copying_completed" },
    );
    let start = json!({"migration_start": {
        "host": host, "force_host_assisted_migration": !driver, "writable": driver, "nondisruptive": false,
        "preserve_metadata": driver, "preserve_snapshots": driver,
    }});
    let records = format!("{}/records", user.mounted);
    let argv = [tandem_guests::forward::PROGRAM, "records", &records];
    let below: &[&str] = if user.client.is_some() { &[] } else { &["timeout", "8"] };
    let writer = user.spawn(site, &[below, &argv].concat());
    site.api.migration(share, &start);
    site.api.until_task(share, first);
    assert_eq!(site.api.share(share).unwrap()["status"], "migrating");
    // Users read while the last pass runs as well.
    let large = format!("{}/deep/large", user.mounted);
    let reading = user.spawn(site, &["sha256sum", &large, &large, &large, &large]);
    let early = user.client.is_none().then(|| said(&writer));
    site.api.migration(share, &json!({"migration_complete": null}));
    let promised = early.unwrap_or_else(|| said(&writer));
    let promised = numbers(promised.iter().map(String::as_str));
    site.api.until_task(share, "migration_success");
    let sums = said(&reading);
    let sums: BTreeSet<&str> = sums.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(sums.len(), 1, "what was read is one content: {sums:?}");
    site.api.settle();
    assert_eq!(site.api.share(share).unwrap()["host"], host.as_str());
    assert!(promised.len() > 20, "{} records", promised.len());
    if user.client.is_some() {
        guest.run(&["umount", "-f", "-l", user.mounted]).unwrap();
    }
    let now = site.api.only_replica(share, "active");
    site.nothing_is_lost(&promised, &format!("{}/records", site.path(&now)));
}

#[test]
fn a_share_goes_from_zfs_to_a_folder_and_back_under_a_client() {
    let site = Site::start_with_folders(Exports::Nfs, 3 * GIB);
    let guest = &*site.guest;
    let Planted { share, active, client, before } = Planted::on(&site);
    site.mount(&client, &active, "/mnt/zfs");

    println!("-- zfs to directory, the client over NFS");
    move_under_load(&site, &User { mounted: "/mnt/zfs", client: Some(&client) }, &share, "plain", By::Host);
    let records = |line: &String| line.contains("records");
    let without = |all: Vec<String>| all.into_iter().filter(|line| !records(line)).collect::<Vec<_>>();
    let in_folder = site.path(&site.api.only_replica(&share, "active"));
    let in_folder = guest.run(&["readlink", "-f", &in_folder]).unwrap().trim().to_owned();
    assert_eq!(without(listing(&site, &in_folder)), before);
    guest.run(&["rm", &format!("{in_folder}/records")]).unwrap();

    println!("-- directory to zfs, a user at the folder itself");
    let sum = guest.run(&["sha256sum", &format!("{in_folder}/deep/large")]).unwrap();
    // A folder cannot hold back who has a file open, so this writer ends by itself.
    move_under_load(&site, &User { mounted: &in_folder, client: None }, &share, "beta", By::Host);
    let there = site.api.only_replica(&share, "active");
    assert_eq!(without(listing(&site, &site.path(&there))), before);
    // The rules came along: the client reaches it where it is now.
    site.mount(&client, &there, "/mnt/back");
    let after = guest.run(&["sha256sum", "/mnt/back/deep/large"]).unwrap();
    assert_eq!(sum.split(' ').next(), after.split(' ').next());
    guest.run(&["touch", "/mnt/back/writable"]).unwrap();
    guest.run(&["umount", "-f", "-l", "/mnt/back"]).unwrap();
    tandem_testbed::site::audit::at_rest(&site);
    tandem_testbed::site::audit::removed(&site);
}

/// Moves a share, with a `kill -9` of the server somewhere in either phase.
fn killed_on_the_way(site: &Site, share: &str, backend: &str, dice: &mut Dice) {
    let mut kill = || {
        std::thread::sleep(Duration::from_millis(dice.below(2500)));
        site.kill();
        site.launch(&[]);
    };
    let start = json!({"migration_start": {
        "host": site.api.pool_of(backend), "force_host_assisted_migration": false, "writable": true,
        "nondisruptive": false, "preserve_metadata": true, "preserve_snapshots": true,
    }});
    site.api.migration(share, &start);
    kill();
    site.api.until_task(share, "migration_driver_phase1_done");
    site.api.migration(share, &json!({"migration_complete": null}));
    kill();
    site.api.until_task(share, "migration_success");
    no_traces(site);
}

/// Of migrations nothing is on the pools, and of the share no second copy.
fn no_traces(site: &Site) {
    site.api.settle();
    let columns = "name,receive_resume_token";
    let list = ["zfs", "list", "-H", "-t", "all", "-o", columns, "-r", "alpha/tandem", "beta/tandem"];
    let all = site.guest.run(&list).unwrap();
    assert!(all.lines().all(|line| !line.contains("tandem-") && line.ends_with("\t-")), "{all}");
    assert_eq!(all.matches("/v").count() - all.matches("@daily").count(), 1, "{all}");
}

#[test]
fn a_share_goes_from_pool_to_pool_by_its_driver_under_a_client() {
    if !long() {
        println!("nothing is proven here without TANDEM_LONG=1");
        return;
    }
    let site = Site::start(Exports::Nfs, 3 * GIB);
    let guest = &*site.guest;
    let Planted { share, active, client, before } = Planted::on(&site);
    let content = |pool: &str, id: &str| format!("{pool}/tandem/{id}/v1");
    guest.run(&["zfs", "snapshot", &format!("{}@daily", content("alpha", &active))]).unwrap();
    let guid = |dataset: &str| {
        guest.run(&["zfs", "get", "-H", "-o", "value", "guid", &format!("{dataset}@daily")]).unwrap()
    };
    let snapshot = guid(&content("alpha", &active));
    site.mount(&client, &active, "/mnt/here");

    println!("-- cancelled once: the source is as it was");
    let body = |by_driver: bool| {
        json!({"migration_start": {
            "host": site.api.pool_of("beta"), "force_host_assisted_migration": !by_driver, "writable": true,
            "nondisruptive": false, "preserve_metadata": true, "preserve_snapshots": true,
        }})
    };
    site.api.migration(&share, &body(true));
    site.api.until_task(&share, "migration_driver_phase1_done");
    site.api.migration(&share, &json!({"migration_cancel": null}));
    site.api.until_task(&share, "migration_cancelled");
    no_traces(&site);
    guest.run(&["touch", "/mnt/here/writable"]).unwrap();
    guest.run(&["rm", "/mnt/here/writable"]).unwrap();

    println!("-- from alpha to beta");
    let user = User { mounted: "/mnt/here", client: Some(&client) };
    move_under_load(&site, &user, &share, "beta", By::Driver);
    let there = site.api.only_replica(&share, "active");
    let records = |line: &String| line.contains("records");
    let after = listing(&site, &site.path(&there));
    assert_eq!(after.into_iter().filter(|line| !records(line)).collect::<Vec<_>>(), before);
    assert_eq!(guid(&content("beta", &there)), snapshot, "a snapshot of somebody else came along");
    let ops = site.api.operations("kind=migrate&limit=1").unwrap();
    assert_eq!(ops[0]["status"], "done", "{ops:#?}");
    // The rules came along too.
    site.mount(&client, &there, "/mnt/there");
    guest.run(&["touch", "/mnt/there/writable"]).unwrap();
    guest.run(&["umount", "-f", "-l", "/mnt/there"]).unwrap();

    let mut dice = dice();
    let wanted = site.contents(&there);
    for turn in 0..20 {
        println!("-- back, and the server is killed on the way");
        killed_on_the_way(&site, &share, if turn % 2 == 0 { "alpha" } else { "beta" }, &mut dice);
        let now = site.api.only_replica(&share, "active");
        assert_eq!(site.contents(&now), wanted);
    }
    let there = site.api.only_replica(&share, "active");
    assert_eq!(guid(&content("beta", &there)), snapshot);
    // It is nobody's of Tandem, and would keep the share.
    guest.run(&["zfs", "destroy", &format!("{}@daily", content("beta", &there))]).unwrap();
    tandem_testbed::site::audit::at_rest(&site);
    tandem_testbed::site::audit::removed(&site);
}

/// Moves the share by its driver to the other pool, while `disturb` cuts the power; it arrives all the same, whole.
fn cut_on_the_way(site: &Site, share: &str, disturb: impl FnOnce(&dyn Fn())) {
    let now = site.api.only_replica(share, "active");
    site.fill(&now, "changing", 8);
    let before = site.contents(&now);
    let from = word(&site.api.share(share).unwrap()["host"]);
    let host = site.api.pool_of(if from.contains("@alpha#") { "beta" } else { "alpha" });
    // It completes by itself.
    let body = json!({"migration_start": {"host": host, "notify": true}});
    disturb(&|| {
        // The answer may be lost with the power.
        let _ = site.api.share_action(share, "2.15", true, &body);
    });
    site.cut_power();
    site.boot();
    site.api.settle();
    let now = site.api.share(share).unwrap();
    assert_eq!((word(&now["host"]), word(&now["status"])), (host, "available".to_owned()), "{now:#}");
    assert_eq!(site.contents(&site.api.only_replica(share, "active")), before);
    no_traces(site);
}

#[test]
fn a_power_cut_at_each_step_of_a_migration_is_recovered_from() {
    if !long() {
        println!("nothing is proven here without TANDEM_LONG=1");
        return;
    }
    let site = Site::start(Exports::None, 3 * GIB);
    let share = site.share("readable");
    site.fill(&site.api.only_replica(&share, "active"), "first", 24);
    let mut dice = dice();
    for _ in 0..10 {
        let moment = Duration::from_millis(dice.below(3000));
        println!("-- the power goes after {moment:?}");
        cut_on_the_way(&site, &share, |act| {
            act();
            std::thread::sleep(moment);
        });
    }
    let done = site.api.operations("kind=migrate&status=done&limit=1").unwrap();
    let script = events(&site.api.operation(&word(&done[0]["id"])).unwrap());
    for (number, event) in script.iter().enumerate() {
        println!("-- the power goes at {event}");
        cut_on_the_way(&site, &share, |act| {
            site.kill();
            site.spawn(&[("TANDEM_KILL_AT", &format!("migrate:{}:after", number + 1))]);
            site.api.backends_are_up();
            act();
            site.dies();
        });
    }
    tandem_testbed::site::audit::at_rest(&site);
    tandem_testbed::site::audit::removed(&site);
}
