//! Completing a new tree once everything for it has arrived: what did not change is linked from the old tree, folders,
//! symlinks and special files are made, and the manifest of it all is proven against the root hash that was announced.
//!
//! May be killed at any point and run again.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs::File;
use std::io::BufWriter;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, linkat, makedev, mknodat, symlinkat};
use rustix::io::Errno;

use crate::control::Control;
use crate::entry::{Entry, Hash, Kind, compare, split};
use crate::error::{At, Error, Result, show};
use crate::keep::Keeper;
use crate::manifest::{ManifestReader, ManifestWriter, Summary};
use crate::meta::{Me, Skipped, set_on_fd, set_on_name};
use crate::receive::{Base, Spare, unusable};
use crate::recycle::Recycle;
use crate::staging::{Changes, Logged, Staging};
use crate::tree::{Dirs, Tree, mtime_of, stat};
use crate::variants::append_variant;

pub(crate) struct Built {
    pub(crate) summary: Summary,
    pub(crate) skipped: Skipped,
    pub(crate) newer: u64,
}

/// Makes the staged tree whole.
pub(crate) fn build(
    staging: &mut Staging,
    tree: &Tree,
    base: Option<&Base<'_>>,
    spare: Option<&Spare<'_>>,
    root: &Hash,
    control: &Control<'_>,
) -> Result<Built> {
    control.start("build", None);
    let marker = staging.path("building");
    let again = marker.exists();
    File::create(&marker).at("create", b"building")?;
    let variants = staging.path("variants");
    File::create(&variants).at("create", b"variants")?;
    let mut manifest = ManifestWriter::create(&staging.path("manifest.new"))?;
    let mut builder = Builder {
        tree: tree.dirs(),
        keeper: Keeper::new(tree, base.map(|b| b.tree), control),
        again,
        me: Me::get(),
        recycle: match (base, spare) {
            (Some(base), Some(spare)) => Some(Recycle::find(base, spare, staging.changes()?)?),
            _ => None,
        },
        absent: HashSet::new(),
        seconds: Vec::new(),
        folders: Vec::new(),
        skipped: Skipped::default(),
        control,
    };
    let changes = staging.changes()?;
    // What the spare tree cannot give is removed by a thread of its own meanwhile.
    let remains = builder.recycle.as_ref().map(Recycle::remains);
    let newer = std::thread::scope(|scope| {
        if let (Some(remains), Some(spare)) = (&remains, spare) {
            scope.spawn(|| remains.remove(spare.tree, control));
        }
        builder.merge(base, changes, &mut manifest, &variants)
    })?;
    let summary = manifest.finish_durable()?;
    if summary.root != *root {
        return Err(Error::Mismatch {
            path: show(b""),
            why: "the root hash of what was built is not the one announced".into(),
        });
    }
    builder.finish()?;
    rustix::fs::syncfs(tree.fd()).at("sync", b"")?;
    std::fs::rename(staging.path("manifest.new"), staging.path("manifest")).at("rename", b"manifest")?;
    Ok(Built { summary, skipped: builder.skipped, newer })
}

struct Builder<'a> {
    tree: Dirs<'a>,
    keeper: Keeper<'a>,
    /// An earlier run was killed: what it made may lie here, folders with their final permissions among it.
    again: bool,
    me: Me,
    recycle: Option<Recycle<'a>>,
    /// Paths that the manifest has and the tree cannot have.
    absent: HashSet<Vec<u8>>,
    /// Further names, with the first ones: made once all of those are there.
    seconds: Vec<(Vec<u8>, Vec<u8>)>,
    folders: Vec<Entry>,
    skipped: Skipped,
    control: &'a Control<'a>,
}

