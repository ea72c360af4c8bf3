//! What lies on the disk, and the one file that says what it means.
//!
//! ```text
//! <root>/boot                           the boot in which exports were last opened
//! <root>/exports/<instance>             symlink to the tree that users see; absent while it cannot be reached
//! <root>/instances/<instance>/
//!     meta.json                         identity, role, epoch, version, points: the truth
//!     versions/<n>/tree                 a tree; the current one, and the one before for readers to finish
//!     versions/<n>/manifest             its manifest, when it came from a point
//!     versions/<n>/variants             where the tree is newer than its manifest
//!     points/<point>.manifest           a point of the active instance
//!     points/<point>.variants           forms of files that were sent instead of what it says
//!     points/known                      the newest manifest of the live tree, for its hashes
//!     incoming/                         a transfer that has not ended
//!     attached                          how the manager has attached it, while it has
//! <root>/instances/.new-<instance>/     one that is being made
//! ```

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, flock};
use serde::{Deserialize, Serialize};
use tandem_sdk::mirror::{self, Tree, write_whole};
use tandem_sdk::{
    Epoch, Error, ExportLocation, InstanceId, InstanceInfo, InstanceSpec, Lock, PointId, PointInfo, Result,
    Role, Style,
};

use crate::config::Config;

/// The newest manifest of the live tree, beside those of its points.
pub(crate) const KNOWN: &str = "known";

/// Version of `meta.json`.
const FORMAT: u32 = 1;

/// The content of `meta.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) format: u32,
    /// As it was made.
    pub(crate) spec: InstanceSpec,
    /// Whether it was made as the active one or as a secondary.
    pub(crate) born: Role,
    pub(crate) role: Role,
    pub(crate) epoch: Epoch,
    pub(crate) size_bytes: u64,
    /// The current tree; 0 while nothing whole has arrived.
    pub(crate) version: u64,
    /// Of a secondary: the point that its tree is.
    #[serde(default)]
    pub(crate) point: Option<PointInfo>,
    /// Of the active one: points that are held, oldest first.
    #[serde(default)]
    pub(crate) points: Vec<PointInfo>,
    /// Permissions of the tree's root as its users set them, while they are taken away from it.
    #[serde(default)]
    pub(crate) root_mode: Option<u32>,
    /// Users of the active one may only read.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// Its removal has begun.
    #[serde(default)]
    pub(crate) deleting: bool,
    /// What could not be set when its content arrived. Absent where nobody counted.
    #[serde(default)]
    pub(crate) lacks: Option<Lacks>,
}

/// How many things could not be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lacks {
    pub(crate) owners: u64,
    pub(crate) xattrs: u64,
    pub(crate) devices: u64,
}

impl From<mirror::Skipped> for Lacks {
    fn from(skipped: mirror::Skipped) -> Self {
        Self { owners: skipped.owners, xattrs: skipped.xattrs, devices: skipped.devices }
    }
}

impl From<Lacks> for mirror::Skipped {
    fn from(lacks: Lacks) -> Self {
        Self { owners: lacks.owners, xattrs: lacks.xattrs, devices: lacks.devices }
    }
}

impl Meta {
    pub(crate) fn new(spec: InstanceSpec, role: Role) -> Self {
        Self {
            format: FORMAT,
            born: role,
            role,
            epoch: spec.epoch,
            size_bytes: spec.size_bytes,
            version: 0,
            point: None,
            points: Vec::new(),
            root_mode: None,
            read_only: false,
            deleting: false,
            lacks: Some(Lacks::default()),
            spec,
        }
    }

    pub(crate) fn style(&self) -> Option<Style> {
        self.spec.replication.as_ref().map(|r| r.style)
    }

    /// Whether users may reach it.
    pub(crate) fn is_served(&self) -> bool {
        self.version > 0
            && !self.deleting
            && match self.role {
                Role::Active => true,
                Role::Secondary => self.style() == Some(Style::Readable),
                _ => false,
            }
    }

    /// Whether users may write.
    pub(crate) fn is_writable(&self) -> bool {
        self.role == Role::Active && !self.read_only
    }

