//! The walk of a mirrored share: made, followed, promoted, failed back, removed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::{Backend, GIB, Pair, assert_same, fill, noise, spec, transfer};
use tandem_sdk::contract::*;
use uuid::Uuid;

#[tokio::test]
async fn a_readable_replica_follows_by_increments_and_takes_over() {
    let pair = Pair::new(Style::Readable).await;
    let share = pair.share();
    fill(&share);
    let (sent, received) = pair.sync().await;
    assert!(sent.bytes > 5_000_000 && received.verified && received.bytes == sent.bytes);
    let mirror = pair.beta.export(pair.replica);
    assert_same(&share, &mirror);
    assert_eq!(
        fs::metadata(&mirror).unwrap().permissions().mode() & 0o222,
        0,
        "a replica's root is not writable"
    );
    let blocks = |path: &std::path::Path| fs::metadata(path.join("sparse")).unwrap().blocks();
    assert_eq!(blocks(&share), blocks(&mirror));

    // A rename of the large file and one more small file carry little.
    fs::rename(share.join("large"), share.join("docs/large")).unwrap();
    fs::write(share.join("new"), b"new").unwrap();
    fs::remove_dir_all(share.join("docs/deep/er")).unwrap();
    let reader = fs::File::open(mirror.join("docs/a file")).unwrap();
    let (sent, _) = pair.sync().await;
    assert!(sent.bytes < 20_000, "{}", sent.bytes);
    assert_same(&share, &mirror);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "hello");
    let (sent, _) = pair.sync().await;
    assert!(sent.bytes < 500, "{}", sent.bytes);

    // Planned: the old one becomes a secondary at the common point, the new one is writable.
    let point = pair.beta.observe(pair.replica).await.unwrap().points.pop().unwrap();
    let demote = DemoteReplica { instance: pair.active, epoch: Epoch(2), to: Demotion::Secondary };
    assert!(pair.alpha.call(demote.clone()).await.unwrap().is_changed());
    assert!(!pair.alpha.call(demote).await.unwrap().is_changed());
    let promotion = Promotion::Planned { point: Some(point.id) };
    let promote = PromoteReplica { instance: pair.replica, epoch: Epoch(2), promotion };
    assert!(pair.beta.call(promote.clone()).await.unwrap().is_changed());
    assert!(!pair.beta.call(promote).await.unwrap().is_changed());
    let old = pair.alpha.observe(pair.active).await.unwrap();
    assert_eq!((old.role, old.epoch), (Role::Secondary, Epoch(2)));
    assert_eq!(old.points, vec![point.clone()]);
    let seen = pair.beta.call(UpdateReplicaState { instance: pair.replica, epoch: Epoch(2) }).await.unwrap();
    assert_eq!(seen.newest_point.map(|p| p.id), Some(point.id));
    let stale = MakePoint { instance: pair.replica, epoch: Epoch(1), point: PointId(Uuid::new_v4()) };
    assert_eq!(pair.beta.call(stale).await.unwrap_err().kind, ErrorKind::StaleEpoch);

    // What is written after the promotion alters nothing else, and goes back as an increment.
    assert_eq!(fs::metadata(mirror.join("docs/a file")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(&mirror).unwrap().permissions().mode() & 0o777, 0o755);
    fs::write(mirror.join("docs/a file"), b"written after the promotion").unwrap();
    fs::write(mirror.join("more"), noise(7, 300_000)).unwrap();
    assert_eq!(fs::read(share.join("docs/a file")).unwrap(), b"hello");
    let next = pair.beta.point(pair.replica, 2).await;
    let (sent, received) =
        transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next, None).await;
    assert!(received.unwrap().is_changed());
    let sent = sent.unwrap().bytes;
    assert!((300_000..400_000).contains(&sent), "{sent}");
    assert_same(&mirror, &share);

    // Nothing is left of a deleted instance.
    pair.alpha.call(DeleteReplica { instance: pair.active }).await.unwrap();
    let delete = DeleteInstance { instance: pair.replica };
    assert!(pair.beta.call(delete.clone()).await.unwrap().is_changed());
    assert!(!pair.beta.call(delete).await.unwrap().is_changed());
    for backend in [&pair.alpha, &pair.beta] {
        assert_eq!(fs::read_dir(backend.root.join("instances")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(backend.root.join("exports")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_dr_replica_cannot_be_reached_until_it_is_promoted() {
    let pair = Pair::new(Style::Dr).await;
    fill(&pair.share());
    pair.sync().await;
    let seen = pair.beta.observe(pair.replica).await.unwrap();
    assert!(seen.exports.is_empty() && seen.health == Health::Ok);
    assert!(!pair.beta.export(pair.replica).exists());
    let dir = pair.beta.root.join("instances").join(pair.replica.to_string());
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    let promotion = Promotion::Forced { point: None };
    let info = pair
        .beta
        .call(PromoteReplica { instance: pair.replica, epoch: Epoch(2), promotion })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.exports.len(), 1);
    assert_same(&pair.share(), &pair.beta.export(pair.replica));
    fs::write(pair.beta.export(pair.replica).join("written"), b"yes").unwrap();
    // The old one is fenced when it is seen again, and reaches nobody.
    let fence = DemoteReplica { instance: pair.active, epoch: Epoch(2), to: Demotion::Fenced };
    pair.alpha.call(fence).await.unwrap();
    assert!(!pair.share().exists());
    // Told to follow: it was not written to since the common point, so that an increment will do.
    let follow = DemoteReplica { instance: pair.active, epoch: Epoch(2), to: Demotion::Secondary };
    assert!(pair.alpha.call(follow).await.unwrap().is_changed());
    let next = pair.beta.point(pair.replica, 2).await;
    let (sent, received) =
        transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next, None).await;
    received.unwrap();
    assert!(sent.unwrap().bytes < 10_000);
}

#[tokio::test]
async fn an_old_active_that_was_written_to_gets_a_full_copy() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    pair.sync().await;
    fs::write(pair.share().join("late"), b"lost by a forced promotion").unwrap();
    let promotion = Promotion::Forced { point: None };
    pair.beta.call(PromoteReplica { instance: pair.replica, epoch: Epoch(2), promotion }).await.unwrap();
    let demote = DemoteReplica { instance: pair.active, epoch: Epoch(2), to: Demotion::Secondary };
    pair.alpha.call(demote).await.unwrap();
    assert!(pair.alpha.observe(pair.active).await.unwrap().points.is_empty());
    let next = pair.beta.point(pair.replica, 2).await;
    let (_, received) =
        transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next, None).await;
    received.unwrap();
    assert_same(&pair.beta.export(pair.replica), &pair.share());
    assert!(!pair.share().join("late").exists());
}

