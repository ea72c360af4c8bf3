//! Two back ends of one kernel that replicate with each other by DRBD: links that are cut, sides that both went on, disks
//! that fail, boots. Runs in a guest with the groups `vg_alpha` and `vg_beta`: `cargo xtask test --only guests`; some of it
//! only with `TANDEM_LONG=1`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod full;
mod missing;
mod readable;

use std::fs;
use std::time::{Duration, Instant};

use common::{Backend, run, set_table, volumes};
use full::*;
use libtest_mimic::{Arguments, Trial};
use missing::*;
use readable::*;
use serde_json::json;
use tandem_sdk::contract::*;
use tandem_sdk::{Result, Value};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Where the two sides are reached; both are this guest.
const HOSTS: [&str; 2] = ["127.0.1.1", "127.0.1.2"];

/// Tests by their names; passed by where the groups or the module are not.
fn main() -> std::process::ExitCode {
    let there = |path: &str| std::path::Path::new(path).exists();
    let elsewhere =
        !["/dev/mapper/vg_alpha-pool", "/dev/mapper/vg_beta-pool", "/proc/drbd"].into_iter().all(there);
    let short = elsewhere || std::env::var_os("TANDEM_LONG").is_none();
    macro_rules! trials {
        ($passed_by:expr; $($test:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($test), || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on($test());
                Ok(())
            })
            .with_ignored_flag($passed_by)),*]
        };
    }
    let mut trials = trials![elsewhere;
        a_replica_gets_what_was_written_and_takes_over_and_gives_back,
        both_sides_went_on_and_one_is_told_to_follow,
        after_a_boot_nothing_is_there_before_its_epoch_is_confirmed,
        readers_over_nfs_finish_and_see_the_next_moment_and_a_promotion_loses_nothing,
        pools_that_fill_below_both_sides_lose_nothing_that_was_acknowledged,
        what_a_host_lacks_is_named,
    ];
    trials.extend(trials![short;
        a_link_that_is_cut_heals_by_what_was_written_meanwhile,
        what_a_verification_finds_is_carried_anew,
        a_pair_grows_while_it_is_used,
        what_others_have_in_the_kernel_is_left_alone,
        a_disk_that_fails_is_left_and_comes_back,
        a_disk_that_comes_back_older_serves_nobody_before_its_peer_answers,
        an_active_one_without_a_disk_is_promoted_away_from,
        growth_that_was_cut_is_ended_by_the_side_that_was_promoted,
        a_side_that_moved_to_another_address_is_found_again,
        who_reads_on_is_gone_past_and_holds_up_the_removal_alone,
        looks_that_are_cut_leave_nothing_of_what_users_read,
        a_replica_is_read_whole_while_it_catches_up_and_after_a_boot,
        a_pool_that_fills_below_a_follower_leaves_its_disk_until_there_is_room,
        a_pool_that_fills_below_the_active_side_is_not_noticed_by_its_users,
        what_users_read_is_given_up_before_the_pool_is_full,
        a_snapshot_that_filled_the_pool_goes_before_a_write_fails,
    ]);
    // One after another: they share the kernel's one DRBD.
    if !elsewhere {
        run("modprobe", &["sch_netem"]);
    }
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A share and its replica, connected.
struct Pair {
    sides: [Backend; 2],
    ids: [InstanceId; 2],
    epoch: Epoch,
    spec: InstanceSpec,
}

async fn backend(disk: &str, test: &str, side: usize, more: &Value) -> Backend {
    let first = 7800 + 100 * u16::try_from(side).unwrap();
    let minors = [100 + 100 * side, 199 + 100 * side];
    let mut drbd = json!({"address": HOSTS[side], "ports": [first, first + 99], "minors": minors});
    if let Some(seconds) = more.get("readable_seconds") {
        drbd["readable_seconds"] = seconds.clone();
    }
    let mut settings = json!({ "drbd": drbd });
    for name in ["export", "thin_pool", "warn_percent", "refuse_percent"] {
        if let Some(value) = more.get(name) {
            settings[name] = value.clone();
        }
    }
    Backend::open(disk, test, settings).await
}

