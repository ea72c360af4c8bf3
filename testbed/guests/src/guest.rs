//! A host made of user-mode Linux: a kernel that is an ordinary process, on the outside world's own programs.

use crate::Result;
use crate::agent::{SETUP, SETUP_FILE, Setup};
use crate::channel::Channel;
use crate::disk::Disk;
use crate::host::{Command, Host, Running};
use crate::lab::Inner;
use crate::place::KERNEL;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Two seconds is usual; a machine that builds something meanwhile takes longer.
const BOOT: Duration = Duration::from_secs(120);

/// What a guest is to have.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) name: String,
    pub(crate) megabytes: u32,
    pub(crate) disks: Vec<(String, u64)>,
    pub(crate) shared: Vec<PathBuf>,
    pub(crate) modules: Option<PathBuf>,
    pub(crate) two_cards: bool,
}

impl Plan {
    /// A host of that name, with a gigabyte of memory and no disks.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            megabytes: 1024,
            disks: Vec::new(),
            shared: Vec::new(),
            modules: None,
            two_cards: false,
        }
    }

    /// With so many megabytes of memory.
    #[must_use]
    pub fn memory(mut self, megabytes: u32) -> Self {
        self.megabytes = megabytes;
        self
    }

    /// With one more disk, seen as `/dev/mapper/NAME`, of that many bytes; it takes room only where it is written.
    #[must_use]
    pub fn disk(mut self, name: &str, bytes: u64) -> Self {
        self.disks.push((name.into(), bytes));
        self
    }

    /// With a folder of the outside world, writable, at the same path.
    #[must_use]
    pub fn share(mut self, folder: &Path) -> Self {
        self.shared.push(folder.into());
        self
    }

    /// With a folder of kernel modules beyond those of Debian's package.
    #[must_use]
    pub fn modules(mut self, folder: &Path) -> Self {
        self.modules = Some(folder.into());
        self
    }

    /// With a second network card, on the laboratory's second network.
    #[must_use]
    pub fn second_card(mut self) -> Self {
        self.two_cards = true;
        self
    }
}

/// A user-mode Linux guest; its disks outlive its kernel.
#[derive(Debug)]
pub struct Guest {
    lab: Arc<Inner>,
    program: PathBuf,
    number: usize,
    plan: Plan,
    folder: PathBuf,
    disks: Vec<Disk>,
    clock_offset: AtomicI64,
    session: Mutex<Option<Session>>,
}

/// From one boot to the end of it.
#[derive(Debug)]
struct Session {
    pid: i32,
    channel: Arc<Channel>,
}

impl Guest {
    pub(crate) fn new(lab: Arc<Inner>, program: &Path, number: usize, plan: Plan) -> Result<Self> {
        let folder = lab.folder.join(&plan.name);
        std::fs::create_dir(&folder).map_err(|error| format!("creating {}: {error}.", folder.display()))?;
        let disks = plan
            .disks
            .iter()
            .enumerate()
            .map(|(at, (name, bytes))| Disk::create(&folder, at, name, *bytes))
            .collect::<Result<_>>()?;
        Ok(Self {
            lab,
            program: program.into(),
            number,
            plan,
            folder,
            disks,
            clock_offset: AtomicI64::new(0),
            session: Mutex::new(None),
        })
    }

    /// Its number on the network.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Its address on the second network, where its plan has a card for that.
    pub fn second_address(&self) -> String {
        format!("198.51.100.{}", self.number + 1)
    }

    /// One of its disks.
    ///
    /// # Errors
    /// When it has none of that name.
    pub fn disk(&self, name: &str) -> Result<&Disk> {
        let found = self.disks.iter().find(|disk| disk.name() == name);
        found.ok_or_else(|| format!("{} has no disk {name}.", self.plan.name))
    }

