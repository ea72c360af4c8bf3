//! Access rules of type `ip`, as an NFS server knows its clients.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tandem_contract::{AccessLevel, AccessRule, AccessSpec};

/// A client or a network, and what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client {
    /// The address, with the bits outside of the network cleared.
    address: IpAddr,
    prefix: u8,
    /// Whether it may write.
    pub write: bool,
}

impl Client {
    /// The client that a rule means.
    ///
    /// # Errors
    /// A sentence when the rule is of another type, or means no address or network.
    pub fn of(rule: &AccessRule) -> Result<Self, String> {
        if rule.access_type != "ip" {
            return Err(format!(
                "an NFS export takes rules of type `ip`, not `{}`; use an address or a network",
                rule.access_type
            ));
        }
        Self::parse(rule.access_to.trim(), rule.access_level == AccessLevel::Rw)
            .ok_or_else(|| format!("`{}` is no address and no network such as 192.0.2.0/24", rule.access_to))
    }

    /// A client by its address or network.
    pub fn parse(text: &str, write: bool) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => {
                let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
                (address, Some(digits.then(|| prefix.parse().ok())??))
            }
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(most);
        (prefix <= most).then(|| Self { address: masked(address, prefix), prefix, write })
    }

    /// These, of whom nobody writes unless `write`.
    pub fn limited(clients: &[Self], write: bool) -> Vec<Self> {
        clients.iter().map(|client| Self { write: client.write && write, ..*client }).collect()
    }

    /// Every client that the rules let in, sorted; of two rules for the same one, the one that grants more. With
    /// `read_only` nobody writes. Rules that mean no client are left out: their report says why.
    pub fn all(access: &AccessSpec) -> Vec<Self> {
        let mut all: Vec<Self> = access.rules.iter().filter_map(|rule| Self::of(rule).ok()).collect();
        for client in &mut all {
            client.write &= !access.read_only;
        }
        all.sort_unstable_by_key(|a| (a.address, a.prefix, !a.write));
        all.dedup_by(|b, a| a.address == b.address && a.prefix == b.prefix);
        all
    }
}

/// As exports(5) and exportfs(8) write it: the address, with the length of the network's prefix where it is one.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        write!(f, "{}", self.address)?;
        if self.prefix == whole { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from(u32::from(a) & mask).into()
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from(u128::from(a) & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(to: &str, level: AccessLevel) -> AccessRule {
        AccessRule {
            id: "00000000-0000-0000-0000-000000000001".parse().unwrap(),
            access_type: "ip".to_owned(),
            access_to: to.to_owned(),
            access_level: level,
        }
    }

    #[test]
    fn addresses_and_networks() {
        let shown = |text| Client::parse(text, true).map(|c| c.to_string());
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::7", "2001:db8::7"),
            ("2001:db8::7/64", "2001:db8::/64"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected));
        }
        for wrong in
            ["", "host", "192.0.2.1/33", "192.0.2.1/", "192.0.2.1/+8", "::/129", "1.2.3", "*", "10.0.0.0/8/8"]
        {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_rule_that_grants_more_holds() {
        let rules = vec![
            rule("192.0.2.0/24", AccessLevel::Ro),
            rule("192.0.2.9/24", AccessLevel::Rw),
            rule("nonsense", AccessLevel::Rw),
            rule("192.0.2.7", AccessLevel::Ro),
        ];
        let of = |read_only| Client::all(&AccessSpec { rules: rules.clone(), read_only });
        let shown = |all: &[Client]| all.iter().map(|c| (c.to_string(), c.write)).collect::<Vec<_>>();
        assert_eq!(shown(&of(false)), [("192.0.2.0/24".to_owned(), true), ("192.0.2.7".to_owned(), false)]);
        assert!(of(true).iter().all(|c| !c.write));
    }
}
