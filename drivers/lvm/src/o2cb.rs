//! The cluster of o2cb that OCFS2 needs: hosts that see each other's heartbeats on the file system itself.
//!
//! It is made in configfs, as `o2cb register-cluster` does from its file, where it is not there yet; what others have made is
//! used where it says the same, and left alone. A kernel knows one cluster. Its layout: the kernel's fs/ocfs2/cluster/nodemanager.c.
//!
//! ```text
//! cluster/NAME/heartbeat/dead_threshold      cluster/NAME/node/<address>/{num,ipv4_address,ipv4_port,local}
//! cluster/NAME/heartbeat/<uuid>/dev          a file system that is mounted here, or was when its mount was cut
//! ```

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use tandem_sdk::command::Command;
use tandem_sdk::files::failed;
use tandem_sdk::{Error, OpContext, Result, Retry};

use crate::Inner;

/// Where configfs is mounted on every Linux.
const CONFIG: &str = "/sys/kernel/config";
/// Where o2cb's tools look for its lock manager.
const LOCKS: &str = "/dlm";
/// `USER_DLMFS_MAGIC` of the kernel's fs/ocfs2/dlmfs/dlmfs.c.
const LOCKS_MAGIC: u64 = 0x76a9_f425;
/// What is loaded; the others come with them.
const MODULES: [&str; 3] = ["ocfs2_stack_o2cb", "ocfs2", "ocfs2_dlmfs"];
const LOADER: &str = "/usr/sbin/modprobe";
/// Mounts, once this host's heartbeat runs.
pub(crate) const MOUNTER: &str = "/usr/sbin/mount.ocfs2";
/// The kernel calls it when it is unmounted: `/proc/sys/fs/ocfs2/nm/hb_ctl_path`, relative to the merged /sbin.
const ENDER: &str = "/usr/sbin/ocfs2_hb_ctl";

/// A cluster, as this host is to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) nodes: Vec<Node>,
    /// So many heartbeats, one every two seconds, until a host counts as dead.
    pub(crate) dead_threshold: u32,
}

/// A host of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// From 1 on: what was never set reads as 0.
    pub(crate) number: u8,
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) is_here: bool,
}

/// Refuses a host that lacks what the style `writable` needs.
pub(crate) fn require() -> Result<()> {
    if let Some(tool) = [MOUNTER, ENDER, LOADER].into_iter().find(|tool| !Path::new(tool).exists()) {
        return Err(absent(&format!("{tool} is not installed (Debian: ocfs2-tools, kmod)")));
    }
    let release = read(Path::new("/proc/sys/kernel"), "osrelease");
    let list = |name: &str| fs::read_to_string(format!("/lib/modules/{release}/{name}")).unwrap_or_default();
    let lists = [list("modules.dep"), list("modules.builtin")];
    let is_there = |module: &&str| {
        let file = format!("/{module}.ko");
        Path::new("/sys/module").join(module).exists() || lists.iter().any(|list| list.contains(&file))
    };
    match MODULES.iter().find(|module| !is_there(module)) {
        None => Ok(()),
        Some(module) => Err(absent(&format!("this kernel ({release}) has no module `{module}`"))),
    }
}

fn absent(why: &str) -> Error {
    Error::unavailable(format!("the setting `drbd.writable` asks for shares with OCFS2, but {why}"))
        .retry(Retry::AfterOperator)
}

impl Inner {
    /// The cluster, which is there and has this host in it from now on.
    pub(crate) async fn ready_cluster(&self, cx: &OpContext) -> Result<Cluster> {
        let drbd = self.drbd()?;
        let Some(writable) = &drbd.writable else {
            return Err(absent("this back end has no such setting any more"));
        };
        require()?;
        let clusters = Path::new(CONFIG).join("cluster");
        if !clusters.is_dir() || !holds_locks() {
            let loading = Command::new(LOADER).args(["-a"]).args(MODULES).run(cx).await;
            loading.map_err(|e| absent(&format!("its modules are not loaded: {}", e.message)))?;
        }
        let (cluster, run) = (writable.cluster(drbd.address), self.config.run.clone());
        cx.blocking(move |_| {
            // Two back ends of one host would meet.
            let lock = run.join("o2cb.lock");
            let file = fs::File::create(&lock).map_err(|e| failed("create", &lock, &e))?;
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
                .map_err(|errno| failed("lock", &lock, &errno.into()))?;
            if !clusters.is_dir() {
                put(CONFIG, "configfs")?;
            }
            if !holds_locks() {
                fs::create_dir_all(LOCKS).map_err(|e| failed("create", Path::new(LOCKS), &e))?;
                put(LOCKS, "ocfs2_dlmfs")?;
            }
            make(&clusters, &cluster)?;
            Ok(cluster)
        })
        .await
    }

