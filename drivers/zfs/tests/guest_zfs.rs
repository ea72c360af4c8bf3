//! What people and accidents do to a pool under the driver. Runs in a guest with the pools `alpha` and `beta`:
//! `cargo xtask test --only guests`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;

use common::{Backend, Pair, halves, noise, transfer, transfer_at, write_mapped, zfs};
use libtest_mimic::{Arguments, Trial};
use tandem_sdk::contract::*;

/// Tests by their names; passed by where the pools are not.
fn main() -> std::process::ExitCode {
    let pool = |name: &str| std::path::Path::new("/proc/spl/kstat/zfs").join(name).exists();
    let elsewhere = !(pool("alpha") && pool("beta"));
    macro_rules! trials {
        ($($test:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($test), || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on($test());
                Ok(())
            })
            .with_ignored_flag(elsewhere)),*]
        };
    }
    let trials = trials![
        snapshots_of_others_survive_and_are_named,
        a_stale_active_follows_the_new_one_from_the_point_in_common,
        a_lost_snapshot_costs_nothing_and_a_lost_point_a_full_copy,
        an_encrypted_share_travels_as_it_is,
        a_clear_share_has_an_encrypted_replica_and_comes_back_clear,
        what_cannot_be_encrypted_or_clear_is_refused_with_a_sentence,
        a_full_pool_keeps_the_last_point_and_nothing_else,
        a_quiesced_share_takes_no_writes_not_even_from_open_files,
        foreign_datasets_are_left_alone_and_a_missing_pool_has_a_sentence,
        shares_are_mounted_once_through_a_link,
        nobody_writes_beneath_a_mount,
        what_is_held_is_read_again_and_nothing_stays_mounted,
        blocks_reach_several_replicas_as_they_are,
        acls_count_on_a_replica_whatever_is_set_above_it,
        a_stream_keeps_to_its_limit,
        a_share_whose_snapshots_count_is_full_with_them,
        a_stream_keeps_nothing_of_the_server_open,
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

async fn snapshots_of_others_survive_and_are_named() {
    let pair = Pair::new("foreign", Style::Readable).await;
    fs::write(pair.alpha.folder(pair.active).join("a"), noise(1, 1000)).unwrap();
    let (first, _) = pair.must_sync().await;

    // On the secondary, after its last point: it cannot follow past it.
    let theirs = format!("{}@daily", pair.beta.content(pair.replica, 1));
    zfs(&["snapshot", &theirs]);
    fs::write(pair.alpha.folder(pair.active).join("b"), noise(2, 1000)).unwrap();
    let (_, _, received) = pair.sync().await;
    let error = received.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains(&theirs), "{error}");
    assert!(pair.beta.left().contains(&theirs));
    let gone = pair.beta.call(DeleteReplica { instance: pair.replica }).await;
    assert_eq!(gone.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(pair.beta.observe(pair.replica).await.points, std::slice::from_ref(&first));
    zfs(&["destroy", &theirs]);
    pair.must_sync().await;

    // On the active one it is no trouble, and is not carried.
    let theirs = format!("{}@hourly", pair.alpha.content(pair.active, 1));
    zfs(&["snapshot", &theirs]);
    pair.must_sync().await;
    assert!(!pair.beta.left().iter().any(|name| name.ends_with("@hourly")));
    let gone = pair.alpha.call(DeleteInstance { instance: pair.active }).await.unwrap_err();
    assert!(gone.message.contains(&theirs), "{gone}");
    zfs(&["destroy", &theirs]);
    pair.leaves_nothing().await;
}

async fn a_stale_active_follows_the_new_one_from_the_point_in_common() {
    let pair = Pair::new("stale", Style::Readable).await;
    let (old, new) = (pair.alpha.folder(pair.active), pair.beta.folder(pair.replica));
    fs::write(old.join("large"), noise(3, 3_000_000)).unwrap();
    let (common, _) = pair.must_sync().await;
    fs::write(old.join("never arrived"), b"x").unwrap();
    pair.alpha.point(pair.active, 1).await;
    fs::write(old.join("nor this"), b"x").unwrap();

    pair.beta.promote(pair.replica, 2, Promotion::Forced { point: Some(common.id) }).await;
    fs::write(new.join("newer"), b"y").unwrap();
    pair.alpha.demote(pair.active, 2, Demotion::Fenced).await;
    assert!(!old.exists(), "a fenced instance is not mounted");
    let seen = pair.alpha.observe(pair.active).await;
    assert_eq!((seen.role, seen.exports.len(), seen.read_only), (Role::Fenced, 0, true));
    pair.alpha.demote(pair.active, 2, Demotion::Secondary).await;
    let call = UpdateReplicaState { instance: pair.active, epoch: Epoch(2) };
    let state = pair.alpha.call(call).await.unwrap();
    assert_eq!((state.state, state.newest_point), (ReplicaState::OutOfSync, None));

    let next = pair.beta.point(pair.replica, 2).await;
    let (sent, received) = transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next).await;
    received.unwrap();
    assert!(sent.unwrap().bytes < 500_000, "only the increment");
    let names = |folder: &std::path::Path| {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&old), ["large", "newer"]);
    assert_eq!(names(&old), names(&new));
    // The roles are turned for the removal.
    let Pair { alpha, beta, active, replica, spec } = pair;
    Pair { alpha: beta, beta: alpha, active: replica, replica: active, spec }.leaves_nothing().await;
}

