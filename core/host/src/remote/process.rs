//! A driver in a child process: what it does to its process, it does to its own only.
//!
//! ```text
//! server ══ socket pair (its standard input; descriptors pass) ══ tandem-driver-host --child
//! ```
//! One child for each back end. It ends when the server does, however that ends: its socket closes. It holds a lock of
//! the server's until its process is gone, so that a new one is not started beside one that still works.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tandem_contract::{Error, Result};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::far::{Epitaph, Line, Terms, greet};
use super::frame::unix;
use super::message::Wants;
use super::{Opened, open_on};
use crate::{Backend, Options};

/// How long a new child waits for the end of the one before.
const BEFORE: Duration = Duration::from_secs(20);
/// How long a child whose connection has ended may take to end its calls and itself.
const LEAVE: Duration = Duration::from_secs(15);

/// Starts drivers in processes of their own.
#[derive(Clone, Debug)]
pub struct Processes {
    /// The program `tandem-driver-host`.
    pub program: PathBuf,
    /// The folder of drivers.
    pub plugins: PathBuf,
    /// A folder for locks, one for each back end.
    pub locks: PathBuf,
}

impl Processes {
    /// Starts a process and opens a back end in it.
    ///
    /// # Errors
    /// As [`Library::open`](crate::Library::open); and `Unavailable` when the process cannot be started, or the one
    /// before it has not ended yet.
    pub async fn open(
        &self,
        backend: &str,
        driver: &str,
        settings: &Value,
        options: Options,
    ) -> Result<Backend> {
        let opened = self.start(backend, driver).await?;
        open_on(opened, backend, driver, settings, options).await
    }

    /// Starts a process, on which nothing is opened yet.
    pub(crate) async fn start(&self, backend: &str, driver: &str) -> Result<Opened> {
        let place = format!("the process of back end `{backend}`");
        let lock = self.lock(backend).await?;
        let cannot = |e: std::io::Error| {
            Error::unavailable(format!("{place} cannot be started ({}): {e}", self.program.display()))
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(cannot)?;
        ours.set_nonblocking(true).map_err(cannot)?;
        let child = Command::new(&self.program)
            .arg("--child")
            .arg(&self.plugins)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        let (kill, ended) = (CancellationToken::new(), CancellationToken::new());
        let (say, told) = oneshot::channel();
        tokio::spawn(watch(child, kill.clone(), ended.clone(), say));
        let guard = Arc::new(KillOnDrop(ended));
        let (reader, writer) = unix(UnixStream::from_std(ours).map_err(cannot)?);
        let line: Line = (Box::new(reader), Box::new(writer));
        let epitaph: Epitaph = Box::pin(async move { told.await.ok() });
        let welcomed = greet(line, &place, ("server", driver), Wants::Backend, vec![lock.into()]).await?;
        let terms = Terms { place, dialer: None, epitaph: Some(epitaph) };
        Ok(Opened { welcomed, terms, kill: Some(kill), guard: Some(guard) })
    }

    /// Takes the back end's lock, once the process before has ended.
    async fn lock(&self, backend: &str) -> Result<File> {
        let file = self.locks.join(format!("{backend}.lock"));
        let cannot = |e: std::io::Error| {
            Error::unavailable(format!("the lock {} cannot be taken: {e}", file.display()))
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.locks).map_err(cannot)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&file)
            .map_err(cannot)?;
        let until = Instant::now() + BEFORE;
        while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            if Instant::now() >= until {
                return Err(Error::unavailable(format!(
                    "the former process of back end `{backend}` has not ended yet; if it does not, look for \
                     `tandem-driver-host --child {}` and end it",
                    self.plugins.display()
                )));
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(lock)
    }
}

/// The program beside this one, where releases put it.
pub fn driver_host_program() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.parent().unwrap_or(Path::new("/usr/bin")).join("tandem-driver-host")
}

/// Lets the child end when its connection is dropped.
pub(crate) struct KillOnDrop(CancellationToken);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Stays with a child until it has ended.
async fn watch(
    mut child: Child,
    kill: CancellationToken,
    dropped: CancellationToken,
    say: oneshot::Sender<String>,
) {
    let status = tokio::select! {
        status = child.wait() => status,
        () = kill.cancelled() => {
            let _ = child.start_kill();
            child.wait().await
        }
        () = dropped.cancelled() => match timeout(LEAVE, child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                let _ = child.start_kill();
                child.wait().await
            }
        },
    };
    let said = match status {
        Ok(status) => format!("the process ended ({status})"),
        Err(e) => format!("the process is gone: {e}"),
    };
    // Nobody may be left who asks.
    let _ = say.send(said);
}
