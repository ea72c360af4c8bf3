//! Folders and further names of a pass: made in order by one thread, finished when everything else is.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::{Time, Work};
use crate::build::link;
use crate::entry::{Entry, split};
use crate::error::{At, Error, Result, show};
use crate::meta::{drop_xattrs, set_on_fd, xattrs_of_fd};
use crate::scan::Met;
use crate::tree::{mtime_of, remove, stat, stat_fd};
use crate::watch::RootMode;

impl Work<'_> {
    /// Sees to it that a folder is there and can be written into.
    pub(super) fn make_folder(&mut self, met: &Met, there: Option<&Met>) -> Result<()> {
        let path = &met.path;
        let Some((dir, name)) = split(path) else { return Ok(()) };
        let here = self.here.dir(dir).at("open the folder of", path)?;
        match there {
            Some(twin) if twin.kind() == FileType::Directory => {
                // Its permissions are set again at the end; only root needs none meanwhile.
                if u32::from(twin.st.stx_mode) & 0o700 != 0o700 && self.me.uid != 0 {
                    rustix::fs::chmodat(here, name, Mode::RWXU, AtFlags::empty())
                        .at("open the permissions of", path)?;
                }
                return Ok(());
            }
            Some(_) => {
                self.report.removed += 1;
                remove(here, name, &|| self.control.cancelled())?;
            }
            None => {}
        }
        match rustix::fs::mkdirat(here, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).at("create", path),
        }
        let made = self.here.dir(path).at("open", path)?;
        crate::meta::drop_default_acl(made);
        self.report.made += 1;
        Ok(())
    }

    /// Makes what has to wait for everything else: further names, and last the metadata of folders, the deepest first,
    /// for what is made in a folder moves its time.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.here.forget();
        for (first, path) in std::mem::take(&mut self.seconds) {
            self.control.check()?;
            self.second_name(&first, &path)?;
        }
        while let Some(folder) = self.folders.pop() {
            self.finish_folder(&folder)?;
        }
        Ok(())
    }

    fn second_name(&mut self, first: &[u8], path: &[u8]) -> Result<()> {
        let (dir, first_name) = self.here.parent(first).at("open the folder of", first)?;
        let Ok(leader) = stat(dir, first_name) else {
            // The first name went while it was copied, or is a device that may not be made; a later pass sees it.
            return Ok(());
        };
        let dir = dir.try_clone_to_owned().at("open the folder of", first)?;
        let (here, name) = self.here.parent(path).at("open the folder of", path)?;
        if let Ok(st) = stat(here, name) {
            if (st.stx_ino, st.stx_dev_minor, st.stx_dev_major)
                == (leader.stx_ino, leader.stx_dev_minor, leader.stx_dev_major)
            {
                return Ok(());
            }
            remove(here, name, &|| self.control.cancelled())?;
        }
        if !link(dir.as_fd(), first_name, here, name).at("link", path)? {
            let why = "the file system does not allow another hard link".to_owned();
            return Err(Error::Mismatch { path: show(path), why });
        }
        self.report.made += 1;
        Ok(())
    }

    fn finish_folder(&mut self, folder: &Entry) -> Result<()> {
        let path = &folder.path;
        let fd = self.here.dir(path).at("open", path)?;
        let st = stat_fd(fd).at("stat", path)?;
        let now = u32::from(st.stx_mode) & 0o7777;
        let mut meta = folder.meta.clone();
        if path.is_empty() && self.mirror.root == RootMode::Aside {
            meta.mode = now;
        }
        let there = xattrs_of_fd(fd).at("read the attributes of", path)?;
        let time: Time = mtime_of(&st);
        if (now, st.stx_uid, st.stx_gid, time) == (meta.mode, meta.uid, meta.gid, meta.mtime)
            && there == meta.xattrs
        {
            return Ok(());
        }
        // The times that making and removing its names moved are no change of its own.
        if (now, &there) != (meta.mode, &meta.xattrs) {
            self.report.adjusted += 1;
        }
        drop_xattrs(fd, &there, &meta.xattrs);
        set_on_fd(fd, &meta, self.me, path, &mut self.report.skipped)
    }
}
