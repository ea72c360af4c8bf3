//! What the driver knows of an instance, as user properties of its dataset.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_sdk::{Attached, Client, Epoch, Error, InstanceId, InstanceSpec, Result, Role, Style};

/// The properties, without those of the rules.
pub(crate) const PROPERTIES: &[&str] = &[
    "tandem:format",
    "tandem:spec",
    "tandem:born",
    "tandem:role",
    "tandem:epoch",
    "tandem:size",
    "tandem:version",
    "tandem:readonly",
    "tandem:quiesced",
    "tandem:attached",
    "tandem:deleting",
    MOVING,
    CLEAR,
];
/// Set by migrations only: what an earlier driver made lacks it.
const MOVING: &str = "tandem:moving";
/// What an earlier driver made lacks it too.
const CLEAR: &str = "tandem:clear";
/// Rules are spread over so many properties at most, since a value has a limit.
pub(crate) const RULES: usize = 16;
const PER_RULE: usize = 7_000;
/// The longest value that ZFS takes, with room to spare.
const LONGEST: usize = 8_000;
/// The version of this layout.
const FORMAT: &str = "1";

/// What the driver knows of an instance.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Meta {
    /// As it was made.
    pub(crate) spec: InstanceSpec,
    /// Whether it was made as the active one or as a secondary.
    pub(crate) born: Role,
    pub(crate) role: Role,
    pub(crate) epoch: Epoch,
    pub(crate) size_bytes: u64,
    /// The dataset that holds the content, by its number; 0 while nothing whole is there.
    pub(crate) version: u64,
    /// Users of the active one may only read.
    pub(crate) read_only: bool,
    /// Writers are held back for a promotion elsewhere.
    pub(crate) quiesced: bool,
    /// How the manager has attached it, while it has.
    pub(crate) attached: Option<Attached>,
    /// Who may reach it.
    pub(crate) clients: Vec<Client>,
    /// Its removal has begun.
    pub(crate) deleting: bool,
    /// Where it migrates to, while it does.
    pub(crate) moving: Option<Moving>,
    /// The content came in clear and got encrypted here only: it goes on in clear, to where it came from too.
    pub(crate) clear: bool,
}

/// A migration away from an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moving {
    pub(crate) destination: InstanceId,
    /// The destination's dataset.
    pub(crate) dataset: String,
    /// Rounds made while users write.
    pub(crate) rounds: u32,
    /// Bytes of the newest of them.
    pub(crate) newest: u64,
    /// Bytes carried in all.
    pub(crate) bytes: u64,
    /// Whether little is left.
    pub(crate) ready: bool,
    /// The transaction group up to which everything is at the destination too; set right before the switch.
    pub(crate) carried: Option<u64>,
    /// Whether the destination serves the users now.
    pub(crate) switched: bool,
}

fn yes(on: bool) -> String {
    if on { "yes" } else { "no" }.to_owned()
}

/// The name of the property of a part of the rules.
pub(crate) fn rules_name(part: usize) -> String {
    format!("tandem:rules{part}")
}

impl Meta {
    pub(crate) fn new(spec: InstanceSpec, role: Role) -> Self {
        Self {
            born: role,
            role,
            epoch: spec.epoch,
            size_bytes: spec.size_bytes,
            version: 0,
            read_only: false,
            quiesced: false,
            attached: None,
            clients: Vec::new(),
            deleting: false,
            moving: None,
            clear: false,
            spec,
        }
    }

    pub(crate) fn style(&self) -> Option<Style> {
        self.spec.replication.as_ref().map(|r| r.style)
    }

    /// Whether users may reach it.
    pub(crate) fn is_served(&self) -> bool {
        self.version > 0
            && !self.deleting
            && match self.role {
                Role::Active => true,
                Role::Secondary => self.style() == Some(Style::Readable),
                _ => false,
            }
    }

    /// Whether users may write.
    pub(crate) fn is_writable(&self) -> bool {
        self.role == Role::Active && !self.read_only && !self.quiesced && !self.deleting
    }

    /// The clients, as they may be served now.
    pub(crate) fn clients_now(&self) -> Vec<Client> {
        Client::limited(&self.clients, self.is_writable())
    }

    /// Fails unless it is the active one.
    pub(crate) fn require_active(&self, what: &str) -> Result<()> {
        if self.role == Role::Active && !self.deleting {
            return Ok(());
        }
        Err(Error::conflict(format!("instance {} is not the active one, so that {what}", self.spec.instance)))
    }

