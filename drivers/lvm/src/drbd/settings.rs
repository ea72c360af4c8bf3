//! The settings of replication, and what the host must have for it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde::Deserialize;
use tandem_sdk::files::failed;
use tandem_sdk::{Error, Result, Retry, schemars};

use super::writable::Writable;
use super::{helper, tools};

/// Where DRBD is reached, and which of its numbers are the driver's.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drbd {
    /// This host's address towards its peers. What goes over it is neither encrypted nor signed: a network of its own.
    pub address: IpAddr,
    /// The first and the last TCP port that a share may get, such as `[7800, 8799]`; one for each share that replicates.
    #[serde(default = "default_ports")]
    pub ports: [u16; 2],
    /// The first and the last minor number (`/dev/drbd<minor>`). Back ends on one host need ranges of their own.
    #[serde(default = "default_minors")]
    pub minors: [u32; 2],
    /// The speed of a resync at most, in MiB a second.
    #[serde(default = "default_rate")]
    pub resync_mib: u32,
    /// In the style `readable`: what users read of a replica is renewed once it is older than this, in seconds.
    #[serde(default = "default_view")]
    pub readable_seconds: u32,
    /// The style `writable`; not offered when absent.
    #[serde(default)]
    pub writable: Option<Writable>,
}

const fn default_ports() -> [u16; 2] {
    [7800, 8799]
}

const fn default_minors() -> [u32; 2] {
    [1000, 1999]
}

const fn default_rate() -> u32 {
    1024
}

const fn default_view() -> u32 {
    60
}

/// DRBD's minor numbers end here.
const LAST_MINOR: u32 = (1 << 20) - 1;
/// DRBD's own limit of `resync-rate`, 4 GiB a second.
const FASTEST: u32 = 4096;

/// What the kernel's module says of itself.
pub(crate) const PROC: &str = "/proc/drbd";

impl Drbd {
    /// Refuses ranges that hold nothing.
    pub(crate) fn check(&self) -> Result<()> {
        if self.address.is_unspecified() || self.address.is_multicast() {
            return Err(Error::invalid(format!(
                "`drbd.address` is {}, where no peer could reach this host",
                self.address
            )));
        }
        if self.ports[0] < 1024 || self.ports[0] > self.ports[1] {
            return Err(Error::invalid("`drbd.ports` is the first and the last port, from 1024 on"));
        }
        if self.minors[0] > self.minors[1] || self.minors[1] > LAST_MINOR {
            return Err(Error::invalid(format!(
                "`drbd.minors` is the first and the last minor number, at most {LAST_MINOR}"
            )));
        }
        if self.readable_seconds == 0 {
            return Err(Error::invalid("`drbd.readable_seconds` is 1 or more"));
        }
        if self.resync_mib == 0 || self.resync_mib > FASTEST {
            return Err(Error::invalid(format!("`drbd.resync_mib` is between 1 and {FASTEST}")));
        }
        self.writable.as_ref().map_or(Ok(()), |writable| writable.check(self.address))
    }

    /// Refuses a host without DRBD 8.4, its tools, or room in them for the driver to be alone in its decisions.
    pub(crate) fn require(&self) -> Result<()> {
        for tool in [tools::SETUP, tools::META] {
            if !Path::new(tool).exists() {
                return Err(absent(&format!("{tool} is not installed (Debian: drbd-utils)")));
            }
        }
        let version = fs::read_to_string(PROC).unwrap_or_default();
        if !version.starts_with("version: 8.4.") {
            return Err(absent(match version.lines().next() {
                None => "the kernel's module is not loaded (`modprobe drbd`)",
                Some(_) => "the kernel's module is another version; see `head -1 /proc/drbd`",
            }));
        }
        helper::require(self.writable.is_some())
    }

