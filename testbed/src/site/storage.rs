//! What lies beneath a site: pools of ZFS, or groups of LVM whose shares DRBD replicates over a network of their own.

use tandem_guests::{Guest, Host, Kind, lvm, zfs};

use super::{Exports, PLUGINS, POOLS, PORT, STATE, Site, put};
use crate::artifacts;

/// The name of the driver.
pub(super) const fn driver(kind: Kind) -> &'static str {
    match kind {
        Kind::Lvm => "lvm",
        Kind::Plain | Kind::Zfs => "zfs",
    }
}

/// What a driver needs beside its library.
pub(crate) fn install(guest: &Guest, driver: &str) {
    let library = artifacts::driver(driver);
    guest.run(&["install", "-m", "644", library.to_str().unwrap(), PLUGINS]).unwrap();
    if driver == "lvm" {
        for name in ["tandem-lvm-worker", "tandem-fence-peer"] {
            let program = artifacts::program(name);
            guest.run(&["install", "-m", "755", program.to_str().unwrap(), PLUGINS]).unwrap();
        }
    }
}

impl Site {
    /// Makes the pools of new disks.
    pub(super) fn create_pools(&self) {
        for (pool, _) in POOLS {
            let guest = &**self.guest_of(pool);
            let disk = guest.disk(pool).unwrap().path();
            match self.kind {
                Kind::Lvm => lvm::create_group(guest, pool, &disk).unwrap(),
                Kind::Plain | Kind::Zfs => zfs::create_pool(guest, pool, &disk).unwrap(),
            }
        }
    }

    /// What a boot of a machine finds of its pools: nothing is mounted, nothing replicates.
    pub(super) fn find_pools(&self, guest: &Guest) {
        self.kind.load(guest).unwrap();
        for (pool, _) in POOLS.iter().filter(|(pool, _)| self.guest_of(pool).number() == guest.number()) {
            match self.kind {
                Kind::Lvm => {
                    lvm::run(guest, &["vgchange", "-ay", &group(pool)]).unwrap();
                    let devices = guest.run(&["dmsetup", "ls"]).unwrap();
                    assert!(!devices.contains("tandem"), "a boot activates no share: {devices}");
                }
                Kind::Plain | Kind::Zfs => zfs::import_pool(guest, pool).unwrap(),
            }
        }
    }

    /// The settings of a back end, in one line of TOML.
    pub(super) fn settings_of(&self, pool: &str) -> String {
        let guest = self.guest_of(pool);
        let export = match self.exports {
            Exports::Nfs => format!("{{ kind = \"nfs\", address = \"{}\" }}", guest.address()),
            Exports::None => "{ kind = \"none\" }".into(),
        };
        let storage = match self.kind {
            Kind::Lvm => format!(
                "group = {:?}, devices = [{:?}], drbd = {{ address = {:?}, ports = [7800, 7899], minors = [100, 199], \
                 readable_seconds = 2{} }}",
                group(pool),
                guest.disk(pool).unwrap().path(),
                guest.second_address(),
                if self.writable { self.joint_settings(pool) } else { String::new() }
            ),
            Kind::Plain | Kind::Zfs => format!("dataset = \"{pool}/tandem\""),
        };
        format!("{{ {storage}, mounts = {:?}, export = {export} }}", mounts(pool))
    }
}

/// The secret of a back end, on the server's machine and on that of its pool.
fn secret(pool: &str) -> String {
    format!("{STATE}/{pool}.secret")
}

impl Site {
    /// What lets both machines write: who they are to o2cb, and whom they ask.
    fn joint_settings(&self, pool: &str) -> String {
        let hosts = [&self.guest, self.far()].map(|guest| guest.second_address());
        let url = format!("http://{}:{PORT}", self.guest.address());
        format!(
            ", writable = {{ hosts = {hosts:?}, dead_seconds = 40, arbiter = {{ url = {url:?}, secret_file = {:?} }} }}",
            secret(pool)
        )
    }

    /// The server's settings of a back end whose host asks it.
    pub(super) fn claims(&self, pool: &str) -> String {
        if !self.writable {
            return String::new();
        }
        self.put_secret(&self.guest, pool);
        format!("claim_secret_file = {:?}\n", secret(pool))
    }

    /// The secret of a pool's back end, in a file that nobody else reads.
    pub(super) fn put_secret(&self, guest: &Guest, pool: &str) {
        if self.writable {
            let words = format!("the-secret-of-{pool}-which-has-more-than-32-letters");
            put(guest, &secret(pool), &words);
            guest.run(&["chmod", "600", &secret(pool)]).unwrap();
        }
    }
}

/// The volume group of a pool.
pub fn group(pool: &str) -> String {
    format!("vg_{pool}")
}

/// Where shares of a pool are mounted.
pub fn mounts(pool: &str) -> String {
    format!("/srv/{pool}")
}
