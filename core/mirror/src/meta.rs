//! Reading and setting owners, permissions, times and extended attributes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, Gid, Mode, Statx, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
    fgetxattr_query, flistxattr, flistxattr_query, fremovexattr, fsetxattr, futimens, lgetxattr,
    lgetxattr_query, llistxattr, llistxattr_query, lsetxattr, utimensat,
};
use rustix::io::Errno;

use crate::entry::{Meta, Time, Xattr};
use crate::error::{At, Result};
use crate::tree::mtime_of;

/// What could not be reproduced for want of permission or of support by the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Owners or groups.
    pub owners: u64,
    /// Extended attributes, ACLs among them.
    pub xattrs: u64,
    /// Devices that could not be made.
    pub devices: u64,
}

impl Skipped {
    /// Adds what another part of the work skipped.
    pub fn add(&mut self, other: Self) {
        self.owners += other.owners;
        self.xattrs += other.xattrs;
        self.devices += other.devices;
    }

    /// One sentence for each kind of thing that was skipped.
    pub fn remarks(&self) -> Vec<String> {
        let line =
            |n: u64, what: &str, why: &str| (n > 0).then(|| format!("{n} {what} could not be set: {why}."));
        [
            line(self.owners, "owners", "the driver has no right to give files away"),
            line(
                self.xattrs,
                "extended attributes",
                "the file system or the driver's rights do not allow them",
            ),
            line(self.devices, "device nodes", "the driver has no right to make them"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Metadata from a stat; attributes are read apart.
pub(crate) fn meta_of(st: &Statx, xattrs: Vec<Xattr>) -> Meta {
    Meta {
        mode: u32::from(st.stx_mode) & 0o7777,
        uid: st.stx_uid,
        gid: st.stx_gid,
        mtime: mtime_of(st),
        xattrs,
    }
}

/// Attributes of an open file or folder.
pub(crate) fn xattrs_of_fd(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<Xattr>> {
    collect(
        || flistxattr_query(fd),
        |buf| flistxattr(fd, spare_capacity(buf)),
        |name| fgetxattr_query(fd, name),
        |name, buf| fgetxattr(fd, name, spare_capacity(buf)),
    )
}

/// Attributes of what lies at a path, which may be a symlink or a special file.
pub(crate) fn xattrs_of_path(path: &[u8]) -> rustix::io::Result<Vec<Xattr>> {
    collect(
        || llistxattr_query(path),
        |buf| llistxattr(path, spare_capacity(buf)),
        |name| lgetxattr_query(path, name),
        |name, buf| lgetxattr(path, name, spare_capacity(buf)),
    )
}

fn collect(
    names_len: impl Fn() -> rustix::io::Result<usize>,
    names: impl Fn(&mut Vec<u8>) -> rustix::io::Result<usize>,
    value_len: impl Fn(&[u8]) -> rustix::io::Result<usize>,
    value: impl Fn(&[u8], &mut Vec<u8>) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<Xattr>> {
    let grown = |len: &dyn Fn() -> rustix::io::Result<usize>,
                 get: &dyn Fn(&mut Vec<u8>) -> rustix::io::Result<usize>| {
        loop {
            let len = len()?;
            if len == 0 {
                return Ok(Vec::new());
            }
            let mut buffer = Vec::with_capacity(len);
            match get(&mut buffer) {
                // It grew between the two calls.
                Err(Errno::RANGE) => {}
                Err(e) => return Err(e),
                Ok(_) => return Ok(buffer),
            }
        }
    };
    let list = match grown(&names_len, &names) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut xattrs = Vec::new();
    for name in list.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        match grown(&|| value_len(name), &|buf| value(name, buf)) {
            Ok(value) => xattrs.push(Xattr { name: name.to_vec(), value }),
            // Removed meanwhile, or not ours to read (trusted.*).
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

fn times(mtime: Time) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    Timestamps {
        last_access: omit,
        last_modification: Timespec { tv_sec: mtime.sec, tv_nsec: i64::from(mtime.nsec) },
    }
}

/// The user and group that files made by this process belong to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Me {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Me {
    pub(crate) fn get() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// The owner and group to change to; nothing where the new file has them already.
    fn change(self, meta: &Meta) -> Option<(Option<Uid>, Option<Gid>)> {
        let uid = (meta.uid != self.uid && meta.uid != u32::MAX).then(|| Uid::from_raw(meta.uid));
        let gid = (meta.gid != self.gid && meta.gid != u32::MAX).then(|| Gid::from_raw(meta.gid));
        (uid.is_some() || gid.is_some()).then_some((uid, gid))
    }
}

/// Sets everything on an open file or folder that this process has just made. `mode` overrides the one in `meta`.
///
/// The order matters: giving a file away clears setuid and capabilities, permissions rewrite the mask of an ACL, and
/// everything but the time itself moves the time.
pub(crate) fn set_on_fd(
    fd: impl AsFd,
    meta: &Meta,
    me: Me,
    path: &[u8],
    skipped: &mut Skipped,
) -> Result<()> {
    let fd = fd.as_fd();
    if let Some((uid, gid)) = me.change(meta) {
        let mut failed = fchown(fd, uid, gid);
        if failed == Err(Errno::PERM) && uid.is_some() && gid.is_some() {
            skipped.owners += 1;
            failed = fchown(fd, None, gid);
        }
        forgive(failed, &mut skipped.owners).at("give away", path)?;
    }
    for xattr in meta.xattrs.iter().filter(|x| !is_acl(&x.name)) {
        let set = fsetxattr(fd, &xattr.name, &xattr.value, XattrFlags::empty());
        forgive(set, &mut skipped.xattrs).at("set an extended attribute of", path)?;
    }
    forgive(fchmod(fd, Mode::from_raw_mode(meta.mode)), &mut 0).at("set the permissions of", path)?;
    for xattr in meta.xattrs.iter().filter(|x| is_acl(&x.name)) {
        let set = fsetxattr(fd, &xattr.name, &xattr.value, XattrFlags::empty());
        forgive(set, &mut skipped.xattrs).at("set the ACL of", path)?;
    }
    futimens(fd, &times(meta.mtime)).at("set the time of", path)
}

/// Sets everything on what was just made at `name` and cannot be opened: a symlink or a special file.
pub(crate) fn set_on_name(
    dir: BorrowedFd<'_>,
    name: &[u8],
    meta: &Meta,
    is_symlink: bool,
    me: Me,
    skipped: &mut Skipped,
) -> Result<()> {
    if let Some((uid, gid)) = me.change(meta) {
        let mut failed = chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW);
        if failed == Err(Errno::PERM) && uid.is_some() && gid.is_some() {
            skipped.owners += 1;
            failed = chownat(dir, name, None, gid, AtFlags::SYMLINK_NOFOLLOW);
        }
        forgive(failed, &mut skipped.owners).at("give away", name)?;
    }
    if !is_symlink {
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
            .at("set the permissions of", name)?;
    }
    if !meta.xattrs.is_empty() {
        let path = crate::tree::proc_path(dir, name);
        for xattr in &meta.xattrs {
            let set = lsetxattr(&path, &xattr.name, &xattr.value, XattrFlags::empty());
            forgive(set, &mut skipped.xattrs).at("set an extended attribute of", name)?;
        }
    }
    utimensat(dir, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW).at("set the time of", name)
}

/// Removes attributes that are there and are not wanted.
pub(crate) fn drop_xattrs(fd: BorrowedFd<'_>, there: &[Xattr], wanted: &[Xattr]) {
    for xattr in there.iter().filter(|x| !wanted.iter().any(|w| w.name == x.name)) {
        // What may not be removed shows when the copy is proven.
        let _ = fremovexattr(fd, &xattr.name);
    }
}

/// Removes the ACL that a new folder inherited, so that it passes none on.
pub(crate) fn drop_default_acl(fd: impl AsFd) {
    // Absent or unsupported is what is wanted.
    let _ = fremovexattr(fd, "system.posix_acl_default");
}

/// Counts what is not permitted or not supported, instead of failing on it.
fn forgive(result: rustix::io::Result<()>, count: &mut u64) -> rustix::io::Result<()> {
    match result {
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => {
            *count += 1;
            Ok(())
        }
        other => other,
    }
}