async fn a_lost_snapshot_costs_nothing_and_a_lost_point_a_full_copy() {
    let pair = Pair::new("lost", Style::Readable).await;
    let (share, mirror) = (pair.alpha.folder(pair.active), pair.beta.folder(pair.replica));
    fs::write(share.join("large"), noise(4, 3_000_000)).unwrap();
    let (first, full) = pair.must_sync().await;
    assert!(full > 3_000_000);

    let lost = format!("{}@tandem-{}", pair.alpha.content(pair.active, 1), first.id);
    zfs(&["release", "tandem", &lost]);
    zfs(&["destroy", &lost]);
    fs::write(share.join("small"), b"1").unwrap();
    let (second, bytes) = pair.must_sync().await;
    assert!(bytes < 500_000, "{bytes} bytes: from the bookmark");

    // Now the replica's: nothing is in common any more.
    for point in [first.id, second.id] {
        let lost = format!("{}@tandem-{point}", pair.beta.content(pair.replica, 1));
        zfs(&["release", "tandem", &lost]);
        zfs(&["destroy", &lost]);
    }
    fs::write(share.join("small"), b"2").unwrap();
    let (third, bytes) = pair.must_sync().await;
    assert!(bytes > 3_000_000);
    assert_eq!(fs::read(mirror.join("small")).unwrap(), b"2", "the new copy is served");
    assert_eq!(fs::read(mirror.join("large")).unwrap(), noise(4, 3_000_000));
    let left = pair.beta.left();
    assert!(!left.iter().any(|name| name.contains("/v1")), "the old copy is gone: {left:?}");
    assert_eq!(pair.beta.observe(pair.replica).await.points, [third]);
    pair.leaves_nothing().await;
}

