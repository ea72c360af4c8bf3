//! A storage host with real ZFS pools, real NFS and a real `tandemd`, all in a guest whose power can be cut; or two hosts
//! with LVM and DRBD between them.
//!
//! The server's state lies on a disk of the guest, so it meets a power cut as it would on a machine of its own. The pools
//! are `alpha` and `beta`; clients are network name spaces of the same guest, with addresses of their own.

pub mod audit;
pub mod drbd;
mod far;
pub mod power;
pub mod storage;
pub mod users;

use far::FAR;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tandem_guests::host::Event;
use tandem_guests::{Command, Forward, Guest, Host, Kind, Lab, Plan, Running, nfs, place};

use crate::api::{Api, word};
use crate::{artifacts, wait};

/// The pools, and the zones of their back ends.
pub const POOLS: [(&str, &str); 2] = [("alpha", "zone-a"), ("beta", "zone-b")];
/// Where the state disk is mounted.
const STATE: &str = "/var/lib/tandem";
pub(crate) const PLUGINS: &str = "/run/tandem/plugins";
const PORT: u16 = 8786;
const GIB: u64 = 1 << 30;

/// How shares are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exports {
    /// By NFS, from addresses that have a rule.
    Nfs,
    /// Only in the guest itself.
    None,
}

/// What a site is made of.
struct Shape {
    kind: Kind,
    exports: Exports,
    /// Bytes of `beta`.
    beta: u64,
    /// Whether that is on another machine.
    apart: bool,
    folders: bool,
    /// Whether shares may be active on both machines.
    writable: bool,
}

/// The host, switched on or off.
#[derive(Debug)]
pub struct Site {
    /// The machine.
    pub guest: Arc<Guest>,
    /// The other machine, which has the pool `beta` where there is one.
    pub far: Option<Arc<Guest>>,
    /// The APIs of its server.
    pub api: Api,
    kind: Kind,
    exports: Exports,
    folders: bool,
    writable: bool,
    /// Ends when the server has.
    tandemd: Mutex<Option<JoinHandle<()>>>,
    log: Arc<Mutex<String>>,
    /// What the driver host has said.
    far_log: Arc<Mutex<String>>,
    _forward: Forward,
    /// Ends everything.
    lab: Lab,
}

impl Site {
    /// Boots a guest, makes its pools and starts the server. `beta` is so large.
    pub fn start(exports: Exports, beta: u64) -> Self {
        Self::build(&Shape { kind: Kind::Zfs, exports, beta, apart: false, folders: false, writable: false })
    }

    /// The same, with `beta` on another machine, where a `tandem-driver-host` runs; between them is the network.
    pub fn start_with_far(exports: Exports, beta: u64) -> Self {
        Self::build(&Shape { kind: Kind::Zfs, exports, beta, apart: true, folders: false, writable: false })
    }

    /// The same with LVM, whose shares DRBD replicates over a second network.
    pub fn start_on_lvm(exports: Exports, beta: u64) -> Self {
        Self::build(&Shape { kind: Kind::Lvm, exports, beta, apart: true, folders: false, writable: false })
    }

    /// The same, with shares that both machines write to at once.
    pub fn start_writable(exports: Exports, beta: u64) -> Self {
        Self::build(&Shape { kind: Kind::Lvm, exports, beta, apart: true, folders: false, writable: true })
    }

    /// On one machine, with a third back end, `plain`, of the driver `directory`, in a zone of its own.
    pub fn start_with_folders(exports: Exports, beta: u64) -> Self {
        Self::build(&Shape { kind: Kind::Zfs, exports, beta, apart: false, folders: true, writable: false })
    }