impl Pair {
    /// The share bears a file before its replica is made.
    async fn new(test: &str, size: u64) -> Self {
        Self::with(test, size, Style::Dr, "ext4", &json!({})).await
    }

    /// The same in a style, with a file system and with settings of both sides.
    async fn with(test: &str, size: u64, style: Style, filesystem: &str, more: &Value) -> Self {
        let sides = [backend("alpha", test, 0, more).await, backend("beta", test, 1, more).await];
        Self::of(sides, size, style, filesystem).await
    }

    /// The same on these two.
    async fn of(sides: [Backend; 2], size: u64, style: Style, filesystem: &str) -> Self {
        let replication = Some(ReplicationSpec { style, instances: 2 });
        let spec = InstanceSpec { replication, ..sides[0].spec(size, filesystem) };
        sides[0].call(CreateInstance { spec: spec.clone() }).await.unwrap();
        let replica = InstanceSpec {
            instance: InstanceId(Uuid::new_v4()),
            pool: sides[1].group.clone(),
            ..spec.clone()
        };
        let pair = Self { ids: [spec.instance, replica.instance], sides, epoch: Epoch(1), spec };
        pair.write(0, "first", 1);
        pair.sides[1].call(CreateReplica { spec: replica }).await.unwrap();
        pair.connect(0).await.unwrap();
        pair.up_to_date(1).await;
        pair
    }

    fn write(&self, side: usize, name: &str, mib: usize) {
        let path = self.sides[side].folder(self.ids[side]).join(name);
        fs::write(&path, vec![name.len() as u8; mib << 20]).unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
    }

    fn holds(&self, side: usize, name: &str) -> bool {
        self.sides[side].folder(self.ids[side]).join(name).exists()
    }

    /// As the manager does: the follower first.
    async fn connect(&self, leader: usize) -> Result<()> {
        self.connect_with(leader, false).await
    }

    /// The same, where somebody asked for a resync.
    async fn resync(&self, leader: usize) -> Result<()> {
        self.connect_with(leader, true).await
    }

    async fn connect_with(&self, leader: usize, give_up: bool) -> Result<()> {
        let follower = 1 - leader;
        let mut endpoints = Vec::new();
        for side in 0..2 {
            endpoints.push(self.sides[side].call(GetEndpoint { instance: self.ids[side] }).await?);
        }
        for side in [follower, leader] {
            let (instance, epoch, peer) = (self.ids[side], self.epoch, endpoints[1 - side].clone());
            let give_up = give_up && side == follower;
            let call = ConnectPeers { instance, epoch, peer, authoritative: side == leader, give_up };
            self.sides[side].call(call).await?;
        }
        Ok(())
    }

    async fn disconnect(&self) {
        for side in 0..2 {
            let call = DisconnectPeers { instance: self.ids[side], peer: self.ids[1 - side] };
            self.sides[side].call(call).await.unwrap();
        }
    }

    async fn report(&self, side: usize) -> ReplicaReport {
        let call = UpdateReplicaState { instance: self.ids[side], epoch: self.epoch };
        self.sides[side].call(call).await.unwrap()
    }