    /// Refuses what follows another one: one that is fenced holds what it held when it was active.
    pub(crate) fn require_own(&self, what: &str) -> Result<()> {
        if self.role == Role::Fenced && !self.deleting { Ok(()) } else { self.require_active(what) }
    }

    /// The properties that say this.
    ///
    /// # Errors
    /// `InvalidArgument` when there is more than properties can hold.
    pub(crate) fn properties(&self) -> Result<BTreeMap<String, String>> {
        let spec = serde_json::to_string(&self.spec)
            .map_err(|e| Error::bug(format!("the instance's data does not encode: {e}")))?;
        if spec.len() > LONGEST {
            return Err(Error::invalid(
                "the options of the share type are longer than ZFS properties can hold",
            ));
        }
        let moving = self.moving.as_ref().map_or_else(|| Ok("no".to_owned()), serde_json::to_string);
        let moving = moving.map_err(|e| Error::bug(format!("the migration's data does not encode: {e}")))?;
        let attached = Attached::word(self.attached).to_owned();
        let values = [
            FORMAT.to_owned(),
            spec,
            self.born.as_str().to_owned(),
            self.role.as_str().to_owned(),
            self.epoch.to_string(),
            self.size_bytes.to_string(),
            self.version.to_string(),
            yes(self.read_only),
            yes(self.quiesced),
            attached,
            yes(self.deleting),
            moving,
            yes(self.clear),
        ];
        let names = PROPERTIES.iter().map(|name| (*name).to_owned());
        let mut properties: BTreeMap<String, String> = names.zip(values).collect();
        let mut parts = vec![String::new()];
        for client in &self.clients {
            let word = format!("{} {client};", if client.write { "rw" } else { "ro" });
            match parts.last_mut() {
                Some(last) if last.len() + word.len() <= PER_RULE => last.push_str(&word),
                _ => parts.push(word),
            }
        }
        if parts.len() > RULES {
            return Err(Error::invalid(format!(
                "instance {} has {} access rules, which is more than the driver can store; use networks",
                self.spec.instance,
                self.clients.len()
            )));
        }
        for (part, text) in parts.into_iter().enumerate() {
            // An empty value reads as one that is not set.
            properties.insert(rules_name(part), if text.is_empty() { ";".to_owned() } else { text });
        }
        Ok(properties)
    }

