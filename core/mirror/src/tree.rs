//! Reaching into a tree by folder descriptors only: no symlink is ever followed, no path is ever too long, and nothing
//! outside the tree can be reached, however it changes meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::entry::{Local, Time, split};
use crate::error::{At, Error, Result, show};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Open folders kept along one path; bounds the descriptors a walker needs in a deep tree.
const KEPT: usize = 24;

/// The root folder of a tree.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Opens the folder at `path`. Symlinks in `path` itself are followed: it is the operator's, not the tenant's.
    pub fn open(path: &Path) -> Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).at("open", path.as_os_str().as_bytes())?;
        Ok(Self { root })
    }

    /// The folder that a descriptor leads to, which need not be open for reading.
    pub fn at(folder: impl AsFd) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: openat(folder, ".", flags, Mode::empty()).at("open", b"")? })
    }

    /// The root's descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Sets the permissions of the root.
    pub fn set_root_mode(&self, mode: u32) -> Result<()> {
        rustix::fs::fchmod(&self.root, Mode::from_raw_mode(mode)).at("set the permissions of", b"")
    }

    /// A way to reach into it; each thread takes its own.
    pub fn dirs(&self) -> Dirs<'_> {
        Dirs { tree: self, open: Vec::new(), path: Vec::new() }
    }
}

/// Finds folders of a tree by path, keeping the last ones open.
#[derive(Debug)]
pub struct Dirs<'t> {
    tree: &'t Tree,
    /// Path of the deepest open folder.
    path: Vec<u8>,
    /// Open folders along it: length of each one's path, ascending.
    open: Vec<(usize, OwnedFd)>,
}

impl Dirs<'_> {
    /// The folder at `path`.
    pub fn dir(&mut self, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        self.descend(path, None)
    }

    /// The folder at `path`, made (mode 0700) with those above it where missing.
    pub fn dir_or_make(&mut self, path: &[u8]) -> io::Result<BorrowedFd<'_>> {
        self.descend(path, Some(Mode::RWXU))
    }

    /// The folder that holds `path`, and the name of `path` in it.
    pub fn parent<'p>(&mut self, path: &'p [u8]) -> io::Result<(BorrowedFd<'_>, &'p [u8])> {
        let (dir, name) = split(path).ok_or(Errno::INVAL)?;
        Ok((self.dir(dir)?, name))
    }

    /// Forgets what is open: after folders were renamed or removed.
    pub fn forget(&mut self) {
        self.open.clear();
        self.path.clear();
    }

    fn descend(&mut self, path: &[u8], make: Option<Mode>) -> io::Result<BorrowedFd<'_>> {
        let shared = self.path.iter().zip(path).take_while(|(a, b)| a == b).count();
        let fits = |len: usize| len <= shared && (len == path.len() || path.get(len) == Some(&b'/'));
        while self.open.last().is_some_and(|(len, _)| !fits(*len)) {
            self.open.pop();
        }
        let mut at = self.open.last().map_or(0, |(len, _)| *len);
        self.path.truncate(at);
        while at < path.len() {
            let start = if at == 0 { 0 } else { at + 1 };
            let end = path[start..].iter().position(|b| *b == b'/').map_or(path.len(), |n| start + n);
            let here = self.open.last().map_or(self.tree.root.as_fd(), |(_, fd)| fd.as_fd());
            let name = &path[start..end];
            let fd = match openat(here, name, FOLDER, Mode::empty()) {
                Err(Errno::NOENT) if make.is_some() => {
                    match rustix::fs::mkdirat(here, name, make.unwrap_or(Mode::RWXU)) {
                        Ok(()) | Err(Errno::EXIST) => openat(here, name, FOLDER, Mode::empty())?,
                        Err(e) => return Err(e.into()),
                    }
                }
                other => other?,
            };
            if self.open.len() >= KEPT {
                // Those near the top are the cheapest to find again, but dropping the first ones only would leave
                // every jump to a far path starting at the root; the middle goes.
                self.open.remove(KEPT / 2);
            }
            self.open.push((end, fd));
            self.path.extend_from_slice(&path[at..end]);
            at = end;
        }
        Ok(self.open.last().map_or(self.tree.root.as_fd(), |(_, fd)| fd.as_fd()))
    }
}

/// What a name refers to, without following it.
pub(crate) fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(dir, name, flags, StatxFlags::BASIC_STATS)
}

/// What an open descriptor refers to.
pub(crate) fn stat_fd(fd: impl AsFd) -> rustix::io::Result<Statx> {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
}

pub(crate) fn mtime_of(st: &Statx) -> Time {
    Time { sec: st.stx_mtime.tv_sec, nsec: st.stx_mtime.tv_nsec }
}

pub(crate) fn local_of(st: &Statx) -> Local {
    Local {
        dev: rustix::fs::makedev(st.stx_dev_major, st.stx_dev_minor),
        ino: st.stx_ino,
        ctime: Time { sec: st.stx_ctime.tv_sec, nsec: st.stx_ctime.tv_nsec },
    }
}

/// The names in a folder, sorted by their bytes.
pub(crate) fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A path that names an entry for calls that know no folder descriptors (xattrs of symlinks and special files).
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Removes what lies at `name` in `dir`, with everything below it, whatever its permissions. What is not there is
/// no error. Checks `cancelled` on its way.
pub fn remove(dir: BorrowedFd<'_>, name: &[u8], cancelled: &dyn Fn() -> bool) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e).at("remove", name),
    }
    let tree = Tree { root: open_for_removal(dir, name).at("open", name)? };
    let mut dirs = tree.dirs();
    // Depth first without recursion: the path of the folder being emptied.
    let mut path: Vec<u8> = Vec::new();
    loop {
        if cancelled() {
            return Err(Error::Cancelled);
        }
        let mut below = None;
        let here = dirs.dir(&path).at("open", &path)?;
        for name in names(here).at("list", &path)? {
            if cancelled() {
                return Err(Error::Cancelled);
            }
            match rustix::fs::unlinkat(here, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    match rustix::fs::unlinkat(here, &name, AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(Errno::NOTEMPTY | Errno::EXIST) => {
                            open_for_removal(here, &name).at("open", &name)?;
                            below = Some(name);
                            break;
                        }
                        Err(e) => return Err(e).at("remove", &name),
                    }
                }
                Err(e) => return Err(e).at("remove", &name),
            }
        }
        if let Some(name) = below {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
        } else if let Some((up, _)) = split(&path) {
            path.truncate(up.len());
        } else {
            break;
        }
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).at("remove", name),
    }
}

/// Opens a folder whose permissions may forbid it, giving its owner every right first where needed.
fn open_for_removal(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    if let Ok(st) = stat(dir, name)
        && u32::from(st.stx_mode) & 0o700 != 0o700
        && u32::from(st.stx_mode) & 0o170_000 == 0o040_000
    {
        // Root needs no right, and a folder of somebody else cannot be changed: let the removal itself complain.
        let _ = rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty());
    }
    openat(dir, name, FOLDER, Mode::empty())
}

/// [`remove`] by an ordinary path of the caller's own.
pub fn remove_path(path: &Path, cancelled: &dyn Fn() -> bool) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::Mismatch {
            path: show(bytes),
            why: "it has no name that could be removed".into(),
        });
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(dir) => remove(dir.as_fd(), name.as_bytes(), cancelled),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e).at("open", parent.as_os_str().as_bytes()),
    }
}
