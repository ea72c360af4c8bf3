//! A `tandem-driver-host` on this machine, its certificates, and a cable to it that can be cut.

mod cable;
mod pki;

use std::fs::{File, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tandem_host::remote::{DriverHost, Processes, TlsFiles};
use tempfile::TempDir;

use crate::{artifacts, server, wait};

pub use cable::Cable;
pub use pki::{Paper, Pki};

/// The name of the server in the tests.
pub const SERVER: &str = "storage1";
/// The name of the driver host in the tests.
pub const HOST: &str = "storage2";

/// A driver host with a folder of its own; it ends with this.
#[derive(Debug)]
pub struct Far {
    folder: TempDir,
    pki: Pki,
    listen: String,
    child: Option<Child>,
}

impl Far {
    /// Prepares and starts a driver host with these drivers.
    pub fn start(drivers: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("tandem-far-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let pki = Pki::new(&folder.path().join("tls"));
        pki.issue(SERVER, &Paper::default());
        pki.issue(HOST, &Paper::default());
        install(&folder.path().join("plugins"), drivers);
        let listen = server::free_address();
        let text = format!(
            "name = {HOST:?}\nlisten = {listen:?}\nplugins = \"plugins\"\nservers = [{SERVER:?}]\n[tls]\n\
             certificate = \"tls/{HOST}.crt\"\nkey = \"tls/{HOST}.key\"\nca = \"tls/ca.crt\"\n"
        );
        std::fs::write(folder.path().join("driver-host.toml"), text).unwrap();
        let mut far = Self { folder, pki, listen, child: None };
        far.launch();
        far
    }

    /// Starts it (again), and waits until it takes connections.
    pub fn launch(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let child = Command::new(artifacts::program("tandem-driver-host"))
            .arg("--settings")
            .arg(self.folder.path().join("driver-host.toml"))
            .env("TANDEM_LOG", "info,tandem_host=debug")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait::until("the driver host to serve", || TcpStream::connect(&self.listen).ok());
    }

    /// Ends it without a word, as `kill -9` does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("no driver host runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("no driver host runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut ended = None;
        wait::until("the driver host to end", || {
            ended = child.try_wait().unwrap();
            ended
        })
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// Who may say who is who.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// It, as the server [`SERVER`] has registered it, at another address where that is given.
    pub fn registered(&self, address: Option<&str>) -> DriverHost {
        self.registered_with(SERVER, HOST, address, self.pki.files(SERVER))
    }

    /// It, as a server of that name has registered it.
    pub fn registered_with(&self, from: &str, to: &str, address: Option<&str>, tls: TlsFiles) -> DriverHost {
        DriverHost::new(from, to, address.unwrap_or(&self.listen), tls)
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("driver-host.log")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Waits until it has logged this.
    pub fn logs(&self, what: &str) {
        wait::until(&format!("the driver host to log {what:?}"), || self.log().contains(what).then_some(()));
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("--- the log of the driver host in {}\n{}", self.folder.path().display(), self.log());
        }
    }
}

/// Drivers in processes, with a folder of their own.
#[derive(Debug)]
pub struct InProcesses {
    folder: TempDir,
}

impl InProcesses {
    /// Prepares a folder with these drivers.
    pub fn new(drivers: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("tandem-process-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        install(&folder.path().join("plugins"), drivers);
        Self { folder }
    }

    /// What starts them.
    pub fn processes(&self) -> Processes {
        Processes {
            program: artifacts::program("tandem-driver-host"),
            plugins: self.folder.path().join("plugins"),
            locks: self.folder.path().join("locks"),
        }
    }

    /// The processes that run now.
    pub fn pids(&self) -> Vec<i32> {
        let plugins = self.folder.path().join("plugins");
        let mut pids = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&*plugins.to_string_lossy()) {
                pids.push(pid);
            }
        }
        pids
    }

    /// Waits until no process runs.
    pub fn all_ended(&self) {
        wait::until("the processes to end", || self.pids().is_empty().then_some(()));
    }
}

/// Puts drivers into a folder that is trusted.
fn install(folder: &Path, drivers: &[&str]) {
    std::fs::create_dir(folder).unwrap();
    std::fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    for driver in drivers {
        let library = artifacts::driver(driver);
        let installed = folder.join(library.file_name().unwrap());
        std::fs::copy(library, &installed).unwrap();
        std::fs::set_permissions(&installed, Permissions::from_mode(0o644)).unwrap();
    }
}

/// A pause in which nothing is expected to happen.
pub fn a_moment() {
    std::thread::sleep(Duration::from_millis(300));
}
