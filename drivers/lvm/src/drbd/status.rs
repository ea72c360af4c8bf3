//! What the kernel says of a resource: `drbdsetup events2 --now --statistics`.

use std::collections::{BTreeMap, BTreeSet};

/// A resource with its one volume and its one peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// `/dev/drbd<minor>`, once the device was made.
    pub(crate) minor: Option<u32>,
    pub(crate) is_primary: bool,
    /// Writes are held back: it has lost the other side, and was not told that it goes on.
    pub(crate) is_suspended: bool,
    /// State of its own disk: `UpToDate`, `Inconsistent`, `Diskless`, …
    pub(crate) disk: String,
    /// State of the connection: `Connected`, `Connecting`, `StandAlone`, …
    pub(crate) connection: String,
    /// What goes over it: `Established`, `SyncTarget`, `Off`, …
    pub(crate) replication: String,
    pub(crate) peer_disk: String,
    pub(crate) peer_is_primary: bool,
    /// KiB that the two sides are known to differ in.
    pub(crate) out_of_sync_kib: u64,
    /// The device's size in KiB.
    pub(crate) size_kib: u64,
}

impl Status {
    /// Reads the events of all resources; what it does not know it passes over.
    pub(crate) fn all(text: &str) -> BTreeMap<String, Self> {
        let mut all: BTreeMap<String, Self> = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some("exists"), Some(kind)) = (words.next(), words.next()) else { continue };
            let fields: BTreeMap<&str, &str> = words.filter_map(|word| word.split_once(':')).collect();
            let Some(name) = fields.get("name") else { continue };
            let get = |field: &str| fields.get(field).copied().unwrap_or_default();
            let number = |field: &str| get(field).parse::<u64>().unwrap_or(0);
            let of = all.entry((*name).to_owned()).or_default();
            match kind {
                "resource" => {
                    of.is_primary = get("role") == "Primary";
                    of.is_suspended = get("suspended").contains("fencing");
                }
                "connection" => {
                    get("connection").clone_into(&mut of.connection);
                    of.peer_is_primary = get("role") == "Primary";
                }
                "device" => {
                    of.minor = get("minor").parse().ok();
                    get("disk").clone_into(&mut of.disk);
                    of.size_kib = number("size");
                }
                "peer-device" => {
                    get("replication").clone_into(&mut of.replication);
                    get("peer-disk").clone_into(&mut of.peer_disk);
                    of.out_of_sync_kib = number("out-of-sync");
                }
                _ => {}
            }
        }
        all
    }

    pub(crate) fn is_attached(&self) -> bool {
        !matches!(self.disk.as_str(), "" | "Diskless" | "Failed" | "Detaching")
    }

    /// Whether it holds one moment of the share, whole.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.disk.as_str(), "UpToDate" | "Consistent" | "Outdated")
    }

    /// Whether the kernel has given the peer up: nobody told it to, or it refused the peer's data.
    pub(crate) fn stands_alone(&self) -> bool {
        matches!(self.connection.as_str(), "" | "StandAlone" | "Disconnecting")
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection == "Connected"
    }

    /// Whether the two sides have agreed on who lacks what.
    pub(crate) fn has_agreed(&self) -> bool {
        let words = [
            "Established",
            "SyncSource",
            "SyncTarget",
            "PausedSyncS",
            "PausedSyncT",
            "VerifyS",
            "VerifyT",
            "Ahead",
            "Behind",
        ];
        self.is_connected() && words.contains(&self.replication.as_str())
    }

    /// Whether the other side's disk serves both.
    pub(crate) fn peer_serves(&self) -> bool {
        self.is_connected() && self.peer_disk == "UpToDate"
    }

    /// Whether it is the other side that lacks what the two differ in: it has no disk now.
    fn peer_is_diskless(&self) -> bool {
        matches!(self.peer_disk.as_str(), "Diskless" | "Failed" | "Detaching")
    }

    /// Whether it receives what it lacks this moment.
    pub(crate) fn resyncs(&self) -> bool {
        self.is_connected()
            && matches!(
                self.replication.as_str(),
                "SyncTarget" | "PausedSyncT" | "WFBitMapT" | "WFSyncUUID" | "StartingSyncT"
            )
    }

    /// Whether it has everything that was ever acknowledged, and gets what is.
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.is_connected()
            && self.disk == "UpToDate"
            // While `drbdsetup verify` reads, every write goes to both.
            && matches!(self.replication.as_str(), "Established" | "VerifyS" | "VerifyT")
            && (self.out_of_sync_kib == 0 || self.peer_is_diskless())
    }

    /// Whether the two differ although nothing is left to be carried: `drbdsetup verify` found that.
    pub(crate) fn was_found_to_differ(&self) -> bool {
        self.is_connected()
            && self.disk == "UpToDate"
            && self.peer_disk == "UpToDate"
            && self.replication == "Established"
            && self.out_of_sync_kib > 0
    }

    /// Bytes that the two sides are known to differ in.
    pub(crate) fn out_of_sync(&self) -> u64 {
        self.out_of_sync_kib.saturating_mul(1024)
    }
}

