//! One tree onto another in place: every kind of file, passes over a changing source, resumption, limits, proof.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::{assert_same, every_kind, name, noise};
use tandem_mirror::{Control, Error, Mirror, Pass, Proof, RootMode, Tree};

struct Lab {
    _dir: tempfile::TempDir,
    source: PathBuf,
    dest: PathBuf,
    state: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [source, dest, state] = ["source", "dest", "state"].map(|n| dir.path().join(n));
        for path in [&source, &dest, &state] {
            fs::create_dir(path).unwrap();
        }
        Self { _dir: dir, source, dest, state }
    }

    fn with<T>(&self, root: RootMode, ask: impl FnOnce(&Mirror<'_>) -> T) -> T {
        let (source, dest) = (Tree::open(&self.source).unwrap(), Tree::open(&self.dest).unwrap());
        ask(&Mirror { source: &source, dest: &dest, state: &self.state, root })
    }

    fn pass(&self) -> Pass {
        self.with(RootMode::Counts, |m| m.pass(&Control::none())).unwrap()
    }

    fn prove(&self) -> Proof {
        self.with(RootMode::Counts, |m| m.prove(&Control::none())).unwrap()
    }

    fn proven(&self) {
        assert_eq!(self.prove().differences, Vec::<String>::new());
        assert_same(&self.source, &self.dest);
    }
}

#[test]
fn every_kind_of_file_arrives_and_a_second_pass_has_nothing_to_do() {
    let lab = Lab::new();
    every_kind(&lab.source);
    let first = lab.pass();
    assert!(first.copied > 10 && first.made > 10, "{first:?}");
    lab.proven();
    // What was scanned within the tick of the clock is read once more.
    std::thread::sleep(std::time::Duration::from_millis(60));
    assert!(lab.pass().is_unchanged());
    let third = lab.pass();
    assert!(third.is_unchanged() && third.written == 0, "{third:?}");
    lab.proven();
}

#[test]
fn folders_deeper_than_any_path_arrive() {
    let lab = Lab::new();
    common::deep(&lab.source, 30);
    lab.pass();
    assert_eq!(lab.prove().differences, Vec::<String>::new());
    fs::remove_dir_all(lab.source.join("d".repeat(200))).unwrap();
    assert_eq!(lab.pass().removed, 1);
    lab.proven();
}

#[test]
fn what_changed_follows_and_what_went_goes() {
    let lab = Lab::new();
    every_kind(&lab.source);
    lab.pass();
    let s = &lab.source;
    // One chunk of a large file; the rest is not written again.
    let large = fs::OpenOptions::new().write(true).open(s.join("a/b/large")).unwrap();
    large.write_all_at(b"changed", 1_000_000).unwrap();
    // Kinds change places, links come apart, metadata moves alone.
    fs::remove_file(s.join("a/empty")).unwrap();
    fs::create_dir(s.join("a/empty")).unwrap();
    fs::write(s.join("a/empty/inside"), b"x").unwrap();
    fs::remove_dir_all(s.join(name(b"dir \xe9\n"))).unwrap();
    symlink("/etc", s.join(name(b"dir \xe9\n"))).unwrap();
    fs::remove_file(s.join("zz")).unwrap();
    fs::write(s.join("zz"), b"on its own").unwrap();
    fs::remove_file(s.join(".hidden")).unwrap();
    fs::set_permissions(s.join("a.b"), fs::Permissions::from_mode(0o600)).unwrap();
    rustix::fs::removexattr(s.join("a/small"), "user.colour").unwrap();
    fs::hard_link(s.join("a.b"), s.join("a.b again")).unwrap();
    fs::rename(s.join("sparse"), s.join("moved sparse")).unwrap();
    let second = lab.pass();
    assert!(second.removed > 0 && second.made > 0, "{second:?}");
    assert!(second.written < 500_000, "only what changed is written: {second:?}");
    lab.proven();
    assert_eq!(fs::metadata(lab.dest.join("a.b")).unwrap().nlink(), 2);
}

#[test]
fn holes_of_a_patched_file_stay_holes() {
    let lab = Lab::new();
    let path = lab.source.join("sparse");
    let file = fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&noise(1, 1 << 20), 8 << 20).unwrap();
    lab.pass();
    file.write_all_at(&noise(2, 4096), 40 << 20).unwrap();
    file.set_len(60 << 20).unwrap();
    let second = lab.pass();
    assert!(second.written <= 128 * 1024, "{second:?}");
    lab.proven();
    assert!(fs::metadata(lab.dest.join("sparse")).unwrap().blocks() * 512 < 4 << 20);
}

