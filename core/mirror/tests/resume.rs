//! Streams that are cut, and trees that change while they are read.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Sync, append, assert_same, describe, every_kind, noise};
use proptest::prelude::*;
use tandem_mirror::{Error, Resume, Variants, staged};

/// Cuts at each of these, each time going on from what is staged, then lets the rest through. Gives all bytes carried.
fn cut_and_resume(sync: &mut Sync<'_>, cuts: &[u64]) -> u64 {
    let mut carried = 0;
    for cut in cuts {
        sync.cut = Some(*cut);
        sync.resume = staged(sync.staging).unwrap().map(|s| s.resume).unwrap_or_default();
        let (_, received) = sync.run();
        match received {
            Err(Error::Cut) => carried += cut,
            Ok(report) => return carried + report.bytes,
            Err(e) => panic!("{e}"),
        }
    }
    sync.cut = None;
    sync.resume = staged(sync.staging).unwrap().map(|s| s.resume).unwrap_or_default();
    let (_, _, received) = sync.succeed();
    carried + received.bytes
}

/// Everything, from the start.
fn whole<'a>(source: &'a Path, manifest: &'a Path, staging: &'a Path, cut: Option<u64>) -> Sync<'a> {
    Sync {
        source,
        manifest,
        base: None,
        spare: None,
        variants: Variants::new(),
        resume: Resume::default(),
        staging,
        cut,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn a_stream_may_be_cut_anywhere(cuts in prop::collection::vec(0u64..2_500_000, 1..8), small in prop::collection::vec(0u64..3000, 0..6)) {
        let dir = tempfile::tempdir().unwrap();
        let (source, staging) = (dir.path().join("source"), dir.path().join("staging"));
        fs::create_dir(&source).unwrap();
        every_kind(&source);
        let manifest = dir.path().join("manifest");
        describe(&source, None, &manifest);
        let mut sync = whole(&source, &manifest, &staging, None);
        let cuts: Vec<u64> = small.into_iter().chain(cuts).collect();
        let carried = cut_and_resume(&mut sync, &cuts);
        // 3.4 MB of content; each cut costs at most the chunk it fell into, a manifest record, and a header.
        prop_assert!(carried < 3_700_000 + cuts.len() as u64 * 160_000, "{} bytes, {} cuts", carried, cuts.len());
        assert_same(&source, &staging.join("tree"));

        // The same for an increment.
        append(&source.join("a/b/large"), &noise(8, 400_000));
        fs::remove_file(source.join("zz")).unwrap();
        let (second, next) = (dir.path().join("second"), dir.path().join("next"));
        describe(&source, Some(&manifest), &second);
        let (tree, base) = (staging.join("tree"), staging.join("manifest"));
        let mut sync = Sync {
            source: &source, manifest: &second, base: Some((&manifest, &tree, &base)), spare: None, variants: Variants::new(),
            resume: Resume::default(), staging: &next, cut: None,
        };
        let cuts: Vec<u64> = cuts.iter().map(|c| c / 8).collect();
        cut_and_resume(&mut sync, &cuts);
        assert_same(&source, &next.join("tree"));
    }
}

#[test]
fn the_end_may_be_lost_and_the_tree_half_built() {
    let dir = tempfile::tempdir().unwrap();
    let (source, staging) = (dir.path().join("source"), dir.path().join("staging"));
    fs::create_dir(&source).unwrap();
    every_kind(&source);
    let manifest = dir.path().join("manifest");
    describe(&source, None, &manifest);
    let mut sync = whole(&source, &manifest, &staging, None);
    let (sent, _, _) = sync.succeed();
    // Killed after everything had arrived, while it was being built: the manifest is not there yet.
    fs::remove_file(staging.join("manifest")).unwrap();
    let left = staged(&staging).unwrap().unwrap();
    assert!(left.resume.ended);
    sync.resume = left.resume;
    let (again, _, _) = sync.succeed();
    assert!(again.bytes < 1000 && sent.bytes > 3_000_000, "{} bytes", again.bytes);
    assert_same(&source, &staging.join("tree"));
}

#[test]
fn a_stream_that_continues_from_an_earlier_place_costs_nothing_that_arrived() {
    let dir = tempfile::tempdir().unwrap();
    let (source, staging) = (dir.path().join("source"), dir.path().join("staging"));
    fs::create_dir(&source).unwrap();
    every_kind(&source);
    let manifest = dir.path().join("manifest");
    describe(&source, None, &manifest);
    let mut sync = whole(&source, &manifest, &staging, Some(1_000_000));
    assert!(matches!(sync.run().1, Err(Error::Cut)));
    let early = staged(&staging).unwrap().unwrap();
    (sync.resume, sync.cut) = (early.resume.clone(), Some(1_000_000));
    assert!(matches!(sync.run().1, Err(Error::Cut)));
    let late = staged(&staging).unwrap().unwrap();
    assert!(late.bytes > early.bytes);
    // Somebody who looked before the second cut.
    (sync.resume, sync.cut) = (early.resume, None);
    assert!(matches!(sync.run().1, Err(Error::MovedOn)));
    let kept = staged(&staging).unwrap().unwrap();
    assert_eq!((&kept.resume, kept.bytes), (&late.resume, late.bytes));
    sync.resume = kept.resume;
    let (_, _, received) = sync.succeed();
    assert!(received.bytes < 1_800_000, "{} bytes", received.bytes);
    assert_same(&source, &staging.join("tree"));
}