    /// Fails unless it is the active one.
    pub(crate) fn require_active(&self, what: &str) -> Result<()> {
        if self.role == Role::Active && !self.deleting {
            return Ok(());
        }
        Err(Error::conflict(format!("instance {} is not the active one, so that {what}", self.spec.instance)))
    }

    /// Refuses what holds another one's content: the active one does not, nor one that was fenced while it was active.
    pub(crate) fn require_own(&self, what: &str) -> Result<()> {
        if self.role == Role::Fenced && self.point.is_none() && self.version > 0 && !self.deleting {
            return Ok(());
        }
        self.require_active(what)
    }

    pub(crate) fn point(&self, id: PointId) -> Option<&PointInfo> {
        self.points.iter().find(|p| p.id == id)
    }
}

/// All folders of one back end.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) config: Config,
    pub(crate) share_mode: u32,
}

impl Store {
    /// Makes the folders. After a boot nothing is exported until `ensure_instance` comes.
    pub(crate) fn open(config: Config) -> Result<Self> {
        let share_mode = config.check()?;
        let store = Self { config, share_mode };
        for (folder, mode) in [("", 0o755), ("instances", 0o711), ("exports", 0o755)] {
            let path = store.config.root.join(folder);
            if !path.is_dir() {
                fs::create_dir_all(&path).map_err(|e| io_error("create", &path, &e))?;
                set_mode(&path, mode)?;
            }
        }
        let root = &store.config.root;
        // Two that open at once must not both find a new boot: the later one would take away what the first exported.
        let folder = File::open(root).map_err(|e| io_error("open", root, &e))?;
        flock(&folder, FlockOperation::LockExclusive).map_err(|e| io_error("lock", root, &e.into()))?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        if fs::read_to_string(root.join("boot")).ok().as_deref() != Some(boot.as_str()) {
            let exports = root.join("exports");
            for entry in fs::read_dir(&exports).map_err(|e| io_error("list", &exports, &e))? {
                let path = entry.map_err(|e| io_error("list", &exports, &e))?.path();
                fs::remove_file(&path).map_err(|e| io_error("remove", &path, &e))?;
            }
            write_whole(root, "boot", boot.as_bytes()).map_err(|e| from_mirror(&e))?;
        }
        Ok(store)
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.config.root.join("instances")
    }

    fn folder(&self, id: InstanceId) -> PathBuf {
        self.instances().join(id.to_string())
    }

    /// The folder of an instance, locked against a second changing call. `None` when it is not there.
    pub(crate) fn lock(&self, id: InstanceId) -> Result<Option<Instance>> {
        let Some(instance) = self.find(id)? else { return Ok(None) };
        let folder = File::open(&instance.dir).map_err(|e| io_error("open", &instance.dir, &e))?;
        let lock = Lock::take(folder, id)?;
        // What was read before the lock may be old.
        let Some(mut instance) = self.find(id)? else { return Ok(None) };
        instance.lock = Some(lock);
        instance.recover()?;
        Ok(Some(instance))
    }

    /// What is said where an instance should be. It says where, since an operator looks for it there.
    fn missing(&self, id: InstanceId) -> Error {
        Error::not_found(format!("there is no folder `{}` of a share", self.folder(id).display()))
    }

    /// [`lock`](Self::lock), where its absence is an error.
    pub(crate) fn lock_existing(&self, id: InstanceId) -> Result<Instance> {
        let found = self.lock(id)?.ok_or_else(|| self.missing(id))?;
        if found.meta.deleting {
            return Err(Error::conflict(format!("instance {id} is being deleted")));
        }
        Ok(found)
    }

