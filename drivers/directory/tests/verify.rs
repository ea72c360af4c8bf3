//! What an instance holds is read again, and damage is found on the side where it is.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Backend, Pair, fill, noise, transfer};
use tandem_sdk::contract::*;
use tandem_sdk::mirror::FINGERPRINT_SCHEME;

async fn read(backend: &Backend, instance: InstanceId, point: PointId) -> ContentFingerprint {
    let form = FINGERPRINT_SCHEME.to_owned();
    backend.call(ReadFingerprint { instance, point, form, bandwidth: None }).await.unwrap()
}

/// One byte is another one, and the file's time says nothing of it.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.set_modified(time).unwrap();
}

async fn newest(pair: &Pair) -> PointInfo {
    pair.beta.observe(pair.replica).await.unwrap().points.pop().unwrap()
}

#[tokio::test]
async fn a_flipped_byte_in_a_replica_is_found_and_a_full_copy_mends_it() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    pair.sync().await;
    // By an increment too: then the replica shares files with the version before.
    fs::write(pair.share().join("docs/more"), b"more").unwrap();
    pair.sync().await;
    let point = newest(&pair).await;
    let active = read(&pair.alpha, pair.active, point.id).await;
    let replica = read(&pair.beta, pair.replica, point.id).await;
    assert_eq!(active, replica);
    assert!(active.damaged.is_empty() && active.bytes > 5_000_000 && active.entries > 200);
    assert!(pair.beta.told("scan").is_some(), "progress is told");

    flip(&pair.beta.export(pair.replica).join("large"), 4_321_000);
    let replica = read(&pair.beta, pair.replica, point.id).await;
    let differ: Vec<&String> =
        active.parts.keys().filter(|p| active.parts[*p] != replica.parts[*p]).collect();
    assert_eq!(differ, ["contents"]);
    assert_eq!(replica.damaged, ["`large` is not what was received: contents"]);
    assert_eq!(active, read(&pair.alpha, pair.active, point.id).await);

    // An increment does not touch it; a full copy does.
    fs::write(pair.share().join("docs/more"), b"and more").unwrap();
    let to = pair.alpha.point(pair.active, 1).await;
    let (sent, received) = full(&pair, &to).await;
    assert!(received.unwrap().is_changed() && sent.unwrap().bytes > 5_000_000);
    let replica = read(&pair.beta, pair.replica, to.id).await;
    assert_eq!(replica, read(&pair.alpha, pair.active, to.id).await);
    assert_eq!(fs::read(pair.beta.export(pair.replica).join("large")).unwrap(), noise(1, 5_000_000));
}

/// Flips a bit in the manifest of what a replica holds.
fn damage_manifest(pair: &Pair) {
    let versions = pair.beta.root.join("instances").join(pair.replica.to_string()).join("versions");
    let tree = fs::canonicalize(pair.beta.export(pair.replica)).unwrap();
    assert!(tree.starts_with(fs::canonicalize(versions).unwrap()));
    let manifest = tree.parent().unwrap().join("manifest");
    flip(&manifest, fs::metadata(&manifest).unwrap().len() / 2);
}

#[tokio::test]
async fn a_damaged_manifest_is_found_and_a_full_copy_mends_it() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    pair.sync().await;
    damage_manifest(&pair);
    let replica = read(&pair.beta, pair.replica, newest(&pair).await.id).await;
    assert_eq!(replica.damaged.len(), 1, "{:?}", replica.damaged);
    // Nor is it a base for an increment, and that is found without a check too.
    fs::write(pair.share().join("docs/more"), b"more").unwrap();
    let to = pair.alpha.point(pair.active, 1).await;
    let transfer = || transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, &to, None);
    let error = transfer().await.1.unwrap_err();
    assert!(error.message.contains("a full copy is needed"), "{error}");
    let (sent, received) = transfer().await;
    assert!(received.unwrap().is_changed() && sent.unwrap().bytes > 5_000_000);
    let replica = read(&pair.beta, pair.replica, to.id).await;
    assert_eq!(replica, read(&pair.alpha, pair.active, to.id).await);
}

/// Carries all of a point, although there is one in common: as if the source had no other.
async fn full(
    pair: &Pair,
    to: &PointInfo,
) -> (tandem_sdk::Result<TransferReport>, tandem_sdk::Result<Outcome<TransferReport>>) {
    for old in pair.alpha.observe(pair.active).await.unwrap().points.iter().filter(|p| p.id != to.id) {
        pair.alpha.call(ReleasePoint { instance: pair.active, point: old.id }).await.unwrap();
    }
    transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, to, None).await
}

#[tokio::test]
async fn users_writing_changes_nothing_of_a_point() {
    let pair = Pair::new(Style::Dr).await;
    fill(&pair.share());
    pair.sync().await;
    let point = newest(&pair).await;
    let before = read(&pair.beta, pair.replica, point.id).await;
    fs::write(pair.share().join("large"), b"small now").unwrap();
    fs::remove_file(pair.share().join("sparse")).unwrap();
    fs::create_dir(pair.share().join("new")).unwrap();
    assert_eq!(read(&pair.alpha, pair.active, point.id).await, before);
}

#[tokio::test]
async fn it_stays_so_through_promotion_and_failback() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    pair.sync().await;
    let point = newest(&pair).await;
    let demote = DemoteReplica { instance: pair.active, epoch: Epoch(2), to: Demotion::Secondary };
    pair.alpha.call(demote).await.unwrap();
    let promotion = Promotion::Planned { point: Some(point.id) };
    let promote = PromoteReplica { instance: pair.replica, epoch: Epoch(2), promotion };
    pair.beta.call(promote).await.unwrap();
    let (old, new) =
        (read(&pair.alpha, pair.active, point.id).await, read(&pair.beta, pair.replica, point.id).await);
    assert_eq!(old, new);
    assert!(old.damaged.is_empty());
    fs::write(pair.beta.export(pair.replica).join("more"), noise(7, 300_000)).unwrap();
    let next = pair.beta.point(pair.replica, 2).await;
    transfer((&pair.beta, pair.replica), (&pair.alpha, pair.active), 2, &next, None).await.1.unwrap();
    let (old, new) =
        (read(&pair.alpha, pair.active, next.id).await, read(&pair.beta, pair.replica, next.id).await);
    assert_eq!(old, new);
}
