//! The other machine of a site: its pool, and the `tandem-driver-host` that the server reaches over mutual TLS.

use std::sync::{Arc, PoisonError};

use tandem_guests::{Command, Guest, Host, Kind, Link, nfs};

use super::{Exports, PLUGINS, POOLS, STATE, Site, collect, put, storage};
use crate::{artifacts, wait};

/// Its name.
pub(super) const FAR: &str = "far";
const TLS: &str = "/var/lib/tandem/tls";
const PORT: u16 = 8787;
/// What says where the driver host stops itself.
const STOP_AT: &str = "/run/tandem/stop-at";
/// The program's name as the kernel knows it, which keeps 15 letters.
const COMMAND: &str = "tandem-driver-h";

impl Site {
    /// The other machine.
    ///
    /// # Panics
    /// When there is none.
    pub fn far(&self) -> &Arc<Guest> {
        self.far.as_ref().expect("there is no other machine")
    }

    /// Makes a CA and certificates on the server's machine; the part of its settings that names them and the other machine.
    pub(super) fn certified(&self) -> String {
        let tandem = artifacts::program("tandem");
        for words in [&["ca"][..], &["host", "site"], &["host", FAR]] {
            let argv = [&[tandem.to_str().unwrap(), "cert"], words].concat();
            let output = self.guest.output(&Command::new(&argv).dir(STATE)).unwrap();
            assert_eq!(output.status, 0, "{argv:?}: {}", output.stderr_text());
        }
        self.guest.run(&["mv", &format!("{STATE}/tandem-ca"), TLS]).unwrap();
        format!(
            "[tls]\ncertificate = \"{TLS}/site.crt\"\nkey = \"{TLS}/site.key\"\nca = \"{TLS}/ca.crt\"\n\
             [hosts.{FAR}]\naddress = \"{}:{PORT}\"\n",
            self.far().address()
        )
    }

    /// What every boot of the other machine needs, if there is one.
    pub(super) fn furnish_far(&self) {
        let Some(far) = &self.far else { return };
        far.run(&["mkdir", "-p", TLS, PLUGINS]).unwrap();
        for name in [&format!("{FAR}.crt"), &format!("{FAR}.key"), "ca.crt"] {
            let file = format!("{TLS}/{name}");
            put(far, &file, &self.guest.run(&["cat", &file]).unwrap());
            far.run(&["chmod", "600", &file]).unwrap();
        }
        storage::install(far, storage::driver(self.kind));
        let text = format!(
            "name = {FAR:?}\nlisten = \"0.0.0.0:{PORT}\"\nplugins = \"{PLUGINS}\"\nservers = [\"site\"]\n[tls]\n\
             certificate = \"{TLS}/{FAR}.crt\"\nkey = \"{TLS}/{FAR}.key\"\nca = \"{TLS}/ca.crt\"\n"
        );
        put(far, &format!("{STATE}/driver-host.toml"), &text);
        self.put_secret(far, POOLS[1].0);
        if self.exports == Exports::Nfs {
            nfs::serve(&**far).unwrap();
        }
    }

    /// Starts the driver host, if there is another machine.
    pub fn start_far(&self) {
        let Some(far) = &self.far else { return };
        let program = artifacts::program("tandem-driver-host");
        let settings = format!("{STATE}/driver-host.toml");
        let command = Command::new(&[program.to_str().unwrap(), "--settings", &settings]);
        let running = far.spawn(&command.env("TANDEM_STOP_AT", STOP_AT)).unwrap();
        let log = self.far_log.clone();
        std::thread::spawn(move || collect(&running, &log));
    }

    /// From now on the driver host stops at the next call of a verb: `promote_replica:end`, `receive:start`.
    pub fn stop_far_at(&self, moment: &str) {
        put(self.far(), STOP_AT, moment);
    }

    /// What the driver host has said so far.
    pub fn far_log(&self) -> String {
        self.far_log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the driver host has stopped itself where it was told to.
    pub fn far_stops(&self) {
        wait::until_else(|| {
            let state = self.far().run(&["ps", "-o", "state=", "-C", COMMAND])?;
            if state.trim() == "T" { Ok(()) } else { Err(format!("the driver host is in state {state:?}")) }
        });
    }

    /// Cuts the power of the other machine.
    pub fn cut_far(&self) {
        self.far().cut_power().unwrap();
    }

    /// Switches it on again; its pool is found, nothing is mounted, and the driver host starts.
    pub fn boot_far(&self) {
        self.switch_far_on();
        self.start_far();
    }

    /// The same with a driver host that stops at that moment.
    pub fn boot_far_and_stop_at(&self, moment: &str) {
        self.switch_far_on();
        self.stop_far_at(moment);
        self.start_far();
    }

    /// Lets a driver host that has stopped itself go on.
    pub fn far_goes_on(&self) {
        self.far().run(&["pkill", "-CONT", "-x", COMMAND]).unwrap();
    }

    /// Switches it on again, without its driver host: what the power cut left is there to be looked at.
    pub fn switch_far_on(&self) {
        let far = &**self.far();
        far.boot().unwrap();
        self.find_pools(far);
        self.furnish_far();
    }

    /// Changes the cable between the two machines, both ways.
    pub fn cable(&self, link: Link) {
        self.lab.network().set_both(self.guest.number(), self.far().number(), link);
    }

    /// Changes the cable over which DRBD replicates; the server reaches the other machine over the first one.
    pub fn second_cable(&self, link: Link) {
        self.lab.second_network().set_both(self.guest.number(), self.far().number(), link);
    }

    /// Changes the one over which data is carried from one machine to the other.
    pub(super) fn stream_cable(&self, link: Link) {
        match self.kind {
            Kind::Lvm => self.second_cable(link),
            Kind::Plain | Kind::Zfs => self.cable(link),
        }
    }

    /// Bytes of frames that went from the server's machine to the other so far, over the first cable.
    pub fn carried(&self) -> u64 {
        self.lab.network().carried(self.guest.number(), self.far().number())
    }

    /// Lets the cable that carries data cut itself after so many bytes that leave a machine, in the midst of what that is asked
    /// for, and waits until it is cut, both ways.
    pub fn cut_after(&self, from: &Guest, bytes: u64, deed: impl FnOnce()) {
        let network = match self.kind {
            Kind::Lvm => self.lab.second_network(),
            Kind::Plain | Kind::Zfs => self.lab.network(),
        };
        let to = if from.number() == self.guest.number() { self.far() } else { &self.guest };
        let way = (from.number(), to.number());
        network.set(way.1, way.0, Link::GOOD);
        network.set(way.0, way.1, Link { cut_after: Some(bytes.max(1)), ..Link::GOOD });
        deed();
        wait::until("the cable to be cut", || network.link(way.0, way.1).cut.then_some(()));
        self.stream_cable(Link::CUT);
    }

    /// Waits until the server knows that the other machine cannot be reached.
    pub fn far_is_away(&self) {
        wait::until("the other machine to be away", || {
            let status = self.api.get("v1/status").ok()?;
            (status["status"]["backends"]["down"] == 1).then_some(())
        });
    }
}