async fn an_encrypted_share_travels_as_it_is() {
    let key = "/run/tandem-test.key";
    fs::write(key, [7; 32]).unwrap();
    let location = format!("file://{key}");
    zfs(&[
        "create",
        "-o",
        "encryption=on",
        "-o",
        "keyformat=raw",
        "-o",
        &format!("keylocation={location}"),
        "-o",
        "mountpoint=none",
        "alpha/crypt",
    ]);
    let pair = Pair::with("crypt", Style::Dr, &[("key_location", location.as_str())]).await;
    fs::write(pair.alpha.folder(pair.active).join("secret"), noise(5, 200_000)).unwrap();
    pair.must_sync().await;
    let content = pair.beta.content(pair.replica, 1);
    assert_eq!(zfs(&["get", "-H", "-o", "value", "keystatus", &content]).trim(), "unavailable");
    let (held, _) = pair.must_sync().await;
    let unread = fingerprint(&pair.beta, pair.replica, &held).await.unwrap_err();
    assert!(unread.message.contains("key is not loaded"), "{unread}");
    fs::write(pair.alpha.folder(pair.active).join("more"), b"x").unwrap();
    let (point, _) = pair.must_sync().await;

    pair.alpha.demote(pair.active, 2, Demotion::Secondary).await;
    pair.beta.promote(pair.replica, 2, Promotion::Planned { point: Some(point.id) }).await;
    let folder = pair.beta.folder(pair.replica);
    assert_eq!(fs::read(folder.join("secret")).unwrap(), noise(5, 200_000));
    fs::write(folder.join("written there"), b"y").unwrap();
    let next = pair.beta.point(pair.replica, 2).await;
    let (sent, received) = transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next).await;
    received.unwrap();
    assert!(sent.unwrap().bytes < 150_000, "failback by an increment");
    let Pair { alpha, beta, active, replica, spec } = pair;
    Pair { alpha: beta, beta: alpha, active: replica, replica: active, spec }.leaves_nothing().await;
}

/// What a dataset is encrypted with.
fn encryption(dataset: &str) -> String {
    zfs(&["get", "-H", "-o", "value", "encryption", dataset]).trim().to_owned()
}

/// Back ends of which that of `beta` lies in an encrypted dataset.
async fn into_a_vault(test: &str) -> Pair {
    let key = format!("/run/tandem-{test}.key");
    fs::write(&key, [7; 32]).unwrap();
    let location = format!("keylocation=file://{key}");
    let encrypted = ["create", "-o", "encryption=on", "-o", "keyformat=raw", "-o", &location];
    zfs(&[&encrypted[..], &["-o", "mountpoint=none", &format!("beta/{test}")]].concat());
    Pair::new(test, Style::Dr).await
}

async fn a_clear_share_has_an_encrypted_replica_and_comes_back_clear() {
    let pair = into_a_vault("vaulted").await;
    let share = pair.alpha.folder(pair.active);
    // Small enough to be embedded in its block pointer, which an encrypted dataset cannot have.
    fs::write(share.join("tiny"), vec![b'x'; 4096]).unwrap();
    fs::write(share.join("large"), noise(5, 3_000_000)).unwrap();
    pair.must_sync().await;
    fs::write(share.join("more"), vec![b'y'; 4096]).unwrap();
    let (point, bytes) = pair.must_sync().await;
    assert!(bytes < 500_000, "{bytes} bytes: an increment");
    assert_eq!(encryption(&pair.beta.content(pair.replica, 1)), "aes-256-gcm");

    // There and back: an increment that arrives as clear as what it builds on.
    pair.alpha.demote(pair.active, 2, Demotion::Secondary).await;
    pair.beta.promote(pair.replica, 2, Promotion::Planned { point: Some(point.id) }).await;
    let folder = pair.beta.folder(pair.replica);
    assert_eq!(fs::read(folder.join("tiny")).unwrap(), vec![b'x'; 4096]);
    assert_eq!(fs::read(folder.join("more")).unwrap(), vec![b'y'; 4096]);
    fs::write(folder.join("written there"), vec![b'z'; 4096]).unwrap();
    let next = pair.beta.point(pair.replica, 2).await;
    let (sent, received) = transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next).await;
    received.unwrap();
    assert!(sent.unwrap().bytes < 500_000, "failback by an increment");
    pair.beta.demote(pair.replica, 3, Demotion::Secondary).await;
    pair.alpha.promote(pair.active, 3, Promotion::Planned { point: Some(next.id) }).await;
    assert_eq!(fs::read(share.join("written there")).unwrap(), vec![b'z'; 4096]);
    assert_eq!(encryption(&pair.alpha.content(pair.active, 1)), "off");
    let last = pair.alpha.point(pair.active, 3).await;
    let (_, received) = transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 3, &last).await;
    received.unwrap();
    pair.leaves_nothing().await;
}

