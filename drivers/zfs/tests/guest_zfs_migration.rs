//! Migrations between the pools `alpha` and `beta` of one host: what comes along, and what a cut leaves. Runs in a guest:
//! `cargo xtask test --only guests`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use common::{Backend, Move, Pair, halves, noise, zfs};
use libtest_mimic::Arguments;
use tandem_sdk::contract::*;

/// Tests by their names; passed by where the pools are not.
fn main() -> std::process::ExitCode {
    let trials = trials![2;
        snapshots_of_others_come_along_while_the_share_is_written,
        writers_with_open_files_are_held_back_and_lose_nothing,
        an_encrypted_share_moves_as_it_is,
        a_share_moves_into_an_encrypted_pool,
        a_full_pool_stops_a_round_and_the_next_goes_on,
        a_cancel_leaves_nothing_even_with_the_destination_gone,
        what_somebody_made_of_the_destination_is_named,
        snapshots_that_change_their_names_do_so_where_they_went,
        acls_count_where_they_go,
        a_migration_that_is_dropped_anywhere_is_whole_on_one_side,
        a_destination_that_stops_lets_the_source_go,
        a_receive_whose_pool_stops_ends_all_the_same,
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The first phase to its end; how many rounds it took.
async fn first_phase(scene: &Move) -> u32 {
    for round in 1..20 {
        if scene.round().await.unwrap().first_phase_done {
            return round;
        }
    }
    panic!("the first phase does not end");
}

/// Files and their contents.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    all.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// The snapshots of a dataset, with when they were made, in order.
fn snapshots(dataset: &str) -> Vec<(String, String)> {
    let all =
        ["list", "-Hp", "-t", "snapshot", "-s", "createtxg", "-d", "1", "-o", "name,creation,guid", dataset];
    let line = |line: &str| {
        let (name, rest) = line.split_once('\t').unwrap();
        (name.split_once('@').unwrap().1.to_owned(), rest.to_owned())
    };
    zfs(&all).lines().map(line).collect()
}

async fn snapshots_of_others_come_along_while_the_share_is_written() {
    let scene = Move::new("carried", &[], &[]).await;
    let (here, content) = (scene.here(), scene.alpha.content(scene.spec.source, 1));
    let theirs = |name: &str| zfs(&["snapshot", "-r", &format!("{}@{name}", scene.alpha.dataset)]);
    fs::write(here.join("a"), noise(1, 20_000_000)).unwrap();
    theirs("monday");
    fs::write(here.join("a"), noise(2, 20_000_000)).unwrap();
    theirs("tuesday");
    let check = MigrationCheckCompatibility {
        migration: MigrationSpec { endpoint: serde_json::Value::Null, ..scene.spec.clone() },
    };
    let promised = scene.alpha.call(check).await.unwrap();
    assert!(promised.writable && promised.preserve_metadata && promised.preserve_snapshots, "{promised:?}");
    assert!(!promised.nondisruptive, "its path is another one");

    scene.start().await;
    let mut newest = Vec::new();
    let mut done = 0;
    for round in 0..5 {
        fs::write(here.join(format!("round {round}")), noise(round, 18_000_000 >> (2 * round))).unwrap();
        let now = scene.round().await.unwrap();
        assert!(now.progress.done >= done && now.progress.total.is_none_or(|t| t >= now.progress.done));
        done = now.progress.done;
        newest.push(now.counters["newest_round_bytes"].as_u64().unwrap());
        if now.first_phase_done {
            break;
        }
        match round {
            // Destroyed after it was carried, and made while it is carried.
            0 => drop(zfs(&["destroy", &format!("{content}@monday")])),
            _ => drop(theirs("wednesday")),
        }
    }
    assert!(newest.len() >= 2 && newest.is_sorted_by(|a, b| a > b), "rounds shrink: {newest:?}");
    assert!(newest[0] > 58_000_000, "{newest:?}");
    fs::write(here.join("late"), b"late").unwrap();
    theirs("thursday");
    let wanted = files(&here);
    let kept: Vec<_> =
        snapshots(&content).into_iter().filter(|(name, _)| !name.starts_with("tandem-")).collect();
    assert!(scene.complete().await.unwrap().is_changed());
    assert_eq!(files(&scene.there()), wanted);
    let dest = scene.beta.content(scene.spec.destination, 1);
    assert_eq!(snapshots(&dest), kept, "those of others, as they were");
    let tuesday = scene.there().join(".zfs/snapshot/tuesday/a");
    assert_eq!(fs::read(tuesday).unwrap(), noise(2, 20_000_000));
    fs::write(scene.there().join("goes on"), b"x").unwrap();
    assert_eq!(zfs(&["get", "-Hp", "-o", "value", "refquota", &dest]).trim(), "1073741824");
    assert!(!here.exists());
    assert_eq!(scene.cancel().await.unwrap_err().kind, ErrorKind::Conflict);
    // What somebody made after the switch is nowhere else.
    zfs(&["snapshot", &format!("{content}@friday")]);
    let kept = scene.alpha.call(MigrationRelease { migration: scene.spec.clone() }).await.unwrap_err();
    assert!(kept.message.contains("@friday"), "{kept}");
    zfs(&["destroy", &format!("{content}@friday")]);
    zfs(&["destroy", &format!("{}@tuesday", scene.alpha.dataset)]);
    for day in ["monday", "wednesday", "thursday"] {
        let parents = format!("{}@{day}", scene.alpha.dataset);
        let _ = std::process::Command::new("/usr/sbin/zfs").args(["destroy", &parents]).output().unwrap();
    }
    scene.release().await;
    assert_eq!(fs::read(scene.there().join("goes on")).unwrap(), b"x");
    let refused = scene.beta.call(DeleteInstance { instance: scene.spec.destination }).await.unwrap_err();
    assert!(refused.message.contains("somebody else"), "{refused}");
    for (name, _) in snapshots(&dest) {
        zfs(&["destroy", &format!("{dest}@{name}")]);
    }
    scene.remove().await;
}

async fn writers_with_open_files_are_held_back_and_lose_nothing() {
    let scene = Move::new("open", &[], &[]).await;
    let log = fs::File::create(scene.here().join("log")).unwrap();
    let writer = std::thread::spawn(move || {
        let mut log = log;
        let mut promised = 0u64;
        // Until the kernel refuses it.
        while writeln!(log, "{promised}").and_then(|()| log.sync_data()).is_ok() {
            promised += 1;
        }
        promised
    });
    scene.start().await;
    first_phase(&scene).await;
    scene.complete().await.unwrap();
    let promised = writer.join().unwrap();
    let kept = fs::read_to_string(scene.there().join("log")).unwrap();
    let kept = kept.split_inclusive('\n').filter(|line| line.ends_with('\n')).count() as u64;
    assert!(promised > 0 && kept >= promised, "{promised} were acknowledged, {kept} are there");
    scene.release().await;
    scene.remove().await;
}

const KEY: &str = "/run/tandem-move.key";

/// A key in a file, and a dataset of that name that is encrypted with it.
fn encrypted(dataset: &str) {
    fs::write(KEY, [7; 32]).unwrap();
    let location = format!("keylocation=file://{KEY}");
    let more = ["-o", "keyformat=raw", "-o", &location, "-o", "mountpoint=none", dataset];
    zfs(&[&["create", "-o", "encryption=on"][..], &more].concat());
}

async fn an_encrypted_share_moves_as_it_is() {
    encrypted("alpha/sealed");
    let scene = Move::new("sealed", &[], &[]).await;
    fs::write(scene.here().join("secret"), noise(5, 200_000)).unwrap();
    // Nobody gets it in clear unasked, and nothing goes that could not be mounted.
    let attach = Attach { instance: scene.spec.source, epoch: Epoch(1), read_only: true };
    let refused = scene.alpha.call(attach).await.unwrap_err();
    assert!(refused.message.contains("copy_encrypted"), "{refused}");
    for (key, says) in [(Some([8; 32]), "ncorrect key"), (None, "cannot be loaded")] {
        match key {
            Some(key) => fs::write(KEY, key).unwrap(),
            None => fs::remove_file(KEY).unwrap(),
        }
        let start = MigrationStart { migration: scene.spec.clone() };
        let error = scene.alpha.call(start).await.unwrap_err();
        assert!(error.message.contains(says) && error.retry == Retry::AfterOperator, "{error}");
    }
    fs::write(KEY, [7; 32]).unwrap();
    scene.start().await;
    first_phase(&scene).await;
    fs::write(scene.here().join("more"), b"x").unwrap();
    scene.complete().await.unwrap();
    assert_eq!(fs::read(scene.there().join("secret")).unwrap(), noise(5, 200_000));
    assert_eq!(fs::read(scene.there().join("more")).unwrap(), b"x");
    let content = scene.beta.content(scene.spec.destination, 1);
    assert_eq!(zfs(&["get", "-H", "-o", "value", "encryption", &content]).trim(), "aes-256-gcm");
    scene.release().await;
    scene.remove().await;
    zfs(&["destroy", "-r", "alpha/sealed"]);
}

async fn a_share_moves_into_an_encrypted_pool() {
    encrypted("beta/vault");
    let scene = Move::new("vault", &[], &[]).await;
    // Small enough to be embedded in its block pointer, which an encrypted dataset cannot have.
    fs::write(scene.here().join("tiny"), vec![b'x'; 4096]).unwrap();
    scene.start().await;
    first_phase(&scene).await;
    scene.complete().await.unwrap();
    assert_eq!(fs::read(scene.there().join("tiny")).unwrap(), vec![b'x'; 4096]);
    let content = scene.beta.content(scene.spec.destination, 1);
    assert_eq!(zfs(&["get", "-H", "-o", "value", "encryption", &content]).trim(), "aes-256-gcm");
    scene.release().await;
    scene.remove().await;
    zfs(&["destroy", "-r", "beta/vault"]);
}

async fn a_full_pool_stops_a_round_and_the_next_goes_on() {
    let scene = Move::new("room", &[], &[]).await;
    fs::write(scene.here().join("large"), noise(7, 30_000_000)).unwrap();
    zfs(&["snapshot", &format!("{}@theirs", scene.alpha.content(scene.spec.source, 1))]);
    scene.start().await;
    zfs(&["set", "quota=12M", &scene.beta.dataset]);
    assert_eq!(scene.round().await.unwrap_err().kind, ErrorKind::OutOfSpace);
    // Meanwhile it is destroyed: what is half there of it is of no use.
    fs::write(scene.here().join("written"), b"meanwhile").unwrap();
    zfs(&["destroy", &format!("{}@theirs", scene.alpha.content(scene.spec.source, 1))]);
    assert_eq!(scene.round().await.unwrap_err().kind, ErrorKind::OutOfSpace);
    zfs(&["set", "quota=none", &scene.beta.dataset]);
    first_phase(&scene).await;
    scene.complete().await.unwrap();
    assert_eq!(fs::read(scene.there().join("large")).unwrap(), noise(7, 30_000_000));
    assert_eq!(fs::read(scene.there().join("written")).unwrap(), b"meanwhile");
    scene.release().await;
    scene.remove().await;
}

async fn a_cancel_leaves_nothing_even_with_the_destination_gone() {
    let scene = Move::new("ended", &[], &[]).await;
    fs::write(scene.here().join("a"), noise(8, 100_000)).unwrap();
    let before = scene.alpha.observe(scene.spec.source).await;
    let left = scene.alpha.left();
    scene.start().await;
    first_phase(&scene).await;
    scene.beta.call(DeleteInstance { instance: scene.spec.destination }).await.unwrap();
    scene.cancel().await.unwrap();
    let after = scene.alpha.observe(scene.spec.source).await;
    assert_eq!(Observation { used_bytes: before.used_bytes, ..after }, before);
    assert_eq!(scene.alpha.left(), left);
    fs::write(scene.here().join("b"), b"writable").unwrap();

    // Never cancelled: the next start does away with it, once what it went to is no more.
    let spec = Move::destination(&scene.beta, &scene.source).await;
    let scene = Move { spec, ..scene };
    scene.start().await;
    first_phase(&scene).await;
    scene.beta.call(DeleteInstance { instance: scene.spec.destination }).await.unwrap();
    // As a server leaves it that dies while writers are held back.
    let dataset = format!("{}/{}", scene.alpha.dataset, scene.spec.source);
    zfs(&["set", "tandem:quiesced=yes", "readonly=on", &dataset]);
    let scene = Move { spec: Move::destination(&scene.beta, &scene.source).await, ..scene };
    scene.start().await;
    fs::write(scene.here().join("c"), b"writable").unwrap();
    first_phase(&scene).await;
    scene.complete().await.unwrap();
    scene.release().await;
    scene.remove().await;
}

async fn what_somebody_made_of_the_destination_is_named() {
    let scene = Move::new("meddled", &[], &[]).await;
    zfs(&["create", "-o", "mountpoint=none", &format!("{}/home", scene.alpha.content(scene.spec.source, 1))]);
    let start = MigrationStart { migration: scene.spec.clone() };
    let error = scene.alpha.call(start).await.unwrap_err();
    assert!(error.message.contains("/home"), "{error}");
    zfs(&["destroy", &format!("{}/home", scene.alpha.content(scene.spec.source, 1))]);

    scene.start().await;
    first_phase(&scene).await;
    // Made after the start, it is seen before the switch.
    let within = format!("{}/later", scene.alpha.content(scene.spec.source, 1));
    zfs(&["create", "-o", "mountpoint=none", &within]);
    let error = scene.complete().await.unwrap_err();
    assert!(error.message.contains(&within), "{error}");
    zfs(&["destroy", &within]);
    let [earlier, theirs] =
        ["hourly", "daily"].map(|name| format!("{}@{name}", scene.beta.content(scene.spec.destination, 1)));
    for snapshot in [&earlier, &theirs] {
        zfs(&["snapshot", snapshot]);
    }
    let error = scene.complete().await.unwrap_err();
    assert!(error.kind == ErrorKind::Conflict && error.message.contains(&theirs), "{error}");
    scene.cancel().await.unwrap();
    // None of them went unseen.
    zfs(&["destroy", &earlier]);
    fs::write(scene.here().join("writable"), b"x").unwrap();
    let error = scene.beta.call(DeleteInstance { instance: scene.spec.destination }).await.unwrap_err();
    assert!(error.message.contains(&theirs), "{error}");
    zfs(&["destroy", &theirs]);
    scene.remove().await;
}

async fn snapshots_that_change_their_names_do_so_where_they_went() {
    let scene = Move::new("renamed", &[], &[]).await;
    let content = scene.alpha.content(scene.spec.source, 1);
    let full = |name: &str| format!("{content}@{name}");
    let make = |name: &str| {
        fs::write(scene.here().join(name), name).unwrap();
        zfs(&["snapshot", &full(name)]);
    };
    let rename = |from: &str, to: &str| drop(zfs(&["rename", &full(from), &full(to)]));
    for name in ["left", "right", "daily.0", "daily.1", "latest"] {
        make(name);
    }
    scene.start().await;
    scene.round().await.unwrap();
    zfs(&["destroy", &full("daily.1")]);
    rename("daily.0", "daily.1");
    zfs(&["destroy", &full("latest")]);
    rename("left", "other");
    rename("right", "left");
    rename("other", "right");
    for name in ["daily.0", "latest"] {
        make(name);
    }
    let kept: Vec<_> =
        snapshots(&content).into_iter().filter(|(name, _)| !name.starts_with("tandem-")).collect();
    scene.complete().await.unwrap();
    let dest = scene.beta.content(scene.spec.destination, 1);
    assert_eq!(snapshots(&dest), kept);

    // Somebody wants one of them kept here, and nobody serves this side again.
    let promote = PromoteReplica {
        instance: scene.spec.source,
        epoch: Epoch(1),
        promotion: Promotion::Forced { point: None },
    };
    assert_eq!(scene.alpha.call(promote).await.unwrap_err().kind, ErrorKind::Conflict);
    zfs(&["hold", "theirs", &full("left")]);
    let error = scene.alpha.call(MigrationRelease { migration: scene.spec.clone() }).await.unwrap_err();
    assert!(error.message.contains("@left"), "{error}");
    assert_eq!(zfs(&["get", "-H", "-o", "value", "defer_destroy", &full("left")]).trim(), "off");
    zfs(&["release", "theirs", &full("left")]);
    scene.release().await;
    for (name, _) in snapshots(&dest) {
        zfs(&["destroy", &format!("{dest}@{name}")]);
    }
    scene.remove().await;
}

async fn acls_count_where_they_go() {
    zfs(&["create", "-o", "mountpoint=none", "-o", "acltype=posix", "-o", "xattr=dir", "alpha/acls"]);
    let scene = Move::new("acls", &[], &[]).await;
    // As drivers before this one made it.
    for property in ["acltype", "xattr"] {
        zfs(&["inherit", property, &format!("{}/{}", scene.alpha.dataset, scene.spec.source)]);
    }
    zfs(&["set", "acltype=off", &format!("{}/{}", scene.beta.dataset, scene.spec.destination)]);
    fs::write(scene.here().join("a"), b"x").unwrap();
    scene.start().await;
    first_phase(&scene).await;
    scene.complete().await.unwrap();
    let content = scene.beta.content(scene.spec.destination, 1);
    for (property, value) in [("acltype", "posix"), ("xattr", "dir")] {
        assert_eq!(zfs(&["get", "-H", "-o", "value", property, &content]).trim(), value);
    }
    scene.release().await;
    scene.remove().await;
}

/// Has every read and write of a pool's disk fail, until it is dropped.
struct Broken {
    pool: &'static str,
    table: String,
}

fn dmsetup(args: &[&str]) -> String {
    let out = std::process::Command::new("/usr/sbin/dmsetup").args(args).output().unwrap();
    assert!(out.status.success(), "dmsetup {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

impl Broken {
    fn pool(pool: &'static str) -> Self {
        let table = dmsetup(&["table", pool]).trim().to_owned();
        let sectors = table.split(' ').nth(1).unwrap();
        Self::load(pool, &format!("0 {sectors} error"));
        Self { pool, table }
    }

    fn load(pool: &str, table: &str) {
        for words in [
            &["load", pool, "--table", table][..],
            &["suspend", "--noflush", "--nolockfs", pool],
            &["resume", pool],
        ] {
            dmsetup(&[&["--noudevsync", "--noudevrules"], words].concat());
        }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        Self::load(self.pool, &self.table);
        let clear = std::process::Command::new("/usr/sbin/zpool").args(["clear", self.pool]).status();
        assert!(clear.unwrap().success());
    }
}

async fn a_destination_that_stops_lets_the_source_go() {
    let alpha = Backend::open("alpha", "stopped", &[]).await;
    let scene = Move::between(alpha, Backend::open("gamma", "stopped", &[]).await).await;
    fs::write(scene.here().join("a"), noise(9, 3_000_000)).unwrap();
    scene.start().await;
    let broken = Broken::pool("gamma");
    // The kernel's receive waits for the disks, for as long as that takes.
    let round = MigrationContinue { migration: scene.spec.clone() };
    scene.alpha.call_for(5_000, round, None).await.unwrap_err();
    in_peace(|| scene.cancel()).await.unwrap();
    fs::write(scene.here().join("b"), b"writable").unwrap();
    assert!(!scene.alpha.left().iter().any(|name| name.contains("tandem-")));
    drop(broken);
    in_peace(|| scene.beta.call(DeleteInstance { instance: scene.spec.destination })).await.unwrap();
    scene.remove().await;
}

async fn a_receive_whose_pool_stops_ends_all_the_same() {
    let (alpha, gamma) =
        (Backend::open("alpha", "stuck", &[]).await, Backend::open("gamma", "stuck", &[]).await);
    let pair = Pair::between(alpha, gamma, Style::Dr).await;
    fs::write(pair.alpha.folder(pair.active).join("a"), noise(9, 3_000_000)).unwrap();
    let point = pair.alpha.point(pair.active, 1).await;
    let (from, to) = ((&pair.alpha, pair.active), (&pair.beta, pair.replica));
    let (send, receive) = halves(from, to, 1, &point, None).await;
    let broken = Broken::pool("gamma");
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    // The kernel's receive waits for the disks.
    let (_, received) = tokio::join!(
        pair.alpha.with_stream(send, Some(writer)),
        pair.beta.call_for(5_000, receive, Some(reader))
    );
    received.unwrap_err();
    drop(broken);
    in_peace(|| pair.beta.call(DiscardPartial { instance: pair.replica })).await.unwrap();
    in_peace(|| pair.beta.call(DeleteReplica { instance: pair.replica })).await.unwrap();
    pair.leaves_nothing().await;
}

/// Calls that are dropped after ever longer times, on the way to a switch or back from it.
async fn a_migration_that_is_dropped_anywhere_is_whole_on_one_side() {
    let mut scene = Move::new("dropped", &[], &[]).await;
    let tries = if std::env::var_os("TANDEM_LONG").is_some() { 60 } else { 4 };
    for turn in 0..tries {
        fs::write(scene.here().join("content"), noise(turn, 3_000_000)).unwrap();
        scene.start().await;
        let pause = Duration::from_millis(turn * turn * 3000 / (tries * tries) + 20);
        let _ = tokio::time::timeout(pause, scene.round()).await;
        first_phase_in_peace(&scene).await;
        fs::write(scene.here().join("more"), noise(turn + 100, 1_000_000)).unwrap();
        let wanted = files(&scene.here());
        let _ = tokio::time::timeout(pause, scene.complete()).await;
        match in_peace(|| scene.cancel()).await {
            Ok(_) => {
                assert_eq!(files(&scene.here()), wanted, "turn {turn}");
                assert!(!scene.alpha.observe(scene.spec.source).await.read_only);
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Conflict, "turn {turn}: {error}");
                in_peace(|| scene.complete()).await.unwrap();
                assert_eq!(files(&scene.there()), wanted, "turn {turn}");
                assert_ne!(scene.alpha.observe(scene.spec.source).await.role, Role::Active);
                scene.release().await;
                scene.remove().await;
                return;
            }
        }
        scene.beta.call(DeleteInstance { instance: scene.spec.destination }).await.unwrap();
        scene.no_traces();
        scene.spec = Move::destination(&scene.beta, &scene.source).await;
    }
    scene.remove().await;
}

/// What was dropped may still be ending.
async fn in_peace<T, F: Future<Output = Result<T>>>(call: impl Fn() -> F) -> Result<T> {
    for _ in 0..600 {
        match call().await {
            Err(error) if error.kind == ErrorKind::Busy => {
                tokio::time::sleep(Duration::from_millis(100)).await
            }
            other => return other,
        }
    }
    call().await
}

async fn first_phase_in_peace(scene: &Move) {
    for _ in 0..20 {
        if in_peace(|| scene.round()).await.unwrap().first_phase_done {
            return;
        }
    }
    panic!("the first phase does not end");
}
