//! What the driver knows of an instance, as tags of its volume.
//!
//! ```text
//! tandem:1                       it is Tandem's, in this version of the layout
//! tandem:resource=<uuid>  tandem:asked=<bytes at birth>  tandem:filesystem=ext4
//! tandem:role=active  tandem:epoch=3  tandem:size=<bytes>
//! tandem:made=yes                its file system is whole
//! tandem:growing=no              its file system is smaller than its volume
//! tandem:readonly=no  tandem:attached=no  tandem:deleting=no
//! tandem:drbd=… tandem:peer=…    where it replicates: see `drbd/record.rs`
//! tandem:rules0=rw!192.0.2.1&ro!198.51.100.0/24
//! ```

use std::collections::{BTreeMap, BTreeSet};

use tandem_sdk::{
    Attached, Client, Epoch, Error, InstanceId, InstanceSpec, ResourceId, Result, Retry, Role, Style,
};

use crate::Filesystem;
use crate::drbd::record::Record;

/// The mark of a volume of Tandem's, with the version of this layout.
pub(crate) const MARK: &str = "tandem:1";
/// How all tags of Tandem's begin.
const PREFIX: &str = "tandem:";
/// Rules are spread over so many tags at most: all of them are changed by one command, whose words are limited.
const RULES: usize = 10;
/// The longest tag that LVM takes, with room to spare.
const LONGEST: usize = 1_000;

/// What an instance was made as. Another `create` of it must say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Birth {
    pub(crate) instance: InstanceId,
    pub(crate) resource: ResourceId,
    pub(crate) size_bytes: u64,
    pub(crate) filesystem: Filesystem,
}

/// What the driver knows of an instance.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Meta {
    pub(crate) birth: Birth,
    pub(crate) role: Role,
    pub(crate) epoch: Epoch,
    pub(crate) size_bytes: u64,
    /// Its file system is whole.
    pub(crate) made: bool,
    /// Its file system is smaller than it should be.
    pub(crate) growing: bool,
    /// Users may only read.
    pub(crate) read_only: bool,
    /// How the manager has attached it, while it has.
    pub(crate) attached: Option<Attached>,
    /// Its removal has begun.
    pub(crate) deleting: bool,
    /// Who may reach it.
    pub(crate) clients: Vec<Client>,
    /// How it replicates, where it does.
    pub(crate) record: Option<Record>,
}

const fn yes(on: bool) -> &'static str {
    if on { "yes" } else { "no" }
}

impl Meta {
    /// Of a new active instance.
    pub(crate) fn new(spec: &InstanceSpec, filesystem: Filesystem) -> Self {
        let (instance, resource, size_bytes) = (spec.instance, spec.resource, spec.size_bytes);
        let birth = Birth { instance, resource, size_bytes, filesystem };
        Self { epoch: spec.epoch, ..Self::blank(birth) }
    }

    /// Of one of which nothing more is known.
    pub(crate) const fn blank(birth: Birth) -> Self {
        Self {
            birth,
            role: Role::Active,
            epoch: Epoch(0),
            size_bytes: birth.size_bytes,
            made: false,
            growing: false,
            read_only: false,
            attached: None,
            deleting: false,
            clients: Vec::new(),
            record: None,
        }
    }