async fn what_cannot_be_encrypted_or_clear_is_refused_with_a_sentence() {
    let pair = into_a_vault("sentences").await;
    let share = pair.alpha.folder(pair.active);
    fs::write(share.join("tiny"), vec![b'x'; 4096]).unwrap();
    // As a server asks that took the back end for a clear one.
    let point = pair.alpha.point(pair.active, 1).await;
    let (there, here) = ((&pair.alpha, pair.active), (&pair.beta, pair.replica));
    let (mut send, mut receive) = halves(there, here, 1, &point, None).await;
    send.spec.format = "zfs/1".into();
    receive.spec.format = "zfs/1".into();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (_, received) = tokio::join!(
        pair.alpha.with_stream(send, Some(writer)),
        pair.beta.with_stream(receive, Some(reader))
    );
    let error = received.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Conflict, Retry::AfterOperator));
    assert!(error.message.contains("restart the server"), "{error}");

    // As a share that is encrypted by itself comes to a replica that is clear.
    let (point, _) = pair.must_sync().await;
    pair.alpha.demote(pair.active, 2, Demotion::Secondary).await;
    pair.beta.promote(pair.replica, 2, Promotion::Planned { point: Some(point.id) }).await;
    fs::write(pair.beta.folder(pair.replica).join("more"), b"y").unwrap();
    zfs(&["set", "tandem:clear=no", &format!("{}/{}", pair.beta.dataset, pair.replica)]);
    let next = pair.beta.point(pair.replica, 2).await;
    let (_, received) = transfer(here, there, 2, &next).await;
    let error = received.unwrap_err();
    assert_eq!((error.kind, error.retry), (ErrorKind::Conflict, Retry::AfterOperator));
    assert!(error.message.contains("make it anew"), "{error}");
    assert_eq!(pair.alpha.observe(pair.active).await.points.last(), Some(&point));
    // What it says works.
    pair.alpha.call(DeleteReplica { instance: pair.active }).await.unwrap();
    let spec = InstanceSpec { instance: InstanceId(uuid::Uuid::new_v4()), epoch: Epoch(2), ..pair.spec };
    pair.alpha.call(CreateReplica { spec: spec.clone() }).await.unwrap();
    let anew = (&pair.alpha, spec.instance);
    transfer(here, anew, 2, &next).await.1.unwrap();
    assert_eq!(encryption(&pair.alpha.content(spec.instance, 1)), "aes-256-gcm");
    let Pair { alpha, beta, replica, .. } = pair;
    alpha.call(DeleteReplica { instance: spec.instance }).await.unwrap();
    beta.call(DeleteInstance { instance: replica }).await.unwrap();
}

async fn a_full_pool_keeps_the_last_point_and_nothing_else() {
    let pair = Pair::new("full", Style::Readable).await;
    let share = pair.alpha.folder(pair.active);
    fs::write(share.join("a"), noise(6, 100_000)).unwrap();
    let (first, _) = pair.must_sync().await;
    zfs(&["set", "quota=8M", &pair.beta.dataset]);
    fs::write(share.join("b"), noise(7, 30_000_000)).unwrap();
    let (_, _, received) = pair.sync().await;
    assert_eq!(received.unwrap_err().kind, ErrorKind::OutOfSpace);
    let seen = pair.beta.observe(pair.replica).await;
    assert_eq!((seen.points, seen.resume), (vec![first], None));
    assert_eq!(fs::read(pair.beta.folder(pair.replica).join("a")).unwrap(), noise(6, 100_000));
    zfs(&["set", "quota=none", &pair.beta.dataset]);
    pair.must_sync().await;
    assert_eq!(fs::read(pair.beta.folder(pair.replica).join("b")).unwrap(), noise(7, 30_000_000));
    // The share's own size holds too.
    let call = ResizeInstance { instance: pair.active, epoch: Epoch(1), size_bytes: 1 << 20 };
    assert_eq!(pair.alpha.call(call).await.unwrap_err().kind, ErrorKind::OutOfSpace);
    pair.leaves_nothing().await;
}

