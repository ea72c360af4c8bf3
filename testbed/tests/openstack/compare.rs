//! Compares a recorded body with ours: keys, types and values. Ids, times and hosts aside.
//!
//! Ids are not ignored but translated: the first time a recorded id is seen where one of ours stands, the two
//! are bound, and from then on each stands for the other, also within paths and sentences.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What the comparison has learnt.
#[derive(Clone, Default)]
pub(crate) struct Known {
    /// Recorded id to ours.
    ids: BTreeMap<String, String>,
    ours: BTreeSet<String>,
}

/// What may differ in one answer.
#[derive(Default)]
pub(crate) struct Allowed {
    /// Paths whose value is not compared.
    pub(crate) paths: BTreeSet<String>,
    /// Keys of lists from which recorded entries may be missing.
    pub(crate) fewer: BTreeSet<String>,
    /// A page of a list that belonged to everybody: its entries are others than ours.
    pub(crate) page: bool,
    /// Those of `paths` and `fewer` that were needed.
    pub(crate) used: BTreeSet<String>,
}

/// Values that are told by their key to be facts of the recorded machine.
const FACTS: &[&str] = &["path", "export_location", "host", "backend", "created_at", "updated_at"];

impl Known {
    pub(crate) fn bind(&mut self, recorded: &str, ours: &str) {
        self.ids.insert(recorded.to_owned(), ours.to_owned());
        self.ours.insert(ours.to_owned());
    }

    pub(crate) fn is_bound(&self, recorded: &str) -> bool {
        self.ids.contains_key(recorded)
    }

    /// A recorded text with our ids and hosts in place of the recorded ones.
    pub(crate) fn translate(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((at, id)) = next_id(rest) {
            out.push_str(&rest[..at]);
            out.push_str(self.ids.get(id).map_or(id, String::as_str));
            rest = &rest[at + id.len()..];
        }
        out.push_str(rest);
        for name in ["alpha", "beta", "dr1", "dr2", "wr1", "wr2"] {
            out = out.replace(&format!("@{name}"), &format!("@{}", name.to_uppercase()));
        }
        out
    }

    /// Every difference between two bodies, as `path: what`.
    pub(crate) fn compare(&mut self, recorded: &Value, ours: &Value, allowed: &mut Allowed) -> Vec<String> {
        let mut found = Vec::new();
        self.value("", recorded, ours, allowed, &mut found);
        found
    }

    fn value(
        &mut self,
        path: &str,
        recorded: &Value,
        ours: &Value,
        allowed: &mut Allowed,
        found: &mut Vec<String>,
    ) {
        if allowed.paths.contains(path) {
            if recorded != ours {
                allowed.used.insert(path.to_owned());
            }
            return;
        }
        let key = path.rsplit('.').next().unwrap_or(path);
        match (recorded, ours) {
            (Value::Object(a), Value::Object(b)) => {
                // What a pool offers is the storage's own; Manila's words for it must all be there.
                let facts = key == "capabilities";
                for (name, recorded) in a {
                    let path = join(path, name);
                    match b.get(name) {
                        None if allowed.paths.contains(&path) => {
                            allowed.used.insert(path);
                        }
                        None => found.push(format!("{path}: is missing")),
                        Some(_) if facts => {}
                        Some(ours) => self.value(&path, recorded, ours, allowed, found),
                    }
                }
                for name in b.keys().filter(|name| !facts && !a.contains_key(*name)) {
                    found.push(format!("{}: is not in the recording", join(path, name)));
                }
            }
            (Value::Array(a), Value::Array(b)) => self.list(path, key, a, b, allowed, found),
            (Value::String(a), Value::String(b)) => self.text(path, key, a, b, found),
            (Value::Null, Value::String(b)) | (Value::String(b), Value::Null)
                if (key == "updated_at" && is_time(b)) || key == "host" => {}
            // The number of a service is the order in which it was registered.
            (Value::Number(_), Value::Number(_)) if key == "id" => {}
            // Which address of an export is preferred, and who sees it, is the driver's.
            (Value::Bool(_), Value::Bool(_)) if matches!(key, "preferred" | "is_admin_only") => {}
            (a, b) if a == b => {}
            (a, b) => found.push(format!("{path}: recorded {a}, ours {b}")),
        }
    }

    fn text(&mut self, path: &str, key: &str, recorded: &str, ours: &str, found: &mut Vec<String>) {
        let recorded_id = next_id(recorded).is_some_and(|(at, id)| at == 0 && id.len() == recorded.len());
        let our_id = next_id(ours).is_some_and(|(at, id)| at == 0 && id.len() == ours.len());
        if recorded_id && our_id {
            match self.ids.get(recorded) {
                Some(bound) if bound == ours => {}
                None if !self.ours.contains(ours) => self.bind(recorded, ours),
                bound => found.push(format!("{path}: recorded {recorded} ({bound:?}), ours {ours}")),
            }
            return;
        }
        if FACTS.contains(&key) || (is_time(recorded) && is_time(ours)) || self.translate(recorded) == ours {
            return;
        }
        // Links to ids that are not ours.
        if key == "href" && strip_ids(recorded) == strip_ids(ours) {
            return;
        }
        found.push(format!("{path}: recorded {recorded:?}, ours {ours:?}"));
    }