#[tokio::test]
async fn a_writer_that_the_demotion_did_not_stop_is_found_out() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    let mut open = fs::File::create(pair.share().join("open")).unwrap();
    let (sent, _) = pair.sync().await;
    assert!(sent.bytes > 0);
    let demote = DemoteReplica { instance: pair.active, epoch: Epoch(2), to: Demotion::Secondary };
    pair.alpha.call(demote).await.unwrap();
    let point = pair.alpha.observe(pair.active).await.unwrap().points.pop();
    let promotion = Promotion::Planned { point: point.map(|p| p.id) };
    pair.beta.call(PromoteReplica { instance: pair.replica, epoch: Epoch(2), promotion }).await.unwrap();
    let look = UpdateReplicaState { instance: pair.active, epoch: Epoch(2) };
    assert_eq!(pair.alpha.call(look.clone()).await.unwrap().state, ReplicaState::InSync);

    std::io::Write::write_all(&mut open, b"too late").unwrap();
    let seen = pair.alpha.call(look).await.unwrap();
    assert_eq!((seen.state, seen.newest_point), (ReplicaState::OutOfSync, None));
    assert!(pair.alpha.observe(pair.active).await.unwrap().points.is_empty());
    // Nothing changed on the new active, and still everything is carried.
    let next = pair.beta.point(pair.replica, 2).await;
    let (_, received) =
        transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next, None).await;
    received.unwrap();
    assert_same(&pair.beta.export(pair.replica), &pair.share());
    assert_eq!(fs::read(pair.share().join("open")).unwrap(), b"");
}

#[tokio::test]
async fn a_cut_transfer_goes_on_where_it_stopped() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    fs::write(pair.share().join("docs/huge"), noise(5, 20_000_000)).unwrap();
    let to = pair.alpha.point(pair.active, 1).await;
    let mut carried = 0;
    let whole = 25_200_000u64;
    for cut in [0, 1, 70, 4_000, 200_000, 3_000_000, 9_999_999, 100, 8_000_000] {
        let (_, received) =
            transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, &to, Some(cut)).await;
        let error = received.unwrap_err();
        assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::Safe), "{error}");
        carried += cut;
        assert!(pair.beta.observe(pair.replica).await.unwrap().points.is_empty());
        assert!(!pair.beta.export(pair.replica).exists());
    }
    assert!(pair.beta.observe(pair.replica).await.unwrap().resume.is_some());
    let (sent, received) =
        transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, &to, None).await;
    let (sent, received) = (sent.unwrap(), received.unwrap().into_inner());
    assert!(sent.resumed_bytes > 20_000_000 && received.resumed_bytes > 20_000_000, "{sent:?} {received:?}");
    carried += sent.bytes;
    assert!(carried < whole + 9 * 300_000, "{carried} bytes were carried for {whole}");
    assert_same(&pair.share(), &pair.beta.export(pair.replica));
    assert!(pair.beta.observe(pair.replica).await.unwrap().resume.is_none());
    // Once more: it is here already, and nothing is read.
    let (_, again) = transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, &to, None).await;
    assert!(!again.unwrap().is_changed());
}