async fn a_quiesced_share_takes_no_writes_not_even_from_open_files() {
    let pair = Pair::new("quiet", Style::Dr).await;
    let (instance, epoch, folder) = (pair.active, Epoch(1), pair.alpha.folder(pair.active));
    let mut open = fs::File::create(folder.join("log")).unwrap();
    std::io::Write::write_all(&mut open, b"before").unwrap();
    write_mapped(&folder.join("mapped"), &noise(8, 300_000));
    pair.alpha.call(Quiesce { instance, epoch, wait_seconds: None }).await.unwrap();
    assert!(std::io::Write::write_all(&mut open, b"after").is_err());
    assert!(fs::write(folder.join("new"), b"x").is_err());
    assert_eq!(fs::read(folder.join("log")).unwrap(), b"before");
    let (point, _) = pair.must_sync().await;
    let mapped = format!("{}/.zfs/snapshot/tandem-{}/mapped", folder.display(), point.id);
    assert_eq!(fs::read(mapped).unwrap(), noise(8, 300_000));
    pair.alpha.call(ResumeWrites { instance, epoch }).await.unwrap();
    std::io::Write::write_all(&mut open, b" after").unwrap();
    drop(open);
    assert_eq!(fs::read(folder.join("log")).unwrap(), b"before after");
    // What was written meanwhile shows.
    zfs(&["snapshot", &format!("{}@now", pair.alpha.content(instance, 1))]);
    let state = pair.alpha.call(UpdateReplicaState { instance, epoch }).await.unwrap();
    assert_eq!((state.newest_point, state.changed_since_point), (Some(point), Some(true)));
    zfs(&["destroy", &format!("{}@now", pair.alpha.content(instance, 1))]);
    pair.leaves_nothing().await;
}

async fn foreign_datasets_are_left_alone_and_a_missing_pool_has_a_sentence() {
    let alpha = Backend::open("alpha", "mine", &[]).await;
    zfs(&["create", "-p", "-o", "mountpoint=none", "alpha/mine/home"]);
    let theirs = "alpha/mine/00000000-0000-0000-0000-000000000009";
    zfs(&["create", "-o", "mountpoint=none", theirs]);
    zfs(&["snapshot", &format!("{theirs}@kept")]);
    let instance: InstanceId = "00000000-0000-0000-0000-000000000009".parse().unwrap();
    assert_eq!(alpha.call(ListInstances {}).await.unwrap(), [instance]);
    assert!(matches!(alpha.observe(instance).await.health, Health::Failed { .. }));
    let error = alpha.call(DeleteInstance { instance }).await.unwrap_err();
    assert!(error.message.contains("rename it"), "{error}");
    zfs(&["destroy", &format!("{theirs}@kept")]);
    alpha.call(DeleteInstance { instance }).await.unwrap();
    assert_eq!(alpha.left(), ["alpha/mine/home"]);

    let error = Backend::fails("nowhere/tandem").await;
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("zpool import nowhere"), "{error}");
}

async fn shares_are_mounted_once_through_a_link() {
    for pool in ["alpha", "beta"] {
        fs::create_dir_all(format!("/srv/{pool}-real")).unwrap();
        std::os::unix::fs::symlink(format!("/srv/{pool}-real"), format!("/srv/{pool}-link")).unwrap();
    }
    let pair = Pair::new("link", Style::Dr).await;
    let ensure = EnsureInstance { instance: pair.active, epoch: Epoch(1) };
    assert!(!pair.alpha.call(ensure).await.unwrap().is_changed());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let real = format!(" /srv/alpha-real/{} ", pair.active);
    assert_eq!(mounts.lines().filter(|line| line.contains(&real)).count(), 1, "{mounts}");
    pair.leaves_nothing().await;
}

