//! A fingerprint tells what a tree holds: the same of the same, another of whatever differs, and where the damage lies.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{Sync, describe, every_kind, is_root, name, noise};
use proptest::prelude::*;
use rustix::fs::{CWD, Timespec, Timestamps, XattrFlags};
use tandem_mirror::{
    Control, Fingerprint, Kind, ManifestReader, ManifestWriter, Recorded, Resume, Skipped, Tree, Variants,
    fingerprint, read_variants,
};

fn of(tree: &Path, recorded: Recorded<'_>) -> Fingerprint {
    let tree = Tree::open(tree).unwrap();
    fingerprint(&tree, recorded, Skipped::default(), &Control::none()).unwrap()
}

/// The aspects in which two differ.
fn differ(a: &Fingerprint, b: &Fingerprint) -> Vec<&'static str> {
    a.parts.keys().copied().filter(|part| a.parts.get(part) != b.parts.get(part)).collect()
}

fn set_time(path: &Path, sec: i64) {
    let at = Timespec { tv_sec: sec, tv_nsec: 5 };
    let times = Timestamps { last_access: at, last_modification: at };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A source, its manifest, and a copy that was received.
struct Pair {
    dir: tempfile::TempDir,
}

impl Pair {
    /// `between` happens after the point was made and before it is sent.
    fn new(between: impl FnOnce(&Path)) -> Self {
        let pair = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(pair.path("source")).unwrap();
        every_kind(&pair.path("source"));
        // What is younger than the clock's tick is known by nobody.
        std::thread::sleep(std::time::Duration::from_millis(120));
        describe(&pair.path("source"), None, &pair.path("point"));
        between(&pair.path("source"));
        let sync = Sync {
            source: &pair.path("source"),
            manifest: &pair.path("point"),
            base: None,
            spare: None,
            variants: Variants::new(),
            resume: Resume::default(),
            staging: &pair.path("copy"),
            cut: None,
        };
        sync.succeed();
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The manifest of the source where one file held something else, in one chunk.
    fn with_another_chunk(&self) -> PathBuf {
        let mut out = ManifestWriter::create(&self.path("other")).unwrap();
        for entry in ManifestReader::open(&self.path("point")).unwrap() {
            let mut entry = entry.unwrap();
            if entry.path == b"a/b/large" {
                assert!(entry.local.is_some(), "it was at rest when it was described");
                let Kind::File(content) = &mut entry.kind else { panic!("a file") };
                content.chunks[3][0] ^= 1;
            }
            out.push(&entry).unwrap();
        }
        out.finish_durable().unwrap();
        self.path("other")
    }

    fn source(&self) -> Fingerprint {
        of(&self.path("source"), Recorded::Source { manifest: &self.path("point"), sent: &Variants::new() })
    }

    fn copy(&self) -> Fingerprint {
        let variants = read_variants(&self.path("copy/variants")).unwrap();
        let recorded = Recorded::Copy { manifest: &self.path("copy/manifest"), variants: &variants };
        of(&self.path("copy/tree"), recorded)
    }
}

#[test]
fn a_copy_has_the_fingerprint_of_its_source() {
    let pair = Pair::new(|_| {});
    let (source, copy) = (pair.source(), pair.copy());
    assert_eq!(source, copy);
    assert_eq!((&source.damaged, source.wrong), (&Vec::new(), 0));
    assert_eq!(source.parts.len(), 8);
    // And so it is without any record.
    let bare = of(&pair.path("source"), Recorded::Nothing);
    assert_eq!(bare, of(&pair.path("copy/tree"), Recorded::Nothing));
    assert_eq!(bare, source);
}

#[test]
fn what_was_sent_newer_than_the_point_counts_as_the_point() {
    let pair = Pair::new(|source| {
        fs::write(source.join("a/b/large"), noise(9, 2_000_000)).unwrap();
        fs::remove_file(source.join("a.b")).unwrap();
        fs::write(source.join("later"), b"no part of the point").unwrap();
    });
    let (source, copy) = (pair.source(), pair.copy());
    assert_eq!((&source.damaged, &copy.damaged), (&Vec::new(), &Vec::new()));
    assert_eq!(differ(&source, &copy), Vec::<&str>::new());
    // Damage to the newer form is damage.
    let large = File::options().write(true).open(pair.path("copy/tree/a/b/large")).unwrap();
    large.write_all_at(b"rot", 1_234_567).unwrap();
    let copy = pair.copy();
    assert!(differ(&source, &copy).contains(&"contents"));
    assert_eq!(copy.wrong, 1, "{:?}", copy.damaged);
}

#[test]
fn damage_to_a_copy_is_named() {
    let pair = Pair::new(|_| {});
    let source = pair.source();
    let path = pair.path("copy/tree/a/b/large");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let file = File::options().write(true).read(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 2_999_999).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 2_999_999).unwrap();
    file.set_modified(time).unwrap();
    let copy = pair.copy();
    assert_eq!(differ(&source, &copy), ["contents"]);
    assert_eq!(copy.damaged, ["`a/b/large` is not what was received: contents"]);
    file.write_all_at(&byte, 2_999_999).unwrap();
    file.set_modified(time).unwrap();
    assert_eq!(pair.copy(), source);
    fs::remove_file(pair.path("copy/tree/a.b")).unwrap();
    fs::write(pair.path("copy/tree/stray"), b"").unwrap();
    let copy = pair.copy();
    assert_eq!(copy.damaged.len(), 3, "{:?}", copy.damaged);
    assert!(copy.damaged.contains(&"`a.b` is missing".to_owned()));
    assert!(copy.damaged.contains(&"`stray` was not received".to_owned()));
    assert!(copy.damaged.iter().any(|d| d.contains("times")), "the root's time: {:?}", copy.damaged);
}

/// The disk loses what a file holds, and its times say nothing of it: here it is the record that holds something else.
#[test]
fn damage_to_the_source_is_told_from_writing() {
    let pair = Pair::new(|_| {});
    let good = pair.source();
    let other = pair.with_another_chunk();
    let none = Variants::new();
    let read = || of(&pair.path("source"), Recorded::Source { manifest: &other, sent: &none });
    let bad = read();
    assert_eq!(bad.wrong, 1);
    assert!(bad.damaged[0].contains("a/b/large"), "{:?}", bad.damaged);
    // The digests are of what is on the disk.
    assert_eq!(differ(&good, &bad), Vec::<&str>::new());
    // A user writes: from now on nobody can tell, and the record stands.
    let file = File::options().write(true).open(pair.path("source/a/b/large")).unwrap();
    file.write_all_at(b"written", 0).unwrap();
    let written = read();
    assert_eq!(written.wrong, 0, "{:?}", written.damaged);
    assert_eq!(differ(&good, &written), ["contents"]);
}

#[test]
fn what_the_disk_lost_before_it_was_sent_is_said() {
    let pair = Pair::new(|_| {});
    let other = pair.with_another_chunk();
    let sync = Sync {
        source: &pair.path("source"),
        manifest: &other,
        base: None,
        spare: None,
        variants: Variants::new(),
        resume: Resume::default(),
        staging: &pair.path("later"),
        cut: None,
    };
    let (report, sent, _) = sync.succeed();
    assert_eq!((report.rotten, report.newer), (vec!["a/b/large".to_owned()], 1));
    // The copy holds what it received, and the source says that this is no better than its own.
    let copy = Recorded::Copy { manifest: &pair.path("later/manifest"), variants: &sent };
    assert_eq!(of(&pair.path("later/tree"), copy).wrong, 0);
    let source = of(&pair.path("source"), Recorded::Source { manifest: &other, sent: &sent });
    assert!(source.damaged[0].contains("was sent to replicas"), "{:?}", source.damaged);
    // What users wrote is no rot.
    let file = File::options().write(true).open(pair.path("source/a/b/large")).unwrap();
    file.write_all_at(b"written", 0).unwrap();
    let (report, ..) = Sync { staging: &pair.path("last"), ..sync }.succeed();
    assert_eq!((report.rotten.len(), report.newer), (0, 1));
}

#[test]
fn a_damaged_manifest_of_a_copy_is_damage() {
    let pair = Pair::new(|_| {});
    let manifest = File::options().write(true).open(pair.path("copy/manifest")).unwrap();
    let middle = manifest.metadata().unwrap().len() / 2;
    manifest.write_all_at(b"rot", middle).unwrap();
    let copy = pair.copy();
    assert_eq!((copy.wrong, copy.parts.len()), (1, 0));
    assert!(copy.damaged[0].contains("manifest"), "{:?}", copy.damaged);
    // What users' own side has noted is not made whole by another copy.
    let tree = Tree::open(&pair.path("source")).unwrap();
    let recorded = Recorded::Source { manifest: &pair.path("copy/manifest"), sent: &Variants::new() };
    assert!(fingerprint(&tree, recorded, Skipped::default(), &Control::none()).is_err());
}

#[test]
fn labels_of_a_host_are_not_of_the_tree() {
    let pair = Pair::new(|_| {});
    let path = pair.path("copy/tree/a/small");
    let set = |name: &str| rustix::fs::lsetxattr(&path, name, b"\x01x", XattrFlags::empty());
    if !is_root() || set("security.selinux").is_err() {
        return;
    }
    assert_eq!(pair.copy(), pair.source());
    set("user.selinux").unwrap();
    assert_eq!(pair.copy().wrong, 1);
}

/// Who may make no devices has none of their further names either.
#[test]
fn further_names_of_devices_go_with_them() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
    for root in [&source, &copy] {
        fs::create_dir(root).unwrap();
        fs::write(root.join("file"), b"x").unwrap();
    }
    let device = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, source.join("null"), device, 0o666.into(), 0x103).unwrap();
    fs::hard_link(source.join("null"), source.join("null too")).unwrap();
    for root in [&source, &copy] {
        set_time(&root.join("file"), 7);
        set_time(root, 7);
    }
    describe(&source, None, &dir.path().join("point"));
    let variants = Variants::new();
    let recorded = Recorded::Copy { manifest: &dir.path().join("point"), variants: &variants };
    let read = |lacks| fingerprint(&Tree::open(&copy).unwrap(), recorded, lacks, &Control::none()).unwrap();
    assert_eq!(read(Skipped::default()).wrong, 2);
    let lacking = read(Skipped { devices: 1, ..Skipped::default() });
    assert_eq!((lacking.wrong, &lacking.damaged), (0, &Vec::new()));
    assert_eq!(differ(&lacking, &of(&source, Recorded::Nothing)), Vec::<&str>::new());
}

