//! What a volume's tags say of its replication.
//!
//! ```text
//! tandem:drbd=dr!C!1003!7803          style (`dr`, `readable`, `writable`), protocol, minor, port
//! tandem:peer=<uuid>!192.0.2.2!7801!leads    who it is connected to, and whether this side's data wins (`follows`: the other's)
//! tandem:last=yes                     it was the active one until it was demoted
//! tandem:diskless=yes                 it served from its peer: what lies here is older than what its users were told
//! ```

use std::net::{IpAddr, SocketAddr};

use tandem_sdk::{InstanceId, Style};

/// How an instance replicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) style: Style,
    pub(crate) protocol: Protocol,
    pub(crate) minor: u32,
    pub(crate) port: u16,
    pub(crate) peer: Option<Peer>,
    /// It was the active one until it was demoted, and has followed nobody since.
    pub(crate) last: bool,
    /// Its disk was left while it was the active one, and its peer took what was written since.
    pub(crate) diskless: bool,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Once it is on both disks.
    #[default]
    C,
    /// Once it is on this disk and on its way.
    A,
}

/// The other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) instance: InstanceId,
    pub(crate) at: SocketAddr,
    /// Whether this side's data wins where they differ.
    pub(crate) leads: bool,
}

impl Protocol {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::C => "C",
            Self::A => "A",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::C, Self::A].into_iter().find(|protocol| protocol.as_str() == name)
    }
}

impl Record {
    /// The tags that say this: name and value.
    pub(crate) fn tags(&self) -> Vec<(&'static str, String)> {
        let of = format!("{}!{}!{}!{}", self.style.as_str(), self.protocol.as_str(), self.minor, self.port);
        let mut tags = vec![("drbd", of)];
        if let Some(peer) = &self.peer {
            let word = if peer.leads { "leads" } else { "follows" };
            tags.push(("peer", format!("{}!{}!{}!{word}", peer.instance, peer.at.ip(), peer.at.port())));
        }
        for (name, holds) in [("last", self.last), ("diskless", self.diskless)] {
            if holds {
                tags.push((name, "yes".to_owned()));
            }
        }
        tags
    }

    /// Reads them back.
    ///
    /// # Errors
    /// The name of the tag that makes no sense.
    pub(crate) fn read<'t>(get: impl Fn(&str) -> Option<&'t str>) -> Result<Option<Self>, &'static str> {
        let Some(drbd) = get("drbd") else { return Ok(None) };
        let parts: Vec<&str> = drbd.split('!').collect();
        let of = || -> Option<(Style, Protocol, u32, u16)> {
            let [style, protocol, minor, port] = parts.as_slice() else { return None };
            Some((Style::parse(style)?, Protocol::named(protocol)?, minor.parse().ok()?, port.parse().ok()?))
        };
        let (style, protocol, minor, port) = of().ok_or("drbd")?;
        let peer = match get("peer") {
            None => None,
            Some(text) => Some(peer(text).ok_or("peer")?),
        };
        let flag = |name: &'static str| match get(name) {
            None => Ok(false),
            Some("yes") => Ok(true),
            Some(_) => Err(name),
        };
        let (last, diskless) = (flag("last")?, flag("diskless")?);
        Ok(Some(Self { style, protocol, minor, port, peer, last, diskless }))
    }
}

fn peer(text: &str) -> Option<Peer> {
    let parts: Vec<&str> = text.split('!').collect();
    let [instance, host, port, word] = parts.as_slice() else { return None };
    let leads = match *word {
        "leads" => true,
        "follows" => false,
        _ => return None,
    };
    let at = SocketAddr::new(host.parse::<IpAddr>().ok()?, port.parse().ok()?);
    Some(Peer { instance: instance.parse().ok()?, at, leads })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use uuid::Uuid;

    pub(crate) fn record() -> impl Strategy<Value = Record> {
        let peer = (any::<u128>(), any::<IpAddr>(), any::<u16>(), any::<bool>()).prop_map(
            |(bits, host, port, leads)| Peer {
                instance: InstanceId(Uuid::from_u128(bits)),
                at: SocketAddr::new(host, port),
                leads,
            },
        );
        let protocol = prop::sample::select(vec![Protocol::C, Protocol::A]);
        (protocol, any::<u32>(), any::<u16>(), prop::option::of(peer), any::<[bool; 2]>()).prop_map(
            |(protocol, minor, port, peer, [last, diskless])| Record {
                style: if last { Style::Readable } else { Style::Dr },
                protocol,
                minor,
                port,
                peer,
                last,
                diskless,
            },
        )
    }

    proptest! {
        #[test]
        fn tags_read_back(record in record()) {
            let tags: BTreeMap<_, _> = record.tags().into_iter().collect();
            prop_assert_eq!(Record::read(|name| tags.get(name).map(String::as_str)), Ok(Some(record)));
        }

        #[test]
        fn any_text_is_harmless(text in ".*", bits in "[!a-zA-Z0-9:.]*") {
            let _ = Record::read(|_| Some(&text));
            let _ = Record::read(|name| if name == "drbd" { Some("dr!C!1!2") } else { Some(&bits) });
        }
    }
}