impl Builder<'_> {
    /// Makes all entries of base and log, and their manifest. Gives the number of those that are newer than it says.
    fn merge(
        &mut self,
        base: Option<&Base<'_>>,
        mut changes: Changes,
        manifest: &mut ManifestWriter<BufWriter<File>>,
        variants: &Path,
    ) -> Result<u64> {
        let mut newer = 0;
        let mut old = base
            .map(|b| ManifestReader::open(b.manifest))
            .transpose()
            .map_err(unusable)?
            .into_iter()
            .flatten()
            .peekable();
        loop {
            self.control.check()?;
            let order = match (old.peek(), changes.peek()?) {
                (None, None) => break,
                (Some(Err(_)), _) | (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(Ok(entry)), Some(change)) => compare(&entry.path, change.path()),
            };
            let entry =
                if order == Ordering::Greater { None } else { old.next().transpose().map_err(unusable)? };
            if order == Ordering::Less {
                if let Some(entry) = entry {
                    manifest.push(&entry)?;
                    self.make(entry, false)?;
                }
                continue;
            }
            match changes.take() {
                Some(Logged::Remove(_)) | None => {}
                Some(Logged::Gone(original)) => {
                    manifest.push(&original)?;
                    append_variant(variants, &original.path, None)?;
                    newer += 1;
                    self.absent.insert(original.path);
                }
                Some(Logged::Put { entry, original }) => {
                    match original.filter(|o| !o.same(&entry)) {
                        None => manifest.push(&entry)?,
                        Some(original) => {
                            manifest.push(&original)?;
                            append_variant(variants, &entry.path, Some(&entry))?;
                            newer += 1;
                        }
                    }
                    self.make(entry, true)?;
                }
            }
        }
        Ok(newer)
    }

    /// Makes one entry. `arrived` when it came with the stream: a regular file then lies here already.
    fn make(&mut self, entry: Entry, arrived: bool) -> Result<()> {
        let path = &entry.path;
        let Some((dir, name)) = split(path) else {
            self.folders.push(entry);
            return Ok(());
        };
        if let Some(recycle) = &mut self.recycle
            && !arrived
            && recycle.take(&mut self.tree, &entry)?
        {
            if entry.kind == Kind::Dir && recycle.is_top(path) {
                self.folders.push(entry);
            }
            return Ok(());
        }
        let here = self.tree.dir_or_make(dir).at("create the folder of", path)?;
        match &entry.kind {
            Kind::Dir => {
                match rustix::fs::mkdirat(here, name, Mode::RWXU) {
                    Ok(()) => {}
                    Err(Errno::EXIST) if self.again => {
                        let _ = rustix::fs::chmodat(here, name, Mode::RWXU, AtFlags::empty());
                    }
                    Err(Errno::EXIST) => {}
                    Err(e) => return Err(e).at("create", path),
                }
                self.folders.push(entry);
                Ok(())
            }
            Kind::File(_) if arrived => {
                let st = stat(here, name).at("stat", path)?;
                same_file(&entry, &st).map_err(|why| Error::Mismatch { path: show(path), why })
            }
            Kind::File(_) => self.keeper.push(entry, &mut self.skipped),
            Kind::HardLink { to } => {
                self.seconds.push((to.clone(), entry.path));
                Ok(())
            }
            _ => self.special(&entry),
        }
    }

    fn second_name(&mut self, to: &[u8], path: &[u8]) -> Result<()> {
        // Two folders of one tree: the first is held by a descriptor of its own.
        let (first, first_name) = self.tree.parent(to).at("open the folder of", to)?;
        let first = first.try_clone_to_owned().at("open the folder of", to)?;
        let (here, name) = self.tree.parent(path).at("open the folder of", path)?;
        let linked = link(std::os::fd::AsFd::as_fd(&first), first_name, here, name).at("link", path)?;
        if linked {
            return Ok(());
        }
        let why = "the file system does not allow another hard link".to_owned();
        Err(Error::Mismatch { path: show(path), why })
    }

    fn special(&mut self, entry: &Entry) -> Result<()> {
        let path = &entry.path;
        let (here, name) = self.tree.parent(path).at("open the folder of", path)?;
        let mode = Mode::RUSR | Mode::WUSR;
        let make = || match &entry.kind {
            Kind::Symlink { target } => symlinkat(target, here, name),
            Kind::Fifo => mknodat(here, name, FileType::Fifo, mode, 0),
            Kind::Socket => mknodat(here, name, FileType::Socket, mode, 0),
            Kind::CharDevice { major, minor } => {
                mknodat(here, name, FileType::CharacterDevice, mode, makedev(*major, *minor))
            }
            Kind::BlockDevice { major, minor } => {
                mknodat(here, name, FileType::BlockDevice, mode, makedev(*major, *minor))
            }
            Kind::Dir | Kind::File(_) | Kind::HardLink { .. } => Ok(()),
        };
        let mut made = make();
        if made == Err(Errno::EXIST) {
            rustix::fs::unlinkat(here, name, AtFlags::empty()).at("replace", path)?;
            made = make();
        }
        let device = matches!(entry.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. });
        match made {
            Err(Errno::PERM) if device => {
                self.skipped.devices += 1;
                self.absent.insert(path.clone());
                Ok(())
            }
            Err(e) => Err(e).at("create", path),
            Ok(()) => {
                let symlink = matches!(entry.kind, Kind::Symlink { .. });
                set_on_name(here, name, &entry.meta, symlink, self.me, &mut self.skipped)
            }
        }
    }

    /// Makes what has to wait for everything else: further names, and last the metadata of folders, the deepest first,
    /// for what is made in a folder moves its time.
    fn finish(&mut self) -> Result<()> {
        self.keeper.flush(&mut self.skipped)?;
        for (to, path) in std::mem::take(&mut self.seconds) {
            if !self.absent.contains(&to) {
                self.second_name(&to, &path)?;
            }
        }
        while let Some(folder) = self.folders.pop() {
            let fd = self.tree.dir(&folder.path).at("open", &folder.path)?;
            set_on_fd(fd, &folder.meta, self.me, &folder.path, &mut self.skipped)?;
        }
        Ok(())
    }
}

/// Whether what lies there still has the kind, length and time that the entry says.
pub(crate) fn same_file(entry: &Entry, st: &rustix::fs::Statx) -> std::result::Result<(), String> {
    if FileType::from_raw_mode(st.stx_mode.into()) != FileType::RegularFile {
        return Err("it is no regular file any more".into());
    }
    if entry.content().map(|c| c.size) != Some(st.stx_size) {
        return Err(format!("it is {} bytes long", st.stx_size));
    }
    if entry.meta.mtime != mtime_of(st) {
        return Err("its time of modification differs".into());
    }
    Ok(())
}

/// Gives a file another name, replacing what an earlier run left there. `false` where the file system refuses links.
pub(crate) fn link(
    from_dir: BorrowedFd<'_>,
    from: &[u8],
    to_dir: BorrowedFd<'_>,
    to: &[u8],
) -> rustix::io::Result<bool> {
    let mut linked = linkat(from_dir, from, to_dir, to, AtFlags::empty());
    if linked == Err(Errno::EXIST) {
        rustix::fs::unlinkat(to_dir, to, AtFlags::empty())?;
        linked = linkat(from_dir, from, to_dir, to, AtFlags::empty());
    }
    match linked {
        Ok(()) => Ok(true),
        Err(Errno::MLINK | Errno::PERM | Errno::XDEV | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}