async fn nobody_writes_beneath_a_mount() {
    let pair = Pair::new("beneath", Style::Dr).await;
    let folder = pair.alpha.folder(pair.active);
    fs::write(folder.join("kept"), b"x").unwrap();
    // As it is after a boot, until the epoch is confirmed.
    rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(fs::write(folder.join("lost"), b"x").is_err(), "also root is held back");
    assert!(fs::read_dir(&folder).unwrap().next().is_none());
    let ensure = EnsureInstance { instance: pair.active, epoch: Epoch(1) };
    assert!(pair.alpha.call(ensure).await.unwrap().is_changed());
    assert_eq!(fs::read(folder.join("kept")).unwrap(), b"x");
    fs::write(folder.join("more"), b"x").unwrap();
    pair.leaves_nothing().await;
}

async fn fingerprint(
    backend: &Backend,
    instance: InstanceId,
    point: &PointInfo,
) -> tandem_sdk::Result<ContentFingerprint> {
    let form = tandem_sdk::mirror::FINGERPRINT_SCHEME.to_owned();
    backend.call(ReadFingerprint { instance, point: point.id, form, bandwidth: None }).await
}

async fn what_is_held_is_read_again_and_nothing_stays_mounted() {
    let pair = Pair::new("again", Style::Readable).await;
    let share = pair.alpha.folder(pair.active);
    fs::create_dir(share.join("sub")).unwrap();
    fs::write(share.join("sub/large"), noise(8, 3_000_000)).unwrap();
    fs::hard_link(share.join("sub/large"), share.join("again")).unwrap();
    std::os::unix::fs::symlink("sub/large", share.join("link")).unwrap();
    let (point, _) = pair.must_sync().await;
    let active = fingerprint(&pair.alpha, pair.active, &point).await.unwrap();
    assert_eq!(active, fingerprint(&pair.beta, pair.replica, &point).await.unwrap());
    assert_eq!((active.entries, active.bytes, active.damaged.len()), (5, 3_000_000, 0));

    // Users go on writing; the point is what it was.
    fs::write(share.join("again"), noise(9, 3_000_000)).unwrap();
    assert_eq!(active, fingerprint(&pair.alpha, pair.active, &point).await.unwrap());
    let (next, _) = pair.must_sync().await;
    assert_ne!(
        active.parts["contents"],
        fingerprint(&pair.beta, pair.replica, &next).await.unwrap().parts["contents"]
    );

    // A call that is dropped amid its work, as one is whose process was killed: no mount keeps the snapshot.
    let form = tandem_sdk::mirror::FINGERPRINT_SCHEME.to_owned();
    let slow = ReadFingerprint { instance: pair.replica, point: next.id, form, bandwidth: Some(1 << 20) };
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(200), pair.beta.call(slow)).await;
    assert!(given_up.is_err(), "three seconds' work");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("@tandem-"));
    pair.leaves_nothing().await;
}