    /// The folder of an instance, to look at only.
    pub(crate) fn find(&self, id: InstanceId) -> Result<Option<Instance>> {
        let dir = self.folder(id);
        let bytes = match fs::read(dir.join("meta.json")) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error("read", &dir.join("meta.json"), &e)),
        };
        let meta: Meta = serde_json::from_slice(&bytes).map_err(|e| {
            Error::unavailable(format!(
                "`{}/meta.json` is damaged: {e}; restore it or delete the folder",
                dir.display()
            ))
            .retry(tandem_sdk::Retry::AfterOperator)
        })?;
        if meta.format != FORMAT {
            return Err(Error::unavailable(format!(
                "`{}/meta.json` is of format {}; this driver knows format {FORMAT}",
                dir.display(),
                meta.format
            ))
            .retry(tandem_sdk::Retry::AfterOperator));
        }
        Ok(Some(Instance { dir, meta, store: self.clone(), lock: None }))
    }

    /// [`find`](Self::find), where its absence is an error.
    pub(crate) fn existing(&self, id: InstanceId) -> Result<Instance> {
        self.find(id)?.ok_or_else(|| self.missing(id))
    }

    /// The folder of an instance whose making was interrupted.
    pub(crate) fn unfinished(&self, id: InstanceId) -> PathBuf {
        self.instances().join(format!(".new-{id}"))
    }

    /// Makes an instance; all of it is there at once, or nothing.
    pub(crate) fn make(&self, meta: Meta) -> Result<Instance> {
        let id = meta.spec.instance;
        let new = self.unfinished(id);
        mirror::remove_path(&new, &|| false).map_err(|e| from_mirror(&e))?;
        fs::create_dir(&new).map_err(|e| io_error("create", &new, &e))?;
        let mut instance = Instance { dir: new.clone(), meta, store: self.clone(), lock: None };
        set_mode(&new, 0o700)?;
        // An inherited ACL would spread to every file in it.
        let _ = rustix::fs::removexattr(&new, "system.posix_acl_default");
        for folder in ["versions", "points"] {
            let path = new.join(folder);
            fs::create_dir(&path).map_err(|e| io_error("create", &path, &e))?;
            set_mode(&path, 0o711)?;
        }
        if instance.meta.role == Role::Active {
            instance.meta.version = 1;
            let tree = instance.tree();
            fs::create_dir_all(&tree).map_err(|e| io_error("create", &tree, &e))?;
            set_mode(&instance.version_dir(), 0o711)?;
            set_mode(&tree, self.share_mode)?;
        }
        instance.save()?;
        let dir = self.folder(id);
        fs::rename(&new, &dir).map_err(|e| io_error("rename", &new, &e))?;
        sync_dir(&self.instances())?;
        instance.dir = dir;
        instance.serve()?;
        Ok(instance)
    }
}

/// One instance on the disk.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) dir: PathBuf,
    pub(crate) meta: Meta,
    store: Store,
    /// Held until the call ends.
    lock: Option<Lock>,
}

impl Instance {
    pub(crate) fn version_dir(&self) -> PathBuf {
        self.dir.join("versions").join(self.meta.version.to_string())
    }

    /// The current tree.
    pub(crate) fn tree(&self) -> PathBuf {
        self.version_dir().join("tree")
    }

    pub(crate) fn open_tree(&self) -> Result<Tree> {
        if self.meta.version == 0 {
            return Err(Error::conflict(format!(
                "nothing whole has arrived at instance {} yet",
                self.meta.spec.instance
            )));
        }
        Tree::open(&self.tree()).map_err(|e| from_mirror(&e))
    }

