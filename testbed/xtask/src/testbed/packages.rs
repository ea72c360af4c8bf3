//! The packages that guests are made of, on Debian 12; none of their services is left running here.

use crate::{Result, command::Run, system, temporary::Temporary};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// From Debian itself.
const PACKAGES: &[&str] = &[
    "user-mode-linux",
    "kmod",
    "iproute2",
    "iputils-ping",
    "e2fsprogs",
    "hostname",
    "dmsetup",
    "nfs-kernel-server",
    "nfs-common",
    "lvm2",
    "thin-provisioning-tools",
    "xfsprogs",
    // For the bindings to LVM's library.
    "liblvm2-dev",
    "bindgen",
    "libclang1",
    "drbd-utils",
    "ocfs2-tools",
    "util-linux",
    "mount",
    "procps",
    // What a benchmark compares with.
    "sanoid",
    // For the modules.
    "gcc",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libc6-dev",
    "pkg-config",
    "xz-utils",
    "binutils",
];
/// From the backports, because Debian 12 itself has an older OpenZFS.
const BACKPORTS: &[&str] = &["zfsutils-linux", "libzfslinux-dev"];
/// The version that the tests are written for.
const ZFS: &str = "2.3.2";
const SOURCES: &str = "/etc/apt/sources.list.d/tandem-testbed.sources";
/// Asked by Debian's packages whether they may start services.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Services that would otherwise start with the machine from now on.
const SERVICES: &[(&str, &[&str])] = &[
    ("nfs-kernel-server", &["nfs-server.service", "nfsdcld.service", "nfs-blkmap.service"]),
    ("nfs-common", &["nfs-client.target", "rpcbind.service", "rpcbind.socket"]),
    ("zfsutils-linux", &["zfs-zed.service", "zfs.target", "zfs-import.target", "zfs-volumes.target"]),
    ("lvm2", &["lvm2-monitor.service", "lvm2-lvmpolld.socket"]),
    ("drbd-utils", &["drbd.service"]),
    ("ocfs2-tools", &["o2cb.service", "ocfs2.service"]),
    ("sanoid", &["sanoid.timer", "sanoid.service", "sanoid-prune.service"]),
];

/// Installs what is missing when we may, and otherwise says what to type.
pub(crate) fn prepare() -> Result<String> {
    let missing = missing();
    if missing.is_empty() {
        return Ok("no package was missing".into());
    }
    if !system::is_root() {
        return Err(format!(
            "some packages are missing ({}); type: sudo cargo xtask testbed setup",
            missing.join(" ")
        ));
    }
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !release.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        return Err(format!(
            "{} are missing, and only on Debian 12 (bookworm) is known how to install them. Run the tests in a container \
             of it.",
            missing.join(" ")
        ));
    }
    let silence = silence()?;
    let outcome = install(&missing, silence.as_ref());
    outcome.and(silence.map_or(Ok(()), Temporary::remove))?;
    for (package, services) in SERVICES.iter().filter(|(package, _)| missing.contains(package)) {
        // Where there is no systemd there is nothing to keep quiet.
        for service in *services {
            let _ = Run::new("systemctl").args(["disable", "--now", service]).succeeds();
        }
        println!("-- {package}: its services are off");
    }
    match self::missing() {
        still if still.is_empty() => Ok(format!("installed {}", missing.join(" "))),
        still => Err(format!("{} are still missing after they were installed.", still.join(" "))),
    }
}

fn missing() -> Vec<&'static str> {
    let plain = PACKAGES.iter().copied().filter(|package| version(package).is_none());
    let ported = BACKPORTS
        .iter()
        .copied()
        .filter(|package| !version(package).is_some_and(|version| version.starts_with(ZFS)));
    plain.chain(ported).collect()
}

/// The installed version of a package.
pub(super) fn version(package: &str) -> Option<String> {
    let text = Run::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Version}", package]).output();
    text.ok()?.strip_prefix("installed ").map(String::from)
}

