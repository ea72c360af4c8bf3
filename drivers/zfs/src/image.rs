//! What the pool says of an instance, from one look at it (`look.lua`).
//!
//! | dataset | property | meaning |
//! |---|---|---|
//! | `<instance>` | `tandem:spec` | as it was made |
//! | | `tandem:role`, `tandem:epoch`, `tandem:size` | what it is now |
//! | | `tandem:version` | which `v<n>` holds the content; 0 for none |
//! | | `tandem:readonly`, `tandem:quiesced`, `tandem:rules<n>` | who may do what |
//! | | `tandem:attached`, `tandem:deleting`, `tandem:moving` | what is going on |
//! | | `tandem:clear` | whether its content came in clear, below an encrypted dataset |
//! | `v<n>@tandem-<point>` | `guid` | a point and its fingerprint; held as `tandem` |
//! | `v<n>#tandem-<point>` | `guid` | the same point, should its snapshot get lost |
//! | `v<n>@tandem-move-<destination>-<n>` | | a round of a migration, on both sides; held as `tandem` on the source |
//! | `v<n>#tandem-move-<destination>-<n>` | | where the next round starts, should the snapshot get lost |
//! | `v<n>` | `receive_resume_token` | where a cut transfer continues |

use std::collections::BTreeMap;

use tandem_sdk::{PointId, PointInfo, Result};

use crate::lzc::Tree;
use crate::meta::Meta;
use crate::names;

/// What is found under an instance's name.
#[derive(Debug)]
pub(crate) enum Found {
    Nothing,
    /// A dataset without our properties: a creation that was killed, or somebody else's.
    Leftover,
    Instance(Box<Image>),
}

/// An instance on the pool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    /// Its dataset.
    pub(crate) name: String,
    pub(crate) meta: Meta,
    /// Our properties as they are stored.
    pub(crate) stored: BTreeMap<String, String>,
    /// Whether the kernel refuses writes.
    pub(crate) readonly: bool,
    /// Whether what is received below it is encrypted with its key.
    pub(crate) encrypted: bool,
    /// By their number.
    pub(crate) versions: Vec<Version>,
    /// Datasets and snapshots below it that somebody else made.
    pub(crate) foreign: Vec<String>,
    /// Those of them that are snapshots of its own dataset, which holds nothing.
    pub(crate) hollow: Vec<Mark>,
    /// Whether it was mounted when this call began: then its intent log holds nothing that was not written.
    pub(crate) was_mounted: bool,
}

/// A dataset with content.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Version {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) referenced: u64,
    /// Bytes written since its newest snapshot.
    pub(crate) written: u64,
    pub(crate) token: Option<String>,
    pub(crate) refquota: u64,
    pub(crate) quota: u64,
    pub(crate) encrypted: bool,
    pub(crate) key_missing: bool,
    /// Snapshots that are points, oldest first.
    pub(crate) points: Vec<Moment>,
    pub(crate) bookmarks: Vec<Moment>,
    /// When the newest snapshot of somebody else was made, and its name.
    pub(crate) foreign: Option<(u64, String)>,
    /// Snapshots of somebody else, oldest first.
    pub(crate) others: Vec<Mark>,
    /// Snapshots of migrations, oldest first.
    pub(crate) moves: Vec<Mark>,
    /// Bookmarks of migrations.
    pub(crate) trail: Vec<Mark>,
}

/// A snapshot or bookmark that is no point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The last part of its name.
    pub(crate) short: String,
    pub(crate) guid: u64,
    /// The transaction group it was made in: its age.
    pub(crate) txg: u64,
    pub(crate) held: bool,
}

impl Mark {
    /// Whether it belongs to a migration to this instance.
    pub(crate) fn goes_to(&self, destination: tandem_sdk::InstanceId) -> bool {
        names::move_of(&self.short).is_some_and(|(to, _)| to == destination)
    }
}

/// A point on the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) point: PointId,
    pub(crate) guid: u64,
    /// The transaction group it was made in: its age.
    pub(crate) txg: u64,
    pub(crate) held: bool,
}