    pub(crate) fn incoming(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    pub(crate) fn point_file(&self, id: PointId, kind: &str) -> PathBuf {
        self.dir.join("points").join(format!("{id}.{kind}"))
    }

    pub(crate) fn export(&self) -> PathBuf {
        self.store.config.root.join("exports").join(self.meta.spec.instance.to_string())
    }

    /// Makes the meta data durable.
    pub(crate) fn save(&self) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.meta)
            .map_err(|e| Error::bug(format!("the instance's data does not encode: {e}")))?;
        write_whole(&self.dir, "meta.json", &bytes).map_err(|e| from_mirror(&e))
    }

    /// Brings export and permissions in line with the meta data.
    pub(crate) fn serve(&mut self) -> Result<()> {
        let served = self.meta.is_served();
        if !served {
            self.unexport()?;
        }
        if self.meta.version > 0 {
            self.set_root_mode()?;
        }
        set_mode(&self.dir, if served { 0o711 } else { 0o700 })?;
        if served { self.export_current() } else { Ok(()) }
    }

    /// Takes it away from everybody who comes by its path, and the right to write from everybody else.
    pub(crate) fn serve_nobody(&mut self) -> Result<()> {
        self.unexport()?;
        set_mode(&self.dir, 0o700)?;
        if self.meta.version > 0 { self.set_root_mode() } else { Ok(()) }
    }

    /// Removes the files of points that are held no more.
    pub(crate) fn prune_points(&self) -> Result<()> {
        let points = self.dir.join("points");
        for entry in fs::read_dir(&points).map_err(|e| io_error("list", &points, &e))? {
            let entry = entry.map_err(|e| io_error("list", &points, &e))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let held = name
                .split('.')
                .next()
                .and_then(|id| id.parse().ok())
                .is_some_and(|id| self.meta.point(id).is_some());
            if !held && name != KNOWN {
                fs::remove_file(entry.path()).map_err(|e| io_error("remove", &entry.path(), &e))?;
            }
        }
        Ok(())
    }

    pub(crate) fn unexport(&self) -> Result<()> {
        let link = self.export();
        match fs::remove_file(&link) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &link, &e)),
            _ => Ok(()),
        }
    }

    /// Whether the export is there and leads to the current tree.
    pub(crate) fn is_exported(&self) -> bool {
        fs::read_link(self.export()).is_ok_and(|to| to == self.link_target())
    }

    fn link_target(&self) -> PathBuf {
        let id = self.meta.spec.instance;
        PathBuf::from(format!("../instances/{id}/versions/{}/tree", self.meta.version))
    }

    /// Points the export at the current tree, in one step for whoever looks.
    fn export_current(&self) -> Result<()> {
        if self.is_exported() {
            return Ok(());
        }
        let link = self.export();
        let new = link.with_file_name(format!(".{}.new", self.meta.spec.instance));
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &new, &e)),
            _ => {}
        }
        symlink(self.link_target(), &new).map_err(|e| io_error("create", &new, &e))?;
        fs::rename(&new, &link).map_err(|e| io_error("rename", &new, &e))?;
        sync_dir(&self.store.config.root.join("exports"))
    }

    /// Takes the write permissions of the tree's root away, or gives back what its users had set.
    fn set_root_mode(&mut self) -> Result<()> {
        let tree = self.tree();
        let now = fs::metadata(&tree).map_err(|e| io_error("stat", &tree, &e))?.permissions().mode() & 0o7777;
        if self.meta.is_writable() {
            if let Some(mode) = self.meta.root_mode {
                set_mode(&tree, mode)?;
                self.meta.root_mode = None;
                self.save()?;
            }
            return Ok(());
        }
        let real = match self.meta.root_mode {
            Some(mode) => mode,
            None => {
                // Remembered before it is changed, so that a kill between the two loses nothing.
                self.meta.root_mode = Some(now);
                self.save()?;
                now
            }
        };
        let reduced = real & !0o222;
        if now == reduced { Ok(()) } else { set_mode(&tree, reduced) }
    }

    /// What a killed call left behind is finished or removed.
    fn recover(&mut self) -> Result<()> {
        if self.meta.deleting {
            // Any part of it may be gone, and the rest goes.
            return Ok(());
        }
        let next = self.dir.join("versions").join((self.meta.version + 1).to_string());
        // A transfer that was complete but not yet recorded goes back to where the next one finds it.
        if next.join("header").exists() && !self.incoming().exists() {
            fs::rename(&next, self.incoming()).map_err(|e| io_error("rename", &next, &e))?;
        }
        // One that had only just begun.
        if self.incoming().exists() && !self.incoming().join("header").exists() {
            mirror::remove_path(&self.incoming(), &|| false).map_err(|e| from_mirror(&e))?;
        }
        // Killed between the record of a new version and its export: readers must not be left with the old one, which
        // the next transfer takes apart. What is not exported stays so until its epoch is confirmed.
        if self.meta.is_served() && fs::symlink_metadata(self.export()).is_ok() {
            self.export_current()?;
        }
        if self.version_dir().join("header").exists() {
            self.end_transfer(false)?;
        }
        // One that was made and not yet recorded, or recorded as released and not yet removed.
        self.prune_points()
    }

    /// Removes what only the transfer of the current version needed, and what it overtook; its header last, which says
    /// after a kill that this has to be done. The log of an increment may stay, for the next one.
    pub(crate) fn end_transfer(&self, keep_log: bool) -> Result<()> {
        let log = if keep_log { None } else { Some("delta") };
        for name in ["progress", "durable", "building"].into_iter().chain(log) {
            mirror::remove_path(&self.version_dir().join(name), &|| false).map_err(|e| from_mirror(&e))?;
        }
        if self.meta.role == Role::Secondary {
            mirror::remove_path(&self.dir.join("points").join(KNOWN), &|| false)
                .map_err(|e| from_mirror(&e))?;
        }
        mirror::remove_path(&self.version_dir().join("header"), &|| false).map_err(|e| from_mirror(&e))
    }

    /// Where a cut transfer lies.
    pub(crate) fn staged(&self) -> Result<Option<mirror::Staged>> {
        let next = self.dir.join("versions").join((self.meta.version + 1).to_string());
        let incoming = self.incoming();
        let dir = if incoming.exists() { incoming } else { next };
        mirror::staged(&dir).map_err(|e| from_mirror(&e))
    }

    /// Removes every version but these.
    pub(crate) fn remove_versions(&self, keep: &[u64], cancelled: &dyn Fn() -> bool) -> Result<()> {
        let versions = self.dir.join("versions");
        let keep: Vec<String> = keep.iter().map(u64::to_string).collect();
        for entry in fs::read_dir(&versions).map_err(|e| io_error("list", &versions, &e))? {
            let entry = entry.map_err(|e| io_error("list", &versions, &e))?;
            if !keep.iter().any(|name| entry.file_name().as_bytes() == name.as_bytes()) {
                mirror::remove_path(&entry.path(), cancelled).map_err(|e| from_mirror(&e))?;
            }
        }
        Ok(())
    }

    pub(crate) fn exports(&self) -> Vec<ExportLocation> {
        if !self.meta.is_served() || !self.is_exported() {
            return Vec::new();
        }
        let path = self.export().to_string_lossy().into_owned();
        vec![ExportLocation { path, preferred: true, admin_only: false }]
    }

    pub(crate) fn info(&self) -> InstanceInfo {
        InstanceInfo { exports: self.exports(), ..InstanceInfo::default() }
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
        .map_err(|e| io_error("set the permissions of", path, &e.into()))
}

pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|dir| rustix::fs::fsync(dir.as_fd()).map_err(Into::into));
    synced.map_err(|e| io_error("sync", path, &e))
}

/// An error of the system, as the contract has it.
pub(crate) fn io_error(action: &str, path: &Path, e: &io::Error) -> Error {
    let message = format!("could not {action} `{}`: {e}", mirror::show(path.as_os_str().as_bytes()));
    classify(e, message)
}

fn classify(e: &io::Error, message: String) -> Error {
    if mirror::is_full(e) {
        return Error::out_of_space(format!("{message}; the last good point is still in place"));
    }
    let error = Error::unavailable(message);
    match e.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            error.retry(tandem_sdk::Retry::AfterOperator)
        }
        _ => error,
    }
}

/// An error of the copying library, as the contract has it.
pub(crate) fn from_mirror(e: &mirror::Error) -> Error {
    let message = e.to_string();
    match e {
        mirror::Error::Io { source, .. } => classify(source, message),
        mirror::Error::Cancelled => Error::cancelled(message),
        mirror::Error::Cut | mirror::Error::Malformed { .. } => Error::unavailable(message),
        _ => Error::conflict(message),
    }
}
