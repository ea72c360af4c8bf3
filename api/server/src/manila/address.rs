//! To whom an access rule may be given: Manila's checks, in Python's words.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::call::Result;
use crate::fault::Fault;

/// Checks `access_to` for its `access_type`. What counts depends on the version: `cephx` came with 2.13,
/// IPv6 with 2.38.
pub(super) fn check(access_type: &str, access_to: &str, cephx: bool, ipv6: bool) -> Result<()> {
    if access_to.contains('\0') || access_to.chars().count() > 255 {
        return Err(Fault::malformed());
    }
    match access_type {
        "ip" => ip(access_to, ipv6),
        "user" => user(access_to),
        "cert" => certificate(access_to.trim()),
        "cephx" if cephx => ceph(access_to),
        _ if cephx => {
            Err(Fault::bad_request("Only 'ip', 'user', 'cert' or 'cephx' access types are supported."))
        }
        _ => Err(Fault::bad_request("Only 'ip', 'user' or 'cert' access types are supported.")),
    }
}

/// An address or a network whose host bits are zero.
fn ip(text: &str, ipv6: bool) -> Result<()> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let network = match (address.parse::<Ipv4Addr>(), address.parse::<Ipv6Addr>()) {
        (Ok(v4), _) => prefix_v4(prefix).map(|n| (u128::from(u32::from(v4)), 32 - n)),
        (_, Ok(v6)) if ipv6 => prefix_length(prefix, 128).map(|n| (u128::from(v6), 128 - n)),
        _ => None,
    };
    match network {
        None if ipv6 => {
            Err(Fault::bad_request(format!("'{text}' does not appear to be an IPv4 or IPv6 network")))
        }
        None => Err(Fault::bad_request(format!("'{text}' does not appear to be an IPv4 network"))),
        Some((bits, host_bits)) => {
            let mask = 1u128.checked_shl(host_bits).map_or(u128::MAX, |n| n - 1);
            if bits & mask == 0 {
                Ok(())
            } else {
                Err(Fault::bad_request(format!("{text} has host bits set")))
            }
        }
    }
}

fn prefix_length(prefix: Option<&str>, most: u32) -> Option<u32> {
    match prefix {
        None => Some(most),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().filter(|n| *n <= most)
        }
        Some(_) => None,
    }
}

/// A length, a netmask or, as Python takes it too, a mask of the host bits.
fn prefix_v4(prefix: Option<&str>) -> Option<u32> {
    let Some(mask) = prefix.and_then(|p| p.parse::<Ipv4Addr>().ok()).map(u32::from) else {
        return prefix_length(prefix, 32);
    };
    let ones = |mask: u32| mask.leading_ones() + mask.trailing_zeros().min(32) >= 32;
    if ones(mask) {
        Some(mask.leading_ones())
    } else if ones(!mask) {
        Some((!mask).leading_ones())
    } else {
        None
    }
}

fn user(name: &str) -> Result<()> {
    if name.chars().all(|c| c.is_whitespace() || c == '.' || c == '|') {
        return Err(Fault::bad_request(
            "Invalid user or group name,cannot consist solely of periods or spaces.",
        ));
    }
    let length = name.chars().count();
    let special = name.chars().skip(1).any(|c| "\"/\\[]:;|=,+*?<>".contains(c));
    if !(4..=255).contains(&length) || special || name.contains('\n') {
        return Err(Fault::bad_request(
            "Invalid user or group name. Must be 4-255 characters and consist of alphanumeric characters and exclude \
             special characters \"/\\[]:;|=,+*?<>",
        ));
    }
    Ok(())
}

fn certificate(name: &str) -> Result<()> {
    let length = name.chars().count();
    if (1..65).contains(&length) {
        Ok(())
    } else {
        Err(Fault::bad_request("Invalid CN (common name). Must be 1-64 chars long."))
    }
}

fn ceph(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Fault::bad_request("Ceph IDs may not be empty."));
    }
    if !name.chars().all(|c| c.is_ascii_graphic() || c.is_ascii_whitespace()) {
        return Err(Fault::bad_request("Ceph IDs must consist of ASCII printable characters."));
    }
    if name.contains('.') {
        return Err(Fault::bad_request("Ceph IDs may not contain periods."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(kind: &str, to: &str) -> bool {
        check(kind, to, true, true).is_ok()
    }

    #[test]
    fn networks_are_read_as_python_reads_them() {
        for yes in [
            "10.1.1.1",
            "10.1.1.0/24",
            "0.0.0.0/0",
            "10.0.0.0/255.0.0.0",
            "10.0.0.0/0.255.255.255",
            "::1",
            "fd00::/8",
            "::/0",
            "10.1.1.1/32",
        ] {
            assert!(fits("ip", yes), "{yes}");
        }
        for no in [
            "999.1.1.1",
            "10.1.1.1/24",
            "10.1.1.0/33",
            "10.1.1",
            "",
            "fd00::1/8",
            "a",
            "10.0.0.0/255.0.255.0",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "10.0.0.0/8/8",
            "::/129",
        ] {
            assert!(!fits("ip", no), "{no}");
        }
        assert!(check("ip", "::1", true, false).is_err());
    }

    #[test]
    fn names_have_their_rules() {
        assert!(
            fits("user", "alice") && !fits("user", "ali") && !fits("user", "....") && !fits("user", "a:lice")
        );
        assert!(fits("cert", "x") && !fits("cert", " ") && !fits("cert", &"x".repeat(65)));
        assert!(fits("cephx", "bob") && !fits("cephx", "client.bob") && !fits("cephx", "é"));
        assert!(check("cephx", "bob", false, true).is_err() && !fits("bogus", "x"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(kind in "ip|user|cert|cephx", to in "\\PC*") {
            let _ = check(&kind, &to, true, true);
        }

        #[test]
        fn every_address_is_its_own_network(bits in proptest::prelude::any::<u128>()) {
            proptest::prop_assert!(fits("ip", &Ipv6Addr::from(bits).to_string()));
            proptest::prop_assert!(fits("ip", &Ipv4Addr::from(bits as u32).to_string()));
        }
    }
}
