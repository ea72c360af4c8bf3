//! A real `tandemd` with its state in a folder of its own; it ends with its owner.

use std::fs::{File, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::{artifacts, wait};

/// A folder with settings, drivers and state, and perhaps a server that runs on it.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    listen: String,
    child: Option<Child>,
}

/// The back ends of the walk: two in one zone, one in another.
pub const BACKENDS: [(&str, &str); 3] = [("alpha", "zone-a"), ("beta", "zone-a"), ("gamma", "zone-b")];

impl Server {
    /// Prepares a folder with three back ends of the driver `directory`; nothing runs yet.
    pub fn prepare() -> Self {
        Self::prepare_with("directory", |_, root| format!("{{ root = {root:?} }}"), "")
    }

    /// The same with another driver: `settings` gives the settings (a TOML table) of the back end of that name whose
    /// folder that is; `more` joins the settings file before its tables of back ends.
    pub fn prepare_with(driver: &str, settings: impl Fn(&str, &Path) -> String, more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("tandem-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let plugins = folder.path().join("plugins");
        std::fs::create_dir(&plugins).unwrap();
        std::fs::set_permissions(&plugins, Permissions::from_mode(0o755)).unwrap();
        let library = artifacts::driver(driver);
        let installed = plugins.join(library.file_name().unwrap());
        std::fs::copy(library, &installed).unwrap();
        std::fs::set_permissions(&installed, Permissions::from_mode(0o644)).unwrap();
        let server = Self { listen: free_address(), folder, child: None };
        let mut text = format!(
            "listen = \"{}\"\nstate = \"state\"\nplugins = \"plugins\"\n[auth]\nmode = \"noauth\"\n{more}\n",
            server.listen
        );
        for (name, zone) in BACKENDS {
            let own = settings(name, &server.backend(name));
            text.push_str(&format!(
                "[[backends]]\nname = \"{name}\"\ndriver = \"{driver}\"\navailability_zone = \"{zone}\"\n\
                 settings = {own}\n"
            ));
        }
        std::fs::write(server.settings(), text).unwrap();
        server
    }

    /// Prepares a folder and starts a server on it.
    pub fn start() -> Self {
        let mut server = Self::prepare();
        server.launch();
        server
    }

    /// Starts the server (again) and waits until it is ready.
    pub fn launch(&mut self) {
        self.spawn(&[]);
        if let Some(status) = self.ready_or_ended() {
            panic!("tandemd ended with {status}:\n{}", self.log());
        }
    }

    /// Starts the server (again) where root sees no more than its modes allow, and waits until it is ready.
    pub fn launch_without_sight(&mut self) {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--bounding-set=-dac_override,-dac_read_search", "--"]);
        setpriv.arg(artifacts::program("tandemd"));
        self.spawn_by(setpriv, &[]);
        assert_eq!(self.ready_or_ended(), None, "{}", self.log());
    }

    /// Starts the server (again), with more in its environment, and waits for nothing.
    pub fn spawn(&mut self, environment: &[(&str, &str)]) {
        self.spawn_by(Command::new(artifacts::program("tandemd")), environment);
    }

    fn spawn_by(&mut self, mut program: Command, environment: &[(&str, &str)]) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let child = program
            .arg("--settings")
            .arg(self.settings())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Waits until the server is ready, or has ended by itself and how.
    pub fn ready_or_ended(&mut self) -> Option<ExitStatus> {
        wait::until("the server to be ready", || match self.try_ended() {
            Some(status) => Some(Some(status)),
            None => self.is_ready().then_some(None),
        })
    }

    /// Whether one was started and not yet seen to have ended.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// How the server has ended by itself, if it has.
    pub fn try_ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut().expect("no server runs").try_wait().unwrap();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(&self.listen) else { return false };
        let ask = format!("GET /v1/ready HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.listen);
        let mut answer = String::new();
        stream.write_all(ask.as_bytes()).is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    /// Asks the server to end, and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = self.pid();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.ended()
    }

    /// Ends the server without a word, as `kill -9` does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("no server runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the server has ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("no server runs");
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if start.elapsed() > wait::LONG {
                child.kill().unwrap();
                panic!("tandemd did not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The server's process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.child.as_ref().expect("no server runs"))
    }

    /// `http://address` of the server.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of a back end.
    pub fn backend(&self, name: &str) -> PathBuf {
        self.folder.path().join("backends").join(name)
    }

    /// The settings file.
    pub fn settings(&self) -> PathBuf {
        self.folder.path().join("tandem.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("tandemd.log")
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of it, for what a test says when it fails.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Runs the operator's command line.
    pub fn try_tandem(&self, arguments: &[&str]) -> Output {
        Command::new(artifacts::program("tandem"))
            .args(["--endpoint", &self.endpoint()])
            .args(arguments)
            .env_remove("TANDEM_TOKEN")
            .output()
            .unwrap()
    }

    /// Asks `/v1/…` for what no command of the operator's command line shows.
    pub fn native(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(&self.listen).unwrap();
        write!(stream, "GET /v1/{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.listen)
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "GET /v1/{path}: {answer}");
        serde_json::from_str(body).unwrap()
    }

    /// Runs the operator's command line, which must succeed, and reads its JSON.
    pub fn tandem(&self, arguments: &[&str]) -> Value {
        let output = self.try_tandem(&[&["--output", "json"], arguments].concat());
        assert!(output.status.success(), "tandem {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            // All of it is where it outlives the test; in the output it would hide why the test failed.
            let name = self.folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            let whole = artifacts::folder().join(name).with_extension("log");
            let kept = std::fs::copy(self.log_file(), &whole);
            println!(
                "--- the end of the log of tandemd; all of it: {} ({kept:?})\n{}",
                whole.display(),
                self.log_end()
            );
            if std::env::var_os("TANDEM_KEEP").is_some() {
                self.folder.disable_cleanup(true);
            }
        }
        // A share's files may have modes that keep even their owner out.
        let _ = Command::new("chmod").args(["-R", "u+rwX"]).arg(self.folder.path()).output();
    }
}

/// An address on loopback that nobody uses now.
pub fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}
