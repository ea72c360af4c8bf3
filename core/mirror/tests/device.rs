//! One device onto another: only what is allocated, zeros nowhere, on from where it was cut, to a full stop at once.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use common::noise;
use tandem_mirror::{Control, Error, Step, mirror_device};

const MIB: u64 = 1 << 20;

/// A sparse image with some data in it, and an empty one of the same length.
fn images(length: u64) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let [source, dest] = ["source", "dest"].map(|n| dir.path().join(n));
    for path in [&source, &dest] {
        File::create(path).unwrap().set_len(length).unwrap();
    }
    let file = File::options().write(true).open(&source).unwrap();
    for (place, seed) in [(0, 1), (5 * MIB + 4096, 2), (length - MIB, 3)] {
        file.write_all_at(&noise(seed, MIB as usize), place).unwrap();
    }
    (dir, source, dest)
}

fn same(one: &Path, two: &Path) -> bool {
    Command::new("cmp").arg("-s").args([one, two]).status().unwrap().success()
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn only_what_is_allocated_is_read_and_written() {
    let (_dir, source, dest) = images(64 << 30);
    let told = AtomicU64::new(0);
    let tell = |step: Step<'_>| {
        assert_eq!(step.total, Some(64 << 30));
        assert!(step.done <= 64 << 30);
        told.fetch_max(step.done, Ordering::Relaxed);
    };
    let control = Control::new(&|| false, &tell);
    // 64 GiB of holes on both sides would take minutes to read.
    let written = mirror_device(&source, &dest, true, &control).unwrap();
    assert!(written <= 6 * MIB, "{written}");
    assert!(allocated(&dest) <= 6 * MIB, "{}", allocated(&dest));
    let (here, there) = (File::open(&source).unwrap(), File::open(&dest).unwrap());
    for place in [0, 5 * MIB, 6 * MIB, (64 << 30) - MIB] {
        let (mut a, mut b) = (vec![0; MIB as usize], vec![1; MIB as usize]);
        here.read_exact_at(&mut a, place).unwrap();
        there.read_exact_at(&mut b, place).unwrap();
        assert!(a == b, "at {place}");
    }
    assert_eq!(mirror_device(&source, &dest, true, &Control::none()).unwrap(), 0, "nothing is left to do");
}

#[test]
fn zeros_leave_holes_and_what_was_there_goes() {
    let (_dir, source, dest) = images(32 * MIB);
    let file = File::options().write(true).open(&source).unwrap();
    // Allocated, and zeros all the same.
    file.write_all_at(&vec![0; 8 * MIB as usize], 10 * MIB).unwrap();
    fs::write(&dest, noise(9, 32 * MIB as usize)).unwrap();
    let written = mirror_device(&source, &dest, true, &Control::none()).unwrap();
    assert_eq!(written, 32 * MIB, "all of it was different");
    assert!(same(&source, &dest));
    assert!(allocated(&dest) <= 6 * MIB, "{}", allocated(&dest));
}

#[test]
fn a_later_pass_writes_what_changed() {
    let (_dir, source, dest) = images(64 * MIB);
    mirror_device(&source, &dest, false, &Control::none()).unwrap();
    let file = File::options().write(true).open(&source).unwrap();
    file.write_all_at(b"changed", 40 * MIB + 17).unwrap();
    file.write_all_at(b"changed", 63 * MIB + 17).unwrap();
    let written = mirror_device(&source, &dest, true, &Control::none()).unwrap();
    assert!((1..=2 * MIB).contains(&written), "{written}");
    assert!(same(&source, &dest));
}

#[test]
fn cut_anywhere_it_goes_on_from_there() {
    let (_dir, source, dest) = images(32 * MIB);
    fs::write(&source, noise(4, 32 * MIB as usize)).unwrap();
    let mut written = Vec::new();
    for after in [3, 17, 29] {
        // Asked once a piece.
        let asked = AtomicU64::new(0);
        let cancelled = || asked.fetch_add(1, Ordering::Relaxed) >= after;
        let control = Control::new(&cancelled, &|_| {});
        let cut = mirror_device(&source, &dest, true, &control).unwrap_err();
        assert!(matches!(cut, Error::Cancelled), "{cut}");
        assert!(asked.into_inner() <= after + 2, "it went on after it was cancelled");
        written.push(allocated(&dest));
    }
    assert!(written.is_sorted(), "{written:?}");
    let rest = mirror_device(&source, &dest, true, &Control::none()).unwrap();
    assert!(rest <= 4 * MIB, "{rest} bytes were left to write");
    assert!(same(&source, &dest));
}

#[test]
fn a_cancel_ends_the_wait_of_a_limited_copy() {
    let (_dir, source, dest) = images(16 * MIB);
    let asked = AtomicU64::new(0);
    let cancelled = || asked.fetch_add(1, Ordering::Relaxed) > 5;
    // At this speed a piece takes 17 minutes.
    let control = Control::new(&cancelled, &|_| {}).limited(Some(1024));
    let cut = mirror_device(&source, &dest, false, &control).unwrap_err();
    assert!(matches!(cut, Error::Cancelled), "{cut}");
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let (_dir, source, dest) = images(16 * MIB);
    let Some(device) = Loop::over(&dest) else { return };
    File::options().write(true).open(&source).unwrap().set_len(17 * MIB).unwrap();
    let refused = mirror_device(&source, &device.0, true, &Control::none()).unwrap_err().to_string();
    assert!(refused.contains("smaller") && refused.contains("17825792"), "{refused}");
}

#[test]
fn block_devices_are_mirrored() {
    let (_dir, source, dest) = images(16 * MIB);
    let (Some(from), Some(to)) = (Loop::over(&source), Loop::over(&dest)) else { return };
    let first = mirror_device(&from.0, &to.0, true, &Control::none()).unwrap();
    assert!((3 * MIB..=5 * MIB).contains(&first), "{first}");
    assert!(same(&from.0, &to.0));
    File::options().write(true).open(&from.0).unwrap().write_all_at(b"changed", 9 * MIB).unwrap();
    assert_eq!(mirror_device(&from.0, &to.0, true, &Control::none()).unwrap(), MIB);
    assert_eq!(mirror_device(&from.0, &to.0, true, &Control::none()).unwrap(), 0);
    // Onto an image, as onto a device.
    let image = dest.with_extension("image");
    File::create(&image).unwrap();
    mirror_device(&from.0, &image, true, &Control::none()).unwrap();
    assert!(same(&from.0, &image));
}

/// A loop device over an image; `None` where this user may not have one.
struct Loop(PathBuf);

impl Loop {
    fn over(image: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        let name = String::from_utf8(made.stdout).ok().filter(|_| made.status.success())?;
        Some(Self(PathBuf::from(name.trim())))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}
