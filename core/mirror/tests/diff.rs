//! The pure part: manifests come back as they were written, and a diff turns one into the other.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use tandem_mirror::{
    CHUNK, Change, Content, Entry, HOLE, Kind, ManifestReader, ManifestWriter, Meta, Moved, Source, Time,
    Variants, Xattr, compare, diff,
};

fn entry(path: &str, kind: Kind, mode: u32) -> Entry {
    let mtime = Time { sec: i64::from(mode) - 100, nsec: mode };
    let xattrs = if mode.is_multiple_of(3) {
        vec![Xattr { name: b"user.a".to_vec(), value: vec![1, 2] }]
    } else {
        vec![]
    };
    Entry { path: path.into(), meta: Meta { mode, uid: mode, gid: 0, mtime, xattrs }, kind, local: None }
}

fn content() -> impl Strategy<Value = Content> {
    prop::collection::vec(0u8..6, 0..5).prop_map(|ids| Content {
        size: ids.len() as u64 * CHUNK,
        chunks: ids.iter().map(|id| if *id == 0 { HOLE } else { [*id; 32] }).collect(),
        extents: None,
    })
}

fn tree() -> impl Strategy<Value = Vec<Entry>> {
    let kind = prop_oneof![
        4 => content().prop_map(Kind::File),
        1 => Just(Kind::Dir),
        1 => "[a-c]{1,3}".prop_map(|t| Kind::Symlink { target: t.into_bytes() }),
        1 => Just(Kind::Fifo),
    ];
    let path = "[ab.]{1,2}(/[ab]{1,2}){0,2}"
        .prop_filter("no dots alone", |p| !p.split('/').any(|x| x == "." || x == ".."));
    prop::collection::btree_map(path, (kind, 0u32..8), 0..12).prop_map(|found| {
        let mut entries: Vec<Entry> =
            found.into_iter().map(|(path, (kind, mode))| entry(&path, kind, mode)).collect();
        entries.push(entry("", Kind::Dir, 1));
        entries.sort_by(|a, b| compare(&a.path, &b.path));
        entries
    })
}

proptest! {
    #[test]
    fn a_manifest_comes_back_as_it_was_written(entries in tree()) {
        let mut writer = ManifestWriter::new(Vec::new()).unwrap();
        for entry in &entries {
            writer.push(entry).unwrap();
        }
        let (summary, bytes) = writer.finish().unwrap();
        let mut reader = ManifestReader::new(&bytes[..]).unwrap();
        let back: Result<Vec<_>, _> = reader.by_ref().collect();
        prop_assert_eq!(back.unwrap(), entries);
        prop_assert_eq!(reader.summary(), Some(&summary));
    }

    #[test]
    fn a_damaged_manifest_is_refused_and_never_panics(entries in tree(), at: prop::sample::Index, bit in 0u8..8) {
        let mut writer = ManifestWriter::new(Vec::new()).unwrap();
        for entry in &entries {
            writer.push(entry).unwrap();
        }
        let (summary, mut bytes) = writer.finish().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let Ok(mut reader) = ManifestReader::new(&bytes[..]) else { return Ok(()) };
        let back: Result<Vec<_>, _> = reader.by_ref().collect();
        if back.is_ok() {
            // Only what the root hash does not cover may differ: the allocated bytes and the sum of lengths.
            prop_assert_eq!(reader.summary().map(|s| s.root), Some(summary.root));
            prop_assert_eq!(back.unwrap(), entries);
        }
    }

    #[test]
    fn a_diff_turns_one_tree_into_the_other(base in tree(), new in tree()) {
        let variants = Variants::new();
        let list = |entries: &[Entry]| entries.iter().cloned().map(Ok).collect::<Vec<_>>().into_iter();
        let moved = Moved::find(list(&base), list(&new), &variants).unwrap();
        let mut now: BTreeMap<Vec<u8>, Entry> = base.iter().map(|e| (e.path.clone(), e.clone())).collect();
        let mut last: Option<Vec<u8>> = None;
        let mut linked = Vec::new();
        for change in diff(list(&base), list(&new), &moved, &variants) {
            let path = match change.unwrap() {
                Change::Remove(path) => {
                    prop_assert!(now.remove(&path).is_some());
                    path
                }
                Change::Put { entry, source, carry } => {
                    if let Some(content) = entry.content() {
                        // Every chunk comes from somewhere: carried, a hole, or the same in the source.
                        let from = match &source {
                            Source::Nothing => None,
                            Source::Base { path, .. } => base.iter().find(|e| e.path == *path).and_then(Entry::content),
                        };
                        for (index, hash) in content.chunks.iter().enumerate() {
                            let carried = carry.iter().any(|(a, b)| (*a..*b).contains(&(index as u64)));
                            let there = from.and_then(|c| c.chunks.get(index)) == Some(hash);
                            prop_assert!(carried || *hash == HOLE || there);
                            prop_assert!(!(carried && there), "carried in vain");
                        }
                        if let Source::Base { path, whole: true, .. } = &source {
                            let old = base.iter().find(|e| e.path == *path).unwrap();
                            prop_assert!(old.same_but_path(&entry));
                            prop_assert!(!new.iter().any(|e| e.same(old)), "its own path still uses it");
                            linked.push(path.clone());
                        }
                    } else {
                        prop_assert!(carry.is_empty());
                    }
                    let path = entry.path.clone();
                    now.insert(path.clone(), entry);
                    path
                }
            };
            if let Some(last) = &last {
                prop_assert!(compare(last, &path).is_lt(), "out of order");
            }
            last = Some(path);
        }
        let want: BTreeMap<Vec<u8>, Entry> = new.iter().map(|e| (e.path.clone(), e.clone())).collect();
        prop_assert_eq!(now, want);
        let count = linked.len();
        linked.sort();
        linked.dedup();
        prop_assert_eq!(linked.len(), count, "one file of the base was given two new names");
    }
}