    /// Whether it replicates with somebody now.
    pub(crate) fn record_has_peer(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.peer.is_some())
    }

    /// Whether users may reach it.
    pub(crate) fn is_served(&self) -> bool {
        self.made && !self.deleting && self.role == Role::Active
    }

    /// Whether users may read it while it follows.
    pub(crate) fn is_readable(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.style == Style::Readable)
    }

    /// The minor of its device, where that is mounted on two hosts at once.
    pub(crate) fn shared_minor(&self) -> Option<u32> {
        let record = self.record.as_ref().filter(|_| self.birth.filesystem.is_shared())?;
        Some(record.minor)
    }

    /// Whether users are shown what it holds, as a follower.
    pub(crate) fn is_shown(&self) -> bool {
        self.made && !self.deleting && self.role == Role::Secondary && self.is_readable()
    }

    /// Whether users may write.
    pub(crate) fn is_writable(&self) -> bool {
        self.is_served() && !self.read_only
    }

    /// The clients, as they may be served now.
    pub(crate) fn clients_now(&self) -> Vec<Client> {
        Client::limited(&self.clients, self.is_writable())
    }

    /// The tags that say this.
    ///
    /// # Errors
    /// `InvalidArgument` when there are more rules than tags can hold.
    pub(crate) fn tags(&self) -> Result<BTreeSet<String>> {
        let mut tags: BTreeSet<String> = [
            ("resource", self.birth.resource.to_string()),
            ("asked", self.birth.size_bytes.to_string()),
            ("filesystem", self.birth.filesystem.as_str().to_owned()),
            ("role", self.role.as_str().to_owned()),
            ("epoch", self.epoch.to_string()),
            ("size", self.size_bytes.to_string()),
            ("made", yes(self.made).to_owned()),
            ("growing", yes(self.growing).to_owned()),
            ("readonly", yes(self.read_only).to_owned()),
            ("attached", Attached::word(self.attached).to_owned()),
            ("deleting", yes(self.deleting).to_owned()),
        ]
        .into_iter()
        .chain(self.record.iter().flat_map(Record::tags))
        .map(|(name, value)| format!("{PREFIX}{name}={value}"))
        .chain([MARK.to_owned()])
        .collect();
        let mut parts: Vec<String> = Vec::new();
        for client in &self.clients {
            let word = format!("{}!{client}", if client.write { "rw" } else { "ro" });
            match parts.last_mut() {
                Some(last) if last.len() + 1 + word.len() <= LONGEST - 32 => {
                    last.push('&');
                    last.push_str(&word);
                }
                _ => parts.push(word),
            }
        }
        if parts.len() > RULES {
            return Err(Error::invalid(format!(
                "instance {} has {} access rules, which is more than tags of a volume can hold; use networks",
                self.birth.instance,
                self.clients.len()
            )));
        }
        tags.extend(parts.iter().enumerate().map(|(part, text)| format!("{PREFIX}rules{part}={text}")));
        Ok(tags)
    }

    /// Reads them back. `None` when the volume does not bear Tandem's mark.
    ///
    /// # Errors
    /// `Unavailable` when it does and the rest makes no sense.
    pub(crate) fn read(instance: InstanceId, volume: &str, tags: &[String]) -> Result<Option<Self>> {
        let ours: BTreeMap<&str, &str> = tags
            .iter()
            .filter_map(|tag| tag.strip_prefix(PREFIX))
            .map(|tag| tag.split_once('=').unwrap_or((tag, "")))
            .collect();
        if ours.is_empty() {
            return Ok(None);
        }
        let damaged = |name: &str, value: &str| {
            Error::unavailable(format!(
                "the tag `{PREFIX}{name}` of `{volume}` is `{value}`, which this driver does not understand; set it \
                 right with lvchange, or remove the volume"
            ))
            .retry(Retry::AfterOperator)
        };
        if !tags.iter().any(|tag| tag == MARK) {
            return Err(damaged("1", "missing"));
        }
        let get = |name: &str| ours.get(name).copied().ok_or_else(|| damaged(name, "missing"));
        let number = |name: &str| get(name).and_then(|v| v.parse::<u64>().map_err(|_| damaged(name, v)));
        let flag = |name: &str| {
            get(name).and_then(|v| match v {
                "yes" => Ok(true),
                "no" => Ok(false),
                other => Err(damaged(name, other)),
            })
        };
        let filesystem = get("filesystem")?;
        let resource = get("resource")?;
        let (role, attached) = (get("role")?, get("attached")?);
        let mut clients = Vec::new();
        for name in (0..RULES).map(|part| format!("rules{part}")) {
            let Some(text) = ours.get(name.as_str()) else { continue };
            for word in text.split('&') {
                let (level, client) = word.split_once('!').ok_or_else(|| damaged(&name, word))?;
                clients.push(Client::parse(client, level == "rw").ok_or_else(|| damaged(&name, word))?);
            }
        }
        Ok(Some(Self {
            birth: Birth {
                instance,
                resource: resource.parse().map_err(|_| damaged("resource", resource))?,
                size_bytes: number("asked")?,
                filesystem: Filesystem::named(filesystem).ok_or_else(|| damaged("filesystem", filesystem))?,
            },
            role: Role::named(role).ok_or_else(|| damaged("role", role))?,
            epoch: Epoch(number("epoch")?),
            size_bytes: number("size")?,
            made: flag("made")?,
            growing: flag("growing")?,
            read_only: flag("readonly")?,
            attached: Attached::named(attached).ok_or_else(|| damaged("attached", attached))?,
            deleting: flag("deleting")?,
            clients,
            record: Record::read(|name| ours.get(name).copied())
                .map_err(|name| damaged(name, ours.get(name).copied().unwrap_or("missing")))?,
        }))
    }
}