fn install(missing: &[&'static str], silence: Option<&Temporary>) -> Result<()> {
    let apt = || Run::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    if missing.iter().any(|package| BACKPORTS.contains(package)) && zfs_candidate().is_none() {
        let text = format!(
            "# Written by `cargo xtask testbed setup`: OpenZFS {ZFS} for guests of the testbed.\nTypes: deb\n\
             URIs: http://deb.debian.org/debian\nSuites: bookworm-backports\nComponents: main contrib\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
        std::fs::write(SOURCES, text).map_err(|error| format!("writing {SOURCES}: {error}."))?;
    }
    apt().args(["-qq", "update"]).run()?;
    let plain: Vec<&str> = missing.iter().copied().filter(|p| !BACKPORTS.contains(p)).collect();
    let ported = missing.iter().any(|package| BACKPORTS.contains(package));
    let mut words: Vec<String> = plain.into_iter().map(String::from).collect();
    if ported {
        let version = zfs_candidate().ok_or(format!("no source of packages has OpenZFS {ZFS}."))?;
        words.extend(BACKPORTS.iter().map(|package| format!("{package}={version}")));
        // Its libraries are of the same version.
        for library in ["libnvpair3linux", "libuutil3linux", "libzfs6linux", "libzpool6linux"] {
            words.push(format!("{library}={version}"));
        }
    }
    let install = apt().args(["-qq", "install", "--yes", "--no-install-recommends"]).args(words);
    // After Ctrl-C it ends what it has begun, which may be a service's package.
    match silence {
        Some(silence) => silence.needed_by(install)?.run(),
        None => install.run(),
    }
}

/// The version of that OpenZFS that the sources of packages have.
fn zfs_candidate() -> Option<String> {
    offered("zfsutils-linux", |version| version.starts_with(ZFS))
}

/// A version of a package that the sources of packages have and that fits.
pub(super) fn offered(package: &str, fits: impl Fn(&str) -> bool) -> Option<String> {
    let text = Run::new("apt-cache").args(["madison", package]).output().ok()?;
    let versions = text.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_string()));
    versions.into_iter().find(|version| fits(version))
}

/// The line by which a later setup knows that the file is ours; the number of our process follows.
const MARK: &str =
    "# Written by `cargo xtask testbed setup`, which removes it after it has installed; process ";

/// While it is there, packages start no services; `None` where somebody else has seen to that.
fn silence() -> Result<Option<Temporary>> {
    let said = |error: std::io::Error| format!("writing {POLICY}: {error}.");
    let runs = |process: &str| Path::new("/proc").join(process).exists();
    match std::fs::read_to_string(POLICY) {
        Ok(text) if !is_left_over(&text, runs) => return Ok(None),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(format!("reading {POLICY}: {error}."));
        }
        _ => {}
    }
    let silence = Temporary::of(POLICY.into())?;
    std::fs::write(POLICY, format!("#!/bin/sh\n{MARK}{}\nexit 101\n", std::process::id())).map_err(said)?;
    std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755)).map_err(said)?;
    Ok(Some(silence))
}

/// Whether a setup wrote this that did not live to remove it.
fn is_left_over(policy: &str, runs: impl Fn(&str) -> bool) -> bool {
    policy.lines().find_map(|line| line.strip_prefix(MARK)).is_some_and(|process| !runs(process))
}

#[cfg(test)]
mod tests {
    use super::is_left_over;

    #[test]
    fn only_what_a_killed_setup_wrote_is_taken_over() {
        let ours = format!("#!/bin/sh\n{}77\nexit 101\n", super::MARK);
        assert!(is_left_over(&ours, |_| false), "a setup that was killed");
        assert!(!is_left_over(&ours, |process| process == "77"), "one that goes on");
        assert!(!is_left_over("#!/bin/sh\nexit 101\n", |_| false), "somebody else's");
        assert!(!is_left_over("", |_| false));
    }
}