    /// Reads them back. `None` when they are not there at all.
    ///
    /// # Errors
    /// `Unavailable` when they are there and make no sense.
    pub(crate) fn read(dataset: &str, properties: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let Some(format) = properties.get("tandem:format") else { return Ok(None) };
        let damaged = |name: &str, value: &str| {
            Error::unavailable(format!(
                "the property `{name}` of `{dataset}` is `{value}`, which this driver does not understand; set it \
                 right, or destroy the dataset"
            ))
            .retry(tandem_sdk::Retry::AfterOperator)
        };
        if format != FORMAT {
            return Err(damaged("tandem:format", format));
        }
        let get = |name: &str| properties.get(name).map(String::as_str).ok_or_else(|| damaged(name, "-"));
        let number = |name: &str| get(name).and_then(|v| v.parse::<u64>().map_err(|_| damaged(name, v)));
        let flag = |name: &str| {
            get(name).and_then(|v| match v {
                "yes" => Ok(true),
                "no" => Ok(false),
                other => Err(damaged(name, other)),
            })
        };
        let role = |name: &str| get(name).and_then(|v| Role::named(v).ok_or_else(|| damaged(name, v)));
        let spec = get("tandem:spec")?;
        let spec = serde_json::from_str(spec).map_err(|_| damaged("tandem:spec", spec))?;
        let attached = get("tandem:attached")?;
        let attached = Attached::named(attached).ok_or_else(|| damaged("tandem:attached", attached))?;
        // A driver that knows nothing of it writes ";".
        let moving = match properties.get(MOVING).map(String::as_str) {
            None | Some("no" | ";") => None,
            Some(text) => Some(serde_json::from_str(text).map_err(|_| damaged(MOVING, text))?),
        };
        let clear = match properties.get(CLEAR).map(String::as_str) {
            None | Some(";") => false,
            Some(_) => flag(CLEAR)?,
        };
        let mut clients = Vec::new();
        for name in (0..RULES).map(rules_name) {
            let Some(text) = properties.get(&name) else { continue };
            for word in text.split(';').filter(|word| !word.is_empty()) {
                let (level, client) = word.split_once(' ').ok_or_else(|| damaged(&name, word))?;
                clients.push(Client::parse(client, level == "rw").ok_or_else(|| damaged(&name, word))?);
            }
        }
        Ok(Some(Self {
            spec,
            born: role("tandem:born")?,
            role: role("tandem:role")?,
            epoch: Epoch(number("tandem:epoch")?),
            size_bytes: number("tandem:size")?,
            version: number("tandem:version")?,
            read_only: flag("tandem:readonly")?,
            quiesced: flag("tandem:quiesced")?,
            attached,
            clients,
            deleting: flag("tandem:deleting")?,
            moving,
            clear,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec() -> InstanceSpec {
        serde_json::from_value(serde_json::json!({
            "instance": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1",
            "resource": "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a2",
            "kind": "share", "pool": "tank", "size_bytes": 1_073_741_824u64, "protocol": "NFS", "epoch": 3,
            "replication": {"style": "dr", "instances": 2}, "options": {"compression": "lz4\t\n"}
        }))
        .unwrap()
    }

    fn moving(bytes: u64) -> Moving {
        Moving {
            destination: spec().instance,
            dataset: "beta/tandem/x".into(),
            rounds: 3,
            newest: 17,
            bytes,
            ready: true,
            carried: Some(bytes),
            switched: false,
        }
    }

    fn meta() -> impl Strategy<Value = Meta> {
        let role = prop::sample::select(vec![Role::Active, Role::Secondary, Role::Fenced, Role::Destination]);
        let client = (any::<u32>(), 0u8..=32, any::<bool>()).prop_map(|(address, prefix, write)| {
            Client::parse(&format!("{}/{prefix}", std::net::Ipv4Addr::from(address)), write).unwrap()
        });
        let attached = prop::sample::select(vec![None, Some(Attached::ReadOnly), Some(Attached::ReadWrite)]);
        (role, any::<[u64; 3]>(), any::<[bool; 3]>(), attached, prop::collection::vec(client, 0..900))
            .prop_map(|(role, [epoch, size, version], [read_only, quiesced, deleting], attached, clients)| {
                Meta {
                    role,
                    epoch: Epoch(epoch),
                    size_bytes: size,
                    version,
                    read_only,
                    quiesced,
                    attached,
                    clients,
                    deleting,
                    moving: read_only.then(|| moving(size)),
                    clear: quiesced,
                    ..Meta::new(spec(), Role::Active)
                }
            })
    }

    proptest! {
        #[test]
        fn properties_read_back(meta in meta()) {
            let properties = meta.properties().unwrap();
            for (name, value) in &properties {
                prop_assert!(!value.is_empty() && value.len() <= LONGEST, "{name}");
                prop_assert!(!value.contains(['\t', '\n']), "{name}");
            }
            prop_assert_eq!(Meta::read("tank/x", &properties).unwrap(), Some(meta));
        }

        #[test]
        fn damaged_properties_are_an_error(meta in meta(), which in 0..PROPERTIES.len(), text in "[a-z!]{0,9}") {
            let mut properties = meta.properties().unwrap();
            properties.insert(PROPERTIES[which].to_owned(), text);
            let _ = Meta::read("tank/x", &properties);
            properties.remove(PROPERTIES[which]);
            let _ = Meta::read("tank/x", &properties);
        }
    }

    #[test]
    fn a_driver_that_knew_less_leaves_what_can_be_read() {
        let meta = Meta::new(spec(), Role::Active);
        let mut properties = meta.properties().unwrap();
        for name in [MOVING, CLEAR] {
            properties.insert(name.to_owned(), ";".to_owned());
        }
        assert_eq!(Meta::read("tank/x", &properties).unwrap().as_ref(), Some(&meta));
        properties.retain(|name, _| ![MOVING, CLEAR].contains(&name.as_str()));
        assert_eq!(Meta::read("tank/x", &properties).unwrap(), Some(meta));
    }

    #[test]
    fn what_bears_no_properties_is_none() {
        assert_eq!(Meta::read("tank/x", &BTreeMap::new()).unwrap(), None);
    }
}
