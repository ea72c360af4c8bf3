//! Exports of shares: kernel NFS by `exportfs`, or plain paths on this host. Shared by the drivers whose shares are
//! folders.
//!
//! An export is opened by a driver once the manager has confirmed the epoch, and must not come back by itself:
//! ```text
//! <run>/<name>.exports                       what is exported, in the format of exports(5); <run> is emptied by a boot
//! /etc/exports.d/tandem-<name>.exports       a symlink to it: `exportfs -r` by somebody else keeps our exports, and
//!                                            after a boot it leads nowhere
//! ```
//! Besides, each export says `mp`: the server gives nothing out while nothing is mounted there. The NFS server itself
//! is the host's: this neither starts nor configures it.

mod clients;
mod nfs;
mod rule;
mod settings;

use std::fs::File;
use std::path::Path;

use tandem_contract::{
    AccessEnforcement, AccessReport, AccessSpec, ExportLocation, InstanceId, Result, RuleReport,
};

pub use self::rule::Client;
pub use self::settings::{ExportSettings, NfsSettings};
use crate::OpContext;

/// Opens, changes and closes exports, as a back end's settings say.
#[derive(Clone, Debug)]
pub struct Exporter {
    nfs: Option<NfsSettings>,
}

impl Exporter {
    /// An exporter by these settings. Links that lead nowhere since a boot are removed.
    ///
    /// # Errors
    /// `InvalidArgument` naming the setting that does not fit.
    pub fn new(settings: &ExportSettings) -> Result<Self> {
        let nfs = match settings {
            ExportSettings::None {} => None,
            ExportSettings::Nfs(nfs) => Some(nfs.checked()?),
        };
        if let Some(nfs) = &nfs {
            nfs::sweep(nfs);
        }
        Ok(Self { nfs })
    }

    /// What the capabilities say of access rules.
    pub fn enforcement(&self) -> AccessEnforcement {
        if self.nfs.is_some() { AccessEnforcement::Full } else { AccessEnforcement::None }
    }

    /// The access types it takes; none where rules are not enforced.
    pub fn access_types(&self) -> Vec<String> {
        self.nfs.iter().map(|_| "ip".to_owned()).collect()
    }

    /// Where users reach the folder at `path`.
    pub fn location(&self, path: &Path) -> ExportLocation {
        let path = path.display();
        let path = match &self.nfs {
            Some(nfs) => format!("{}:{path}", nfs.shown_address()),
            None => path.to_string(),
        };
        ExportLocation { path, preferred: true, admin_only: false }
    }

    /// What becomes of each rule: enforced, not enforced here, or refused with a reason.
    pub fn report(&self, access: &AccessSpec) -> AccessReport {
        let rules = access.rules.iter().map(|rule| {
            let error = self.nfs.as_ref().and_then(|_| Client::of(rule).err());
            RuleReport { id: rule.id, enforced: self.nfs.is_some() && error.is_none(), error }
        });
        AccessReport { rules: rules.collect() }
    }

    /// Makes the folder at `path`, which must be mounted, reachable by exactly those clients, under a name of its own
    /// (an instance's id). `true` when anything changed. Plain paths have nothing to open.
    ///
    /// # Errors
    /// `Unavailable` when `exportfs` fails; what was granted before may then be granted still, and the call is to be
    /// repeated.
    pub async fn open(&self, cx: &OpContext, name: &str, path: &Path, clients: &[Client]) -> Result<bool> {
        match &self.nfs {
            Some(nfs) => nfs::open(nfs, cx, name, path, clients, None).await,
            None => Ok(false),
        }
    }

    /// [`open`](Self::open), with an identity for clients that stays when another file system is mounted there: what they
    /// know of it goes on meaning the same. Needed too where two file systems of one UUID are exported.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_as(
        &self,
        cx: &OpContext,
        name: &str,
        path: &Path,
        clients: &[Client],
        identity: InstanceId,
    ) -> Result<bool> {
        match &self.nfs {
            Some(nfs) => nfs::open(nfs, cx, name, path, clients, Some(identity)).await,
            None => Ok(false),
        }
    }

    /// Lets the server look anew at what is mounted where it exports: another file system is there now.
    ///
    /// # Errors
    /// `Unavailable` when `exportfs` fails.
    pub async fn remounted(&self, cx: &OpContext) -> Result<()> {
        match &self.nfs {
            Some(nfs) => nfs::flush(nfs, cx).await,
            None => Ok(()),
        }
    }

    /// Takes the export away: nobody reaches the folder any more, and nobody keeps files of it open. `true` when it was
    /// open.
    ///
    /// # Errors
    /// `Unavailable` when `exportfs` fails.
    pub async fn close(&self, cx: &OpContext, name: &str, path: &Path) -> Result<bool> {
        match &self.nfs {
            Some(nfs) => nfs::close(nfs, cx, name, path).await,
            None => Ok(false),
        }
    }

    /// Whether the export is open. A plain path is open while it is there, which is for the driver to say.
    pub fn is_open(&self, name: &str) -> bool {
        self.nfs.as_ref().is_none_or(|nfs| nfs::is_open(nfs, name))
    }

    /// Lets go of files that NFS clients keep open in the file system at `path`, so that it can be unmounted. The
    /// clients recover the rest of what they have by themselves.
    pub fn expire(&self, path: &Path) {
        if self.nfs.is_some() {
            clients::expire(path);
        }
    }

    /// [`expire`](Self::expire), of the file system on a device, wherever it is mounted: major and minor number.
    pub fn expire_device(&self, device: (u32, u32)) {
        if self.nfs.is_some() {
            clients::expire_device(device);
        }
    }

    /// The file system at `path`, to [`revoke`](Self::revoke) later what NFS clients have in it; `None` where the kernel
    /// (before 6.9) cannot, or nothing is exported.
    pub fn revocable(&self, path: &Path) -> Option<File> {
        self.nfs.as_ref().filter(|_| clients::can_revoke()).and_then(|_| File::open(path).ok())
    }

    /// Revokes what NFS clients have in a file system, and nothing that they have in others.
    pub fn revoke(&self, root: &File) {
        if self.nfs.is_some() {
            clients::revoke(root);
        }
    }

    /// Whether NFS clients keep files of the file system on a device open. Clients of version 3 keep nothing; a delegation
    /// counts before Linux 6.9 only, where a client could not be made to give that back alone.
    pub fn has_readers(&self, device: (u32, u32)) -> bool {
        self.nfs.is_some() && clients::any(device)
    }
}