    fn build(shape: &Shape) -> Self {
        let lab = Lab::new(&artifacts::program("tandem-guest")).unwrap();
        let plan = |name| {
            let plan = Plan::new(name).memory(if shape.apart { 1536 } else { 2048 });
            let plan = plan.share(&artifacts::folder());
            match shape.kind {
                Kind::Lvm => plan.second_card(),
                Kind::Plain | Kind::Zfs => plan.modules(&place::zfs_modules().unwrap()),
            }
        };
        let state = if shape.folders { 3 * GIB } else { GIB / 2 };
        let near = plan("site").disk("state", state).disk(POOLS[0].0, 3 * GIB);
        let (near, far) = match shape.apart {
            true => (near, Some(plan(FAR).disk(POOLS[1].0, shape.beta))),
            false => (near.disk(POOLS[1].0, shape.beta), None),
        };
        let guest = Arc::new(lab.guest(near).unwrap());
        let far = far.map(|plan| Arc::new(lab.guest(plan).unwrap()));
        let forward = Forward::open(&guest, PORT).unwrap();
        let site = Self {
            api: Api::new(&format!("http://{}", forward.address())),
            guest,
            far,
            kind: shape.kind,
            exports: shape.exports,
            folders: shape.folders,
            writable: shape.writable,
            tandemd: Mutex::default(),
            log: Arc::default(),
            far_log: Arc::default(),
            _forward: forward,
            lab,
        };
        for guest in [Some(&site.guest), site.far.as_ref()].into_iter().flatten() {
            guest.boot().unwrap();
            site.kind.load(&**guest).unwrap();
        }
        site.create_pools();
        site.guest.run(&["mkfs.ext4", "-q", &site.guest.disk("state").unwrap().path()]).unwrap();
        site.furnish();
        site.write_settings();
        site.furnish_far();
        site.start_far();
        site.launch(&[]);
        site
    }

    /// The machine on which a pool is.
    pub fn guest_of(&self, pool: &str) -> &Arc<Guest> {
        match &self.far {
            Some(far) if pool == POOLS[1].0 => far,
            _ => &self.guest,
        }
    }

    /// What every boot needs before the server can start.
    fn furnish(&self) {
        let guest = &*self.guest;
        guest.run(&["mkdir", "-p", STATE, PLUGINS]).unwrap();
        guest.run(&["mount", &guest.disk("state").unwrap().path(), STATE]).unwrap();
        storage::install(guest, storage::driver(self.kind));
        if self.folders {
            storage::install(guest, "directory");
        }
        if self.exports == Exports::Nfs {
            nfs::serve(guest).unwrap();
        }
    }

    fn write_settings(&self) {
        // Where shares are written to on both machines, the other one asks the server who goes on.
        let (listen, auth) =
            if self.writable { ("0.0.0.0", "noauth_beyond_loopback = true\n") } else { ("127.0.0.1", "") };
        let mut text = format!(
            "host = \"site\"\nlisten = \"{listen}:{PORT}\"\nstate = \"{STATE}/state\"\nplugins = \"{PLUGINS}\"\n[auth]\n\
             mode = \"noauth\"\n{auth}"
        );
        if self.far.is_some() {
            text.push_str(&self.certified());
        }
        for (pool, zone) in POOLS {
            let apart = self.far.is_some() && pool == POOLS[1].0;
            let place = if apart { format!("host = {FAR:?}\n") } else { String::new() };
            let place = place + &self.claims(pool);
            text.push_str(&format!(
                "[[backends]]\nname = \"{pool}\"\ndriver = \"{}\"\navailability_zone = \"{zone}\"\n\
                 max_over_subscription_ratio = 500.0\n{place}settings = {}\n",
                storage::driver(self.kind),
                self.settings_of(pool)
            ));
        }
        if self.folders {
            text.push_str(&format!(
                "[[backends]]\nname = \"plain\"\ndriver = \"directory\"\navailability_zone = \"zone-c\"\n\
                 settings = {{ root = \"{STATE}/plain\" }}\n"
            ));
        }
        let file = format!("{STATE}/tandem.toml");
        put(&self.guest, &file, &text);
        // A power cut must not find it on its way to the disk.
        self.guest.run(&["sync"]).unwrap();
    }