    /// Waits until a side reports what is waited for.
    async fn until(&self, side: usize, what: &str, is_so: impl Fn(&ReplicaReport) -> bool) -> ReplicaReport {
        let until = Instant::now() + Duration::from_secs(120);
        loop {
            let report = self.report(side).await;
            if is_so(&report) {
                return report;
            }
            assert!(Instant::now() < until, "{what}: {report:?}\n{}", kernel());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn up_to_date(&self, side: usize) -> ReplicaReport {
        self.until(side, "it does not become up to date", |report| report.up_to_date == Some(true)).await
    }

    async fn demote(&mut self, side: usize, to: Demotion) -> Result<Outcome<InstanceInfo>> {
        let call = DemoteReplica { instance: self.ids[side], epoch: self.epoch, to };
        self.sides[side].call(call).await
    }

    async fn promote(&mut self, side: usize, promotion: Promotion) -> Result<Outcome<InstanceInfo>> {
        let call = PromoteReplica { instance: self.ids[side], epoch: self.epoch, promotion };
        self.sides[side].call(call).await
    }

    /// A planned promotion, and the old one follows.
    async fn switch(&mut self, to: usize) {
        self.epoch = self.epoch.next();
        self.demote(1 - to, Demotion::Secondary).await.unwrap();
        let info = self.promote(to, Promotion::Planned { point: None }).await.unwrap().into_inner();
        assert_eq!(info.exports.len(), 1);
        let parted = || run("dmesg", &[]).matches("-> Disconnecting").count();
        let before = parted();
        self.connect(to).await.unwrap();
        self.up_to_date(1 - to).await;
        assert_eq!(parted(), before, "they were never without each other");
    }

    /// Everything goes, and nothing is left anywhere.
    async fn leaves_nothing(self) {
        for side in [1, 0] {
            self.sides[side].leaves_nothing(self.ids[side]).await;
            assert!(!volumes(&self.sides[side].group).iter().any(|name| name.starts_with("tandem-")));
        }
        assert!(!kernel().contains("tandem-"), "{}", kernel());
    }
}

fn kernel() -> String {
    format!(
        "{}{}",
        run("drbdsetup", &["events2", "--now", "--statistics"]),
        fs::read_to_string("/proc/drbd").unwrap()
    )
}

/// Bytes that a side has received since its resource was made.
fn received(backend: &Backend, id: InstanceId) -> u64 {
    let text = run("drbdsetup", &["events2", "--now", "--statistics", &format!("tandem-{id}")]);
    let field = text.split_whitespace().find_map(|word| word.strip_prefix("received:"));
    assert!(field.is_some(), "{} {text}", backend.group);
    field.unwrap().parse::<u64>().unwrap() * 1024
}

/// No packet passes between the two sides, until it is mended.
fn cut() {
    run("tc", &["qdisc", "add", "dev", "lo", "root", "netem", "loss", "100%"]);
}

fn mend() {
    run("tc", &["qdisc", "del", "dev", "lo", "root"]);
}

async fn a_replica_gets_what_was_written_and_takes_over_and_gives_back() {
    let mut pair = Pair::new("switch", 1024 * MIB).await;
    let carried = received(&pair.sides[1], pair.ids[1]);
    assert!(carried < 64 * MIB, "{carried} bytes were carried of a share that has 1 MiB in it");
    let seen = pair.sides[1].observe(pair.ids[1]).await;
    assert_eq!((seen.role, seen.exports.len(), seen.health), (Role::Secondary, 0, Health::Ok));

    // While the other side serves its users nobody is promoted, not even by force, and nothing has changed by that.
    for promotion in [Promotion::Forced { point: None }, Promotion::Planned { point: None }] {
        let refused = pair.promote(1, promotion).await.unwrap_err();
        assert!(
            refused.kind == ErrorKind::Conflict && refused.message.contains("serves its users"),
            "{refused}"
        );
    }
    assert_eq!(pair.sides[1].observe(pair.ids[1]).await.role, Role::Secondary);

    pair.write(0, "second", 4);
    pair.switch(1).await;
    assert!(pair.holds(1, "first") && pair.holds(1, "second") && !pair.holds(0, "first"));
    pair.write(1, "third", 4);
    let before = received(&pair.sides[1], pair.ids[1]);
    pair.switch(0).await;
    assert!(pair.holds(0, "third"));
    let carried = received(&pair.sides[1], pair.ids[1]) - before;
    assert!(carried < MIB, "{carried} bytes were carried to one that lacked nothing");

    // A third instance is one too many.
    let third = InstanceSpec {
        instance: InstanceId(Uuid::new_v4()),
        pool: pair.sides[1].group.clone(),
        ..pair.spec.clone()
    };
    pair.sides[1].call(CreateReplica { spec: third.clone() }).await.unwrap();
    let peer = pair.sides[1].call(GetEndpoint { instance: third.instance }).await.unwrap();
    let call =
        ConnectPeers { instance: pair.ids[0], epoch: pair.epoch, peer, authoritative: true, give_up: false };
    let refused = pair.sides[0].call(call).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Conflict && refused.message.contains("not three"), "{refused}");
    pair.sides[1].call(DeleteReplica { instance: third.instance }).await.unwrap();
    // What is gone replicates with nobody, and so does what never replicated with that one.
    for side in 0..2 {
        for (instance, peer) in [(third.instance, pair.ids[side]), (pair.ids[side], third.instance)] {
            let done = pair.sides[side].call(DisconnectPeers { instance, peer }).await.unwrap();
            assert!(!done.is_changed());
        }
    }

    // Another replica later gets everything: the active one knows only what the first one lacks.
    pair.disconnect().await;
    pair.sides[1].call(DeleteReplica { instance: pair.ids[1] }).await.unwrap();
    pair.write(0, "fourth", 1);
    pair.ids[1] = InstanceId(Uuid::new_v4());
    let again =
        InstanceSpec { instance: pair.ids[1], pool: pair.sides[1].group.clone(), ..pair.spec.clone() };
    pair.sides[1].call(CreateReplica { spec: InstanceSpec { epoch: pair.epoch, ..again } }).await.unwrap();
    pair.connect(0).await.unwrap();
    pair.up_to_date(1).await;
    pair.switch(1).await;
    assert!(pair.holds(1, "first") && pair.holds(1, "fourth"));
    pair.leaves_nothing().await;
}

async fn a_link_that_is_cut_heals_by_what_was_written_meanwhile() {
    let mut pair = Pair::new("cut", 512 * MIB).await;
    let before = received(&pair.sides[1], pair.ids[1]);
    cut();
    // Writers wait for as long as the kernel waits for the peer, and go on.
    pair.write(0, "meanwhile", 8);
    let behind =
        pair.until(0, "the lag does not count up", |r| r.lag_bytes.is_some_and(|lag| lag >= 8 * MIB)).await;
    let lost = pair.until(1, "it does not see that it is cut off", |r| r.up_to_date == Some(false)).await;
    assert_eq!((lost.state, lost.lag_bytes, lost.split_brain), (ReplicaState::OutOfSync, None, None));
    assert_eq!(behind.state, ReplicaState::Active);
    let refused = pair.promote(1, Promotion::Planned { point: None }).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Conflict && refused.message.contains("not up to date"), "{refused}");
    mend();
    pair.up_to_date(1).await;
    let carried = received(&pair.sides[1], pair.ids[1]).saturating_sub(before);
    let lag = behind.lag_bytes.unwrap();
    assert!(carried <= lag + 4 * MIB, "{carried} bytes were carried for a lag of {lag}");
    assert_eq!(pair.report(1).await.lag_bytes, Some(0));
    pair.switch(1).await;
    assert!(pair.holds(1, "meanwhile"));
    pair.leaves_nothing().await;
}