/// The minors of all resources' volumes in the same events: somebody else's resource may have several.
pub(crate) fn minors(text: &str) -> BTreeSet<u32> {
    text.lines()
        .filter(|line| line.starts_with("exists device "))
        .filter_map(|line| line.split_whitespace().find_map(|word| word.strip_prefix("minor:")?.parse().ok()))
        .collect()
}

/// Both ends of a resource's connection in its `drbdsetup show`, as `drbdsetup` takes them: here and there.
pub(crate) fn ends(text: &str) -> Option<(String, String)> {
    let (mut here, mut there, mut is_there) = (None, None, false);
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "_this_host" => is_there = false,
            "_remote_host" => is_there = true,
            "address" => {
                let (family, address) = (words.next()?, words.next()?);
                let end = format!("{family}:{}", address.trim_end_matches(';'));
                *(if is_there { &mut there } else { &mut here }) = Some(end);
            }
            _ => {}
        }
    }
    here.zip(there)
}

/// The ports in `drbdsetup show`, of all resources and both sides of each.
pub(crate) fn ports(text: &str) -> Vec<u16> {
    text.split_whitespace()
        .filter_map(|word| word.trim_end_matches(';').rsplit_once(':')?.1.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TWO: &str = "\
exists resource name:ra role:Primary suspended:no write-ordering:flush
exists connection name:ra peer-node-id:0 conn-name:peer connection:Connected role:Secondary congested:no
exists device name:ra volume:0 minor:7 disk:UpToDate size:1048576 read:0 written:1556 al-writes:0 blocked:no
exists peer-device name:ra peer-node-id:0 volume:0 replication:SyncSource peer-disk:Inconsistent out-of-sync:84884 pending:0
exists resource name:rb role:Secondary suspended:no
exists connection name:rb peer-node-id:0 connection:StandAlone role:Unknown
exists device name:rb volume:0 minor:8 disk:Diskless
exists peer-device name:rb peer-node-id:0 volume:0 replication:Off peer-disk:DUnknown
exists -
";

    #[test]
    fn events_are_read() {
        let all = Status::all(TWO);
        let a = &all["ra"];
        assert_eq!(
            (a.minor, a.is_primary, a.size_kib, a.out_of_sync()),
            (Some(7), true, 1 << 20, 84884 << 10)
        );
        assert!(a.is_connected() && a.is_attached() && a.is_whole() && !a.is_up_to_date() && !a.resyncs());
        let b = &all["rb"];
        assert!(!b.is_attached() && b.stands_alone() && !b.is_up_to_date());
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn who_serves_a_peer_without_a_disk_lacks_nothing() {
        let mut side = Status {
            disk: "UpToDate".into(),
            connection: "Connected".into(),
            replication: "Established".into(),
            peer_disk: "Diskless".into(),
            out_of_sync_kib: 64,
            ..Status::default()
        };
        assert!(side.is_up_to_date() && side.has_agreed() && !side.peer_serves());
        side.peer_disk = "UpToDate".into();
        assert!(!side.is_up_to_date() && side.peer_serves());
        side.replication = "WFBitMapT".into();
        assert!(!side.has_agreed());
    }

    #[test]
    fn both_ends_of_a_connection_are_read() {
        let text = "resource ra {\n _remote_host {\n address\t\tipv4 127.0.0.1:7001;\n }\n _this_host {\n address ipv6 [::1]:7000;\n \
                    volume 0 { device minor 1; }\n }\n}\n";
        assert_eq!(ends(text), Some(("ipv6:[::1]:7000".to_owned(), "ipv4:127.0.0.1:7001".to_owned())));
        assert_eq!(ends("resource ra {\n _this_host {\n volume 0 { device minor 1; }\n }\n}\n"), None);
    }

    #[test]
    fn minors_of_all_volumes() {
        let more = "exists device name:ra volume:1 minor:9 disk:UpToDate size:8\n";
        assert_eq!(minors(&format!("{TWO}{more}")), BTreeSet::from([7, 8, 9]));
        assert_eq!(minors("exists device name:x minor:\nexists device\n"), BTreeSet::new());
    }

    #[test]
    fn ports_of_all_resources() {
        let text =
            "_remote_host {\n address ipv4 127.0.0.1:7000;\n}\n connection { _this_host ipv6 [::1]:7001; }";
        assert_eq!(ports(text), [7000, 7001]);
    }

    fn status() -> impl Strategy<Value = Status> {
        let word =
            |words: &[&str]| prop::sample::select(words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        (
            0u32..2000,
            any::<[bool; 3]>(),
            word(&["UpToDate", "Inconsistent", "Diskless", "Outdated"]),
            word(&["Connected", "StandAlone", "Connecting"]),
            word(&["Established", "SyncTarget", "Off"]),
            any::<[u32; 2]>(),
        )
            .prop_map(
                |(
                    minor,
                    [is_primary, peer_is_primary, is_suspended],
                    disk,
                    connection,
                    replication,
                    sizes,
                )| Status {
                    minor: Some(minor),
                    is_primary,
                    is_suspended,
                    peer_disk: disk.clone(),
                    disk,
                    connection,
                    replication,
                    peer_is_primary,
                    out_of_sync_kib: sizes[0].into(),
                    size_kib: sizes[1].into(),
                },
            )
    }

    fn print(name: &str, s: &Status) -> String {
        let role = |primary| if primary { "Primary" } else { "Secondary" };
        format!(
            "exists resource name:{name} role:{} suspended:{}\nexists connection name:{name} connection:{} role:{}\n\
             exists device name:{name} volume:0 minor:{} disk:{} size:{}\n\
             exists peer-device name:{name} replication:{} peer-disk:{} out-of-sync:{}\n",
            role(s.is_primary),
            if s.is_suspended { "fencing" } else { "no" },
            s.connection,
            role(s.peer_is_primary),
            s.minor.unwrap_or(0),
            s.disk,
            s.size_kib,
            s.replication,
            s.peer_disk,
            s.out_of_sync_kib
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(all in prop::collection::btree_map("[a-z0-9.-]{1,40}", status(), 0..5)) {
            let text: String = all.iter().map(|(name, status)| print(name, status)).collect();
            prop_assert_eq!(Status::all(&text), all);
        }

        #[test]
        fn any_text_is_harmless(text in "(exists (device|connection) |name:|[ a-z:0-9\n])*", other in ".*") {
            let _ = (Status::all(&text), Status::all(&other), ports(&text), ports(&other), ends(&text), ends(&other));
        }

        #[test]
        fn who_is_up_to_date_lacks_nothing(status in status()) {
            if status.is_up_to_date() {
                prop_assert!(status.is_whole() && !status.resyncs() && status.out_of_sync() == 0 && !status.stands_alone());
            }
        }
    }
}
