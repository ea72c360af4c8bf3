//! Kernel NFS in guests: a version 4 server, and clients of several addresses in one guest.

use crate::Result;
use crate::host::{Command, Host, Output};

/// Seconds that a lease and the grace after a start last; the kernel takes no less.
const SECONDS: &str = "10";

/// Starts the server; nothing is exported yet.
pub fn serve(host: &dyn Host) -> Result<()> {
    host.run(&["modprobe", "nfsd"])?;
    host.run(&["mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd"])?;
    for name in ["nfsv4gracetime", "nfsv4leasetime"] {
        write(host, &format!("/proc/fs/nfsd/{name}"), SECONDS)?;
    }
    // What the packages bring; a guest begins with an empty /var/lib/nfs.
    host.run(&["mkdir", "-p", "/var/lib/nfs/v4recovery", "/var/lib/nfs/nfsdcltrack", "/run/rpc_pipefs"])?;
    host.run(&["touch", "/etc/exports", "/var/lib/nfs/etab", "/var/lib/nfs/rmtab"])?;
    host.run(&["rpc.mountd", "--no-nfs-version", "3", "--no-udp"])?;
    host.run(&["rpc.nfsd", "-N", "3", "-V", "4.2", "--no-udp", "4"])?;
    // Nobody has anything to reclaim from a server that has just been born; after a power cut the scenario decides.
    write(host, "/proc/fs/nfsd/v4_end_grace", "Y")
}

/// Exports a folder to an address, until the next power cut.
pub fn export(host: &dyn Host, path: &str, client: &str, options: &str) -> Result<()> {
    host.run(&["exportfs", "-o", options, &format!("{client}:{path}")]).map(drop)
}

/// Writes a word into a file of a guest.
pub fn write(host: &dyn Host, file: &str, word: &str) -> Result<()> {
    let tee = host.spawn(&Command::new(&["tee", file]).input())?;
    // At once: the kernel's files take one write each time they are opened, and call themselves busy at a second.
    tee.input(format!("{word}\n").as_bytes())?;
    tee.input(b"")?;
    match tee.wait()? {
        output if output.status == 0 => Ok(()),
        output => Err(format!("writing {word} into {file} on {}: {}", host.name(), output.stderr_text())),
    }
}

/// A client in a guest: a network name space with an address of its own.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    address: String,
}

impl Client {
    /// Makes one, with an address in the laboratory's network such as `192.0.2.101`.
    pub fn create(host: &dyn Host, name: &str, address: &str) -> Result<Self> {
        bridge(host)?;
        host.run(&["modprobe", "nfsv4"])?;
        let (outer, inner) = (format!("o-{name}"), format!("i-{name}"));
        let net = format!("{address}/24");
        host.run(&["ip", "netns", "add", name])?;
        host.run(&["ip", "link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", name])?;
        host.run(&["ip", "link", "set", &outer, "master", BRIDGE, "up"])?;
        host.run(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        host.run(&["ip", "-n", name, "address", "add", &net, "dev", &inner])?;
        host.run(&["ip", "-n", name, "link", "set", &inner, "up"])?;
        let client = Self { name: name.into(), address: address.into() };
        // Clients of one host name would displace each other's state.
        let file = "/sys/fs/nfs/net/nfs_client/identifier";
        let tee = host.spawn(&Command::new(&["ip", "netns", "exec", name, "tee", file]).input())?;
        tee.input(format!("{}-{name}\n", host.name()).as_bytes())?;
        tee.input(b"")?;
        match tee.wait()? {
            output if output.status == 0 => Ok(client),
            output => Err(format!("naming the client {name}: {}", output.stderr_text())),
        }
    }

    /// One that was made before.
    pub fn known(name: &str, address: &str) -> Self {
        Self { name: name.into(), address: address.into() }
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Mounts an export, `192.0.2.1:/path`, on a folder that is made when it is missing.
    pub fn mount(&self, host: &dyn Host, export: &str, at: &str, options: &str) -> Result<Output> {
        host.run(&["mkdir", "-p", at])?;
        let options = format!("vers=4.2,{options}");
        host.output(&self.command(&["mount", "-t", "nfs4", "-o", &options, export, at]))
    }

    /// A command as this client; a name space of its own is all the difference.
    pub fn command(&self, argv: &[&str]) -> Command {
        let net = format!("--net=/run/netns/{}", self.name);
        Command::new(&[&["nsenter", &net], argv].concat())
    }

    /// [`Self::mount`], which must succeed.
    pub fn must_mount(&self, host: &dyn Host, export: &str, at: &str, options: &str) -> Result<()> {
        match self.mount(host, export, at, options)? {
            output if output.status == 0 => Ok(()),
            output => Err(format!("mounting {export} from {}: {}", self.address, output.stderr_text())),
        }
    }
}

const BRIDGE: &str = "lab";

/// Puts the guest's network card and its address into a bridge, so that clients inside reach a server inside too.
fn bridge(host: &dyn Host) -> Result<()> {
    if host.succeeds(&["ip", "link", "show", "dev", BRIDGE])? {
        return Ok(());
    }
    for module in ["bridge", "veth"] {
        host.run(&["modprobe", module])?;
    }
    let net = format!("{}/24", host.address());
    host.run(&["ip", "link", "add", BRIDGE, "type", "bridge"])?;
    host.run(&["ip", "address", "flush", "dev", "vec0"])?;
    host.run(&["ip", "link", "set", "vec0", "promisc", "on", "master", BRIDGE])?;
    host.run(&["ip", "address", "add", &net, "dev", BRIDGE])?;
    host.run(&["ip", "link", "set", BRIDGE, "up"]).map(drop)
}
