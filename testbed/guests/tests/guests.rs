//! The testbed tested: commands, power, disks, the network, and that nothing outlives its owner.

#![allow(clippy::unwrap_used, reason = "a panic is a failed test with its reason")]

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tandem_guests::{Behaviour, Command, Guest, Host, Kind, Lab, Link, Plan};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tandem-guest");
const MIB: u64 = 1 << 20;

fn lab() -> Lab {
    Lab::new(Path::new(PROGRAM)).unwrap()
}

fn booted(lab: &Lab, plan: Plan) -> Guest {
    let guest = lab.guest(plan).unwrap();
    guest.boot().unwrap();
    guest
}

#[test]
fn commands_are_vectors_that_end_with_a_status_and_run_side_by_side() {
    let lab = lab();
    let guest = booted(&lab, Plan::new("one"));
    let output = guest.output(&Command::new(&["sh", "-c", "echo out; echo err >&2; exit 7"])).unwrap();
    assert_eq!((output.status, output.stdout_text().as_str()), (7, "out\n"));
    assert_eq!(output.stderr_text(), "err\n");
    assert_eq!(guest.run(&["echo", "two  words", "$HOME;"]).unwrap(), "two  words $HOME;\n");
    let here =
        guest.output(&Command::new(&["sh", "-c", "pwd; echo $A"]).dir("/srv").env("A", "b c")).unwrap();
    assert_eq!(here.stdout_text(), "/srv\nb c\n");
    assert!(guest.run(&["/no/such/program"]).unwrap_err().contains("/no/such/program"));
    let many = guest.run(&["seq", "1", "200000"]).unwrap();
    assert_eq!(many.lines().count(), 200_000, "a long answer arrives whole");

    let slow = guest.spawn(&Command::new(&["sleep", "600"])).unwrap();
    assert_eq!(guest.run(&["echo", "meanwhile"]).unwrap(), "meanwhile\n");
    slow.kill().unwrap();
    assert_eq!(slow.wait().unwrap().status, 128 + 9);
    let late = guest.output(&Command::new(&["sleep", "600"]).deadline(Duration::from_millis(300)));
    assert!(late.unwrap_err().contains("did not end within"));
    assert_eq!(guest.run(&["hostname"]).unwrap(), "one\n");
}

#[test]
fn disks_survive_a_power_cut_and_the_clock_can_be_wrong() {
    let lab = lab();
    let guest = booted(&lab, Plan::new("cut").disk("data", 64 * MIB));
    let disk = guest.disk("data").unwrap().path();
    guest.run(&["mkfs.ext4", "-q", &disk]).unwrap();
    guest.run(&["mount", &disk, "/mnt"]).unwrap();
    guest.run(&["sh", "-c", "echo kept > /mnt/kept; sync; echo lost > /mnt/lost"]).unwrap();
    let running = guest.spawn(&Command::new(&["sleep", "600"])).unwrap();
    guest.cut_power().unwrap();
    assert!(running.wait().unwrap_err().contains("went away"));
    assert!(guest.run(&["true"]).unwrap_err().contains("switched off"));
    guest.set_clock_offset(3600);
    guest.boot().unwrap();
    guest.run(&["mount", &disk, "/mnt"]).unwrap();
    assert_eq!(guest.run(&["cat", "/mnt/kept"]).unwrap(), "kept\n");
    assert!(!guest.succeeds(&["test", "-s", "/mnt/lost"]).unwrap(), "what was only in memory is gone");
    let inside: u64 = guest.run(&["date", "+%s"]).unwrap().trim().parse().unwrap();
    let outside = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!((3500..3700).contains(&(inside - outside)), "{inside} {outside}");
}

