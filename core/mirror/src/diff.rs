//! What turns one tree into another: a merge of two manifests, pure. Content that only moved to another name is found
//! by its hash and not carried again.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::entry::{Content, Entry, HOLE, Hash, Kind, Time, compare};
use crate::error::Result;

/// A run of chunks: first, and the one after the last.
pub type Run = (u64, u64);

/// Where the content that is not carried comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: all of it is carried.
    Nothing,
    /// A file of the tree as it was.
    Base {
        /// Its path there.
        path: Vec<u8>,
        /// Its size and time there; the receiver's file must still have them. `None` where the sender cannot know,
        /// and the receiver must prove each chunk by its hash.
        identity: Option<(u64, Time)>,
        /// Whether it is the very same in everything but its name, and no other path uses it: it can be linked.
        whole: bool,
    },
}

/// One change, in the order of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // each lives for one turn of a loop
pub enum Change {
    /// The path, and what is below it, goes.
    Remove(Vec<u8>),
    /// The path becomes this.
    Put {
        /// What it becomes.
        entry: Entry,
        /// Where uncarried content comes from.
        source: Source,
        /// Chunks to carry.
        carry: Vec<Run>,
    },
}

/// Paths that receivers may hold otherwise than the base manifest says, with each form one of them may have
/// (`None`: absent). Arises when a file changed after its point was made and was sent as it was by then.
pub type Variants = BTreeMap<Vec<u8>, Vec<Option<Entry>>>;

/// Unmoved files at least this large are offered as source for copies of them.
const WORTH_COPYING: u64 = 1024 * 1024;

/// Content of the base tree that can serve paths which are new.
#[derive(Debug, Default)]
pub struct Moved {
    by_digest: HashMap<Hash, Vec<(Entry, bool)>>,
}

impl Moved {
    /// Looks through both manifests for content that left its path, and for large content that may be copied.
    pub fn find(
        base: impl Iterator<Item = Result<Entry>>,
        new: impl Iterator<Item = Result<Entry>>,
        variants: &Variants,
    ) -> Result<Self> {
        let mut moved = Self::default();
        for pair in Merge::new(base, new) {
            let (Some(old), new) = pair? else { continue };
            let Some(content) = old.content().filter(|c| c.size > 0) else { continue };
            let stays = new.as_ref().is_some_and(|new| new.same(&old));
            if variants.contains_key(&old.path) || (stays && content.size < WORTH_COPYING) {
                continue;
            }
            let digest = content.digest();
            let Entry { path, meta, kind: Kind::File(Content { size, .. }), .. } = old else { continue };
            let slim = Content { size, ..Content::default() };
            let slim = Entry { path, meta, kind: Kind::File(slim), local: None };
            moved.by_digest.entry(digest).or_default().push((slim, !stays));
        }
        Ok(moved)
    }
}

/// The changes from `base` to `new`.
pub fn diff<'a, B, N>(base: B, new: N, moved: &'a Moved, variants: &'a Variants) -> Diff<'a, B, N>
where
    B: Iterator<Item = Result<Entry>>,
    N: Iterator<Item = Result<Entry>>,
{
    Diff { merge: Merge::new(base, new), moved, variants, used: HashSet::new() }
}

/// Iterator of [`diff`].
#[derive(Debug)]
pub struct Diff<'a, B: Iterator<Item = Result<Entry>>, N: Iterator<Item = Result<Entry>>> {
    merge: Merge<B, N>,
    moved: &'a Moved,
    variants: &'a Variants,
    used: HashSet<Vec<u8>>,
}

impl<B, N> Iterator for Diff<'_, B, N>
where
    B: Iterator<Item = Result<Entry>>,
    N: Iterator<Item = Result<Entry>>,
{
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let change = match self.merge.next()? {
                Err(e) => return Some(Err(e)),
                Ok((Some(old), None)) => Some(Change::Remove(old.path)),
                Ok((None, Some(new))) => Some(self.put(None, new)),
                Ok((Some(old), Some(new))) => {
                    if new.same(&old) && !self.variants.contains_key(&new.path) {
                        None
                    } else {
                        Some(self.put(Some(&old), new))
                    }
                }
                Ok((None, None)) => None,
            };
            if let Some(change) = change {
                return Some(Ok(change));
            }
        }
    }
}