#[test]
fn what_changed_after_the_point_is_sent_newer_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for name in ["grows", "rewritten", "vanishes", "stays", "sparse"] {
        fs::write(source.join(name), noise(name.len() as u64, 700_000)).unwrap();
    }
    let first = dir.path().join("first");
    // Old enough to be known again by their times.
    std::thread::sleep(std::time::Duration::from_millis(120));
    let summary = describe(&source, None, &first);
    append(&source.join("grows"), b"more");
    let file = fs::OpenOptions::new().write(true).open(source.join("rewritten")).unwrap();
    file.write_all_at(&noise(99, 1000), 300_000).unwrap();
    fs::remove_file(source.join("vanishes")).unwrap();
    let file = fs::OpenOptions::new().write(true).open(source.join("sparse")).unwrap();
    file.set_len(0).unwrap();
    file.set_len(700_000).unwrap();
    let staging = dir.path().join("staging");
    let sync = Sync {
        source: &source,
        manifest: &first,
        base: None,
        spare: None,
        variants: Variants::new(),
        resume: Resume::default(),
        staging: &staging,
        cut: None,
    };
    let (report, newer, received) = sync.succeed();
    assert_eq!((report.newer, received.newer), (4, 4));
    assert!(report.unstable.is_empty());
    // The point is proven, although four files are not as it says.
    assert_eq!(received.summary.root, summary.root);
    assert_same_but_times_of_root(&source, &staging.join("tree"));

    // The next increment goes by what the receiver really has: 4 changed chunks would be missing otherwise.
    append(&source.join("grows"), b"and more");
    let second = dir.path().join("second");
    describe(&source, Some(&first), &second);
    let next = dir.path().join("next");
    let (tree, base) = (staging.join("tree"), staging.join("manifest"));
    let sync = Sync {
        source: &source,
        manifest: &second,
        base: Some((&first, &tree, &base)),
        spare: None,
        variants: newer,
        resume: Resume::default(),
        staging: &next,
        cut: None,
    };
    let (report, newer, _) = sync.succeed();
    assert!(newer.is_empty());
    assert!(report.bytes < 400_000, "{}", report.bytes);
    assert_same(&source, &next.join("tree"));
}

/// A removal moves the time of the folder, which the point does not know.
fn assert_same_but_times_of_root(source: &std::path::Path, mirror: &std::path::Path) {
    for entry in fs::read_dir(source).unwrap() {
        let name = entry.unwrap().file_name();
        assert_eq!(fs::read(source.join(&name)).unwrap(), fs::read(mirror.join(&name)).unwrap(), "{name:?}");
    }
    assert_eq!(fs::read_dir(source).unwrap().count(), fs::read_dir(mirror).unwrap().count());
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_busy_tree_is_carried_consistently_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    for i in 0..8 {
        fs::write(source.join(format!("f{i}")), noise(i, 600_000)).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // However this ends, the writer ends.
        let _stop = Stop(&stop);
        let writer = scope.spawn(|| {
            let mut round = 0u64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let path = source.join(format!("f{}", round % 8));
                match round % 5 {
                    0 => drop(fs::remove_file(&path)),
                    1 => fs::write(&path, noise(round, (round * 7919 % 900_000) as usize)).unwrap(),
                    _ => {
                        if let Ok(file) = fs::OpenOptions::new().write(true).open(&path) {
                            file.write_all_at(&noise(round, 5000), round * 104_729 % 500_000).unwrap();
                        }
                    }
                }
            }
        });
        let mut before: Option<(std::path::PathBuf, std::path::PathBuf, Variants)> = None;
        for round in 0..12 {
            let (manifest, staging) =
                (dir.path().join(format!("m{round}")), dir.path().join(format!("s{round}")));
            let summary = describe(&source, before.as_ref().map(|b| &*b.0), &manifest);
            let mirror = before.as_ref().map(|b| b.1.clone());
            let paths = before.as_ref().map(|(m, s, _)| (m.clone(), s.join("tree"), s.join("manifest")));
            let sync = Sync {
                source: &source,
                manifest: &manifest,
                base: paths.as_ref().map(|(a, b, c)| (&**a, &**b, &**c)),
                spare: None,
                variants: before.take().map(|b| b.2).unwrap_or_default(),
                resume: Resume::default(),
                staging: &staging,
                cut: None,
            };
            let (_, newer, received) = sync.succeed();
            assert_eq!(received.summary.root, summary.root, "round {round}");
            let tree = if received.unchanged { mirror.unwrap_or_default() } else { staging };
            before = Some((manifest, tree, newer));
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        // At rest: one more, and it is the same.
        let (manifest, staging) = (dir.path().join("last"), dir.path().join("last-s"));
        let (old, mirror, variants) = before.unwrap();
        describe(&source, Some(&old), &manifest);
        let (tree, base) = (mirror.join("tree"), mirror.join("manifest"));
        let (_, _, received) = Sync {
            source: &source,
            manifest: &manifest,
            base: Some((&old, &tree, &base)),
            spare: None,
            variants,
            resume: Resume::default(),
            staging: &staging,
            cut: None,
        }
        .succeed();
        let last = if received.unchanged { tree } else { staging.join("tree") };
        assert_same(&source, &last);
    });
}
