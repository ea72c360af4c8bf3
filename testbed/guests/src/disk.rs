//! A disk of a guest: a file outside, a device inside that can fail, stall and forget.
//!
//! Inside, it is always `/dev/mapper/NAME`, a device-mapper table that can be changed while the device is in use.

use crate::Result;
use crate::host::Host;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Of a device-mapper table.
const SECTOR: u64 = 512;

/// How a disk behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// As a disk should.
    Good,
    /// Every read and write fails.
    Broken,
    /// Every write fails, reads succeed.
    BrokenForWriting,
    /// Every read and write takes so many milliseconds longer.
    Slow(u32),
    /// Good for some seconds, then broken for some, and so on.
    Flaky {
        /// Seconds without fault.
        up: u32,
        /// Seconds in which everything fails.
        down: u32,
    },
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    name: String,
    file: PathBuf,
    sectors: u64,
    /// `a`, `b` …: which of the kernel's own devices it is.
    letter: char,
}

impl Disk {
    pub(crate) fn create(folder: &Path, at: usize, name: &str, bytes: u64) -> Result<Self> {
        let letters = 'a'..='p';
        let letter = letters.clone().nth(at).ok_or("a guest has at most 16 disks.")?;
        let file = folder.join(format!("{name}.disk"));
        let said = |error: std::io::Error| format!("creating {}: {error}.", file.display());
        File::create_new(&file).map_err(said)?.set_len(bytes / SECTOR * SECTOR).map_err(said)?;
        Ok(Self { name: name.into(), file, sectors: bytes / SECTOR, letter })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where a guest finds it.
    pub fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    /// The file outside that it is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The kernel argument that plugs it in.
    pub(crate) fn argument(&self) -> String {
        format!("ubd{}={}", self.letter, self.file.display())
    }

    /// Makes the device after a boot.
    pub(crate) fn attach(&self, host: &dyn Host) -> Result<()> {
        host.run(&["modprobe", "dm-mod"])?;
        let table = self.table(Behaviour::Good);
        host.run(&["dmsetup", "create", &self.name, "--table", &table]).map(drop)
    }

    /// Behaves differently from now on; what is on its way meets the new behaviour.
    pub fn behave(&self, host: &dyn Host, behaviour: Behaviour) -> Result<()> {
        for module in behaviour.modules() {
            host.run(&["modprobe", module])?;
        }
        let table = self.table(behaviour);
        let dmsetup =
            |words: &[&str]| host.run(&[&["dmsetup", "--noudevsync", "--noudevrules"], words].concat());
        dmsetup(&["load", &self.name, "--table", &table])?;
        // Without flushing: a file system above a stalled disk cannot be quiet.
        dmsetup(&["suspend", "--noflush", "--nolockfs", &self.name])?;
        dmsetup(&["resume", &self.name]).map(drop)
    }

    fn table(&self, behaviour: Behaviour) -> String {
        let (device, sectors) = (format!("/dev/ubd{}", self.letter), self.sectors);
        match behaviour {
            Behaviour::Good => format!("0 {sectors} linear {device} 0"),
            Behaviour::Broken => format!("0 {sectors} error"),
            Behaviour::BrokenForWriting => format!("0 {sectors} flakey {device} 0 0 1 1 error_writes"),
            Behaviour::Slow(milliseconds) => format!("0 {sectors} delay {device} 0 {milliseconds}"),
            Behaviour::Flaky { up, down } => format!("0 {sectors} flakey {device} 0 {up} {down}"),
        }
    }
}

impl Behaviour {
    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Good | Self::Broken => &[],
            Self::BrokenForWriting | Self::Flaky { .. } => &["dm-flakey"],
            Self::Slow(_) => &["dm-delay"],
        }
    }
}