async fn what_a_verification_finds_is_carried_anew() {
    let mut pair = Pair::new("verify", 256 * MIB).await;
    pair.write(0, "file", 8);
    // Behind the kernel's back the replica loses what it had: in the middle of its disk, and of the file.
    let volume = pair.sides[1].volume(pair.ids[1]);
    let device = format!("of=/dev/{volume}");
    for at in ["seek=16", "seek=40"] {
        run("dd", &["if=/dev/urandom", &device, "bs=1M", "count=4", at, "conv=notrunc,fsync", "status=none"]);
    }
    assert_eq!(pair.report(1).await.lag_bytes, Some(0), "nobody has looked");
    let verify = async |minor: &str| {
        run("drbdsetup", &["verify", minor]);
        let until = Instant::now() + Duration::from_secs(120);
        let mut seen = Vec::new();
        while kernel().contains("replication:Verify") {
            assert!(Instant::now() < until, "{}", kernel());
            let report = pair.report(1).await;
            if kernel().contains("replication:Verify") {
                seen.push((report.lag_bytes == Some(0), report.up_to_date == Some(true)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // While both are read every write goes to both: it is behind by what was found, and by nothing else.
        assert!(seen.iter().all(|(found_nothing, up_to_date)| found_nothing == up_to_date), "{seen:?}");
        seen.len()
    };
    verify("100").await;
    let found = pair.report(1).await;
    assert_eq!((found.state, found.up_to_date), (ReplicaState::OutOfSync, Some(false)));
    assert!(found.lag_bytes.is_some_and(|lag| (MIB..=8 * MIB).contains(&lag)), "{found:?}\n{}", kernel());
    pair.connect(0).await.unwrap();
    pair.up_to_date(1).await;
    assert!(verify("100").await > 0, "it was not looked at while it was read");
    assert_eq!(pair.up_to_date(1).await.lag_bytes, Some(0));
    pair.switch(1).await;
    let text = fs::read(pair.sides[1].folder(pair.ids[1]).join("file")).unwrap();
    assert!(text.iter().all(|byte| *byte == 4) && text.len() == 8 << 20);
    pair.leaves_nothing().await;
}

async fn both_sides_went_on_and_one_is_told_to_follow() {
    let mut pair = Pair::new("split", 512 * MIB).await;
    cut();
    pair.write(0, "of the old one", 2);
    pair.epoch = pair.epoch.next();
    assert!(pair.promote(1, Promotion::Forced { point: None }).await.unwrap().is_changed());
    assert!(!pair.promote(1, Promotion::Forced { point: None }).await.unwrap().is_changed());
    pair.write(1, "of the new one", 2);
    mend();
    // The new one has left the old one; the old one finds nobody, whatever is mended.
    let stale = EnsureInstance { instance: pair.ids[1], epoch: Epoch(1) };
    assert_eq!(pair.sides[1].call(stale).await.unwrap_err().kind, ErrorKind::StaleEpoch);
    assert!(pair.holds(0, "of the old one") && !pair.holds(0, "of the new one"));

    // Fenced: it serves nobody, keeps what it has, follows nobody.
    assert!(pair.demote(0, Demotion::Fenced).await.unwrap().is_changed());
    assert!(!pair.demote(0, Demotion::Fenced).await.unwrap().is_changed());
    let seen = pair.sides[0].observe(pair.ids[0]).await;
    assert_eq!((seen.role, seen.exports.len(), seen.epoch), (Role::Fenced, 0, pair.epoch));
    assert!(!kernel().contains(&pair.ids[0].to_string()), "{}", kernel());
    let refused = pair.connect(1).await.unwrap_err();
    assert!(refused.message.contains("fenced"), "{refused}");

    // Told to follow, it says what it would give up before it is connected.
    assert!(pair.demote(0, Demotion::Secondary).await.unwrap().is_changed());
    let report = pair.report(0).await;
    assert_eq!(report.state, ReplicaState::Error);
    assert!(report.split_brain.as_ref().is_some_and(|how| how.contains("generation")), "{report:?}");
    let refused = pair.connect(1).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Conflict && refused.message.contains("given up"), "{refused}");
    assert!(pair.report(0).await.split_brain.is_some(), "it holds what it held");
    pair.resync(1).await.unwrap();
    pair.up_to_date(0).await;
    assert_eq!(pair.report(0).await.split_brain, None);
    pair.switch(0).await;
    assert!(pair.holds(0, "first") && pair.holds(0, "of the new one") && !pair.holds(0, "of the old one"));
    pair.leaves_nothing().await;
}

async fn after_a_boot_nothing_is_there_before_its_epoch_is_confirmed() {
    let mut pair = Pair::new("boot", 256 * MIB).await;
    pair.write(0, "kept", 1);
    // What a boot leaves.
    for side in [0, 1] {
        if side == 0 {
            run("umount", &[pair.sides[0].folder(pair.ids[0]).to_str().unwrap()]);
            run("drbdsetup", &["secondary", "100"]);
        }
        run("drbdsetup", &["down", &format!("tandem-{}", pair.ids[side])]);
        let volume = pair.sides[side].volume(pair.ids[side]);
        run("lvchange", &["-an", &volume, &format!("{volume}.drbd")]);
        pair.sides[side].again().await;
    }
    run("vgchange", &["-ay", "vg_alpha", "vg_beta"]);
    for side in [0, 1] {
        let seen = pair.sides[side].observe(pair.ids[side]).await;
        assert!(
            matches!(&seen.health, Health::Degraded { reason } if reason.contains("epoch")),
            "{:?}",
            seen.health
        );
        assert!(seen.exports.is_empty());
        assert!(!matches!(pair.report(side).await.state, ReplicaState::InSync));
        let stale = EnsureInstance { instance: pair.ids[side], epoch: Epoch(0) };
        assert_eq!(pair.sides[side].call(stale).await.unwrap_err().kind, ErrorKind::StaleEpoch);
    }
    assert!(!kernel().contains("tandem-"), "{}", kernel());
    for side in [1, 0] {
        assert!(pair.sides[side].ensure(pair.ids[side]).await.unwrap().is_changed());
        assert!(!pair.sides[side].ensure(pair.ids[side]).await.unwrap().is_changed());
    }
    pair.up_to_date(1).await;
    pair.switch(1).await;
    assert!(pair.holds(1, "kept"));
    pair.leaves_nothing().await;
}

async fn a_pair_grows_while_it_is_used() {
    let mut pair = Pair::new("grow", 256 * MIB).await;
    let room = |path: &std::path::Path| rustix::fs::statvfs(path).map(|s| s.f_blocks * s.f_frsize).unwrap();
    let before = received(&pair.sides[1], pair.ids[1]);
    for side in [1, 0] {
        let grow = ResizeInstance { instance: pair.ids[side], epoch: pair.epoch, size_bytes: 512 * MIB };
        assert!(pair.sides[side].call(grow.clone()).await.unwrap().is_changed());
        assert!(!pair.sides[side].call(grow).await.unwrap().is_changed());
    }
    assert!(room(&pair.sides[0].folder(pair.ids[0])) > 400 * MIB);
    pair.write(0, "more", 4);
    pair.up_to_date(1).await;
    let carried = received(&pair.sides[1], pair.ids[1]).saturating_sub(before);
    assert!(carried < 64 * MIB, "{carried} bytes were carried for 256 MiB of nothing");
    pair.switch(1).await;
    assert!(pair.holds(1, "more") && room(&pair.sides[1].folder(pair.ids[1])) > 400 * MIB);
    pair.leaves_nothing().await;
}

async fn what_others_have_in_the_kernel_is_left_alone() {
    // Somebody's resource has the first minor and the first port of the range.
    run("drbdsetup", &["new-resource", "precious"]);
    run("drbdsetup", &["new-minor", "precious", "100", "0"]);
    run("drbdsetup", &["connect", "precious", "ipv4:127.0.1.1:7800", "ipv4:127.0.1.9:7800"]);
    let listener = std::net::TcpListener::bind("127.0.1.1:7801").unwrap();
    let pair = Pair::new("others", 64 * MIB).await;
    let tags = run("lvs", &["--noheadings", "-o", "lv_tags", &pair.sides[0].volume(pair.ids[0])]);
    assert!(tags.contains("tandem:drbd=dr!C!101!7802"), "{tags}");
    drop(listener);
    let overlap = json!({"drbd": {"address": "127.0.1.3", "ports": [7850, 7860], "minors": [900, 910]}});
    let refused = Backend::fails("gamma", overlap).await;
    assert!(refused.message.contains("drbd-vg_alpha.ranges"), "{refused}");
    // Nor is a volume that has the name of one of Tandem's.
    let alone = ReplicationSpec { style: Style::Dr, instances: 1 };
    let spec = InstanceSpec { replication: Some(alone), ..pair.sides[0].spec(64 * MIB, "ext4") };
    let instance = spec.instance;
    let theirs = [format!("tandem-{instance}.drbd"), format!("tandem-{instance}.read0")];
    for name in &theirs {
        run("lvcreate", &["-y", "--type", "thin", "-V", "4m", "-n", name, "--thinpool", "pool", "vg_alpha"]);
    }
    let made = pair.sides[0].call(CreateInstance { spec }).await.unwrap_err();
    assert!(made.message.contains(&theirs[0]), "{made}");
    pair.sides[0].call(DeleteInstance { instance }).await.unwrap();
    let left = volumes("vg_alpha");
    assert!(
        theirs.iter().all(|name| left.contains(name)) && !left.contains(&format!("tandem-{instance}")),
        "{left:?}"
    );
    for name in theirs {
        run("lvremove", &["-y", &format!("vg_alpha/{name}")]);
    }
    pair.leaves_nothing().await;
    assert!(kernel().contains("precious"));
    run("drbdsetup", &["down", "precious"]);
}

async fn a_disk_that_fails_is_left_and_comes_back() {
    let mut pair = Pair::new("fails", 128 * MIB).await;
    let volume = format!("vg_beta-tandem--{}", pair.ids[1].to_string().replace('-', "--"));
    let table = run("dmsetup", &["table", &volume]);
    let sectors = table.split_whitespace().nth(1).unwrap();
    set_table(&volume, &format!("0 {sectors} error"));
    pair.write(0, "while it is away", 2);
    let until = Instant::now() + Duration::from_secs(60);
    while !kernel().contains("disk:Diskless") {
        assert!(Instant::now() < until, "{}", kernel());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Users of the active one notice nothing.
    assert_eq!(pair.sides[0].observe(pair.ids[0]).await.health, Health::Ok);
    let report = pair.report(1).await;
    assert!(matches!(&report.health, Health::Failed { reason } if reason.contains("detached")), "{report:?}");
    assert_eq!((report.state, report.lag_bytes), (ReplicaState::OutOfSync, None));
    set_table(&volume, table.trim());
    pair.sides[1].again().await;
    assert!(pair.sides[1].ensure(pair.ids[1]).await.unwrap().is_changed());
    pair.up_to_date(1).await;
    pair.switch(1).await;
    assert!(pair.holds(1, "while it is away"));
    pair.leaves_nothing().await;
}

/// What a boot leaves of a side.
async fn boot(pair: &mut Pair, side: usize) {
    let folder = pair.sides[side].folder(pair.ids[side]);
    if fs::read_to_string("/proc/self/mountinfo").unwrap().contains(folder.to_str().unwrap()) {
        run("umount", &[folder.to_str().unwrap()]);
    }
    let name = format!("tandem-{}", pair.ids[side]);
    if kernel().contains(&format!("resource name:{name} role:Primary")) {
        let minor = kernel()
            .lines()
            .find(|line| line.contains("exists device") && line.contains(&name))
            .and_then(|line| {
                line.split_whitespace().find_map(|word| word.strip_prefix("minor:").map(str::to_owned))
            });
        run("drbdsetup", &["secondary", &minor.unwrap()]);
    }
    run("drbdsetup", &["down", &name]);
    let volume = pair.sides[side].volume(pair.ids[side]);
    run("lvchange", &["-an", &volume, &format!("{volume}.drbd")]);
    pair.sides[side].again().await;
}

/// The device-mapper table of a side's data, and the disk without it: every access fails.
async fn fail_disk(pair: &Pair, side: usize) -> (String, String) {
    let volume =
        format!("{}-tandem--{}", pair.sides[side].group, pair.ids[side].to_string().replace('-', "--"));
    let table = run("dmsetup", &["table", &volume]);
    let sectors = table.split_whitespace().nth(1).unwrap();
    set_table(&volume, &format!("0 {sectors} error"));
    pair.write(side, "through the peer", 2);
    let until = Instant::now() + Duration::from_secs(60);
    while !kernel().contains("disk:Diskless") {
        assert!(Instant::now() < until, "{}", kernel());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (volume, table.trim().to_owned())
}

async fn a_disk_that_comes_back_older_serves_nobody_before_its_peer_answers() {
    let mut pair = Pair::new("older", 128 * MIB).await;
    let (volume, table) = fail_disk(&pair, 0).await;
    let report = pair.report(0).await;
    assert!(matches!(&report.health, Health::Degraded { reason } if reason.contains("peer")), "{report:?}");
    let tags = || run("lvs", &["--noheadings", "-o", "lv_tags", &pair.sides[0].volume(pair.ids[0])]);
    assert!(tags().contains("tandem:diskless=yes"), "{}", tags());
    set_table(&volume, &table);
    // The whole host goes, and comes back without the other one.
    boot(&mut pair, 0).await;
    cut();
    let refused = pair.sides[0].ensure(pair.ids[0]).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Unavailable && refused.message.contains("older"), "{refused}");
    assert!(pair.sides[0].observe(pair.ids[0]).await.exports.is_empty());
    mend();
    // Two kernels that lost each other try again every ten seconds.
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(error) = pair.sides[0].ensure(pair.ids[0]).await {
        assert!(error.kind == ErrorKind::Unavailable && Instant::now() < until, "{error}");
    }
    assert!(pair.holds(0, "first") && pair.holds(0, "through the peer"));
    pair.up_to_date(1).await;
    pair.until(0, "it is not whole again", |report| report.up_to_date == Some(true)).await;
    let tags = run("lvs", &["--noheadings", "-o", "lv_tags", &pair.sides[0].volume(pair.ids[0])]);
    assert!(!tags.contains("diskless"), "{tags}");
    // Without the tag, and with the peer there, the two sides meet before anybody is served.
    let (volume, table) = fail_disk(&pair, 0).await;
    set_table(&volume, &table);
    boot(&mut pair, 0).await;
    pair.sides[0].ensure(pair.ids[0]).await.unwrap();
    assert!(pair.holds(0, "through the peer"));
    pair.up_to_date(1).await;
    pair.switch(1).await;
    assert!(pair.holds(1, "through the peer"));
    pair.leaves_nothing().await;
}

async fn an_active_one_without_a_disk_is_promoted_away_from() {
    let mut pair = Pair::new("diskless", 128 * MIB).await;
    let (volume, table) = fail_disk(&pair, 0).await;
    // The other side has everything, and says so.
    pair.up_to_date(1).await;
    // Without it users had nothing.
    let leave = DisconnectPeers { instance: pair.ids[0], peer: pair.ids[1] };
    let refused = pair.sides[0].call(leave).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Conflict && refused.message.contains("alone"), "{refused}");
    assert!(pair.holds(0, "through the peer"));
    pair.epoch = pair.epoch.next();
    assert!(pair.demote(0, Demotion::Secondary).await.unwrap().is_changed());
    pair.promote(1, Promotion::Planned { point: None }).await.unwrap();
    assert!(pair.holds(1, "first") && pair.holds(1, "through the peer"));
    // The driver takes away what does not work, and makes it anew.
    if run("dmsetup", &["ls"]).lines().any(|line| line.split_whitespace().next() == Some(&volume)) {
        set_table(&volume, &table);
    }
    pair.disconnect().await;
    pair.connect(1).await.unwrap();
    pair.up_to_date(0).await;
    pair.switch(0).await;
    assert!(pair.holds(0, "through the peer"));
    pair.leaves_nothing().await;
}

async fn growth_that_was_cut_is_ended_by_the_side_that_was_promoted() {
    let mut pair = Pair::new("regrow", 128 * MIB).await;
    let room = |path: &std::path::Path| rustix::fs::statvfs(path).map(|s| s.f_blocks * s.f_frsize).unwrap();
    let grow = |instance, epoch| ResizeInstance { instance, epoch, size_bytes: 256 * MIB };
    // The secondary grows first, and that is as far as it came.
    pair.sides[1].call(grow(pair.ids[1], pair.epoch)).await.unwrap();
    pair.switch(1).await;
    assert!(room(&pair.sides[1].folder(pair.ids[1])) < 200 * MIB);
    for side in [0, 1] {
        pair.sides[side].call(grow(pair.ids[side], pair.epoch)).await.unwrap();
    }
    assert!(room(&pair.sides[1].folder(pair.ids[1])) > 200 * MIB);
    pair.up_to_date(0).await;
    pair.leaves_nothing().await;
}

async fn a_side_that_moved_to_another_address_is_found_again() {
    let mut pair = Pair::new("moved", 64 * MIB).await;
    pair.sides[1].settings["drbd"]["address"] = json!("127.0.1.4");
    pair.sides[1].again().await;
    pair.connect(0).await.unwrap();
    pair.up_to_date(1).await;
    // And where the two had given each other up.
    run("drbdsetup", &["disconnect", "ipv4:127.0.1.1:7800", "ipv4:127.0.1.4:7900"]);
    pair.sides[1].settings["drbd"]["address"] = json!(HOSTS[1]);
    pair.sides[1].again().await;
    pair.connect(0).await.unwrap();
    pair.up_to_date(1).await;
    pair.switch(1).await;
    pair.leaves_nothing().await;
}
