//! The proof: the destination is read, and is what was read from the source.

use crate::content::is_zero;
use crate::control::Control;
use crate::entry::{Content, Entry, HOLE, Kind, Meta, compare};
use crate::error::{At, Result, show};
use crate::manifest::{ManifestReader, ManifestWriter};
use crate::meta::Skipped;
use crate::scan::scan;
use crate::tree::remove;
use crate::watch::RootMode;

use super::{Mirror, NAMED};

/// What a proof found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Names compared.
    pub entries: u64,
    /// Names that differ, a sentence each; files among them were removed, so that the next pass copies them again. At
    /// most 16 are told.
    pub differences: Vec<String>,
    /// How many names differ.
    pub wrong: u64,
}

impl Mirror<'_> {
    /// Compares the destination with what the last pass read from the source: names, contents by their hashes, and
    /// metadata but for what the passes could not set. Only what was not proven before is read.
    ///
    /// # Errors
    /// What cannot be read; `Cancelled`.
    pub fn prove(&self, control: &Control<'_>) -> Result<Proof> {
        let skipped = &self.skipped();
        let new = self.state.join("dest.new");
        let mut out = ManifestWriter::create(&new)?;
        scan(self.dest, self.earlier("dest"), None, &mut out, control)?;
        out.finish_durable()?;
        std::fs::rename(&new, self.state.join("dest")).at("rename", b"dest.new")?;
        let mut want = ManifestReader::open(&self.state.join("source"))?;
        let mut have = ManifestReader::open(&self.state.join("dest"))?;
        let mut proof = Proof::default();
        let (mut left, mut right) = (want.read_next()?, have.read_next()?);
        loop {
            control.check()?;
            let order = match (&left, &right) {
                (None, None) => return Ok(proof),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => compare(&a.path, &b.path),
            };
            proof.entries += 1;
            match (order, &left, &right) {
                (std::cmp::Ordering::Less, Some(entry), _) => {
                    let device = matches!(entry.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. });
                    if !(device && skipped.devices > 0) {
                        proof.note(&entry.path, "it is missing");
                    }
                }
                (std::cmp::Ordering::Greater, _, Some(entry)) => proof.note(&entry.path, "it is too many"),
                (_, Some(a), Some(b)) => {
                    if let Some(why) = self.difference(a, b, skipped) {
                        proof.note(&a.path, why);
                        self.take_away(a)?;
                    }
                }
                _ => {}
            }
            if order != std::cmp::Ordering::Greater {
                left = want.read_next()?;
            }
            if order != std::cmp::Ordering::Less {
                right = have.read_next()?;
            }
        }
    }

    fn difference(&self, a: &Entry, b: &Entry, skipped: &Skipped) -> Option<&'static str> {
        let aside = a.path.is_empty() && self.root == RootMode::Aside;
        let same = match (&a.kind, &b.kind) {
            (Kind::File(a), Kind::File(b)) => same_content(a, b),
            (a, b) => a == b,
        };
        if !same {
            return Some("its content is not that of the source");
        }
        (!same_meta(&a.meta, &b.meta, aside, skipped)).then_some("its metadata is not that of the source")
    }

    /// Removes a file that differs, so that the next pass makes it anew.
    fn take_away(&self, entry: &Entry) -> Result<()> {
        let mut dirs = self.dest.dirs();
        if matches!(entry.kind, Kind::File(_))
            && let Ok((dir, name)) = dirs.parent(&entry.path)
        {
            remove(dir, name, &|| false)?;
        }
        Ok(())
    }
}

impl Proof {
    fn note(&mut self, path: &[u8], why: &str) {
        self.wrong += 1;
        if self.differences.len() < NAMED {
            self.differences.push(format!("`{}`: {why}", show(path)));
        }
    }
}

/// Whether two files read the same. Holes may lie elsewhere: another file system has blocks of another size.
fn same_content(a: &Content, b: &Content) -> bool {
    a.size == b.size
        && a.chunks.len() == b.chunks.len()
        && (0..).zip(a.chunks.iter().zip(&b.chunks)).all(|(n, (x, y))| {
            x == y || ((*x == HOLE || *y == HOLE) && [x, y].iter().all(|h| is_zero(h, a.chunk_len(n))))
        })
}

/// Whether metadata is the same, but for what could not be set at all.
fn same_meta(a: &Meta, b: &Meta, aside: bool, skipped: &Skipped) -> bool {
    let owners = skipped.owners > 0;
    // Giving a file away clears these bits, and who may not give it away may not set them.
    let bits = if owners { 0o1777 } else { 0o7777 };
    (aside || a.mode & bits == b.mode & bits)
        && (owners || (a.uid, a.gid) == (b.uid, b.gid))
        && a.mtime == b.mtime
        && (skipped.xattrs > 0 || a.xattrs == b.xattrs)
}