impl Moment {
    pub(crate) fn info(&self) -> PointInfo {
        PointInfo { id: self.point, fingerprint: self.guid.to_string(), held: self.held }
    }
}

impl Version {
    pub(crate) fn snapshot(&self, point: PointId) -> String {
        format!("{}@{}", self.name, names::of_point(point))
    }

    pub(crate) fn bookmark(&self, point: PointId) -> String {
        format!("{}#{}", self.name, names::of_point(point))
    }

    pub(crate) fn point(&self, id: PointId) -> Option<&Moment> {
        self.points.iter().find(|m| m.point == id)
    }

    /// Its newest point, when `written` speaks of it.
    pub(crate) fn newest(&self) -> Option<&Moment> {
        self.points.last()
    }

    /// Whether a snapshot was made after that transaction group.
    pub(crate) fn snapshot_since(&self, txg: u64) -> bool {
        self.points.iter().any(|m| m.txg > txg)
            || self.moves.iter().any(|m| m.txg > txg)
            || self.foreign_since(txg).is_some()
    }

    /// The snapshot of somebody else that is newer than `txg`, where there is one.
    pub(crate) fn foreign_since(&self, txg: u64) -> Option<&str> {
        self.foreign.as_ref().filter(|(at, _)| *at > txg).map(|(_, name)| name.as_str())
    }
}

impl Image {
    /// The content; `None` while nothing whole is there.
    pub(crate) fn current(&self) -> Option<&Version> {
        self.versions.iter().find(|v| v.number == self.meta.version)
    }

    /// The number that a full copy gets.
    pub(crate) fn next(&self) -> u64 {
        self.meta.version + 1
    }

    /// A full copy that arrives or has arrived.
    pub(crate) fn incoming(&self) -> Option<&Version> {
        self.versions.iter().find(|v| v.number == self.next())
    }

    /// What a cut transfer left, and its token.
    pub(crate) fn partial(&self) -> Option<(&Version, &str)> {
        [self.incoming(), self.current()].into_iter().flatten().find_map(|v| Some((v, v.token.as_deref()?)))
    }

    /// Points that can be sent from, or are this instance's data: oldest first.
    pub(crate) fn points(&self) -> Vec<PointInfo> {
        let Some(current) = self.current() else { return Vec::new() };
        let mut all = current.points.clone();
        if self.meta.role != tandem_sdk::Role::Secondary {
            // A source can send from a point whose snapshot is lost.
            all.extend(current.bookmarks.iter().filter(|m| current.point(m.point).is_none()));
        }
        all.sort_by_key(|m| m.txg);
        all.iter().map(Moment::info).collect()
    }
}

/// Values of one dataset, snapshot or bookmark.
type Values = BTreeMap<String, String>;

fn is(values: &Values, name: &str, value: &str) -> bool {
    values.get(name).is_some_and(|v| v == value)
}

fn number(values: &Values, name: &str) -> u64 {
    // Channel programs know signed numbers only.
    let signed = |v: &String| v.parse::<i64>().ok().map(i64::cast_unsigned);
    values.get(name).and_then(|v| v.parse().ok().or_else(|| signed(v))).unwrap_or(0)
}

