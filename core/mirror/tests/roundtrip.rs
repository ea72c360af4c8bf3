//! A tree goes full, then by increments, and is the same each time to an independent tool.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Sync, append, assert_same, deep, describe, every_kind, name, noise};
use tandem_mirror::{Resume, Variants, remove_path};

/// A source and its mirror, with a manifest for each round.
struct Pair {
    dir: tempfile::TempDir,
    round: u32,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("source")).unwrap();
        Self { dir, round: 0 }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    fn manifest(&self, round: u32) -> PathBuf {
        self.dir.path().join(format!("manifest-{round}"))
    }

    fn mirror(&self, round: u32) -> PathBuf {
        self.dir.path().join(format!("mirror-{round}"))
    }

    /// One sync; gives the bytes of the stream.
    fn sync(&mut self) -> u64 {
        let old = self.round;
        self.round += 1;
        let (manifest, staging) = (self.manifest(self.round), self.mirror(self.round));
        let before = (old > 0)
            .then(|| (self.manifest(old), self.mirror(old).join("tree"), self.mirror(old).join("manifest")));
        let summary = describe(&self.source(), before.as_ref().map(|b| &*b.0), &manifest);
        let spare = (self.mirror(old.saturating_sub(1)).join("tree"), self.mirror(old).join("delta"));
        let spare = Some(spare).filter(|(tree, delta)| tree.exists() && delta.exists());
        let (sent, newer, received) = Sync {
            source: &self.source(),
            manifest: &manifest,
            base: before.as_ref().map(|(a, b, c)| (&**a, &**b, &**c)),
            spare: spare.as_ref().map(|(a, b)| (&**a, &**b)),
            variants: Variants::new(),
            resume: Resume::default(),
            staging: &staging,
            cut: None,
        }
        .succeed();
        if received.unchanged {
            // What is here stays, under another name.
            assert_eq!(received.summary.root, summary.root);
            remove_path(&staging, &|| false).unwrap();
            fs::rename(self.mirror(old), &staging).unwrap();
            return sent.bytes;
        }
        assert_eq!(received.summary.root, summary.root);
        assert!(newer.is_empty() && received.newer == 0);
        assert_same(&self.source(), &staging.join("tree"));
        if old > 1 {
            // The one before the last is not needed any more, and its going changes nothing.
            remove_path(&self.mirror(old - 1), &|| false).unwrap();
            assert_same(&self.source(), &staging.join("tree"));
        }
        sent.bytes
    }
}

#[test]
fn every_kind_of_file_goes_full_and_by_increments() {
    let mut pair = Pair::new();
    let root = pair.source();
    every_kind(&root);
    let full = pair.sync();
    assert!(full > 3_000_000);
    let nothing = pair.sync();
    assert!(nothing < 400, "an unchanged tree carried {nothing} bytes");

    // Content at both ends and in the middle; metadata only; a new name for a large file; gone; other kinds.
    append(&root.join("a/b/large"), b"tail");
    fs::set_permissions(root.join("a.b"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(root.join("a/b/exactly one chunk"), root.join("moved")).unwrap();
    fs::remove_file(root.join(name(b"new\nline"))).unwrap();
    fs::remove_file(root.join("fifo")).unwrap();
    fs::write(root.join("fifo"), b"now a file").unwrap();
    fs::remove_dir_all(root.join(name(b"dir \xe9\n"))).unwrap();
    fs::write(root.join(name(b"dir \xe9\n")), b"a file where a folder was").unwrap();
    let changed = pair.sync();
    assert!(changed < 200_000, "{changed} bytes for one chunk's tail, a rename and small things");

    // Hard links: the first name goes, a link is broken, a new one joins.
    fs::remove_file(root.join("a/b/again")).unwrap();
    fs::remove_file(root.join("a/small")).unwrap();
    fs::hard_link(root.join("moved"), root.join("a/moved too")).unwrap();
    fs::remove_file(root.join("a/link")).unwrap();
    pair.sync();

    // Holes: one filled, one made, one at the end cut off.
    let sparse = fs::OpenOptions::new().write(true).open(root.join("sparse")).unwrap();
    sparse.write_all_at(&noise(9, 10_000), 3_000_000).unwrap();
    sparse.set_len(20_000_000).unwrap();
    pair.sync();

    // A folder with everything in it moves.
    fs::rename(root.join("a"), root.join("renamed")).unwrap();
    let moved = pair.sync();
    assert!(moved < 600_000, "a renamed folder carried {moved} bytes");
    for entry in fs::read_dir(&root).unwrap() {
        remove_path(&entry.unwrap().path(), &|| false).unwrap();
    }
    pair.sync();
}

#[test]
fn folders_deeper_than_a_path_may_be_long() {
    let mut pair = Pair::new();
    deep(&pair.source(), 60);
    pair.round = 1;
    let (manifest, staging) = (pair.manifest(1), pair.mirror(1));
    let summary = describe(&pair.source(), None, &manifest);
    assert_eq!(summary.entries, 62);
    Sync {
        source: &pair.source(),
        manifest: &manifest,
        base: None,
        spare: None,
        variants: Variants::new(),
        resume: Resume::default(),
        staging: &staging,
        cut: None,
    }
    .succeed();
    let copy = describe(&staging.join("tree"), None, &pair.manifest(9));
    assert_eq!(copy.root, summary.root);
    remove_path(&pair.source(), &|| false).unwrap();
    remove_path(&staging, &|| false).unwrap();
    assert!(!pair.source().exists() && !staging.exists());
}

#[test]
fn a_large_file_with_one_percent_changed_carries_about_one_percent() {
    let mut pair = Pair::new();
    let path = pair.source().join("disk.img");
    fs::write(&path, noise(1, 64 << 20)).unwrap();
    pair.sync();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&noise(2, 640 << 10), 10 << 20).unwrap();
    let bytes = pair.sync();
    assert!((600_000..900_000).contains(&bytes), "{bytes}");
    fs::rename(&path, pair.source().join("new name.img")).unwrap();
    let bytes = pair.sync();
    assert!(bytes < 40_000, "{bytes}");
}

#[test]
fn a_symlink_that_takes_the_place_of_a_folder_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("outside");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), b"secret").unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("d")).unwrap();
    fs::write(source.join("d/file"), b"inside").unwrap();
    let manifest = dir.path().join("m");
    describe(&source, None, &manifest);
    fs::remove_dir_all(source.join("d")).unwrap();
    std::os::unix::fs::symlink(&secret, source.join("d")).unwrap();
    let (_, newer, received) = Sync {
        source: &source,
        manifest: &manifest,
        base: None,
        spare: None,
        variants: Variants::new(),
        resume: Resume::default(),
        staging: &dir.path().join("staging"),
        cut: None,
    }
    .succeed();
    assert_eq!(newer.get(b"d/file".as_slice()), Some(&vec![None]));
    assert_eq!(received.newer, 1);
    assert!(Path::new(&dir.path().join("staging/tree/d")).is_dir());
    assert!(!dir.path().join("staging/tree/d/file").exists());
}
