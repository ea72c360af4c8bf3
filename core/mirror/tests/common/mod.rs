//! Trees of every kind, and a sync of one into another through a real pipe.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};
use tandem_mirror::{
    Base, Control, Error, ManifestReader, ManifestWriter, Outgoing, ReceiveReport, Resume, SendReport, Spare,
    Summary, Tree, Variants, receive, scan, send,
};

pub fn name(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// Repeatable bytes that do not compress or repeat.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// One of everything.
pub fn every_kind(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/empty"), b"").unwrap();
    fs::write(root.join("a/small"), b"hello").unwrap();
    fs::write(root.join("a/b/large"), noise(1, 3_000_001)).unwrap();
    fs::write(root.join("a/b/exactly one chunk"), noise(2, tandem_mirror::CHUNK as usize)).unwrap();
    fs::hard_link(root.join("a/small"), root.join("a/b/again")).unwrap();
    fs::hard_link(root.join("a/small"), root.join("zz")).unwrap();
    symlink("../nowhere/at all", root.join("a/dangling")).unwrap();
    symlink("small", root.join("a/link")).unwrap();
    fs::hard_link(root.join("a/link"), root.join("a/link too")).unwrap();
    fs::write(root.join(name(b"new\nline")), b"1").unwrap();
    fs::write(root.join(name(b"not \xff\xfe utf-8")), b"2").unwrap();
    fs::create_dir(root.join(name(b"dir \xe9\n"))).unwrap();
    fs::write(root.join(name(b"dir \xe9\n")).join("x"), b"3").unwrap();
    fs::write(root.join(".hidden"), b"4").unwrap();
    fs::write(root.join("a.b"), b"sorts after a/").unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    mknodat(CWD, root.join("socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    // Holes at the start, inside, and at the end; data smaller than a chunk.
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(&noise(3, 70_000), 1_000_000).unwrap();
    sparse.write_all_at(&noise(4, 4096), 5_001_216).unwrap();
    sparse.set_len(40_000_000).unwrap();
    File::create(root.join("all hole")).unwrap().set_len(9_000_000).unwrap();
    let zeros = File::create(root.join("written zeros")).unwrap();
    zeros.write_all_at(&vec![0; 300_000], 0).unwrap();
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(root.join(path), name, value, XattrFlags::empty()).unwrap();
    };
    set("a/small", "user.colour", b"blue");
    set("a/b", "user.on-folder", &noise(5, 900));
    set("a/b/large", "user.empty", b"");
    let mode = |path: &str, mode: u32| {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("a.b", 0o4751);
    mode("a/b/c", 0o1777);
    mode("zz", 0o400);
    // Nobody but root reads a file without permissions.
    mode(".hidden", if is_root() { 0o000 } else { 0o400 });
    if is_root() {
        std::os::unix::fs::chown(root.join(name(b"new\nline")), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(root.join("a/dangling"), Some(7), Some(8)).unwrap();
        mknodat(CWD, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), 0x103)
            .unwrap();
        set("a/dangling", "trusted.on-a-symlink", b"!");
        set("fifo", "trusted.on-a-fifo", b"?");
        // u::rw- u:1234:r-- g::r-- m::r-- o::---
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, perm, id) in
            [(1u16, 6u16, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        {
            acl.extend_from_slice(&tag.to_le_bytes());
            acl.extend_from_slice(&perm.to_le_bytes());
            acl.extend_from_slice(&id.to_le_bytes());
        }
        set("a/empty", "system.posix_acl_access", &acl);
        set("a/b/c", "system.posix_acl_default", &acl);
    }
    // Times far away, before 1970, and to the nanosecond; of a symlink and of folders too.
    let time = |path: &str, sec: i64, nsec: i64| {
        let at = rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec };
        let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
        rustix::fs::utimensat(CWD, root.join(path), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    time("a/small", 1_000_000_000, 123_456_789);
    time("a.b", -5, 999_999_999);
    time("a/dangling", 4_000_000_000, 1);
    time("fifo", 3, 3);
    time("a/b", 77, 7);
    time("a", 78, 8);
    time("", 79, 9);
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder deeper than any path may be long.
pub fn deep(root: &Path, levels: usize) {
    let mut here =
        rustix::fs::open(root, rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY, Mode::empty())
            .unwrap();
    let part = "d".repeat(200);
    for _ in 0..levels {
        rustix::fs::mkdirat(&here, &part, Mode::from_raw_mode(0o755)).unwrap();
        here = rustix::fs::openat(
            &here,
            &part,
            rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY,
            Mode::empty(),
        )
        .unwrap();
    }
    let fd = rustix::fs::openat(
        &here,
        "at the bottom",
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
        Mode::from_raw_mode(0o644),
    )
    .unwrap();
    rustix::io::write(&fd, b"deep").unwrap();
}

/// Fails unless two trees are the same to rsync (where it is installed) and to a scan of ours.
pub fn assert_same(left: &Path, right: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (l, r) = (describe(left, None, &dir.path().join("l")), describe(right, None, &dir.path().join("r")));
    if l.root != r.root {
        let list = |n: &str| -> Vec<String> {
            ManifestReader::open(&dir.path().join(n))
                .unwrap()
                .map(|e| {
                    let mut e = e.unwrap();
                    e.local = None;
                    format!("{} {e:?}", tandem_mirror::show(&e.path)).chars().take(600).collect()
                })
                .collect()
        };
        let (l, r) = (list("l"), list("r"));
        let differs: Vec<_> =
            l.iter().filter(|x| !r.contains(x)).chain(r.iter().filter(|x| !l.contains(x))).take(6).collect();
        panic!("trees differ: {differs:#?}");
    }
    // A file in many pieces needs a block or two more for the list of them, and pieces are the file system's choice.
    assert!(l.allocated.abs_diff(r.allocated) <= 16 << 10, "allocated: {} and {}", l.allocated, r.allocated);
    let slashed = |p: &Path| format!("{}/", p.display());
    match Command::new("rsync")
        .args(["-naHAXSci", "--numeric-ids", "--modify-window=-1", "--delete"])
        .args([slashed(left), slashed(right)])
        .output()
    {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            eprintln!("rsync is not installed; compared by our scan only")
        }
        Err(e) => panic!("{e}"),
        Ok(out) => {
            let said =
                String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && said.is_empty(), "rsync says: {said}");
        }
    }
}

/// Scans a tree into a manifest file.
pub fn describe(tree: &Path, previous: Option<&Path>, to: &Path) -> Summary {
    let previous = previous.map(|p| ManifestReader::open(p).unwrap());
    let mut out = ManifestWriter::create(to).unwrap();
    scan(&Tree::open(tree).unwrap(), previous, None, &mut out, &Control::none()).unwrap();
    out.finish_durable().unwrap()
}

/// One sync: both sides, the receiver in a thread of its own, joined by a pipe that is cut after `cut` bytes.
pub struct Sync<'a> {
    pub source: &'a Path,
    pub manifest: &'a Path,
    /// Sender's manifest of the base; receiver's tree and manifest of it.
    pub base: Option<(&'a Path, &'a Path, &'a Path)>,
    /// The tree before the base, and what made the base from it.
    pub spare: Option<(&'a Path, &'a Path)>,
    pub variants: Variants,
    pub resume: Resume,
    pub staging: &'a Path,
    pub cut: Option<u64>,
}

impl Sync<'_> {
    pub fn run(&self) -> (Result<(SendReport, Variants), Error>, Result<ReceiveReport, Error>) {
        let (input, output) = rustix::pipe::pipe().unwrap();
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let base = self.base.map(|(_, tree, manifest)| (Tree::open(tree).unwrap(), manifest));
                let base = base.as_ref().map(|(tree, manifest)| Base { tree, manifest });
                let spare = self.spare.map(|(tree, delta)| (Tree::open(tree).unwrap(), delta));
                let spare = spare.as_ref().map(|(tree, delta)| Spare { tree, delta });
                let mut input = Cut { inner: File::from(input), left: self.cut.unwrap_or(u64::MAX) };
                receive(&mut input, self.staging, base.as_ref(), spare.as_ref(), b"point", &Control::none())
            });
            let mut newer = Variants::new();
            let tree = Tree::open(self.source).unwrap();
            let outgoing = Outgoing {
                tree: &tree,
                manifest: self.manifest,
                base: self.base.map(|b| b.0),
                variants: &self.variants,
                label: b"point",
                resume: self.resume.clone(),
                bandwidth: None,
            };
            let mut output = File::from(output);
            let sent = send(
                &mut output,
                &outgoing,
                &mut |path, form| {
                    newer.entry(path.to_vec()).or_default().push(form.cloned());
                    Ok(())
                },
                &Control::none(),
            );
            drop(output);
            (sent.map(|report| (report, newer)), receiver.join().unwrap())
        })
    }

    pub fn succeed(&self) -> (SendReport, Variants, ReceiveReport) {
        let (sent, received) = self.run();
        let received = received.unwrap();
        let (report, newer) = sent.unwrap();
        (report, newer, received)
    }
}

/// A reader that ends early.
struct Cut {
    inner: File,
    left: u64,
}

impl Read for Cut {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let n = self.inner.read(&mut into[..most])?;
        self.left -= n as u64;
        Ok(n)
    }
}

pub fn append(path: &Path, bytes: &[u8]) {
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}