/// Reads the properties of an instance's dataset and of all below it.
///
/// # Errors
/// `Unavailable` when our properties make no sense.
pub(crate) fn parse(name: &str, all: &Tree) -> Result<Found> {
    let Some(own) = all.get(name) else { return Ok(Found::Nothing) };
    let stored: BTreeMap<String, String> = own
        .iter()
        .filter(|(property, _)| property.starts_with("tandem:"))
        .map(|(property, value)| (property.clone(), value.clone()))
        .collect();
    let Some(meta) = Meta::read(name, &stored)? else { return Ok(Found::Leftover) };
    let mut image = Image {
        name: name.to_owned(),
        meta,
        stored,
        readonly: is(own, "readonly", "on"),
        encrypted: own.get("keystatus").is_some_and(|value| value != "none"),
        versions: Vec::new(),
        foreign: Vec::new(),
        hollow: Vec::new(),
        was_mounted: false,
    };
    for (of, values) in all {
        let Some(below) = of.strip_prefix(name) else { continue };
        let Some(child) = below.strip_prefix('/') else {
            if !below.is_empty() {
                image.foreign.push(of.clone());
            }
            if let Some(short) = below.strip_prefix('@') {
                image.hollow.push(mark(short, values));
            }
            continue;
        };
        // A map in the order of names: a dataset comes before its snapshots and bookmarks.
        let (dataset, moment) = match child.split_once(['@', '#']) {
            Some((dataset, short)) => (dataset, Some(short)),
            None => (child, None),
        };
        let Some(version) = names::version_of(dataset) else {
            image.foreign.push(of.clone());
            continue;
        };
        let at = match image.versions.iter().position(|v| v.number == version) {
            Some(at) => at,
            None => {
                let name = format!("{name}/{dataset}");
                image.versions.push(Version { number: version, name, ..Version::default() });
                image.versions.len() - 1
            }
        };
        let Some(here) = image.versions.get_mut(at) else { continue };
        let Some(short) = moment else {
            read_version(here, values);
            continue;
        };
        let txg = number(values, "createtxg");
        let moment = names::point_of(short).map(|point| Moment {
            point,
            guid: number(values, "guid"),
            txg,
            held: number(values, "userrefs") > 0,
        });
        if names::move_of(short).is_some() {
            let marks = if child.contains('#') { &mut here.trail } else { &mut here.moves };
            marks.push(mark(short, values));
            continue;
        }
        match moment {
            Some(moment) if child.contains('#') => here.bookmarks.push(Moment { held: false, ..moment }),
            // It goes as soon as somebody else lets go of it.
            _ if is(values, "defer_destroy", "on") => {}
            Some(moment) => here.points.push(moment),
            None if child.contains('#') => {}
            None => {
                image.foreign.push(of.clone());
                here.others.push(mark(short, values));
                if here.foreign.as_ref().is_none_or(|(newest, _)| *newest < txg) {
                    here.foreign = Some((txg, of.clone()));
                }
            }
        }
    }
    image.versions.sort_by_key(|v| v.number);
    for version in &mut image.versions {
        version.points.sort_by_key(|m| m.txg);
        version.bookmarks.sort_by_key(|m| m.txg);
        for marks in [&mut version.others, &mut version.moves, &mut version.trail] {
            marks.sort_by_key(|m| m.txg);
        }
    }
    Ok(Found::Instance(Box::new(image)))
}

fn mark(short: &str, values: &Values) -> Mark {
    Mark {
        short: short.to_owned(),
        guid: number(values, "guid"),
        txg: number(values, "createtxg"),
        held: number(values, "userrefs") > 0,
    }
}