    /// Takes the ranges for a group of this host, until the next boot.
    ///
    /// # Errors
    /// `InvalidArgument` when another group has some of them.
    pub(crate) fn claim(&self, run: &Path, group: &str) -> Result<()> {
        // Two back ends that are opened at once must see each other.
        let all = run.join("drbd-ranges.lock");
        let all = fs::File::create(&all).map_err(|e| failed("create", &all, &e))?;
        rustix::fs::flock(&all, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|errno| failed("lock", run, &errno.into()))?;
        let path = run.join(format!("drbd-{group}.ranges"));
        for entry in fs::read_dir(run).map_err(|e| failed("list", run, &e))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("drbd-") || !name.ends_with(".ranges") || entry.path() == path {
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            if let Some(theirs) = ranges(&text)
                && self.overlaps(&theirs)
            {
                return Err(Error::invalid(format!(
                    "`drbd.ports` or `drbd.minors` overlap those of another back end on this host; give each its own, or \
                     remove `{}` when that back end is no more",
                    entry.path().display()
                ))
                .retry(Retry::AfterOperator));
            }
        }
        let text = format!("{} {} {} {}\n", self.ports[0], self.ports[1], self.minors[0], self.minors[1]);
        fs::write(&path, text).map_err(|e| failed("write", &path, &e))
    }

    fn overlaps(&self, theirs: &[u32; 4]) -> bool {
        let meet = |ours: [u32; 2], first: u32, last: u32| ours[0] <= last && first <= ours[1];
        meet(self.ports.map(u32::from), theirs[0], theirs[1]) || meet(self.minors, theirs[2], theirs[3])
    }
}

fn ranges(text: &str) -> Option<[u32; 4]> {
    let numbers: Vec<u32> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    numbers.try_into().ok()
}

pub(super) fn absent(why: &str) -> Error {
    Error::unavailable(format!("the setting `drbd` asks for replication by DRBD 8.4, but {why}"))
        .retry(Retry::AfterOperator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: serde_json::Value) -> std::result::Result<Drbd, String> {
        let drbd: Drbd = serde_json::from_value(json).map_err(|e| e.to_string())?;
        drbd.check().map_err(|e| e.to_string())?;
        Ok(drbd)
    }

    #[test]
    fn settings_are_checked() {
        assert!(of(serde_json::json!({"address": "192.0.2.1"})).is_ok());
        for wrong in [
            serde_json::json!({}),
            serde_json::json!({"address": "storage1"}),
            serde_json::json!({"address": "0.0.0.0"}),
            serde_json::json!({"address": "192.0.2.1", "ports": [80, 90]}),
            serde_json::json!({"address": "192.0.2.1", "ports": [8000, 7000]}),
            serde_json::json!({"address": "192.0.2.1", "minors": [1, 1_048_576]}),
            serde_json::json!({"address": "192.0.2.1", "resync_mib": 0}),
            serde_json::json!({"address": "192.0.2.1", "readable_seconds": 0}),
            serde_json::json!({"address": "192.0.2.1", "secret": "x"}),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_of_two_groups_do_not_overlap() {
        let run = std::env::temp_dir().join(format!("tandem-ranges-{}", std::process::id()));
        fs::create_dir_all(&run).unwrap();
        let of = |ports: [u16; 2], minors: [u32; 2]| {
            of(serde_json::json!({"address": "192.0.2.1", "ports": ports, "minors": minors})).unwrap()
        };
        of([7800, 7899], [0, 99]).claim(&run, "a").unwrap();
        of([7900, 7999], [100, 199]).claim(&run, "b").unwrap();
        // The same group again, with other ranges.
        of([7700, 7899], [0, 99]).claim(&run, "a").unwrap();
        for (ports, minors) in [([7899, 7900], [200, 299]), ([8000, 8100], [199, 200])] {
            assert!(of(ports, minors).claim(&run, "c").unwrap_err().message.contains(".ranges"));
        }
        fs::remove_dir_all(&run).unwrap();
    }
}
