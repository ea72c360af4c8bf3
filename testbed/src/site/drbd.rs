//! DRBD beneath a site: what its kernels say of a replica, what both sides hold, and what must not be left anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use tandem_guests::{Guest, Host, lvm};

use super::storage::{group, mounts};
use super::{POOLS, Site};
use crate::api::word;
use crate::wait;

/// What a kernel says of its side of a pair.
#[derive(Clone, Debug, Default)]
pub struct Side(BTreeMap<String, String>);

impl Side {
    /// A word of it: `role`, `disk`, `connection`, `replication`, `peer-disk`, `minor`; empty where it says nothing.
    pub fn word(&self, field: &str) -> &str {
        self.0.get(field).map_or("", String::as_str)
    }

    /// A number of it: `out-of-sync`, `received`, `sent`, `written`, in KiB.
    pub fn kib(&self, field: &str) -> u64 {
        self.word(field).parse().unwrap_or(0)
    }
}

impl Site {
    /// What the kernel says of a replica, on its own machine.
    pub fn side(&self, replica: &str) -> Side {
        self.side_on(self.pool_with(replica), replica)
    }

    /// The same, where it is known on which pool that is: no server is asked.
    pub fn side_on(&self, pool: &str, replica: &str) -> Side {
        let resource = format!("tandem-{replica}");
        let guest = self.guest_of(pool);
        let text = guest.run(&["drbdsetup", "events2", "--now", "--statistics", &resource]).unwrap();
        let mut all = BTreeMap::new();
        // Its own role and the peer's have one name.
        for line in text.lines().filter(|line| !line.starts_with("exists connection")) {
            all.extend(line.split_whitespace().filter_map(|word| word.split_once(':')).map(owned));
        }
        for line in text.lines().filter(|line| line.starts_with("exists connection")) {
            let fields = line.split_whitespace().filter_map(|word| word.split_once(':'));
            all.extend(fields.filter(|(name, _)| *name == "connection").map(owned));
        }
        Side(all)
    }

    /// Waits until the active replica is mounted where it is served: after a boot its peer is heard first.
    pub fn is_served(&self, active: &str) {
        let path = self.path(active);
        wait::until("the share to be served", || {
            self.guest_with(active).succeeds(&["mountpoint", "-q", &path]).unwrap().then_some(())
        });
    }

    /// Waits until the kernels of both sides say that neither lacks anything.
    pub fn both_up_to_date(&self, active: &str, replica: &str) {
        let whole = |side: &Side| {
            (side.word("connection"), side.word("replication"), side.word("disk"))
                == ("Connected", "Established", "UpToDate")
                && side.kib("out-of-sync") == 0
        };
        wait::until_else(|| {
            let sides = [active, replica].map(|id| self.side(id));
            if sides.iter().all(whole) { Ok(()) } else { Err(format!("the pair is not whole: {sides:?}")) }
        });
    }

    /// Lets DRBD compare every block of both sides, while users write.
    pub fn sides_are_verified(&self, active: &str, replica: &str) {
        self.both_up_to_date(active, replica);
        let guest = self.guest_with(active);
        let minor = self.side(active).word("minor").to_owned();
        guest.run(&["drbdsetup", "verify", &minor]).unwrap();
        wait::until_else(|| {
            let sides = [active, replica].map(|id| self.side(id));
            let over = sides.iter().all(|side| side.word("replication") == "Established");
            if over { Ok(()) } else { Err(format!("the comparison does not end: {sides:?}")) }
        });
        for id in [active, replica] {
            let side = self.side(id);
            let said = || [active, replica].map(|id| self.kernel_said(id)).join("\n-- the other side\n");
            assert_eq!(side.kib("out-of-sync"), 0, "blocks differ: {side:?}\n{}", said());
        }
    }

    /// The same, and both volumes are compared.
    pub fn sides_are_equal(&self, active: &str, replica: &str) {
        self.sides_are_verified(active, replica);
        let guest = self.guest_with(active);
        // Nothing is written meanwhile, so that both volumes are what the file system holds.
        let folder = self.path(active);
        guest.run(&["fsfreeze", "--freeze", &folder]).unwrap();
        let sums = std::thread::scope(|scope| {
            let sums = [active, replica].map(|id| scope.spawn(move || self.volume_sum(id)));
            sums.map(|sum| sum.join())
        });
        guest.run(&["fsfreeze", "--unfreeze", &folder]).unwrap();
        let [here, there] = sums.map(|sum| sum.unwrap());
        assert_eq!(here, there, "the volumes of {active} and {replica} differ");
    }

    /// What the kernel of a replica's host says of DRBD.
    fn kernel_said(&self, replica: &str) -> String {
        let said = self.guest_with(replica).run(&["dmesg"]).unwrap_or_default();
        said.lines().filter(|line| line.contains("drbd")).collect::<Vec<_>>().join("\n")
    }