#[tokio::test]
async fn a_replica_that_somebody_altered_is_found_out_and_copied_anew() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    pair.sync().await;
    let mirror = pair.beta.export(pair.replica);
    fs::write(mirror.join("docs/a file"), b"HELLO").unwrap();
    fs::write(pair.share().join("one more"), b"1").unwrap();
    let to = pair.alpha.point(pair.active, 1).await;
    let (_, received) = transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, &to, None).await;
    assert_eq!(received.unwrap_err().kind, ErrorKind::Conflict);
    assert!(pair.beta.observe(pair.replica).await.unwrap().points.is_empty());
    let (_, received) = transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, &to, None).await;
    received.unwrap();
    assert_same(&pair.share(), &mirror);
}

#[tokio::test]
async fn a_share_over_its_size_is_reported_and_not_replicated() {
    let pair = Pair::new(Style::Readable).await;
    fs::write(pair.share().join("small"), b"1").unwrap();
    pair.sync().await;
    let resize = |size_bytes| ResizeInstance { instance: pair.active, epoch: Epoch(1), size_bytes };
    assert!(pair.alpha.call(resize(1 << 20)).await.unwrap().is_changed());
    fs::write(pair.share().join("too much"), noise(1, 2 << 20)).unwrap();
    let seen = pair.alpha.observe(pair.active).await.unwrap();
    assert!(
        matches!(&seen.health, Health::Degraded { reason } if reason.starts_with("over size")),
        "{seen:?}"
    );
    let point = MakePoint { instance: pair.active, epoch: Epoch(1), point: PointId(Uuid::new_v4()) };
    assert_eq!(pair.alpha.call(point.clone()).await.unwrap_err().kind, ErrorKind::OutOfSpace);
    assert_eq!(pair.alpha.call(resize(4096)).await.unwrap_err().kind, ErrorKind::OutOfSpace);
    pair.alpha.call(resize(GIB)).await.unwrap();
    pair.alpha.call(point).await.unwrap();
}

#[tokio::test]
async fn whether_the_active_one_changed_is_told_cheaply() {
    let pair = Pair::new(Style::Readable).await;
    let changed = async || {
        let ask = UpdateReplicaState { instance: pair.active, epoch: Epoch(1) };
        pair.alpha.call(ask).await.unwrap().changed_since_point.unwrap()
    };
    assert!(changed().await, "there is no point yet");
    fill(&pair.share());
    pair.sync().await;
    assert!(!changed().await);
    rustix::fs::setxattr(pair.share().join("large"), "user.note", b"other", rustix::fs::XattrFlags::empty())
        .unwrap();
    assert!(changed().await, "an attribute");
    pair.sync().await;
    assert!(!changed().await);
    fs::remove_file(pair.share().join("link")).unwrap();
    assert!(changed().await, "a removal");
    pair.sync().await;
    fs::write(pair.share().join("docs/a file"), b"world").unwrap();
    assert!(changed().await, "same length, other content");
}

#[tokio::test]
async fn calls_may_be_repeated_and_conflicts_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::open(dir.path()).await;
    let mut share = spec(ResourceId(Uuid::new_v4()), Style::Readable);
    assert!(backend.create(&share).await.is_changed());
    assert!(!backend.create(&share).await.is_changed());
    share.size_bytes += 1;
    let error = backend.call(CreateInstance { spec: share.clone() }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    share.size_bytes -= 1;
    share.replication = Some(ReplicationSpec { style: Style::Writable, instances: 2 });
    share.instance = InstanceId(Uuid::new_v4());
    let error = backend.call(CreateInstance { spec: share.clone() }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(backend.observe(share.instance).await.is_none());
    let missing =
        backend.call(EnsureInstance { instance: share.instance, epoch: Epoch(1) }).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    let pools = backend.call(Pools {}).await.unwrap();
    assert_eq!((pools.len(), pools[0].allocated_bytes), (1, Some(GIB)));
}

#[tokio::test]
async fn readers_see_the_old_version_or_the_new_one_whole() {
    let pair = Pair::new(Style::Readable).await;
    let write = |round: u32| {
        for i in 0..20 {
            fs::write(pair.share().join(format!("f{i:02}")), format!("{round}")).unwrap();
        }
    };
    write(0);
    pair.sync().await;
    let mirror = pair.beta.export(pair.replica);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (stop, mirror) = (stop.clone(), mirror.clone());
        move || {
            let mut looks = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // One look holds one version by its real path; it may go after two syncs, never be mixed.
                let Ok(version) = fs::canonicalize(&mirror) else { continue };
                let seen: Vec<_> =
                    (0..20).filter_map(|i| fs::read(version.join(format!("f{i:02}"))).ok()).collect();
                assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "mixed: {seen:?}");
                looks += 1;
            }
            looks
        }
    });
    for round in 1..15 {
        write(round);
        pair.sync().await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    assert_same(&pair.share(), &mirror);
}