#[test]
fn without_the_state_of_the_pass_before_little_is_written_and_all_is_proven() {
    let lab = Lab::new();
    every_kind(&lab.source);
    lab.pass();
    fs::remove_dir_all(&lab.state).unwrap();
    fs::create_dir(&lab.state).unwrap();
    // Killed in the midst of a large file, and of a small one.
    let torn = fs::OpenOptions::new().write(true).open(lab.dest.join("a/b/large")).unwrap();
    torn.write_all_at(&[0; 100_000], 2_500_000).unwrap();
    fs::write(lab.dest.join("a/b/exactly one chunk"), b"torn").unwrap();
    let again = lab.pass();
    assert!(again.written < 400_000, "{again:?}");
    lab.proven();
}

#[test]
fn a_difference_that_no_stat_shows_is_found_and_mended() {
    let lab = Lab::new();
    every_kind(&lab.source);
    lab.pass();
    let path = lab.dest.join("a/b/large");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"rot", 12_345).unwrap();
    file.set_modified(time).unwrap();
    let found = lab.prove();
    assert_eq!(found.wrong, 1, "{found:?}");
    assert!(found.differences[0].contains("a/b/large"));
    assert_eq!(lab.pass().copied, 1);
    lab.proven();
}

#[test]
fn the_root_keeps_its_permissions_while_they_are_aside() {
    let lab = Lab::new();
    fs::set_permissions(&lab.source, fs::Permissions::from_mode(0o775)).unwrap();
    lab.pass();
    fs::set_permissions(&lab.source, fs::Permissions::from_mode(0o555)).unwrap();
    lab.with(RootMode::Aside, |m| {
        m.pass(&Control::none()).unwrap();
        assert_eq!(m.prove(&Control::none()).unwrap().wrong, 0);
    });
    assert_eq!(fs::metadata(&lab.dest).unwrap().permissions().mode() & 0o777, 0o775);
}

#[test]
fn a_symlink_in_the_way_leads_nowhere() {
    let lab = Lab::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), b"p").unwrap();
    fs::create_dir(lab.source.join("dir")).unwrap();
    fs::write(lab.source.join("dir/file"), b"new").unwrap();
    fs::write(lab.source.join("precious"), b"s").unwrap();
    symlink(outside.path(), lab.dest.join("dir")).unwrap();
    symlink(outside.path().join("precious"), lab.dest.join("precious")).unwrap();
    lab.pass();
    lab.proven();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read(outside.path().join("precious")).unwrap(), b"p");
}

#[test]
fn a_source_that_changes_all_the_time_harms_nothing() {
    let lab = Lab::new();
    every_kind(&lab.source);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                churn(&lab.source, n);
            }
        });
        for _ in 0..5 {
            lab.pass();
        }
        stop.store(true, Ordering::Relaxed);
    });
    lab.pass();
    lab.proven();
}

/// Makes, renames, rewrites and removes.
fn churn(root: &Path, n: u64) {
    let (a, b) = (root.join(format!("churn {}", n % 17)), root.join(format!("churn {}", (n + 5) % 17)));
    match n % 5 {
        0 => fs::write(&a, noise(n, 100_000)).unwrap_or_default(),
        1 => fs::rename(&a, &b).unwrap_or_default(),
        2 => fs::remove_file(&a).unwrap_or_default(),
        3 => fs::create_dir_all(a.join("deep/er")).unwrap_or_default(),
        _ => fs::remove_dir_all(&a).unwrap_or_default(),
    }
}

#[test]
fn cancel_ends_it_and_the_next_pass_goes_on() {
    let lab = Lab::new();
    for n in 0..200 {
        fs::write(lab.source.join(format!("f{n}")), noise(n, 50_000)).unwrap();
    }
    let asked = AtomicU64::new(0);
    let cancelled = || asked.fetch_add(1, Ordering::Relaxed) > 100;
    let ended = lab.with(RootMode::Counts, |m| m.pass(&Control::new(&cancelled, &|_| {})));
    assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    lab.pass();
    lab.proven();
}

#[test]
fn an_unreadable_file_is_named() {
    if common::is_root() {
        return;
    }
    let lab = Lab::new();
    fs::write(lab.source.join("secret"), b"x").unwrap();
    fs::set_permissions(lab.source.join("secret"), fs::Permissions::from_mode(0o0)).unwrap();
    let error = lab.with(RootMode::Counts, |m| m.pass(&Control::none())).unwrap_err();
    assert!(error.to_string().contains("secret"), "{error}");
}

#[test]
fn the_limit_holds() {
    let lab = Lab::new();
    for n in 0..8 {
        fs::write(lab.source.join(format!("f{n}")), noise(n, 64 * 1024)).unwrap();
    }
    let begun = std::time::Instant::now();
    lab.with(RootMode::Counts, |m| m.pass(&Control::none().limited(Some(1 << 20)))).unwrap();
    // Half a MiB at one a second: never sooner.
    assert!(begun.elapsed() >= std::time::Duration::from_millis(400));
    lab.proven();
}