    /// What its kernel has said so far.
    pub fn console(&self) -> String {
        std::fs::read(self.console_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn console_file(&self) -> PathBuf {
        self.folder.join("console")
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's command line; descriptors by their place.
    fn arguments(&self) -> Vec<String> {
        let mut argv = vec![
            KERNEL.into(),
            format!("mem={}M", self.plan.megabytes),
            "root=/dev/root".into(),
            "rootfstype=hostfs".into(),
            "rootflags=/".into(),
            "ro".into(),
            "quiet".into(),
            "panic=1".into(),
            "con=null".into(),
            "con0=null,fd:1".into(),
            "ssl=null".into(),
            "ssl0=fd:{0}".into(),
            format!(
                "vec0:transport=fd,fd={{1}},depth=128,mtu=1500,mac=02:00:00:00:00:{:02x}",
                self.number + 1
            ),
            format!("uml_dir={}", self.folder.display()),
            "umid=kernel".into(),
            format!("init={}", self.program.display()),
            format!("{SETUP}={}", self.folder.display()),
        ];
        if self.plan.two_cards {
            argv.push(format!(
                "vec1:transport=fd,fd={{2}},depth=128,mtu=1500,mac=02:00:00:00:01:{:02x}",
                self.number + 1
            ));
        }
        argv.extend(self.disks.iter().map(Disk::argument));
        argv
    }

    fn start(&self) -> Result<Session> {
        let setup = Setup {
            name: self.plan.name.clone(),
            shared: self.plan.shared.clone(),
            modules: self.plan.modules.clone(),
            clock_offset: self.clock_offset.load(Ordering::Relaxed),
        };
        let file = self.folder.join(SETUP_FILE);
        let text = serde_json::to_vec(&setup).map_err(|error| error.to_string())?;
        std::fs::write(&file, text).map_err(|error| format!("writing {}: {error}.", file.display()))?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| format!("making a serial line: {error}."))?;
        let theirs = OwnedFd::from(theirs);
        let networks = [Some(&self.lab.network), self.plan.two_cards.then_some(&self.lab.second)];
        let plugged = networks.into_iter().flatten().map(|network| network.plug(self.number));
        let cables = plugged.collect::<Result<Vec<OwnedFd>>>()?;
        let fds: Vec<BorrowedFd<'_>> = [&theirs].into_iter().chain(&cables).map(AsFd::as_fd).collect();
        let pid = self.lab.keeper.spawn(self.arguments(), Vec::new(), &fds, &self.console_file())?;
        drop((theirs, cables));
        match Channel::open(ours, BOOT) {
            Ok(channel) => Ok(Session { pid, channel }),
            Err(sentence) => {
                self.lab.keeper.kill(pid)?;
                Err(format!("{} did not come up: {sentence}\n{}", self.plan.name, self.last_words()))
            }
        }
    }

    fn last_words(&self) -> String {
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn furnish(&self) -> Result<()> {
        self.run(&["ip", "link", "set", "lo", "up"])?;
        let cards = [("vec0", self.address()), ("vec1", self.second_address())];
        for (card, address) in cards.iter().take(1 + usize::from(self.plan.two_cards)) {
            self.run(&["ip", "address", "add", &format!("{address}/24"), "dev", card])?;
            self.run(&["ip", "link", "set", card, "up"])?;
        }
        self.disks.iter().try_for_each(|disk| disk.attach(self))
    }
}

impl Host for Guest {
    fn name(&self) -> &str {
        &self.plan.name
    }

    fn address(&self) -> String {
        format!("192.0.2.{}", self.number + 1)
    }

    fn spawn(&self, command: &Command) -> Result<Running> {
        let channel = match self.session().as_ref() {
            Some(session) => session.channel.clone(),
            None => return Err(format!("{} is switched off.", self.plan.name)),
        };
        channel.start(command)
    }

    fn cut_power(&self) -> Result<()> {
        match self.session().take() {
            Some(session) => {
                self.lab.keeper.kill(session.pid)?;
                session.channel.close();
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn boot(&self) -> Result<()> {
        if self.session().is_some() {
            return Err(format!("{} runs already.", self.plan.name));
        }
        let session = self.start()?;
        *self.session() = Some(session);
        self.furnish()
    }

    fn set_clock_offset(&self, seconds: i64) {
        self.clock_offset.store(seconds, Ordering::Relaxed);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.cut_power();
        if std::thread::panicking() {
            eprintln!("--- the last words of {}:\n{}", self.plan.name, self.last_words());
        }
    }
}