#[test]
fn disks_fail_stall_and_fill() {
    let lab = lab();
    let guest = booted(&lab, Plan::new("ill").disk("small", 24 * MIB).disk("raw", 16 * MIB));
    let raw = guest.disk("raw").unwrap();
    let into = format!("of={}", raw.path());
    let write = ["dd", "if=/dev/zero", &into, "bs=64k", "count=4", "oflag=direct", "status=none"];
    let from = format!("if={}", raw.path());
    let read = ["dd", &from, "of=/dev/null", "bs=64k", "count=4", "iflag=direct", "status=none"];
    assert!(guest.succeeds(&write).unwrap());
    raw.behave(&guest, Behaviour::Broken).unwrap();
    assert!(guest.run(&write).unwrap_err().contains("Input/output error"));
    assert!(guest.run(&read).unwrap_err().contains("Input/output error"));
    raw.behave(&guest, Behaviour::BrokenForWriting).unwrap();
    assert!(guest.succeeds(&read).unwrap());
    assert!(!guest.succeeds(&write).unwrap());
    raw.behave(&guest, Behaviour::Slow(300)).unwrap();
    let start = Instant::now();
    assert!(guest.succeeds(&write).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(1200), "four writes of 300 ms: {:?}", start.elapsed());
    raw.behave(&guest, Behaviour::Good).unwrap();
    assert!(guest.succeeds(&write).unwrap());

    let small = guest.disk("small").unwrap().path();
    guest.run(&["mkfs.ext4", "-q", &small]).unwrap();
    guest.run(&["mount", &small, "/mnt"]).unwrap();
    let full = guest.run(&["dd", "if=/dev/zero", "of=/mnt/big", "bs=1M", "count=64"]).unwrap_err();
    assert!(full.contains("No space left"), "{full}");
}

#[test]
fn the_network_delays_cuts_and_heals() {
    let lab = lab();
    let plan = |name| Plan::new(name).second_card();
    let (one, two) = (booted(&lab, plan("one")), booted(&lab, plan("two")));
    assert!(lab.guest(Plan::new("three")).is_err(), "two at once");
    let ping = ["ping", "-c", "1", "-W", "2", &two.address()];
    assert!(one.succeeds(&ping).unwrap());
    lab.network().set(one.number(), two.number(), Link::CUT);
    assert!(!one.succeeds(&ping).unwrap());
    let other = ["ping", "-c", "1", "-W", "2", &two.second_address()];
    assert!(one.succeeds(&other).unwrap(), "the second network is whole");
    lab.second_network().set(one.number(), two.number(), Link::CUT);
    assert!(!one.succeeds(&other).unwrap());
    lab.network().set(one.number(), two.number(), Link { delay: Duration::from_millis(400), ..Link::GOOD });
    let answer = one.run(&ping).unwrap();
    let time = answer.split("time=").nth(1).and_then(|rest| rest.split(' ').next());
    assert!(time.unwrap().parse::<f64>().unwrap() >= 400.0, "{answer}");
    lab.network().set_both(one.number(), two.number(), Link::GOOD);
    assert!(one.succeeds(&ping).unwrap());
    assert!(lab.network().carried(one.number(), two.number()) > 0);
    two.cut_power().unwrap();
    assert!(!one.succeeds(&ping).unwrap());
    two.boot().unwrap();
    assert!(one.succeeds(&ping).unwrap(), "its cable is plugged in again");
}

#[test]
fn nfs_between_guests_asks_who_is_there() {
    use tandem_guests::nfs;
    let lab = lab();
    let (server, client) =
        (booted(&lab, Plan::new("server").disk("data", 64 * MIB)), booted(&lab, Plan::new("client")));
    let disk = server.disk("data").unwrap().path();
    server.run(&["mkfs.ext4", "-q", &disk]).unwrap();
    server.run(&["mkdir", "-p", "/srv/e"]).unwrap();
    server.run(&["mount", &disk, "/srv/e"]).unwrap();
    nfs::serve(&server).unwrap();
    let good = nfs::Client::create(&client, "good", "192.0.2.101").unwrap();
    let bad = nfs::Client::create(&client, "bad", "192.0.2.102").unwrap();
    let reader = nfs::Client::create(&client, "reader", "192.0.2.103").unwrap();
    nfs::export(&server, "/srv/e", good.address(), "rw,no_subtree_check,no_root_squash").unwrap();
    nfs::export(&server, "/srv/e", reader.address(), "ro,no_subtree_check,no_root_squash").unwrap();
    let export = format!("{}:/srv/e", server.address());
    good.must_mount(&client, &export, "/mnt/good", "hard").unwrap();
    client.run(&["sh", "-c", "echo over the wire > /mnt/good/file && sync /mnt/good/file"]).unwrap();
    assert_eq!(server.run(&["cat", "/srv/e/file"]).unwrap(), "over the wire\n");
    let refused = bad.mount(&client, &export, "/mnt/bad", "hard").unwrap();
    assert_ne!(refused.status, 0, "an address that is not listed mounts nothing");
    reader.must_mount(&client, &export, "/mnt/reader", "hard").unwrap();
    assert_eq!(client.run(&["cat", "/mnt/reader/file"]).unwrap(), "over the wire\n");
    assert!(client.run(&["touch", "/mnt/reader/new"]).unwrap_err().contains("Read-only"));
    // A client in the server's own guest.
    let own = nfs::Client::create(&server, "own", "192.0.2.104").unwrap();
    nfs::export(&server, "/srv/e", own.address(), "rw,no_subtree_check,no_root_squash").unwrap();
    own.must_mount(&server, &export, "/mnt/own", "hard").unwrap();
    assert_eq!(server.run(&["cat", "/mnt/own/file"]).unwrap(), "over the wire\n");
}