    /// Ends the heartbeat of a device that is not mounted: a mount that was cut leaves it, and the device open with it.
    pub(crate) fn end_heartbeat(minor: u32) -> Result<()> {
        match end_heartbeat(&Path::new(CONFIG).join("cluster"), &format!("drbd{minor}")) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Err(Error::busy(format!(
                "`/dev/drbd{minor}` is in use by OCFS2 still; it is let go in a moment, or somebody else has it mounted"
            ))),
            Err(e) => Err(failed("end the heartbeat in", Path::new(CONFIG), &e)),
        }
    }
}

fn holds_locks() -> bool {
    rustix::fs::statfs(LOCKS).is_ok_and(|facts| u64::try_from(facts.f_type).is_ok_and(|t| t == LOCKS_MAGIC))
}

fn put(at: &str, filesystem: &str) -> Result<()> {
    rustix::mount::mount(filesystem, at, filesystem, MountFlags::empty(), None)
        .map_err(|errno| failed(&format!("mount {filesystem} on"), Path::new(at), &errno.into()))
}

/// Makes the cluster below the folder of all, or finds it there.
fn make(clusters: &Path, cluster: &Cluster) -> Result<()> {
    let there = names(clusters);
    if let Some(other) = there.iter().find(|name| **name != cluster.name) {
        return Err(Error::conflict(format!(
            "this kernel is in the cluster `{other}` of o2cb already, and knows one only; set `drbd.writable.cluster = \
             \"{other}\"` on all hosts, or take it down with `o2cb unregister-cluster {other}`"
        ))
        .retry(Retry::AfterOperator));
    }
    let folder = clusters.join(&cluster.name);
    fs::create_dir_all(&folder).map_err(|e| failed("create", &folder, &e))?;
    let heartbeat = folder.join("heartbeat");
    let threshold = cluster.dead_threshold.to_string();
    let now = read(&heartbeat, "dead_threshold");
    if now != threshold {
        if names(&heartbeat).iter().any(|name| heartbeat.join(name).is_dir()) {
            return Err(Error::conflict(format!(
                "shares are mounted here with a `dead_threshold` of o2cb of {now}, and `drbd.writable.dead_seconds` makes it \
                 {threshold}; all hosts need the same: set it back, or restart this host"
            ))
            .retry(Retry::AfterOperator));
        }
        write(&heartbeat, "dead_threshold", &threshold)?;
    }
    let nodes = folder.join("node");
    // Before anything is written: a host is in the cluster once.
    let here = cluster.nodes.iter().find(|node| node.is_here).map(|node| node.address.to_string());
    for other in names(&nodes).iter().map(|name| nodes.join(name)) {
        let address = read(&other, "ipv4_address");
        if read(&other, "local") == "1" && here.as_ref() != Some(&address) {
            return Err(differs(&address, "it is this host there"));
        }
    }
    cluster.nodes.iter().try_for_each(|node| join(&nodes, node))
}

/// Makes a node of a cluster, or finds it there by its address, whatever its name.
fn join(nodes: &Path, node: &Node) -> Result<()> {
    let (number, address) = (node.number.to_string(), node.address.to_string());
    let all: Vec<PathBuf> = names(nodes).iter().map(|name| nodes.join(name)).collect();
    let has = |folder: &&PathBuf, name: &str, value: &str| read(folder, name) == value;
    let known = all.iter().find(|folder| has(folder, "ipv4_address", &address));
    let taken = all.iter().find(|folder| has(folder, "num", &number));
    let folder = known.cloned().unwrap_or_else(|| nodes.join(&address));
    if let Some(other) = taken.filter(|taken| **taken != folder) {
        return Err(differs(
            &address,
            &format!("its number {number} is that of {}", read(other, "ipv4_address")),
        ));
    }
    fs::create_dir_all(&folder).map_err(|e| failed("create", &folder, &e))?;
    for (name, value) in
        [("ipv4_port", node.port.to_string()), ("ipv4_address", address.clone()), ("num", number)]
    {
        let now = read(&folder, name);
        // What was never set.
        if ["", "0", "0.0.0.0"].contains(&now.as_str()) {
            write(&folder, name, &value)?;
        } else if now != value {
            return Err(differs(&address, &format!("its `{name}` is {now}, and not {value}")));
        }
    }
    if node.is_here && read(&folder, "local") != "1" {
        // From now on the kernel listens there.
        write(&folder, "local", "1")?;
    }
    Ok(())
}