async fn blocks_reach_several_replicas_as_they_are() {
    let mut backends = Vec::new();
    for pool in ["alpha", "beta", "gamma"] {
        backends.push(Backend::open(pool, "several", &[]).await);
    }
    let options =
        [("recordsize", "1M"), ("compression", "lz4")].map(|(key, value)| (key.into(), value.into()));
    let resource = ResourceId(uuid::Uuid::new_v4());
    let specs: Vec<InstanceSpec> = backends
        .iter()
        .map(|backend| InstanceSpec {
            instance: InstanceId(uuid::Uuid::new_v4()),
            resource,
            kind: ResourceKind::Share,
            pool: backend.pool.clone(),
            size_bytes: 1 << 30,
            protocol: "NFS".into(),
            epoch: Epoch(1),
            replication: Some(ReplicationSpec { style: Style::Readable, instances: 3 }),
            options: options.clone().into_iter().collect(),
        })
        .collect();
    let (alpha, active) = (&backends[0], specs[0].instance);
    alpha.call(CreateInstance { spec: specs[0].clone() }).await.unwrap();
    let replicas: Vec<_> = backends.iter().zip(&specs).skip(1).collect();
    for (backend, spec) in &replicas {
        backend.call(CreateReplica { spec: (*spec).clone() }).await.unwrap();
    }
    fs::write(alpha.folder(active).join("noise"), noise(9, 3 << 20)).unwrap();
    fs::write(alpha.folder(active).join("words"), b"over and over ".repeat(600_000)).unwrap();
    for turn in 0..2 {
        fs::write(alpha.folder(active).join("changing"), noise(turn, 10_000)).unwrap();
        let point = alpha.point(active, 1).await;
        for (backend, spec) in &replicas {
            let to = (*backend, spec.instance);
            let (sent, received) = transfer((alpha, active), to, 1, &point).await;
            assert!(received.unwrap().into_inner().verified);
            let most = if turn == 0 { 6 << 20 } else { 500_000 };
            assert!(sent.unwrap().bytes < most, "compressed, and then only what changed");
        }
    }
    for (backend, spec) in &replicas {
        let folder = backend.folder(spec.instance);
        for name in ["noise", "words", "changing"] {
            let ours = fs::read(alpha.folder(active).join(name)).unwrap();
            assert_eq!(fs::read(folder.join(name)).unwrap(), ours);
        }
        let block = std::os::unix::fs::MetadataExt::blksize(&fs::metadata(folder.join("noise")).unwrap());
        assert_eq!(block, 1 << 20, "large blocks are not split");
        backend.call(DeleteReplica { instance: spec.instance }).await.unwrap();
        assert_eq!(backend.left(), Vec::<String>::new());
    }
    alpha.call(DeleteInstance { instance: active }).await.unwrap();
    assert_eq!(alpha.left(), Vec::<String>::new());
}

/// An ACL by which one user, and nobody else, may not read.
fn deny(file: &std::path::Path, user: u32) {
    let nobody = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, nobody), (2, 0, user), (4, 4, nobody), (16, 4, nobody), (32, 4, nobody)];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(file, "system.posix_acl_access", &acl, flags).unwrap();
}

async fn acls_count_on_a_replica_whatever_is_set_above_it() {
    for pool in ["alpha", "beta"] {
        zfs(&["create", "-o", "mountpoint=none", "-o", "acltype=off", &format!("{pool}/meaning")]);
    }
    let pair = Pair::new("meaning", Style::Readable).await;
    let reads = |folder: &std::path::Path, user: u32| {
        use std::os::unix::process::CommandExt;
        let mut cat = std::process::Command::new("/bin/cat");
        cat.arg(folder.join("file")).uid(user).output().unwrap().status.success()
    };
    let (here, there) = (pair.alpha.folder(pair.active), pair.beta.folder(pair.replica));
    fs::write(here.join("file"), b"x").unwrap();
    deny(&here.join("file"), 1234);
    let (point, _) = pair.must_sync().await;
    assert!(!reads(&here, 1234) && reads(&here, 1235));
    assert!(!reads(&there, 1234) && reads(&there, 1235), "read-only");
    pair.alpha.demote(pair.active, 2, Demotion::Secondary).await;
    pair.beta.promote(pair.replica, 2, Promotion::Planned { point: Some(point.id) }).await;
    assert!(!reads(&there, 1234) && reads(&there, 1235), "promoted");
    let Pair { alpha, beta, active, replica, spec } = pair;
    Pair { alpha: beta, beta: alpha, active: replica, replica: active, spec }.leaves_nothing().await;
}

