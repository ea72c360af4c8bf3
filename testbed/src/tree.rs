//! A real tree of files, with everything in it that copying gets wrong; and `rsync`, the judge.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, utimensat};

/// Bytes of the largest file.
pub const LARGE: u64 = 200 << 20;
/// Apparent bytes of the sparse file.
pub const SPARSE: u64 = 512 << 20;

/// Writes the tree into a folder that exists.
pub fn write(root: &Path) {
    let mut deep = root.to_path_buf();
    for level in 0..40 {
        deep.push(format!("level {level}"));
        fs::create_dir(&deep).unwrap();
        fs::write(deep.join("here"), format!("at level {level}\n")).unwrap();
    }
    fill(&root.join("large"), LARGE, 1);
    fill(&root.join("moved"), 20 << 20, 3);
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(SPARSE).unwrap();
    sparse.write_all_at(b"an island", SPARSE / 3).unwrap();
    sparse.write_all_at(b"the shore", SPARSE - 9).unwrap();
    drop(sparse);

    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    for number in 0..500 {
        fs::write(many.join(format!("file {number}")), "x".repeat(number)).unwrap();
    }
    fs::write(root.join("empty"), "").unwrap();
    fs::create_dir(root.join("empty folder")).unwrap();

    let linked = root.join("linked");
    fs::write(&linked, "one file, three names\n").unwrap();
    fs::hard_link(&linked, root.join("linked too")).unwrap();
    fs::hard_link(&linked, root.join("level 0/linked from afar")).unwrap();
    symlink("linked", root.join("symlink")).unwrap();
    symlink("/nowhere/at all", root.join("dangling symlink")).unwrap();
    symlink("level 0", root.join("symlink to a folder")).unwrap();

    for name in strange_names() {
        fs::write(root.join(&name), "strange\n").unwrap();
    }

    let marked = root.join("marked");
    fs::write(&marked, "attributes\n").unwrap();
    attribute(&marked, "user.colour", b"blue");
    attribute(&marked, "user.bytes", b"\0\xff\n");
    attribute(&root.join("empty folder"), "user.colour", b"green");
    run("setfacl", &["-m", "u:12345:r", marked.to_str().unwrap()]);
    run("setfacl", &["-d", "-m", "u:12345:rx", root.join("empty folder").to_str().unwrap()]);

    let special = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o620), device).unwrap();
    };
    special("fifo", FileType::Fifo, 0);
    special("socket", FileType::Socket, 0);
    if is_root() {
        special("a device of characters", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        special("a device of blocks", FileType::BlockDevice, rustix::fs::makedev(7, 200));
    }

    for (name, mode) in [("private", 0o600), ("closed", 0o000), ("program", 0o755), ("set gid", 0o2755)] {
        fs::write(root.join(name), name).unwrap();
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(root.join("sticky")).unwrap();
    fs::set_permissions(root.join("sticky"), Permissions::from_mode(0o1777)).unwrap();
    if is_root() {
        for (name, owner) in [("private", 12345), ("symlink", 12346), ("many", 12347)] {
            std::os::unix::fs::lchown(root.join(name), Some(owner), Some(owner)).unwrap();
        }
    } else {
        // Only their owner's mode keeps us from reading them, and a copy reads.
        fs::set_permissions(root.join("closed"), Permissions::from_mode(0o400)).unwrap();
    }
    for (name, seconds) in
        [("linked", -1), ("symlink", 86_400), ("many", 1_000_000_000), ("empty", 4_000_000_000), ("fifo", 5)]
    {
        let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, root.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Changes, renames and deletes; the bytes that are new, which is what a good copy carries.
pub fn change(root: &Path) -> u64 {
    let large = File::options().write(true).open(root.join("large")).unwrap();
    let block = vec![0xA5; 1 << 20];
    for megabyte in [3, 77, 150] {
        large.write_all_at(&block, megabyte << 20).unwrap();
    }
    drop(large);
    fs::rename(root.join("moved"), root.join("level 0/moved here")).unwrap();
    fill(&root.join("new"), 5 << 20, 2);
    fs::remove_file(root.join("linked too")).unwrap();
    fs::remove_dir_all(root.join("level 0/level 1/level 2")).unwrap();
    fs::rename(root.join("many"), root.join("many, renamed")).unwrap();
    fs::remove_file(root.join("symlink")).unwrap();
    symlink("empty", root.join("symlink")).unwrap();
    fs::set_permissions(root.join("program"), Permissions::from_mode(0o700)).unwrap();
    attribute(&root.join("marked"), "user.colour", b"red");
    fs::rename(root.join("empty"), root.join("no longer\nempty")).unwrap();
    fs::write(root.join("no longer\nempty"), "now it has something\n").unwrap();
    (3 << 20) + (5 << 20)
}

fn strange_names() -> Vec<PathBuf> {
    [
        &b"with  spaces "[..],
        b"with\na newline",
        b"with a tab\t, a quote ' and another \"",
        b"-starts-with-a-dash",
        b"back\\slash and *?[]",
        b"not UTF-8 \xff\xfe",
        "with an accent \u{e9} and \u{5199}\u{771f}".as_bytes(),
    ]
    .into_iter()
    .map(|name| PathBuf::from(OsStr::from_bytes(name)))
    .collect()
}

/// Bytes that do not compress and repeat nowhere, the same for the same seed.
fn fill(path: &Path, bytes: u64, seed: u64) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut state = seed;
    for _ in 0..bytes / 8 {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        file.write_all(&(word ^ (word >> 31)).to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether this test runs as root, who sees through every mode.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What differs between two trees, in the words of `rsync`; nothing when they are equal. Compared are contents,
/// names, kinds, hard links, symlinks, modes, owners, times to the nanosecond, attributes and ACLs; and for the sparse
/// file the blocks that are really allocated. The mode of the root folder itself may differ: a replica's is
/// read-only.
pub fn differences(source: &Path, copy: &Path) -> Vec<String> {
    let slash = |path: &Path| format!("{}/", path.to_str().unwrap());
    let listing = run(
        "rsync",
        &["-naHAXSci", "--numeric-ids", "--modify-window=-1", "--delete", &slash(source), &slash(copy)],
    );
    let mut found: Vec<String> =
        listing.lines().filter(|line| *line != ".d...p..... ./").map(String::from).collect();
    let blocks = |root: &Path| fs::metadata(root.join("sparse")).map(|meta| meta.blocks());
    if let (Ok(here), Ok(there)) = (blocks(source), blocks(copy)) {
        // Where a file system keeps its map of a file may cost a block more or less.
        if here.abs_diff(there) > 64 {
            found.push(format!("the sparse file has {here} blocks here and {there} there"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_judge_sees_what_a_plain_copy_gets_wrong() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path());
        let faithful = ["-aHAXS", "--numeric-ids", "--modify-window=-1"];
        let (from, to) = (format!("{}/", one.path().display()), format!("{}/", two.path().display()));
        run("rsync", &[&faithful[..], &[&from, &to]].concat());
        assert_eq!(differences(one.path(), two.path()), [] as [String; 0]);

        attribute(&two.path().join("marked"), "user.colour", b"pink");
        fs::remove_file(two.path().join("linked")).unwrap();
        fs::write(two.path().join("linked"), "one file, three names\n").unwrap();
        fs::write(two.path().join("stranger"), "").unwrap();
        let found = differences(one.path(), two.path()).join("\n");
        for part in ["marked", "linked", "stranger"] {
            assert!(found.contains(part), "{found}");
        }

        change(one.path());
        assert!(!differences(one.path(), two.path()).is_empty());
    }
}