    /// Adds to the server's settings, for its next start.
    pub fn set(&self, more: &str) {
        let file = format!("{STATE}/tandem.toml");
        let text = self.guest.run(&["cat", &file]).unwrap();
        put(&self.guest, &file, &format!("{text}{more}"));
        self.guest.run(&["sync"]).unwrap();
    }

    /// Runs the operator's command line beside the server; what it printed as JSON.
    pub fn tandem(&self, words: &[&str]) -> Value {
        let program = artifacts::program("tandem");
        let endpoint = format!("http://127.0.0.1:{PORT}");
        let argv =
            [&[program.to_str().unwrap(), "--endpoint", &endpoint, "--output", "json"], words].concat();
        serde_json::from_str(&self.guest.run(&argv).unwrap()).unwrap()
    }

    /// Starts the server, with more in its environment, and waits until its back ends serve.
    pub fn launch(&self, environment: &[(&str, &str)]) {
        self.spawn(environment);
        wait::until("the server to answer", || self.api.get("v1/ready").ok());
        self.api.backends_are_up();
    }

    /// Starts the server and waits for nothing.
    pub fn spawn(&self, environment: &[(&str, &str)]) {
        let program = artifacts::program("tandemd");
        let settings = format!("{STATE}/tandem.toml");
        let mut command = Command::new(&[program.to_str().unwrap(), "--settings", &settings]);
        for (key, value) in environment {
            command = command.env(key, value);
        }
        let running = self.guest.spawn(&command).unwrap();
        let log = self.log.clone();
        *self.server() = Some(std::thread::spawn(move || collect(&running, &log)));
    }

