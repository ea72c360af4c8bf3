//! A small file system, which is soon full.

use std::fs;
use std::path::{Path, PathBuf};

/// A file system of its own that can be filled.
pub(crate) struct Disk {
    place: PathBuf,
    _image: tempfile::NamedTempFile,
}

impl Disk {
    pub(crate) fn mount(place: &Path, bytes: u64) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(bytes).unwrap();
        fs::create_dir_all(place).unwrap();
        let path = image.path().to_str().unwrap();
        run("mkfs.ext4", &["-q", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", path]);
        run("mount", &["-o", "loop", path, place.to_str().unwrap()]);
        Self { place: place.to_owned(), _image: image }
    }

    pub(crate) fn fill(&self) {
        let free = rustix::fs::statvfs(&self.place).unwrap();
        let bytes = free.f_bavail * free.f_frsize;
        let ballast = fs::File::create(self.place.join("ballast")).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        let mut length = bytes;
        while rustix::fs::fallocate(&ballast, flags, 0, length).is_err() {
            length -= 1 << 20;
        }
    }

    pub(crate) fn make_room(&self) {
        fs::remove_file(self.place.join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["-l", self.place.to_str().unwrap()]);
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}