#[test]
fn what_is_not_kept_is_left_out() {
    let pair = Pair::new(|_| {});
    let tree = Tree::open(&pair.path("copy/tree")).unwrap();
    let variants = Variants::new();
    let read = |lacks| {
        let recorded = Recorded::Copy { manifest: &pair.path("copy/manifest"), variants: &variants };
        fingerprint(&tree, recorded, lacks, &Control::none()).unwrap()
    };
    let owners = read(Skipped { owners: 1, ..Skipped::default() });
    assert!(!owners.parts.contains_key("owners") && !owners.parts.contains_key("setids"));
    rustix::fs::lsetxattr(pair.path("copy/tree/a.b"), "user.more", b"!", XattrFlags::empty()).unwrap();
    assert_eq!(read(Skipped::default()).wrong, 1);
    let without = read(Skipped { xattrs: 1, ..Skipped::default() });
    assert_eq!((without.wrong, without.parts.contains_key("xattrs")), (0, false));
    if is_root() {
        fs::remove_file(pair.path("copy/tree/null")).unwrap();
        set_time(&pair.path("copy/tree"), 79);
        let without = read(Skipped { devices: 1, ..Skipped::default() });
        assert!(!without.damaged.iter().any(|d| d.contains("null")), "{:?}", without.damaged);
        assert!(!without.parts.contains_key("devices"));
    }
}