#[test]
fn zfs_sends_and_receives_and_its_pools_survive() {
    let lab = lab();
    let guest = booted(&lab, Kind::Zfs.plan("zfs").unwrap());
    Kind::Zfs.prepare(&guest).unwrap();
    guest.run(&["zfs", "create", "alpha/share"]).unwrap();
    guest
        .run(&["dd", "if=/dev/urandom", "of=/alpha/share/file", "bs=1M", "count=16", "status=none"])
        .unwrap();
    guest.run(&["zfs", "snapshot", "alpha/share@one"]).unwrap();
    guest.run(&["sh", "-c", "zfs send alpha/share@one | zfs receive beta/copy"]).unwrap();
    let sum = |path: &str| guest.run(&["sha256sum", path]).unwrap()[..64].to_string();
    assert_eq!(sum("/alpha/share/file"), sum("/beta/copy/file"));
    let before = sum("/alpha/share/file");
    guest.cut_power().unwrap();
    guest.boot().unwrap();
    Kind::Zfs.load(&guest).unwrap();
    tandem_guests::zfs::import_pool(&guest, "alpha").unwrap();
    assert!(!guest.succeeds(&["test", "-e", "/alpha/share/file"]).unwrap(), "nothing is mounted by itself");
    guest.run(&["zfs", "mount", "alpha/share"]).unwrap();
    assert_eq!(guest.run(&["sha256sum", "/alpha/share/file"]).unwrap()[..64], before);
}

#[test]
fn lvm_makes_thin_volumes() {
    let lab = lab();
    let guest = booted(&lab, Kind::Lvm.plan("lvm").unwrap());
    Kind::Lvm.prepare(&guest).unwrap();
    let lvm = |argv: &[&str]| {
        let output =
            guest.output(&Command::new(argv).env("LVM_SYSTEM_DIR", tandem_guests::lvm::SYSTEM)).unwrap();
        assert_eq!(output.status, 0, "{argv:?}: {}", output.stderr_text());
    };
    lvm(&["lvcreate", "-y", "--thin", "-V", "128M", "-n", "share", "vg_alpha/pool"]);
    guest.run(&["mkfs.ext4", "-q", "/dev/vg_alpha/share"]).unwrap();
    lvm(&["lvcreate", "-y", "--snapshot", "-n", "point", "vg_alpha/share"]);
}

/// Processes of this machine that belong to a laboratory in that room.
fn processes(room: &Path) -> usize {
    let room = room.to_string_lossy().into_owned();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(&room)).count()
}

#[test]
fn nothing_outlives_a_killed_owner() {
    let room = tempfile::tempdir().unwrap();
    let mut owner = std::process::Command::new(PROGRAM)
        .args(["run", "plain", "--", "sleep", "1000"])
        .env("TANDEM_LAB_ROOM", room.path())
        .env_remove("KEEP")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let wait = |what: &str, condition: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait("a keeper and a kernel", &|| processes(room.path()) >= 2);
    owner.kill().unwrap();
    owner.wait().unwrap();
    wait("their end", &|| processes(room.path()) == 0);
    wait("an empty room", &|| std::fs::read_dir(room.path()).unwrap().count() == 0);
}

#[test]
fn an_ordinary_user_can_run_guests() {
    use std::os::unix::fs::PermissionsExt as _;
    let room = tempfile::tempdir().unwrap();
    let program = room.path().join("tandem-guest");
    std::fs::copy(PROGRAM, &program).unwrap();
    for path in [room.path(), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let labs = room.path().join("labs");
    std::fs::create_dir(&labs).unwrap();
    std::fs::set_permissions(&labs, std::fs::Permissions::from_mode(0o777)).unwrap();
    let root = rustix::process::geteuid().is_root();
    let mut command = std::process::Command::new(if root { "setpriv".as_ref() } else { program.as_os_str() });
    if root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program);
    }
    let output = command
        .args(["run", "plain", "--", "sh", "-c", "id -u; dd if=/dev/zero of=/dev/mapper/alpha bs=1M count=1"])
        .env("TANDEM_LAB_ROOM", &labs)
        .env("HOME", &labs)
        .env_remove("KEEP")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "root inside, nobody outside");
}
