//! The copy of a host-assisted migration, `rsync -aHAXS` and `cp -a` from and to the same disk, in turns; then the second
//! phase of a whole migration, as its users meet it.
//!
//! Each time runs until the copy is on the disk. Tandem's passes hash all that they read, so that the proof at the end
//! compares with what was read; the proof itself, which reads the destination, is told apart.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tandem_sdk::mirror::{Control, Mirror, RootMode, Tree};
use tandem_testbed::api::word;
use tandem_testbed::bench::trees::{bytes, change_small, small};
use tandem_testbed::bench::{Figures, begin};
use tandem_testbed::kill::lab::{Beneath, Lab, Stage};
use tandem_testbed::kill::storm::Dice;
use tandem_testbed::wait;

/// Rounds of all tools in turns.
const ROUNDS: usize = 5;
/// Apparent bytes of the sparse file; a tenth of it is there.
const SPARSE: u64 = 2 << 30;
/// Bytes of one island of it, and of one change.
const ISLAND: u64 = 64 << 10;

fn main() {
    case("20,000 small files", small, change_small);
    case("one sparse file of 2 GiB, a tenth of it there", sparse, change_sparse);
    second_phase();
}

/// Who copies, and how long it took.
struct Tool {
    name: &'static str,
    copy: fn(&Path, &Path, &Path),
    full: Figures,
    again: Figures,
}

fn case(name: &str, fill: fn(&Path, &mut Dice), change: fn(&Path, &mut Dice)) {
    begin(&format!("{name}: a copy from host to host"));
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let mut dice = Dice::new(1);
    fill(&source, &mut dice);
    let tool = |name, copy| Tool { name, copy, full: Figures::default(), again: Figures::default() };
    let mut tools = [tool("rsync -aHAXS", rsync), tool("cp -a", cp), tool("Tandem", pass)];
    let mut proof = Figures::default();
    for round in 0..ROUNDS {
        for tool in &mut tools {
            // Nothing is removed before the end: ext4 looks for a while for another inode than one that was just freed.
            let place = folder.path().join(format!("{round} {}", tool.name));
            fs::create_dir_all(place.join("state")).unwrap();
            fs::create_dir(place.join("dest")).unwrap();
            for (again, figures) in [(false, &mut tool.full), (true, &mut tool.again)] {
                if again {
                    change(&source, &mut dice);
                }
                settle_disk();
                figures.time(|| {
                    (tool.copy)(&source, &place.join("dest"), &place.join("state"));
                    rustix::fs::syncfs(File::open(&place).unwrap()).unwrap();
                });
            }
            if tool.name == "Tandem" {
                proof.time(|| prove(&source, &place.join("dest"), &place.join("state")));
            }
        }
    }
    for (what, pick) in
        [("full", (|t| &t.full) as fn(&Tool) -> &Figures), ("1 % changed", |t: &Tool| &t.again)]
    {
        let ours = pick(&tools[2]).median();
        for tool in &tools {
            let times = pick(tool).median() / ours;
            println!("{what:12} {:13} {}; {times:.2} times Tandem's", tool.name, pick(tool));
        }
    }
    println!("{:12} {:13} {proof}", "proof", "Tandem");
}

fn rsync(source: &Path, dest: &Path, _: &Path) {
    let slash = |path: &Path| format!("{}/", path.display());
    let mut command = Command::new("rsync");
    command.args(["-aHAXS", "--numeric-ids", "--delete", &slash(source), &slash(dest)]);
    assert!(command.status().unwrap().success());
}

fn cp(source: &Path, dest: &Path, _: &Path) {
    let status = Command::new("cp").arg("-au").arg(source.join(".")).arg(dest).status().unwrap();
    assert!(status.success());
}