#[test]
fn a_cancel_ends_it() {
    let pair = Pair::new(|_| {});
    let tree = Tree::open(&pair.path("source")).unwrap();
    let control = Control::new(&|| true, &|_| {});
    let ended = fingerprint(&tree, Recorded::Nothing, Skipped::default(), &control);
    assert!(matches!(ended, Err(tandem_mirror::Error::Cancelled)));
}

/// A small tree: files by name, with content, and where it has a hole.
fn make(root: &Path, files: &[(u8, usize, bool)]) {
    fs::create_dir_all(root.join("d")).unwrap();
    symlink("to", root.join("link")).unwrap();
    for (n, len, sparse) in files {
        let path = root.join(name(&[b'f', *n]));
        let file = File::create(&path).unwrap();
        if *sparse {
            file.set_len(*len as u64 + 200_000).unwrap();
        } else {
            file.write_all_at(&vec![0; *len + 200_000], 0).unwrap();
        }
        file.write_all_at(&noise(u64::from(*n), *len), 100_000).unwrap();
        file.set_len(*len as u64 + 200_000).unwrap();
        set_time(&path, 7);
    }
    for path in ["link", "d", ""] {
        set_time(&root.join(path), 7);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Holes are no difference; each change is one, in its own aspect and in no other.
    #[test]
    fn each_change_shows_in_its_aspect(
        files in proptest::collection::btree_map(0x80u8.., (1usize..150_000, any::<bool>()), 1..6),
        change in 0..7,
        at: proptest::sample::Index,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        let list: Vec<_> = files.iter().map(|(n, (len, sparse))| (*n, *len, *sparse)).collect();
        let turned: Vec<_> = list.iter().map(|(n, len, sparse)| (*n, *len, !sparse)).collect();
        make(&one, &list);
        make(&other, &turned);
        let before = of(&one, Recorded::Nothing);
        prop_assert_eq!(&before, &of(&other, Recorded::Nothing));
        let (n, len, _) = list[at.index(list.len())];
        let path = other.join(name(&[b'f', n]));
        let file = File::options().write(true).read(true).open(&path).unwrap();
        let expected = match change {
            0 => {
                let where_ = at.index(len) as u64 + 100_000;
                let mut byte = [0];
                file.read_exact_at(&mut byte, where_).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << (len % 8))], where_).unwrap();
                set_time(&path, 7);
                "contents"
            }
            1 => {
                file.set_len(len as u64 + 200_001).unwrap();
                set_time(&path, 7);
                "contents"
            }
            2 => {
                set_time(&path, 8);
                "times"
            }
            3 => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
                "modes"
            }
            4 => {
                rustix::fs::lsetxattr(&path, "user.x", b"1", XattrFlags::empty()).unwrap();
                "xattrs"
            }
            5 => {
                fs::remove_file(other.join("link")).unwrap();
                symlink("tp", other.join("link")).unwrap();
                set_time(&other.join("link"), 7);
                set_time(&other, 7);
                "names"
            }
            _ if is_root() => {
                std::os::unix::fs::lchown(&path, Some(12), Some(0)).unwrap();
                "owners"
            }
            _ => return Ok(()),
        };
        prop_assert_eq!(differ(&before, &of(&other, Recorded::Nothing)), [expected]);
    }
}
