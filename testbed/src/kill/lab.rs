//! A server on a folder that can be put back to where it was, so that every kill starts from the same state.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use serde_json::Value;

use super::pools;
use crate::api::{Answered, Api, Gone, ended, word};
use crate::rest::{following, only};
use crate::server::Server;
use crate::wait;

/// Zone of the share.
pub const HERE: &str = "zone-a";
/// Zone of its replica.
pub const THERE: &str = "zone-b";

/// What is there when a kill's scene begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A share type only.
    Nothing,
    /// A share with files.
    Share,
    /// And a replica in sync.
    Pair,
}

/// The driver beneath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beneath {
    /// Plain folders, streamed by Tandem.
    Directory,
    /// The model driver, as storage that replicates by itself and can hold writers back.
    Storage,
    /// The model driver, streamed by Tandem.
    Streamed,
    /// ZFS pools of the guest in which the test runs.
    Zfs,
}

impl Beneath {
    /// A word for the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Storage => "storage",
            Self::Streamed => "streamed",
            Self::Zfs => "zfs",
        }
    }

    /// Whether what users write in a share is really there, file by file.
    pub fn holds_files(self) -> bool {
        matches!(self, Self::Directory | Self::Zfs)
    }

    fn prepare(self, more: &str) -> Server {
        match self {
            Self::Zfs => {
                pools::empty();
                Server::prepare_with("zfs", pools::settings, more)
            }
            Self::Directory => {
                Server::prepare_with("directory", |_, root| format!("{{ root = {root:?} }}"), more)
            }
            Self::Storage | Self::Streamed => Server::prepare_with(
                "fake",
                |name, root| {
                    let world = root.with_file_name("world");
                    let mode = self.word();
                    format!("{{ path = {world:?}, site = {name:?}, mode = {mode:?} }}")
                },
                more,
            ),
        }
    }
}

/// A server, what it holds at the beginning, and a copy of that.
#[derive(Debug)]
pub struct Lab {
    /// The server.
    pub server: Server,
    /// Its APIs.
    pub api: Api,
    /// The driver beneath.
    pub beneath: Beneath,
    /// Id of the one share type.
    pub share_type: String,
    share: Option<String>,
    active: Option<String>,
    /// Where the active instance is reached at the beginning, for what is written before the server runs.
    export: Option<PathBuf>,
    replica: Option<String>,
    known: HashSet<String>,
}

impl Lab {
    /// Sets the scene, stops the server in order, and keeps a copy of everything.
    pub fn prepare(stage: Stage, beneath: Beneath) -> Self {
        Self::prepare_with(stage, beneath, "", &[])
    }

    /// The same with more in the settings file, and with more extra specs of the share type.
    pub fn prepare_with(stage: Stage, beneath: Beneath, more: &str, specs: &[(&str, &str)]) -> Self {
        let lab = Self::set_up(stage, beneath, more, specs, true);
        let template = lab.template();
        fs::create_dir(&template).unwrap();
        for folder in lab.folders() {
            copy(&lab.server.folder().join(folder), &template.join(folder));
        }
        if beneath == Beneath::Zfs {
            pools::keep();
        }
        lab
    }

    /// The same with nothing in the share, and no copy of it: it is not for going back.
    pub fn empty(stage: Stage, beneath: Beneath, more: &str, specs: &[(&str, &str)]) -> Self {
        Self::set_up(stage, beneath, more, specs, false)
    }

    fn set_up(stage: Stage, beneath: Beneath, more: &str, specs: &[(&str, &str)], plant: bool) -> Self {
        let mut server = beneath.prepare(more);
        server.launch();
        let api = Api::new(&server.endpoint());
        let share_type = api.create_type("follows", "readable", specs).unwrap();
        let mut lab = Self {
            server,
            api,
            beneath,
            share_type,
            share: None,
            active: None,
            export: None,
            replica: None,
            known: HashSet::new(),
        };
        lab.backends_are_up();
        if stage != Stage::Nothing {
            let share = lab.ask(|api| api.create_share(&lab.share_type, HERE));
            lab.settle();
            let active = lab.only_replica(&share, "active");
            let export = lab.export(&active);
            if plant {
                lab.plant(&export);
            }
            (lab.share, lab.active, lab.export) = (Some(share), Some(active), Some(export));
        }
        if stage == Stage::Pair {
            let replica = lab.ask(|api| api.create_replica(lab.share(), THERE));
            lab.in_sync(lab.share());
            lab.replica = Some(replica);
        }
        lab.settle();
        lab.known = lab.ask(|api| api.operations("limit=1000")).iter().map(|op| word(&op["id"])).collect();
        assert!(lab.server.stop().success(), "the server ends in order:\n{}", lab.server.log());
        lab
    }

    /// Puts everything back to where it was. No server may run.
    pub fn restore(&self) {
        if self.beneath == Beneath::Zfs {
            pools::rewind();
        }
        for folder in self.folders() {
            let place = self.server.folder().join(folder);
            run("chmod", &["-R", "u+rwX", text(&place)]);
            fs::remove_dir_all(&place).unwrap();
            copy(&self.template().join(folder), &place);
        }
    }

