//! Moving what did not change out of a tree that is about to go, whole folders at a time.
//!
//! A folder is moved when neither the last nor this increment touched anything in it. One that holds a further name of
//! something is not: that name must lead to the new tree's first one. Whatever cannot be moved is left to be linked from
//! the base as ever.

use std::collections::HashSet;

use rustix::fs::renameat;

use crate::build::same_file;
use crate::entry::{Entry, Kind, is_below, split};
use crate::error::{At, Error, Result, show};
use crate::manifest::ManifestReader;
use crate::receive::{Base, Spare};
use crate::staging::{Changes, Logged};
use crate::tree::{Dirs, mtime_of, stat};

pub(crate) struct Recycle<'a> {
    spare: Dirs<'a>,
    /// Paths that differ between the spare tree and the base.
    before: HashSet<Vec<u8>>,
    /// Folders that cannot be moved whole.
    touched: HashSet<Vec<u8>>,
    /// The folder moved last.
    moved: Option<Vec<u8>>,
}

impl<'a> Recycle<'a> {
    pub(crate) fn find(base: &Base<'_>, spare: &Spare<'a>, mut now: Changes) -> Result<Self> {
        let mut this =
            Self { spare: spare.tree.dirs(), before: HashSet::new(), touched: HashSet::new(), moved: None };
        let mut earlier = Changes::open(spare.delta, u64::MAX)?;
        while let Some(change) = next(&mut earlier)? {
            this.touch(&change);
            this.before.insert(change.path().to_vec());
        }
        while let Some(change) = next(&mut now)? {
            this.touch(&change);
        }
        for entry in ManifestReader::open(base.manifest)? {
            let entry = entry?;
            if matches!(entry.kind, Kind::HardLink { .. }) {
                this.touch_above(&entry.path);
            }
        }
        // Used once: what a build that fails on its way leaves of the spare tree is no base for this any more.
        std::fs::remove_file(spare.delta).at("remove", b"delta")?;
        Ok(this)
    }

    fn touch(&mut self, change: &Logged) {
        self.touched.insert(change.path().to_vec());
        self.touch_above(change.path());
    }

    fn touch_above(&mut self, path: &[u8]) {
        let mut path = path;
        while let Some((dir, _)) = split(path) {
            if !self.touched.insert(dir.to_vec()) {
                break;
            }
            path = dir;
        }
    }

    /// Whether this folder was the one moved, rather than one within it.
    pub(crate) fn is_top(&self, path: &[u8]) -> bool {
        self.moved.as_deref() == Some(path)
    }

    /// Moves an unchanged entry into `tree`. `false` when it has to be made in another way.
    pub(crate) fn take(&mut self, tree: &mut Dirs<'_>, entry: &Entry) -> Result<bool> {
        let path = &entry.path;
        if self.moved.as_ref().is_some_and(|moved| is_below(path, moved)) {
            // It came with its folder, and is looked at all the same.
            return came_along(tree, entry);
        }
        match entry.kind {
            Kind::Dir if !self.touched.contains(path) => {
                // Another time than in the manifest: somebody put something in, or took something out.
                let spare = self.spare.parent(path).ok().and_then(|(dir, name)| stat(dir, name).ok());
                if spare.is_none_or(|st| mtime_of(&st) != entry.meta.mtime) || !self.rename(tree, path)? {
                    return Ok(false);
                }
                self.moved = Some(path.clone());
                Ok(true)
            }
            Kind::File(_) if !self.before.contains(path) => {
                Ok(self.rename(tree, path)? && is_there(tree, entry))
            }
            _ => Ok(false),
        }
    }

    fn rename(&mut self, tree: &mut Dirs<'_>, path: &[u8]) -> Result<bool> {
        // Gone, or forbidden by the permissions of a folder: the base has it.
        let Ok((from, name)) = self.spare.parent(path) else { return Ok(false) };
        let Some((dir, _)) = split(path) else { return Ok(false) };
        let to = tree.dir_or_make(dir).at("create the folder of", path)?;
        Ok(renameat(from, name, to, name).is_ok())
    }
}

fn next(changes: &mut Changes) -> Result<Option<Logged>> {
    changes.peek()?;
    Ok(changes.take())
}

/// Whether what was moved is what the manifest says. If not, it is made anew from the base.
fn is_there(tree: &mut Dirs<'_>, entry: &Entry) -> bool {
    let Ok((dir, name)) = tree.parent(&entry.path) else { return false };
    stat(dir, name).is_ok_and(|st| same_file(entry, &st).is_ok())
}

/// Looks at what was moved with the folder above it.
fn came_along(tree: &mut Dirs<'_>, entry: &Entry) -> Result<bool> {
    if entry.kind != Kind::Dir {
        let found = tree.parent(&entry.path).ok().and_then(|(dir, name)| stat(dir, name).ok());
        return Ok(match entry.kind {
            Kind::File(_) => found.is_some_and(|st| same_file(entry, &st).is_ok()),
            _ => found.is_some_and(|st| mtime_of(&st) == entry.meta.mtime),
        });
    }
    let st = tree.parent(&entry.path).map(|(dir, name)| stat(dir, name));
    match st {
        Ok(Ok(st)) if mtime_of(&st) == entry.meta.mtime => Ok(true),
        _ => Err(Error::BaseChanged {
            path: show(&entry.path),
            why: "something was put into the folder or taken out of it".into(),
        }),
    }
}