/// Tandem's tags among those of a volume.
pub(crate) fn ours(tags: &[String]) -> BTreeSet<String> {
    tags.iter().filter(|tag| tag.starts_with(PREFIX)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn meta() -> impl Strategy<Value = Meta> {
        let client =
            (any::<u128>(), 0u8..=32, any::<bool>(), any::<bool>()).prop_map(|(bits, prefix, six, write)| {
                let text = if six {
                    std::net::Ipv6Addr::from(bits).to_string()
                } else {
                    format!("{}/{prefix}", std::net::Ipv4Addr::from(bits as u32))
                };
                Client::parse(&text, write).unwrap()
            });
        let attached = prop::sample::select(vec![None, Some(Attached::ReadOnly), Some(Attached::ReadWrite)]);
        let filesystem = prop::sample::select(vec![Filesystem::Ext4, Filesystem::Xfs, Filesystem::Ocfs2]);
        let clients = prop::collection::vec(client, 0..300);
        let role = prop::sample::select(vec![Role::Active, Role::Secondary, Role::Fenced]);
        let record = (role, prop::option::of(crate::drbd::record::tests::record()));
        (any::<[u128; 2]>(), any::<[u64; 3]>(), any::<[bool; 4]>(), attached, filesystem, clients, record)
            .prop_map(
                |(
                    [instance, resource],
                    [asked, size_bytes, epoch],
                    flags,
                    attached,
                    filesystem,
                    clients,
                    record,
                )| {
                    let (role, record) = record;
                    let [made, growing, read_only, deleting] = flags;
                    let birth = Birth {
                        instance: InstanceId(Uuid::from_u128(instance)),
                        resource: ResourceId(Uuid::from_u128(resource)),
                        size_bytes: asked,
                        filesystem,
                    };
                    let epoch = Epoch(epoch);
                    Meta {
                        birth,
                        role,
                        epoch,
                        size_bytes,
                        made,
                        growing,
                        read_only,
                        attached,
                        deleting,
                        clients,
                        record,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn tags_read_back(meta in meta()) {
            let tags: Vec<String> = meta.tags().unwrap().into_iter().collect();
            for tag in &tags {
                prop_assert!(tag.len() <= LONGEST && crate::wire::is_word(tag), "{tag}");
            }
            let others = ["backup".to_owned(), "tandem".to_owned()];
            let all: Vec<String> = others.iter().chain(&tags).cloned().collect();
            prop_assert_eq!(Meta::read(meta.birth.instance, "g/x", &all).unwrap(), Some(meta));
            prop_assert_eq!(ours(&all), tags.into_iter().collect());
        }

        #[test]
        fn damaged_tags_are_an_error(meta in meta(), which: prop::sample::Index, text in "[a-z!&=]{0,9}") {
            let mut tags: Vec<String> = meta.tags().unwrap().into_iter().collect();
            let which = which.index(tags.len());
            tags[which] = format!("tandem:{text}");
            let _ = Meta::read(meta.birth.instance, "g/x", &tags);
            let lost = tags.remove(which);
            let _ = (lost, Meta::read(meta.birth.instance, "g/x", &tags));
        }
    }

    #[test]
    fn what_bears_no_mark_is_not_ours() {
        let id = InstanceId(Uuid::nil());
        assert_eq!(Meta::read(id, "g/x", &[]).unwrap(), None);
        assert_eq!(Meta::read(id, "g/x", &["backup".to_owned()]).unwrap(), None);
        assert!(Meta::read(id, "g/x", &["tandem:2".to_owned()]).is_err());
    }
}