    /// The checksum of a replica's volume, past every cache.
    fn volume_sum(&self, replica: &str) -> String {
        let pool = self.pool_with(replica);
        let volume = format!("if=/dev/{}/tandem-{replica}", group(pool));
        let script = "dd \"$1\" bs=1M iflag=direct status=none | b2sum";
        self.guest_of(pool).run(&["sh", "-c", script, "sh", &volume]).unwrap()
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// What lies in the groups, their kernels and their folders, and belongs to nothing in the store; and what should be there and
/// is not.
pub(super) fn leftovers(site: &Site) -> Vec<String> {
    let mut rows = site.api.replicas().unwrap();
    rows.extend(alone(site));
    POOLS.iter().flat_map(|(pool, _)| leftovers_of(site, pool, &rows)).collect()
}

/// Instances of shares whose types do not replicate, as rows of replicas.
fn alone(site: &Site) -> Vec<Value> {
    let all = site.api.get("v2/share_instances").unwrap();
    let all = all["share_instances"].as_array().cloned().unwrap_or_default();
    let row = |instance: Value| {
        let id = word(&instance["id"]);
        let found = site.api.get(&format!("v2/share_instances/{id}/export_locations")).unwrap();
        let paths = found["export_locations"].as_array().cloned().unwrap_or_default();
        let paths: Vec<&Value> = paths.iter().map(|location| &location["path"]).collect();
        json!({"id": id, "host": instance["host"], "fenced": false, "exports": paths, "replica_state": null})
    };
    all.into_iter().filter(|instance| instance["replica_state"].is_null()).map(row).collect()
}

fn leftovers_of(site: &Site, pool: &str, rows: &[Value]) -> Vec<String> {
    let guest: &Arc<Guest> = site.guest_of(pool);
    let here = |row: &&Value| row["host"].as_str().is_some_and(|host| host.contains(&format!("@{pool}#")));
    let rows: BTreeMap<String, &Value> =
        rows.iter().filter(here).map(|row| (word(&row["id"]), row)).collect();
    let of = |pick: &dyn Fn(&Value) -> bool| -> BTreeSet<String> {
        rows.iter().filter(|(_, row)| pick(row)).map(|(id, _)| id.clone()).collect()
    };
    let all = of(&|_| true);
    let replicated = of(&|row| !row["replica_state"].is_null());
    let alive = of(&|row| row["fenced"] != true && !row["replica_state"].is_null());
    let shown = of(&|row| row["exports"].as_array().is_some_and(|exports| !exports.is_empty()));
    let mut found = Vec::new();
    let mut strange = |what: &str, is: BTreeSet<String>, should: &BTreeSet<String>| {
        if is != *should {
            found.push(format!("{pool}: {what} are {is:?}, and should be {should:?}"));
        }
    };
    let listing = lvm::run(&**guest, &["lvs", "--noheadings", "-o", "lv_name", &group(pool)]).unwrap();
    let volumes: BTreeSet<&str> =
        listing.split_whitespace().filter_map(|v| v.strip_prefix("tandem-")).collect();
    let ending = |end: &str| volumes.iter().filter_map(|v| Some(v.strip_suffix(end)?.to_owned())).collect();
    strange("volumes", volumes.iter().filter(|v| !v.contains('.')).map(|v| (*v).to_owned()).collect(), &all);
    strange("volumes of metadata", ending(".drbd"), &replicated);
    let views: Vec<&str> = volumes.iter().filter_map(|v| Some(v.rsplit_once(".read")?.0)).collect();
    let secondaries =
        |id: &str| shown.contains(id) && replicated.contains(id) && rows[id]["replica_state"] != "active";
    strange(
        "snapshots for readers",
        views.iter().map(|id| (*id).to_owned()).collect(),
        &shown.iter().filter(|id| secondaries(id)).cloned().collect(),
    );
    let events = guest.run(&["drbdsetup", "events2", "--now"]).unwrap();
    let resources = events.lines().filter_map(|line| line.strip_prefix("exists resource name:tandem-"));
    strange("resources", resources.filter_map(first_word).collect(), &alive);
    let mounted = guest.run(&["findmnt", "-rn", "-o", "TARGET"]).unwrap();
    let below = format!("{}/", mounts(pool));
    strange(
        "mounts",
        mounted.lines().filter_map(|at| at.strip_prefix(&below)).map(str::to_owned).collect(),
        &shown,
    );
    let locks = guest.run(&["ls", "/run/tandem/lvm"]).unwrap();
    let locks = locks.lines().filter_map(|name| name.strip_suffix(".lock")).filter(|name| name.len() == 36);
    // Of the lock of the numbers, which is no instance's.
    let locks: BTreeSet<String> =
        locks.filter(|id| id.contains(|c| c != '0' && c != '-')).map(str::to_owned).collect();
    strange("locks of what is gone", locks.difference(&all).cloned().collect(), &BTreeSet::new());
    if views.len() > views.iter().collect::<BTreeSet<_>>().len() {
        found.push(format!("{pool}: a replica has two snapshots for readers: {volumes:?}"));
    }
    let devices = guest.run(&["dmsetup", "info", "-c", "--noheadings", "-o", "name,suspended"]).unwrap();
    for line in devices.lines().filter(|line| line.contains("tandem--")) {
        let (name, state) = line.split_once(':').unwrap_or((line, ""));
        let volume = name.split_once("tandem--").map_or(name, |(_, id)| id).replace("--", "-");
        if !volumes.contains(volume.as_str()) {
            found.push(format!("{pool}: the device {name} is left"));
        }
        if state.contains("Suspended") {
            found.push(format!("{pool}: the device {name} is suspended"));
        }
    }
    found
}

fn first_word(text: &str) -> Option<String> {
    text.split_whitespace().next().map(str::to_owned)
}
