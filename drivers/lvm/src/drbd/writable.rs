//! The settings of the style `writable`: two sides active at once, with one file system.

use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use tandem_sdk::{Error, Result, schemars};

use super::arbiter::Arbiter;
use crate::o2cb::{Cluster, Node};

/// What the style `writable` needs beyond the others: who may mount OCFS2 together, and who decides between them.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Writable {
    /// The addresses of all hosts whose shares may be joined, each host's `drbd.address`; the same list in the same order on
    /// each. A host's place in it is its number in o2cb, so that new ones go to the end and none is ever taken out.
    pub hosts: Vec<Ipv4Addr>,
    /// The name of o2cb's cluster, the same on each host; a kernel knows one only.
    #[serde(default = "default_cluster")]
    pub cluster: String,
    /// The TCP port of o2cb, the same on each host.
    #[serde(default = "default_port")]
    pub port: u16,
    /// So many seconds after its last sign a host counts as dead, and its peer goes on; one that cannot write for so long
    /// restarts itself. The same on each host.
    #[serde(default = "default_dead")]
    pub dead_seconds: u32,
    /// Who decides which side goes on when the two lose each other.
    pub arbiter: Arbiter,
}

fn default_cluster() -> String {
    "tandem".to_owned()
}

const fn default_port() -> u16 {
    7777
}

const fn default_dead() -> u32 {
    30
}

/// The most nodes that o2cb knows, numbered from 0: `O2NM_MAX_NODES`, 255; number 0 is not given.
const MOST: usize = 254;
/// The longest name of a cluster: `OCFS2_CLUSTER_NAME_LEN`.
const LONGEST: usize = 16;

impl Writable {
    /// Refuses what makes no cluster with this host, which is reached at `address`, in it.
    pub(crate) fn check(&self, address: IpAddr) -> Result<()> {
        if !(2..=MOST).contains(&self.hosts.len()) {
            return Err(Error::invalid(format!(
                "`drbd.writable.hosts` names two hosts or more, and {MOST} at most"
            )));
        }
        let twice = |(at, host): (usize, &Ipv4Addr)| self.hosts.iter().take(at).any(|other| other == host);
        if self.hosts.iter().enumerate().any(twice) {
            return Err(Error::invalid("`drbd.writable.hosts` names a host twice"));
        }
        if !self.hosts.iter().any(|host| IpAddr::V4(*host) == address) {
            return Err(Error::invalid(format!(
                "`drbd.writable.hosts` does not name this host, which is `drbd.address`, {address}; o2cb needs IPv4"
            )));
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric();
        if !(1..=LONGEST).contains(&self.cluster.len()) || !self.cluster.chars().all(is_plain) {
            return Err(Error::invalid(format!(
                "`drbd.writable.cluster` is a name of at most {LONGEST} letters and digits"
            )));
        }
        if self.port < 1024 {
            return Err(Error::invalid("`drbd.writable.port` is 1024 or more"));
        }
        if !(12..=600).contains(&self.dead_seconds) {
            return Err(Error::invalid("`drbd.writable.dead_seconds` is between 12 and 600"));
        }
        self.arbiter.check()
    }

    /// The cluster, as this host, which is reached at `address`, is to know it.
    pub(crate) fn cluster(&self, address: IpAddr) -> Cluster {
        let numbered = (1_u8..).zip(&self.hosts);
        let node = |(number, host): (u8, &Ipv4Addr)| Node {
            number,
            address: *host,
            port: self.port,
            is_here: IpAddr::V4(*host) == address,
        };
        Cluster {
            name: self.cluster.clone(),
            nodes: numbered.map(node).collect(),
            // One heartbeat every two seconds, and the first one is not counted: o2cb(7).
            dead_threshold: self.dead_seconds.div_ceil(2) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mut json: serde_json::Value) -> std::result::Result<Writable, String> {
        json["arbiter"] =
            serde_json::json!({"url": "https://tandem.example", "secret_file": "/etc/tandem/secret"});
        let writable: Writable = serde_json::from_value(json).map_err(|e| e.to_string())?;
        writable.check("192.0.2.2".parse().unwrap()).map_err(|e| e.to_string())?;
        Ok(writable)
    }

    #[test]
    fn settings_are_checked() {
        let hosts = serde_json::json!(["192.0.2.1", "192.0.2.2"]);
        let fine = of(serde_json::json!({"hosts": hosts})).unwrap();
        let cluster = fine.cluster("192.0.2.2".parse().unwrap());
        assert_eq!((cluster.name.as_str(), cluster.dead_threshold), ("tandem", 16));
        let nodes: Vec<(u8, bool)> = cluster.nodes.iter().map(|node| (node.number, node.is_here)).collect();
        assert_eq!(nodes, [(1, false), (2, true)]);
        for wrong in [
            serde_json::json!({}),
            serde_json::json!({"hosts": ["192.0.2.2"]}),
            serde_json::json!({"hosts": ["192.0.2.1", "192.0.2.3"]}),
            serde_json::json!({"hosts": ["192.0.2.2", "192.0.2.2"]}),
            serde_json::json!({"hosts": ["192.0.2.2", "fe80::1"]}),
            serde_json::json!({"hosts": hosts, "cluster": "a/b"}),
            serde_json::json!({"hosts": hosts, "cluster": "a-name-too-long-for-it"}),
            serde_json::json!({"hosts": hosts, "port": 80}),
            serde_json::json!({"hosts": hosts, "dead_seconds": 2}),
            serde_json::json!({"hosts": hosts, "nodes": 2}),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