impl<B, N> Diff<'_, B, N>
where
    B: Iterator<Item = Result<Entry>>,
    N: Iterator<Item = Result<Entry>>,
{
    fn put(&mut self, old: Option<&Entry>, entry: Entry) -> Change {
        let Kind::File(content) = &entry.kind else {
            return Change::Put { entry, source: Source::Nothing, carry: Vec::new() };
        };
        let old = old.and_then(|e| e.content().map(|c| (e, c)));
        if let Some(forms) = self.variants.get(&entry.path) {
            let (source, carry) = with_variants(&entry, content, old.map(|(_, c)| c), forms);
            return Change::Put { entry, source, carry };
        }
        let carry = carried(content, |index| old.and_then(|(_, c)| c.chunks.get(index)));
        let all = carried(content, |_| None);
        if (old.is_none() || carry == all)
            && content.size > 0
            && let Some(source) = self.elsewhere(&entry, content)
        {
            return Change::Put { entry, source, carry: Vec::new() };
        }
        let source = match old {
            Some((old, c)) if carry != all => Source::Base {
                path: old.path.clone(),
                identity: Some((c.size, old.meta.mtime)),
                whole: false,
            },
            _ => Source::Nothing,
        };
        Change::Put { entry, source, carry }
    }

    /// The same content at another path of the base.
    fn elsewhere(&mut self, entry: &Entry, content: &Content) -> Option<Source> {
        let found = self.moved.by_digest.get(&content.digest())?;
        let whole = found
            .iter()
            .find(|(old, left)| *left && old.meta == entry.meta && !self.used.contains(&old.path));
        let (old, _) = whole.or_else(|| found.first())?;
        if whole.is_some() {
            self.used.insert(old.path.clone());
        }
        let identity = Some((content.size, old.meta.mtime));
        Some(Source::Base { path: old.path.clone(), identity, whole: whole.is_some() })
    }
}

/// Only what every form has in common with the new content may stay.
fn with_variants(
    entry: &Entry,
    content: &Content,
    old: Option<&Content>,
    forms: &[Option<Entry>],
) -> (Source, Vec<Run>) {
    let forms: Option<Vec<&Content>> = forms.iter().map(|f| f.as_ref().and_then(Entry::content)).collect();
    let all = carried(content, |_| None);
    let (Some(old), Some(forms)) = (old, forms) else { return (Source::Nothing, all) };
    let carry = carried(content, |index| {
        let hash = old.chunks.get(index)?;
        forms.iter().all(|form| form.chunks.get(index) == Some(hash)).then_some(hash)
    });
    if carry == all {
        return (Source::Nothing, all);
    }
    (Source::Base { path: entry.path.clone(), identity: None, whole: false }, carry)
}

/// Runs of chunks that are neither holes nor present already.
pub(crate) fn carried<'h>(content: &Content, present: impl Fn(usize) -> Option<&'h Hash>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, hash) in content.chunks.iter().enumerate() {
        if *hash == HOLE || present(index) == Some(hash) {
            continue;
        }
        let index = index as u64;
        match runs.last_mut() {
            Some((_, end)) if *end == index => *end += 1,
            _ => runs.push((index, index + 1)),
        }
    }
    runs
}

/// Walks two manifests side by side.
#[derive(Debug)]
struct Merge<B: Iterator<Item = Result<Entry>>, N: Iterator<Item = Result<Entry>>> {
    base: std::iter::Peekable<B>,
    new: std::iter::Peekable<N>,
}

impl<B, N> Merge<B, N>
where
    B: Iterator<Item = Result<Entry>>,
    N: Iterator<Item = Result<Entry>>,
{
    fn new(base: B, new: N) -> Self {
        Self { base: base.peekable(), new: new.peekable() }
    }
}

impl<B, N> Iterator for Merge<B, N>
where
    B: Iterator<Item = Result<Entry>>,
    N: Iterator<Item = Result<Entry>>,
{
    type Item = Result<(Option<Entry>, Option<Entry>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.base.peek(), self.new.peek()) {
            (None, None) => return None,
            // An error on either side comes out at once.
            (Some(Err(_)), _) | (Some(Ok(_)), None) => Ordering::Less,
            (_, Some(Err(_))) | (None, Some(Ok(_))) => Ordering::Greater,
            (Some(Ok(old)), Some(Ok(new))) => compare(&old.path, &new.path),
        };
        let old = if order == Ordering::Greater { None } else { self.base.next() };
        let new = if order == Ordering::Less { None } else { self.new.next() };
        match (old.transpose(), new.transpose()) {
            (Ok(old), Ok(new)) => Some(Ok((old, new))),
            (Err(e), _) | (_, Err(e)) => Some(Err(e)),
        }
    }
}