fn differs(address: &str, how: &str) -> Error {
    Error::conflict(format!(
        "the cluster of o2cb in this kernel knows the host {address} otherwise than `drbd.writable.hosts` does: {how}; all hosts \
         need one list in one order. Set it right, or restart this host"
    ))
    .retry(Retry::AfterOperator)
}

fn end_heartbeat(clusters: &Path, device: &str) -> io::Result<()> {
    for cluster in names(clusters) {
        let heartbeat = clusters.join(cluster).join("heartbeat");
        for region in names(&heartbeat).iter().map(|name| heartbeat.join(name)) {
            if read(&region, "dev") == device {
                fs::remove_dir(&region)?;
            }
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_default().trim().to_owned()
}

fn write(folder: &Path, name: &str, value: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, value).map_err(|e| failed("write", &path, &e).with("value", value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(name: &str) -> Cluster {
        let node = |number| Node {
            number,
            address: Ipv4Addr::new(192, 0, 2, number),
            port: 7777,
            is_here: number == 2,
        };
        Cluster { name: name.to_owned(), nodes: [1, 2].map(node).to_vec(), dead_threshold: 16 }
    }

    /// Plain folders, in which the kernel would have made the files.
    fn clusters(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tandem-o2cb-{test}-{}", std::process::id()));
        for inner in ["", "tandem/heartbeat", "tandem/node"] {
            fs::create_dir_all(folder.join(inner)).unwrap();
        }
        folder
    }

    #[test]
    fn a_cluster_is_made_once_and_grows() {
        let all = clusters("made");
        make(&all, &cluster("tandem")).unwrap();
        let node = all.join("tandem/node/192.0.2.2");
        let said = ["num", "ipv4_address", "ipv4_port", "local"].map(|name| read(&node, name));
        assert_eq!(said, ["2", "192.0.2.2", "7777", "1"]);
        assert_eq!(read(&all.join("tandem/heartbeat"), "dead_threshold"), "16");
        assert_eq!(read(&all.join("tandem/node/192.0.2.1"), "local"), "");
        let mut more = cluster("tandem");
        more.nodes.push(Node { number: 3, address: Ipv4Addr::new(192, 0, 2, 9), port: 7777, is_here: false });
        make(&all, &more).unwrap();
        make(&all, &more).unwrap();
        assert_eq!(names(&all.join("tandem/node")).len(), 3);
        // One that was made by hand, under another name, is found by its address.
        fs::rename(&node, all.join("tandem/node/storage2")).unwrap();
        make(&all, &more).unwrap();
        assert_eq!(names(&all.join("tandem/node")).len(), 3);
        fs::remove_dir_all(&all).unwrap();
    }

    #[test]
    fn what_others_have_made_otherwise_is_left_alone() {
        let all = clusters("other");
        make(&all, &cluster("tandem")).unwrap();
        assert!(make(&all, &cluster("mine")).unwrap_err().message.contains("`tandem`"));
        let mut turned = cluster("tandem");
        turned.nodes[0].number = 2;
        turned.nodes[1].number = 1;
        assert!(make(&all, &turned).unwrap_err().message.contains("number 2"));
        let mut moved = cluster("tandem");
        moved.nodes.iter_mut().for_each(|node| node.port = 7778);
        assert!(make(&all, &moved).unwrap_err().message.contains("ipv4_port"));
        let mut elsewhere = cluster("tandem");
        elsewhere.nodes.iter_mut().for_each(|node| node.is_here = !node.is_here);
        assert!(make(&all, &elsewhere).is_err());
        // Nothing is mounted: another threshold is taken; then not.
        make(&all, &Cluster { dead_threshold: 7, ..cluster("tandem") }).unwrap();
        fs::create_dir(all.join("tandem/heartbeat/CA13EA")).unwrap();
        assert!(make(&all, &cluster("tandem")).unwrap_err().message.contains("dead_seconds"));
        fs::remove_dir_all(&all).unwrap();
    }

    #[test]
    fn the_heartbeat_of_a_device_is_ended_and_no_other() {
        let all = clusters("heartbeat");
        let region = |name: &str, device: &str| {
            let folder = all.join("tandem/heartbeat").join(name);
            fs::create_dir(&folder).unwrap();
            (fs::write(folder.join("dev"), device).unwrap(), folder).1
        };
        let (ours, other) = (region("A", "drbd10\n"), region("B", "drbd1\n"));
        // A folder of configfs goes with what the kernel has in it; this one does not.
        assert!(end_heartbeat(&all, "drbd10").is_err());
        fs::remove_file(ours.join("dev")).unwrap();
        end_heartbeat(&all, "drbd11").unwrap();
        assert!(other.exists());
        fs::remove_dir_all(&all).unwrap();
    }
}