fn read_version(version: &mut Version, values: &Values) {
    version.referenced = number(values, "referenced");
    version.written = number(values, "written");
    version.refquota = number(values, "refquota");
    version.quota = number(values, "quota");
    version.token = values.get("receive_resume_token").cloned();
    // Channel programs do not tell `encryption`.
    version.encrypted = values.get("keystatus").is_some_and(|value| value != "none");
    version.key_missing = is(values, "keystatus", "unavailable");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tandem_sdk::Role;

    const NAME: &str = "tank/t/6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1";
    const A: &str = "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4aa";
    const B: &str = "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4ab";

    fn text(role: Role) -> String {
        let spec = serde_json::from_value(serde_json::json!({
            "instance": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1",
            "resource": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a2",
            "kind": "share", "pool": "tank", "size_bytes": 1, "protocol": "NFS", "epoch": 3
        }))
        .unwrap();
        let meta = Meta { version: 1, ..Meta::new(spec, role) };
        let mut text: String =
            meta.properties().unwrap().iter().map(|(k, v)| format!("{NAME}\t{k}\t{v}\n")).collect();
        for (of, property, value) in [
            ("", "readonly", "on"),
            ("/v1", "referenced", "4096"),
            ("/v1", "written", "17"),
            ("/v1", "keystatus", "none"),
            ("/v1", "receive_resume_token", "1-a-b-c"),
            (&format!("/v1@tandem-{B}"), "guid", "-1"),
            (&format!("/v1@tandem-{B}"), "createtxg", "20"),
            (&format!("/v1@tandem-{B}"), "userrefs", "0"),
            (&format!("/v1@tandem-{A}"), "guid", "7"),
            (&format!("/v1@tandem-{A}"), "createtxg", "30"),
            (&format!("/v1@tandem-{A}"), "userrefs", "1"),
            (&format!("/v1#tandem-{A}"), "guid", "7"),
            (&format!("/v1#tandem-{A}"), "createtxg", "30"),
            (&format!("/v1#tandem-{NAME}"), "createtxg", "30"),
            (&format!("/v1@tandem-move-{A}-2"), "createtxg", "27"),
            (&format!("/v1@tandem-move-{A}-2"), "userrefs", "1"),
            (&format!("/v1#tandem-move-{A}-27"), "createtxg", "27"),
            ("@daily", "createtxg", "25"),
            ("/v1@daily", "createtxg", "25"),
            ("/v1@hourly", "createtxg", "24"),
            ("/v2", "referenced", "1"),
            ("/home", "referenced", "1"),
        ] {
            text.push_str(&format!("{NAME}{of}\t{property}\t{value}\n"));
        }
        text
    }

    fn tree(text: &str) -> Tree {
        let mut tree = Tree::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, '\t').map(str::to_owned);
            if let (Some(of), Some(property), Some(value)) = (fields.next(), fields.next(), fields.next()) {
                tree.entry(of).or_default().insert(property, value);
            }
        }
        tree
    }

    fn image(text: &str) -> Image {
        match parse(NAME, &tree(text)).unwrap() {
            Found::Instance(image) => *image,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_instance_is_read() {
        let image = image(&text(Role::Active));
        assert!(image.readonly);
        let current = image.current().unwrap();
        assert_eq!((current.referenced, current.written), (4096, 17));
        let guids: Vec<u64> = current.points.iter().map(|m| m.guid).collect();
        assert_eq!(guids, [u64::MAX, 7], "oldest first");
        assert_eq!(current.foreign_since(20), Some(format!("{NAME}/v1@daily").as_str()));
        assert_eq!(current.foreign_since(25), None);
        assert_eq!(image.foreign.len(), 4, "{:?}", image.foreign);
        let shorts = |marks: &[Mark]| marks.iter().map(|m| m.short.clone()).collect::<Vec<_>>();
        assert_eq!(shorts(&current.others), ["hourly", "daily"], "oldest first");
        assert_eq!(shorts(&image.hollow), ["daily"]);
        assert_eq!((current.moves.len(), current.trail.len()), (1, 1));
        assert!(current.moves[0].held && current.moves[0].goes_to(A.parse().unwrap()));
        assert!(current.snapshot_since(29) && !current.snapshot_since(30));
        assert_eq!(image.incoming().map(|v| v.number), Some(2));
        assert_eq!(image.partial().map(|(v, token)| (v.number, token)), Some((1, "1-a-b-c")));
        let points = image.points();
        assert_eq!(points.iter().map(|p| p.held).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_lost_snapshot_leaves_its_bookmark_to_a_source() {
        for (role, count) in [(Role::Active, 2), (Role::Secondary, 1)] {
            let text: String = text(role)
                .lines()
                .filter(|line| !line.contains(&format!("@tandem-{A}")))
                .map(|line| format!("{line}\n"))
                .collect();
            assert_eq!(image(&text).points().len(), count);
        }
    }

    #[test]
    fn what_is_not_ours_is_no_instance() {
        assert!(matches!(parse(NAME, &Tree::new()).unwrap(), Found::Nothing));
        let text = format!("{NAME}\treadonly\toff\n");
        assert!(matches!(parse(NAME, &tree(&text)).unwrap(), Found::Leftover));
    }

    proptest! {
        #[test]
        fn any_text_is_harmless(any in ".*", cut in 0usize..3000, line in "[a-z/@#\t-]{0,60}") {
            let _ = parse(NAME, &tree(&any));
            let whole = text(Role::Secondary);
            let _ = parse(NAME, &tree(whole.get(..cut.min(whole.len())).unwrap_or("")));
            let _ = parse(NAME, &tree(&format!("{whole}{NAME}{line}\n{line}")));
        }
    }
}