    fn list(
        &mut self,
        path: &str,
        key: &str,
        recorded: &[Value],
        ours: &[Value],
        allowed: &mut Allowed,
        found: &mut Vec<String>,
    ) {
        if key == "export_locations" {
            return self.exports(path, recorded, ours, allowed, found);
        }
        if !recorded.iter().chain(ours).all(|v| v.get("id").is_some()) {
            return self.in_order(path, recorded, ours, allowed, found);
        }
        if allowed.page {
            if recorded.len() != ours.len() {
                found.push(format!("{path}: recorded {} entries, ours {}", recorded.len(), ours.len()));
            }
            for (a, b) in recorded.iter().zip(ours) {
                shape(path, a, b, found);
            }
            return;
        }
        let mut left: Vec<&Value> = ours.iter().collect();
        let mut unpaired = Vec::new();
        for a in recorded {
            match left.iter().position(|b| self.same(a, b)) {
                Some(at) => {
                    let b = left.remove(at);
                    self.value(&format!("{path}.*"), a, b, allowed, found);
                }
                None => unpaired.push(a),
            }
        }
        // What is left over of ours must be new, and stand for something new of the recording.
        for b in left {
            match unpaired.iter().position(|a| self.may_be(a, b)) {
                Some(at) => self.value(&format!("{path}.*"), unpaired.remove(at), b, allowed, found),
                None => found.push(format!("{path}: {b} is not in the recording")),
            }
        }
        for a in unpaired {
            let known = identity(a).is_some_and(|id| self.is_bound(&id)) || a.get("binary").is_some();
            if known && allowed.fewer.contains(key) {
                allowed.used.insert(key.to_owned());
            } else if known {
                found.push(format!("{path}: {a} is missing"));
            }
            // Others were working on the recorded server at the same time; their things are not ours.
        }
    }

    /// How many addresses an instance has, and what they are, is the driver's; that it has some, or none, is not.
    fn exports(
        &mut self,
        path: &str,
        a: &[Value],
        b: &[Value],
        allowed: &mut Allowed,
        found: &mut Vec<String>,
    ) {
        if a.is_empty() != b.is_empty() {
            found.push(format!("{path}: recorded {}, ours {}", a.len(), b.len()));
        }
        let mut left: Vec<&Value> = b.iter().filter(|v| v.is_object()).collect();
        for a in a.iter().filter(|v| v.is_object()) {
            let theirs = a["share_instance_id"].as_str();
            let ours = theirs.and_then(|id| self.ids.get(id)).cloned();
            let same = |b: &&Value| ours.is_none() || b["share_instance_id"].as_str() == ours.as_deref();
            // An address more than ours has is left aside.
            if let Some(at) = left.iter().position(same) {
                self.value(&format!("{path}.*"), a, left.remove(at), allowed, found);
            }
        }
        for b in left {
            found.push(format!("{path}: {b} is not in the recording"));
        }
    }

    fn in_order(
        &mut self,
        path: &str,
        a: &[Value],
        b: &[Value],
        allowed: &mut Allowed,
        found: &mut Vec<String>,
    ) {
        if a.len() != b.len() {
            found.push(format!("{path}: recorded {} entries, ours {}", a.len(), b.len()));
        }
        for (a, b) in a.iter().zip(b) {
            self.value(&format!("{path}.*"), a, b, allowed, found);
        }
    }

    /// Whether two entries of a list are known to be the same thing.
    fn same(&self, recorded: &Value, ours: &Value) -> bool {
        if let (Some(a), Some(b)) = (recorded.get("binary"), ours.get("binary")) {
            let host = |v: &Value| v["host"].as_str().unwrap_or_default().to_lowercase();
            return a == b && host(recorded) == host(ours);
        }
        match (identity(recorded), identity(ours)) {
            (Some(a), Some(b)) => self.ids.get(&a) == Some(&b),
            _ => false,
        }
    }

    /// Whether an entry that is new to us may be this one: every id that both have is bound to the other, or new
    /// on both sides, and their names agree.
    fn may_be(&self, recorded: &Value, ours: &Value) -> bool {
        let (Some(a), Some(b)) = (recorded.as_object(), ours.as_object()) else { return false };
        a.iter().all(|(key, recorded)| match (recorded.as_str(), b.get(key).and_then(Value::as_str)) {
            (Some(r), Some(o)) if next_id(r).is_some_and(|(_, id)| id.len() == r.len()) => {
                self.ids.get(r).map_or_else(|| !self.ours.contains(o), |bound| bound == o)
            }
            (Some(r), Some(o)) if key == "name" => r == o,
            _ => true,
        })
    }
}

/// The types of two values: keys and kinds.
fn shape(path: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => shape(&join(path, key), a, b, found),
                    _ => found.push(format!("{}: is on one side only", join(path, key))),
                }
            }
        }
        (a, b) if std::mem::discriminant(a) == std::mem::discriminant(b) || a.is_null() || b.is_null() => {}
        (a, b) => found.push(format!("{path}: recorded {a}, ours {b}")),
    }
}

fn identity(value: &Value) -> Option<String> {
    value.get("id")?.as_str().map(str::to_owned)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn strip_ids(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((at, id)) = next_id(rest) {
        out.push_str(&rest[..at]);
        rest = &rest[at + id.len()..];
    }
    out + rest
}

/// The first UUID of a text, and where it starts.
pub(crate) fn next_id(text: &str) -> Option<(usize, &str)> {
    (0..text.len()).find_map(|at| {
        let candidate = text.get(at..at + 36)?;
        let fits = candidate.bytes().enumerate().all(|(n, b)| match n {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        });
        // The zero id stands for what does not exist, on both sides.
        (fits && !candidate.starts_with("00000000-")).then_some((at, candidate))
    })
}

pub(crate) fn is_time(text: &str) -> bool {
    let shape = text.bytes().map(|b| if b.is_ascii_digit() { b'0' } else { b }).collect::<Vec<_>>();
    shape == b"0000-00-00T00:00:00.000000"
}