    fn server(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.tandemd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the server without a word, as `kill -9` does.
    pub fn kill(&self) {
        if let Some(server) = self.server().take() {
            // Only itself: what it has started goes on, as after a crash. It may have killed itself.
            let _ = self.guest.succeeds(&["pkill", "-KILL", "-x", "tandemd"]).unwrap();
            server.join().unwrap();
        }
    }

    /// Waits until the server has killed itself, as it was told to.
    pub fn dies(&self) {
        wait::until("the server to kill itself", || self.is_dead().then_some(()));
    }

    /// Whether no server runs.
    pub fn is_dead(&self) -> bool {
        self.server().as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Cuts the power of the host.
    pub fn cut_power(&self) {
        self.guest.cut_power().unwrap();
        if let Some(server) = self.server().take() {
            server.join().unwrap();
        }
    }

    /// Switches it on again: pools are found, nothing is mounted, and the server is started.
    pub fn boot(&self) {
        self.switch_on();
        self.launch(&[]);
    }

    /// The same without the server.
    pub fn switch_on(&self) {
        self.guest.boot().unwrap();
        self.find_pools(&self.guest);
        self.furnish();
    }

    /// What the server has said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A share type, a share of 1 GiB in `zone-a`; the share's id.
    pub fn share(&self, style: &str) -> String {
        self.share_of(style, 1)
    }

    /// A share in a zone, which nothing replicates; its id.
    pub fn share_in(&self, zone: &str) -> String {
        let share_type = self.api.create_type("alone", "readable", &[]).unwrap();
        let share = self.api.create_share(&share_type, zone).unwrap();
        self.api.settle();
        share
    }

    /// The same of so many GiB.
    pub fn share_of(&self, style: &str, gib: u64) -> String {
        self.share_with(style, gib, &[])
    }

    /// The same of a share type with further extra specs.
    pub fn share_with(&self, style: &str, gib: u64, specs: &[(&str, &str)]) -> String {
        // DRBD is looked at as often as that: what a test waits for comes soon.
        let often = [("replication:rpo_seconds", "4")];
        let specs = if self.kind == Kind::Lvm { [&often[..], specs].concat() } else { specs.to_vec() };
        let name = format!("follows {style} {specs:?}");
        let types = self.api.get("v2/types").unwrap();
        let known = types["share_types"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|known| known["name"] == name.as_str());
        let share_type = match known {
            Some(known) => word(&known["id"]),
            None => self.api.create_type(&name, style, &specs).unwrap(),
        };
        let share = self.api.create_share_of(&share_type, POOLS[0].1, gib).unwrap();
        self.api.settle();
        share
    }

    /// Where a replica's content is, on its machine.
    pub fn path(&self, replica: &str) -> String {
        let export = self.api.export(replica).unwrap().unwrap_or_else(|| panic!("{replica} is not reached"));
        let text = export.to_str().unwrap();
        text.split_once(':').map_or(text, |(_, path)| path).to_owned()
    }

    /// Lets an address in, and waits until that holds.
    pub fn allow(&self, share: &str, address: &str, level: &str) {
        let body =
            json!({"allow_access": {"access_type": "ip", "access_to": address, "access_level": level}});
        self.api.post(&format!("v2/shares/{share}/action"), &body).unwrap();
        let path = format!("v2/share-access-rules?share_id={share}");
        wait::until("the rule to be active", || {
            let rules = self.api.get(&path).unwrap();
            let all = rules["access_list"].as_array().cloned().unwrap_or_default();
            (!all.is_empty() && all.iter().all(|rule| rule["state"] == "active")).then_some(())
        });
    }

    /// The pool on which a replica is.
    pub fn pool_with(&self, replica: &str) -> &'static str {
        let rows = self.api.replicas().unwrap();
        let row =
            rows.iter().find(|row| row["id"] == replica).unwrap_or_else(|| panic!("no replica {replica}"));
        let host = word(&row["host"]);
        let pool = POOLS.iter().find(|(pool, _)| host.contains(&format!("@{pool}#")));
        pool.unwrap_or_else(|| panic!("{host} has no pool of this site")).0
    }

    /// The machine on which a replica is.
    pub fn guest_with(&self, replica: &str) -> &Arc<Guest> {
        self.guest_of(self.pool_with(replica))
    }

    /// Fills a share with files that nothing compresses; it must be reached.
    pub fn fill(&self, replica: &str, name: &str, mebibytes: u32) {
        let into = format!("of={}/{name}", self.path(replica));
        let count = format!("count={mebibytes}");
        self.guest_with(replica)
            .run(&["dd", "if=/dev/urandom", &into, "bs=1M", &count, "conv=fsync", "status=none"])
            .unwrap();
    }

    /// Every file of a replica and its checksum.
    pub fn contents(&self, replica: &str) -> HashMap<String, String> {
        let find = ["find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+"];
        let command = Command::new(&find).dir(&self.path(replica));
        let output = self.guest_with(replica).output(&command).unwrap();
        assert_eq!(output.status, 0, "{}", output.stderr_text());
        let said = output.stdout_text();
        said.lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, name)| (name.into(), sum.into()))
            .collect()
    }

    /// What a program printed on the machine of a pool; nothing when it failed.
    pub fn try_run(&self, pool: &str, argv: &[&str]) -> Option<String> {
        let output = self.guest_of(pool).output(&Command::new(argv)).unwrap();
        (output.status == 0).then(|| output.stdout_text())
    }

    /// Errors of operations that failed, for a test's own sentence.
    pub fn failures(&self) -> Vec<Value> {
        let mut all = self.api.operations("limit=1000").unwrap();
        all.retain(|op| op["status"] == "failed");
        all
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- the end of tandemd's log\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            let log = self.far_log();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- and of the driver host's\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// Writes a file in a guest.
pub(crate) fn put(guest: &Guest, file: &str, text: &str) {
    let tee = guest.spawn(&Command::new(&["tee", file]).input()).unwrap();
    tee.input(text.as_bytes()).unwrap();
    tee.input(b"").unwrap();
    assert_eq!(tee.wait().unwrap().status, 0);
}

/// Keeps what it prints until it ends or its host goes away.
pub fn collect(running: &Running, log: &Mutex<String>) {
    loop {
        match running.next(Duration::from_secs(60)) {
            Ok(Some(Event::Output(bytes) | Event::Error(bytes))) => {
                log.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&bytes));
            }
            Ok(Some(Event::Ended(_) | Event::Refused(_))) | Err(_) => return,
            Ok(None) => {}
        }
    }
}