fn with<T>(source: &Path, dest: &Path, state: &Path, ask: impl FnOnce(&Mirror<'_>) -> T) -> T {
    let (source, dest) = (Tree::open(source).unwrap(), Tree::open(dest).unwrap());
    ask(&Mirror { source: &source, dest: &dest, state, root: RootMode::Counts })
}

fn pass(source: &Path, dest: &Path, state: &Path) {
    with(source, dest, state, |mirror| mirror.pass(&Control::none()).unwrap());
}

fn prove(source: &Path, dest: &Path, state: &Path) {
    let proof = with(source, dest, state, |mirror| mirror.prove(&Control::none()).unwrap());
    assert_eq!(proof.wrong, 0, "{proof:?}");
}

/// A migration of 20,000 files between two folders: how long its users could not write, and reached nothing, in the
/// second phase.
fn second_phase() {
    begin("20,000 small files: the second phase of a migration");
    let (mut all, mut held, mut gone) = (Figures::default(), Figures::default(), Figures::default());
    let mut lab = Lab::empty(Stage::Share, Beneath::Directory, "", &[]);
    lab.server.launch();
    lab.backends_are_up();
    let mut dice = Dice::new(1);
    let export = || lab.export(&lab.only_replica(lab.share(), "active"));
    small(&export(), &mut dice);
    for _ in 0..ROUNDS {
        let from = export();
        let here = word(&lab.ask(|api| api.share(lab.share()))["host"]);
        let there = if here.contains("@alpha") {
            here.replace("@alpha", "@beta")
        } else {
            here.replace("@beta", "@alpha")
        };
        let body = json!({"migration_start": {
            "host": there, "force_host_assisted_migration": true, "writable": false, "nondisruptive": false,
            "preserve_metadata": false, "preserve_snapshots": false,
        }});
        act(&lab, &body);
        until(&lab, "data_copying_completed");
        change_small(&from, &mut dice);
        settle_disk();
        let ended = AtomicBool::new(false);
        let (held_for, gone_for) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch(&from, &ended));
            all.time(|| {
                act(&lab, &json!({"migration_complete": null}));
                until(&lab, "migration_success");
            });
            ended.store(true, Ordering::Relaxed);
            watcher.join().unwrap()
        });
        held.add(held_for);
        gone.add(gone_for);
        lab.settle();
    }
    println!("from migration_complete to migration_success {all}");
    println!("writers were held back                      {held}");
    println!("and reached neither side                    {gone}");
}

/// How long nobody could write into an export until the share was reached elsewhere, and how long of that it was not
/// reached at all.
fn watch(export: &Path, ended: &AtomicBool) -> (Duration, Duration) {
    let (mut held, mut gone) = (None, None);
    while !ended.load(Ordering::Relaxed) {
        match fs::metadata(export) {
            Ok(root) if root.permissions().mode() & 0o200 != 0 => {}
            found => {
                held.get_or_insert_with(Instant::now);
                if found.is_err() {
                    gone.get_or_insert_with(Instant::now);
                }
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    let since = |moment: Option<Instant>| moment.map_or(Duration::ZERO, |moment| moment.elapsed());
    (since(held), since(gone))
}

fn act(lab: &Lab, body: &serde_json::Value) {
    let (status, said) = lab.ask(|api| api.share_action(lab.share(), "2.97", false, body));
    assert!(status == 202, "{said}");
}

fn until(lab: &Lab, task: &str) {
    wait::until(task, || (lab.ask(|api| api.share(lab.share()))["task_state"] == task).then_some(()));
}

/// What earlier runs left to be written must not slow the next.
fn settle_disk() {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_millis(200));
}

fn sparse(root: &Path, dice: &mut Dice) {
    let file = File::create(root.join("sparse")).unwrap();
    file.set_len(SPARSE).unwrap();
    for island in 0..SPARSE / ISLAND / 10 {
        file.write_all_at(&bytes(dice, ISLAND), island * 10 * ISLAND).unwrap();
    }
}

fn change_sparse(root: &Path, dice: &mut Dice) {
    let file = File::options().write(true).open(root.join("sparse")).unwrap();
    let islands = SPARSE / ISLAND / 10;
    for _ in 0..islands / 100 {
        let place = dice.below(islands) * 10 * ISLAND;
        file.write_all_at(&bytes(dice, ISLAND), place).unwrap();
    }
}