async fn a_stream_keeps_to_its_limit() {
    let pair = Pair::new("limit", Style::Dr).await;
    let second = 2 << 20;
    fs::write(pair.alpha.folder(pair.active).join("noise"), noise(10, 6 << 20)).unwrap();
    let point = pair.alpha.point(pair.active, 1).await;
    let began = std::time::Instant::now();
    let (from, to) = ((&pair.alpha, pair.active), (&pair.beta, pair.replica));
    let (sent, received) = transfer_at(from, to, 1, &point, Some(second)).await;
    assert!(received.unwrap().into_inner().verified);
    // No load makes it faster.
    let least = sent.unwrap().bytes / second - 1;
    assert!(least >= 2 && began.elapsed().as_secs() >= least, "{:?}", began.elapsed());
    pair.leaves_nothing().await;
}

async fn a_share_whose_snapshots_count_is_full_with_them() {
    for (quota, fits) in [(Some("all"), false), (None, true)] {
        let alpha = Backend::open("alpha", "quota", &[]).await;
        let options = quota.map(|quota| ("quota".to_owned(), quota.into())).into_iter().collect();
        let instance = InstanceId(uuid::Uuid::new_v4());
        let spec = InstanceSpec {
            instance,
            resource: ResourceId(uuid::Uuid::new_v4()),
            kind: ResourceKind::Share,
            pool: "alpha".into(),
            size_bytes: 24 << 20,
            protocol: "NFS".into(),
            epoch: Epoch(1),
            replication: None,
            options,
        };
        alpha.call(CreateInstance { spec }).await.unwrap();
        let file = alpha.folder(instance).join("file");
        let write = |seed| {
            fs::write(&file, noise(seed, 14 << 20))?;
            fs::File::open(&file)?.sync_all()
        };
        write(11).unwrap();
        let snapshot = format!("{}@theirs", alpha.content(instance, 1));
        zfs(&["snapshot", &snapshot]);
        // The old content stays in the snapshot.
        assert_eq!(write(12).is_ok(), fits, "quota={quota:?}");
        zfs(&["destroy", &snapshot]);
        alpha.call(DeleteInstance { instance }).await.unwrap();
        assert_eq!(alpha.left(), Vec::<String>::new());
    }
}

/// A call that hangs in a stopped pool outlives its process; what it has open does then too.
async fn a_stream_keeps_nothing_of_the_server_open() {
    let pair = Pair::new("open", Style::Dr).await;
    fs::write(pair.alpha.folder(pair.active).join("noise"), noise(13, 4 << 20)).unwrap();
    let point = pair.alpha.point(pair.active, 1).await;
    let _socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (from, to) = ((&pair.alpha, pair.active), (&pair.beta, pair.replica));
    let (send, _) = common::halves(from, to, 1, &point, None).await;
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let looked = async {
        let open = loop {
            if let Some(open) = open_in("zfs stream") {
                break open;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        // Nobody has read all of it: the call waits, until nobody can.
        drop(reader);
        open
    };
    let (sent, open) = tokio::join!(pair.alpha.with_stream(send, Some(writer)), looked);
    assert_eq!(sent.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(
        open.iter().any(|name| name.starts_with("pipe:")) && open.iter().any(|name| name == "/dev/zfs"),
        "{open:?}"
    );
    assert!(!open.iter().any(|name| name.starts_with("socket:")), "{open:?}");
    pair.leaves_nothing().await;
}

/// What a thread of ours with this name has open, once it has a table of its own.
fn open_in(name: &str) -> Option<Vec<String>> {
    let own = |fd: &std::path::Path| Some(fs::read_link(fd).ok()?.to_string_lossy().into_owned());
    let thread = fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path()).find(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
            && fs::read_to_string(task.join("io")).is_ok_and(|io| !io.contains("wchar: 0\n"))
    })?;
    Some(fs::read_dir(thread.join("fd")).unwrap().flatten().filter_map(|fd| own(&fd.path())).collect())
}