    /// What is copied; pools have their own way back.
    fn folders(&self) -> &'static [&'static str] {
        if self.beneath == Beneath::Zfs { &["state"] } else { &["state", "backends"] }
    }

    fn template(&self) -> PathBuf {
        self.server.folder().join("template")
    }

    /// The share of the scene.
    pub fn share(&self) -> &str {
        self.share.as_deref().expect("this stage has no share")
    }

    /// Its active instance.
    pub fn active(&self) -> &str {
        self.active.as_deref().expect("this stage has no share")
    }

    /// Its replica.
    pub fn replica(&self) -> &str {
        self.replica.as_deref().expect("this stage has no replica")
    }

    /// Changes the share while no server runs.
    pub fn write_before_start(&self, name: &str) {
        self.write(self.export.as_deref().expect("this stage has no share"), name);
    }

    /// Operations of a kind that are younger than the scene, oldest first.
    pub fn fresh(&self, kind: &str) -> Vec<Value> {
        let mut found = self.ask(|api| api.operations(&format!("kind={kind}&limit=1000")));
        found.retain(|op| !self.known.contains(&word(&op["id"])));
        found.reverse();
        found
    }

    /// Asks a server that must be there.
    pub fn ask<T>(&self, what: impl FnOnce(&Api) -> Answered<T>) -> T {
        what(&self.api).unwrap_or_else(|_| panic!("the server is not there"))
    }

    /// Waits until every back end serves.
    pub fn backends_are_up(&self) {
        wait::until("the back ends to be up", || {
            let status = self.ask(|api| api.get("v1/status"));
            (status["status"]["backends"]["down"] == 0).then_some(())
        });
    }

    /// The same, of a server that may die meanwhile.
    pub fn backends_are_up_or_gone(&self) {
        wait::until("the back ends to be up", || match self.api.get("v1/status") {
            Ok(status) => (status["status"]["backends"]["down"] == 0).then_some(()),
            Err(Gone) => Some(()),
        });
    }

    /// Whether an operation of this kind, younger than the scene, has come to its end, and nothing else runs; not when
    /// nobody answers.
    pub fn has_ended(&self, kind: &str) -> bool {
        let Ok(mut list) = self.api.operations(&format!("kind={kind}&limit=1000")) else { return false };
        list.retain(|op| !self.known.contains(&word(&op["id"])));
        let idle = || self.api.operations("unfinished=true").is_ok_and(|list| list.is_empty());
        !list.is_empty() && list.iter().all(ended) && idle()
    }

    /// Waits until every operation has ended.
    pub fn settle(&self) {
        wait::until("every operation to end", || {
            self.ask(|api| api.operations("unfinished=true")).is_empty().then_some(())
        });
    }

    /// The replicas of a share, as `/v1` shows them.
    pub fn replicas_of(&self, share: &str) -> Vec<Value> {
        let mut all = self.ask(Api::replicas);
        all.retain(|replica| replica["share_id"] == share);
        all
    }

    /// The one replica of a share in this state.
    pub fn only_replica(&self, share: &str, state: &str) -> String {
        only(&self.replicas_of(share), state)
    }

    /// Waits until every replica of a share follows; those that do.
    pub fn in_sync(&self, share: &str) -> Vec<String> {
        wait::until_else(|| following(&self.replicas_of(share)))
    }

    /// Asks for a sync and waits until it, or a later one, has ended well.
    pub fn resync(&self, replica: &str) {
        let query = format!("kind=sync&instance_id={replica}&limit=1000");
        let before = self.ask(|api| api.operations(&query)).len();
        self.ask(|api| api.act(replica, "resync"));
        wait::until("the sync to end", || {
            let now = self.ask(|api| api.operations(&query));
            if now.len() > before && now[0]["status"] == "done" {
                return Some(());
            }
            if now.iter().all(ended) {
                // One was on its way when it was asked for, and ended; or it was cut short.
                self.ask(|api| api.act(replica, "resync"));
            }
            None
        });
    }

    /// Where a replica is reached, which it must be.
    pub fn export(&self, replica: &str) -> PathBuf {
        self.ask(|api| api.export(replica)).unwrap_or_else(|| panic!("replica {replica} is not reached"))
    }

    /// Writes a file with something in it. The model driver copies what its files hold only when it connects, so with
    /// it the content stays what it was.
    pub fn write(&self, export: &Path, name: &str) {
        if !self.beneath.holds_files() {
            return;
        }
        fs::write(export.join(name), format!("{name}\n").repeat(1000)).unwrap();
    }

    /// Fills a share: small, but with what a copy gets wrong where the driver takes it.
    fn plant(&self, export: &Path) {
        for number in 0..20 {
            fs::write(export.join(format!("file {number}")), "x".repeat(number * 500)).unwrap();
        }
        if self.beneath.holds_files() {
            fs::create_dir_all(export.join("deep/deeper/deepest")).unwrap();
            fs::write(export.join("deep/deeper/deepest/here"), "here").unwrap();
            fs::write(export.join("large"), "0123456789abcdef".repeat(1 << 16)).unwrap();
            fs::hard_link(export.join("large"), export.join("deep/large too")).unwrap();
            symlink("deep/large too", export.join("link")).unwrap();
        }
    }
}

/// Whether a process was ended by `SIGKILL`.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(rustix::process::Signal::KILL.as_raw())
}

fn copy(from: &Path, to: &Path) {
    run("cp", &["-a", text(from), text(to)]);
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
