//! Moving folders in which nothing changed out of a tree that is about to go.
//!
//! A folder is moved when neither the last nor this increment touched anything in it. One that holds a further name of
//! something is not: that name must lead to the new tree's first one. Whatever cannot be moved is left to be linked from
//! the base as ever.

use std::collections::HashSet;
use std::sync::Arc;

use rustix::fs::{AtFlags, renameat, unlinkat};

use crate::build::same_file;
use crate::control::Control;
use crate::entry::{Entry, Kind, is_below, split};
use crate::error::{At, Error, Result, show};
use crate::manifest::ManifestReader;
use crate::receive::{Base, Spare, unusable};
use crate::staging::{Changes, Logged};
use crate::tree::{Dirs, Tree, mtime_of, names, stat};

pub(crate) struct Recycle<'a> {
    spare: Dirs<'a>,
    /// Folders that cannot be moved whole, and what makes them so.
    touched: Arc<HashSet<Vec<u8>>>,
    /// The folder moved last.
    moved: Option<Vec<u8>>,
}

impl<'a> Recycle<'a> {
    pub(crate) fn find(base: &Base<'_>, spare: &Spare<'a>, mut now: Changes) -> Result<Self> {
        let mut touched = HashSet::new();
        let mut earlier = Changes::open(spare.delta, u64::MAX)?;
        while let Some(change) = next(&mut earlier)? {
            touch(&mut touched, change.path());
        }
        while let Some(change) = next(&mut now)? {
            touch(&mut touched, change.path());
        }
        for entry in ManifestReader::open(base.manifest).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            if matches!(entry.kind, Kind::HardLink { .. }) {
                touch(&mut touched, &entry.path);
            }
        }
        // Used once: what a build that fails on its way leaves of the spare tree is no base for this any more.
        std::fs::remove_file(spare.delta).at("remove", b"delta")?;
        Ok(Self { spare: spare.tree.dirs(), touched: Arc::new(touched), moved: None })
    }

    /// What will not be moved.
    pub(crate) fn remains(&self) -> Remains {
        Remains { touched: Arc::clone(&self.touched) }
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

/// Marks a path and every folder above it.
fn touch(touched: &mut HashSet<Vec<u8>>, path: &[u8]) {
    touched.insert(path.to_vec());
    let mut path = path;
    while let Some((dir, _)) = split(path) {
        if !touched.insert(dir.to_vec()) {
            break;
        }
        path = dir;
    }
}

/// The part of a spare tree that is of no use.
pub(crate) struct Remains {
    touched: Arc<HashSet<Vec<u8>>>,
}

impl Remains {
    /// Removes it, while folders are moved out of the same tree. Best effort: the caller removes the tree later, and
    /// this only saves it the time.
    pub(crate) fn remove(&self, tree: &Tree, control: &Control<'_>) {
        let mut dirs = tree.dirs();
        let mut folders = vec![Vec::new()];
        while let Some(folder) = folders.pop() {
            let Ok(here) = dirs.dir(&folder) else { continue };
            let Ok(names) = names(here) else { continue };
            for name in names {
                if control.cancelled() {
                    return;
                }
                let mut path = folder.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&name);
                // Folders refuse this; those that were touched are gone into, the others are to be moved.
                if unlinkat(here, &name, AtFlags::empty()).is_err() && self.touched.contains(&path) {
                    folders.push(path);
                }
            }
        }
    }
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
