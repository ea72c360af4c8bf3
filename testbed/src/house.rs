//! A storage host with LVM groups and a real `tandemd`, all in a guest whose power can be cut.
//!
//! The server's state lies on a disk of the guest. Groups replicate with each other by DRBD where they are told to: both sides
//! are then in one kernel, at two addresses of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tandem_guests::{Command, Forward, Guest, Host, Lab, Plan, lvm};

use crate::api::Api;
use crate::site::storage::install;
use crate::site::{PLUGINS, collect, put};
use crate::{artifacts, wait};

/// Where the state disk is mounted.
pub const STATE: &str = "/var/lib/tandem";
const PORT: u16 = 8786;
const GIB: u64 = 1 << 30;

/// One group of the host, and the back end on it.
#[derive(Clone, Debug)]
pub struct Group {
    /// The disk, and the back end; the group is `vg_NAME`, shares are mounted below `/srv/NAME`.
    pub name: &'static str,
    /// The zone of the back end.
    pub zone: &'static str,
    /// The size of the disk.
    pub bytes: u64,
    /// Further settings of the back end, each after a comma.
    pub settings: String,
}

impl Group {
    /// One that replicates with others of the host; `number` is another one for each.
    pub fn with_drbd(name: &'static str, zone: &'static str, bytes: u64, number: u32) -> Self {
        let (port, minor) = (7800 + 100 * number, 100 + 100 * number);
        let settings = format!(
            ", drbd = {{ address = \"127.0.1.{}\", ports = [{port}, {}], minors = [{minor}, {}] }}",
            number + 1,
            port + 99,
            minor + 99
        );
        Self { name, zone, bytes, settings }
    }
}

/// The host and its server.
#[derive(Debug)]
pub struct House {
    /// The machine.
    pub guest: Arc<Guest>,
    /// The APIs of its server.
    pub api: Api,
    groups: Vec<Group>,
    server: Mutex<Option<JoinHandle<()>>>,
    log: Arc<Mutex<String>>,
    _forward: Forward,
    _lab: Lab,
}

impl House {
    /// Boots a guest and makes its groups, each with a thin pool `pool`. The server is yet to be launched.
    pub fn build(memory: u32, groups: &[Group]) -> Self {
        let lab = Lab::new(&artifacts::program("tandem-guest")).unwrap();
        let plan = Plan::new("house").memory(memory).share(&artifacts::folder()).disk("state", GIB / 2);
        let plan = groups.iter().fold(plan, |plan, group| plan.disk(group.name, group.bytes));
        let guest = Arc::new(lab.guest(plan).unwrap());
        let forward = Forward::open(&guest, PORT).unwrap();
        guest.boot().unwrap();
        lvm::load(&*guest).unwrap();
        for group in groups {
            lvm::create_group(&*guest, group.name, &guest.disk(group.name).unwrap().path()).unwrap();
        }
        guest.run(&["mkfs.ext4", "-q", &guest.disk("state").unwrap().path()]).unwrap();
        let house = Self {
            api: Api::new(&format!("http://{}", forward.address())),
            guest,
            groups: groups.to_vec(),
            server: Mutex::default(),
            log: Arc::default(),
            _forward: forward,
            _lab: lab,
        };
        house.furnish();
        house.write_settings();
        house
    }

    /// What every boot needs before the server can start.
    fn furnish(&self) {
        let guest = &*self.guest;
        guest.run(&["mkdir", "-p", STATE, PLUGINS]).unwrap();
        guest.run(&["mount", &guest.disk("state").unwrap().path(), STATE]).unwrap();
        install(guest, "lvm");
    }

    fn write_settings(&self) {
        let mut text = format!(
            "host = \"house\"\nlisten = \"127.0.0.1:{PORT}\"\nstate = \"{STATE}/state\"\nplugins = \"{PLUGINS}\"\n\
             [auth]\nmode = \"noauth\"\n"
        );
        for Group { name, zone, settings, .. } in &self.groups {
            let device = self.guest.disk(name).unwrap().path();
            text.push_str(&format!(
                "[[backends]]\nname = \"{name}\"\ndriver = \"lvm\"\navailability_zone = \"{zone}\"\n\
                 max_over_subscription_ratio = 500.0\n\
                 settings = {{ group = \"vg_{name}\", devices = [\"{device}\"], mounts = \"/srv/{name}\"{settings} }}\n"
            ));
        }
        put(&self.guest, &format!("{STATE}/tandem.toml"), &text);
        // A power cut must not find it on its way to the disk.
        self.guest.run(&["sync"]).unwrap();
    }

    /// Starts the server, with more in its environment, and waits for nothing.
    pub fn spawn(&self, environment: &[(&str, &str)]) {
        let (program, settings) = (artifacts::program("tandemd"), format!("{STATE}/tandem.toml"));
        let command = Command::new(&[program.to_str().unwrap(), "--settings", &settings]);
        let command = environment.iter().fold(command, |command, (key, value)| command.env(key, value));
        let running = self.guest.spawn(&command).unwrap();
        let log = Arc::clone(&self.log);
        *self.server() = Some(std::thread::spawn(move || collect(&running, &log)));
    }

    /// Starts the server and waits until its back ends serve.
    pub fn launch(&self) {
        self.spawn(&[]);
        wait::until("the server to answer", || self.api.get("v1/ready").ok());
        self.api.backends_are_up();
    }

    fn server(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no server runs.
    pub fn is_dead(&self) -> bool {
        self.server().as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the server without a word, as `kill -9` does.
    pub fn kill(&self) {
        let _ = self.guest.succeeds(&["pkill", "-KILL", "-x", "tandemd"]).unwrap();
        wait::until("the server to end", || self.is_dead().then_some(()));
    }

    /// Cuts the power, switches it on again, and does what a boot does: volumes are activated that let themselves be, the
    /// server starts.
    pub fn lose_power(&self) {
        self.guest.cut_power().unwrap();
        wait::until("the server to end", || self.is_dead().then_some(()));
        self.guest.boot().unwrap();
        lvm::load(&*self.guest).unwrap();
        for group in &self.groups {
            self.lvm(&["vgchange", "-ay", &format!("vg_{}", group.name)]);
        }
        assert!(!self.guest.run(&["dmsetup", "ls"]).unwrap().contains("tandem"), "a boot activates no share");
        self.furnish();
        self.launch();
    }

    /// Runs a command of LVM, which must succeed.
    pub fn lvm(&self, argv: &[&str]) -> String {
        lvm::run(&*self.guest, argv).unwrap()
    }

    /// Where an active instance is mounted.
    pub fn path(&self, instance: &str) -> String {
        let export = self.api.export(instance).unwrap();
        export.unwrap_or_else(|| panic!("{instance} is not reached")).to_str().unwrap().to_owned()
    }

    /// What the server has said so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- the end of tandemd's log\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}
