//! A full sync and an incremental one over the driver `directory`, against `rsync -aHAXS` of the same tree on the same
//! disk: in one run, in turns, medians.
//!
//! Tandem does more in that time: it makes a point (hashes every content), verifies what arrived, and switches the
//! replica over in one step, durable when it says so. rsync does none of that.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tandem_testbed::bench::trees::{bytes, change_small, small};
use tandem_testbed::bench::{Figures, begin};
use tandem_testbed::kill::lab::{Beneath, Lab, Stage, THERE};
use tandem_testbed::kill::storm::Dice;
use tandem_testbed::wait;

/// Pairs of runs, rsync and Tandem in turns.
const ROUNDS: u32 = 3;
/// Bytes of the large file.
const LARGE: u64 = 2 << 30;
/// GiB of the share, which holds any of the trees.
const SHARE: u64 = 4;
/// Bytes that change in one place of the large file.
const PATCH: u64 = 64 << 10;

fn main() {
    case("20,000 small files", small, change_small);
    case("one file of 2 GiB", large, change_large);
}

fn case(name: &str, fill: fn(&Path, &mut Dice), change: fn(&Path, &mut Dice)) {
    begin(&format!("{name}: directory against rsync -aHAXS"));
    let never = [("replication:rpo_seconds", "864000")];
    let mut lab = Lab::empty(Stage::Share, Beneath::Directory, "", &never);
    lab.server.launch();
    lab.backends_are_up();
    let grow = serde_json::json!({"extend": {"new_size": SHARE}});
    lab.ask(|api| api.post(&format!("v2/shares/{}/action", lab.share()), &grow));
    lab.settle();
    let source = lab.export(lab.active());
    let mut dice = Dice::new(1);
    fill(&source, &mut dice);
    let copy = lab.server.folder().join("rsync");

    let (mut by_rsync, mut by_tandem) = (Figures::default(), Figures::default());
    let mut replica = String::new();
    for round in 0..ROUNDS {
        if round > 0 {
            remove(&copy);
            lab.ask(|api| api.delete_replica(&replica));
            wait::until("the replica to be gone", || (lab.replicas_of(lab.share()).len() == 1).then_some(()));
            lab.settle();
        }
        settle_disk();
        by_rsync.time(|| rsync(&source, &copy));
        settle_disk();
        by_tandem.time(|| {
            replica = lab.ask(|api| api.create_replica(lab.share(), THERE));
            lab.in_sync(lab.share());
        });
    }
    report("full", &by_rsync, &by_tandem);

    let (mut by_rsync, mut by_tandem) = (Figures::default(), Figures::default());
    let mut carried = Vec::new();
    for _ in 0..ROUNDS {
        change(&source, &mut dice);
        settle_disk();
        by_rsync.time(|| rsync(&source, &copy));
        settle_disk();
        by_tandem.time(|| lab.resync(&replica));
        let newest = lab.ask(|api| api.operations(&format!("kind=sync&instance_id={replica}&limit=1")));
        carried.push(newest[0]["bytes"].as_u64().unwrap() >> 10);
    }
    report("1 % changed", &by_rsync, &by_tandem);
    println!("             Tandem carried {carried:?} KiB");
}

fn report(what: &str, by_rsync: &Figures, by_tandem: &Figures) {
    println!("{what:12} rsync {by_rsync}");
    println!("{:12} Tandem {by_tandem}; ratio {:.2}", "", by_tandem.median() / by_rsync.median());
}

/// What earlier runs left to be written must not slow the next.
fn settle_disk() {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_millis(200));
}

fn rsync(source: &Path, copy: &Path) {
    let slash = |path: &Path| format!("{}/", path.display());
    let start = Instant::now();
    let status = Command::new("rsync")
        .args(["-aHAXS", "--numeric-ids", "--delete", &slash(source), &slash(copy)])
        .status()
        .unwrap();
    assert!(status.success(), "rsync: {status} after {:?}", start.elapsed());
}

fn remove(folder: &Path) {
    fs::remove_dir_all(folder).unwrap();
}

fn large(root: &Path, dice: &mut Dice) {
    let mut file = File::create(root.join("large")).unwrap();
    for _ in 0..LARGE >> 20 {
        file.write_all(&bytes(dice, 1 << 20)).unwrap();
    }
}

fn change_large(root: &Path, dice: &mut Dice) {
    let file = File::options().write(true).open(root.join("large")).unwrap();
    for _ in 0..LARGE / 100 / PATCH {
        let place = dice.below(LARGE / PATCH) * PATCH;
        file.write_all_at(&bytes(dice, PATCH), place).unwrap();
    }
}
