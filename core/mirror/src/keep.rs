//! Taking files over from the old tree as they are, by several threads: a link each, a copy where the file system
//! refuses links.

use rustix::fs::{Mode, OFlags, openat};

use crate::build::{link, same_file};
use crate::content::open_file;
use crate::control::Control;
use crate::entry::Entry;
use crate::error::{At, Error, Result, lost, show};
use crate::meta::{Me, Skipped, set_on_fd};
use crate::tree::{Dirs, Tree, stat};

/// Files that wait are taken over once there are so many.
const BATCH: usize = 4096;
/// Fewer are not worth a thread.
const FEW: usize = 256;

pub(crate) struct Keeper<'a> {
    tree: &'a Tree,
    base: Option<&'a Tree>,
    me: Me,
    control: &'a Control<'a>,
    waiting: Vec<Entry>,
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(tree: &'a Tree, base: Option<&'a Tree>, control: &'a Control<'a>) -> Self {
        Self { tree, base, me: Me::get(), control, waiting: Vec::new() }
    }

    /// Takes a file over, now or at the next [`flush`](Self::flush). Its folder is there.
    pub(crate) fn push(&mut self, entry: Entry, skipped: &mut Skipped) -> Result<()> {
        self.waiting.push(entry);
        if self.waiting.len() >= BATCH { self.flush(skipped) } else { Ok(()) }
    }

    /// Takes over what waits.
    pub(crate) fn flush(&mut self, skipped: &mut Skipped) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let threads = if waiting.len() < FEW { 1 } else { self.control.threads() };
        let part = waiting.len().div_ceil(threads).max(1);
        // Neighbours in the order of the tree share a folder, and so a thread.
        let work = |entries: &[Entry]| -> Result<Skipped> {
            let mut skipped = Skipped::default();
            let base = self.base.ok_or_else(|| changed(b"", "there is no older tree".into()))?;
            let (mut base, mut tree) = (base.dirs(), self.tree.dirs());
            for entry in entries {
                self.control.check()?;
                self.keep(&mut base, &mut tree, entry, &mut skipped)?;
            }
            Ok(skipped)
        };
        if threads == 1 {
            if !waiting.is_empty() {
                skipped.add(work(&waiting)?);
            }
            return Ok(());
        }
        std::thread::scope(|scope| {
            let running: Vec<_> = waiting.chunks(part).map(|part| scope.spawn(move || work(part))).collect();
            for thread in running {
                skipped.add(thread.join().map_err(|_| lost())??);
            }
            Ok(())
        })
    }

    fn keep(
        &self,
        base: &mut Dirs<'_>,
        tree: &mut Dirs<'_>,
        entry: &Entry,
        skipped: &mut Skipped,
    ) -> Result<()> {
        let path = &entry.path;
        let (old_dir, name) = base.parent(path).map_err(|e| changed(path, e.to_string()))?;
        let st = stat(old_dir, name).map_err(|e| changed(path, e.to_string()))?;
        same_file(entry, &st).map_err(|why| changed(path, why))?;
        let (here, name) = tree.parent(path).at("open the folder of", path)?;
        self.control.add("build", st.stx_size, path);
        if link(old_dir, name, here, name).at("link", path)? {
            return Ok(());
        }
        let old = open_file(old_dir, name).at("open", path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = openat(here, name, flags, Mode::RUSR | Mode::WUSR).at("create", path)?;
        if let Some(content) = entry.content() {
            crate::copy::copy(&old, &new, content, st.stx_size, &|_| true, path, self.control)?;
            rustix::fs::ftruncate(&new, content.size).at("set the length of", path)?;
        }
        set_on_fd(&new, &entry.meta, self.me, path, skipped)
    }
}

fn changed(path: &[u8], why: String) -> Error {
    Error::BaseChanged { path: show(path), why }
}
