//! A large transfer that is cut: what has arrived is not sent again.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::lab::{Beneath, Lab, Stage, THERE, was_killed};
use super::storm::Dice;
use super::{Row, Table, audit};
use crate::api::word;
use crate::wait;

/// Bytes of the file.
const LARGE: u64 = 200 << 20;
/// The cut comes once so many have arrived.
const CUT: u64 = LARGE / 4;
/// Slow enough to be cut by a test that a busy machine lets wait, in bytes a second.
const SLOW: &str = "[manager]\nbandwidth = 40000000";
/// What of the arrived may have to be sent again: what had not reached the disk in whole pieces.
const LOST: u64 = 24 << 20;

/// Cut by `kill -9`.
pub fn cut_by_a_kill(table: &Table) {
    let mut scene = Scene::begin();
    scene.lab.server.kill();
    let outcome = scene.end();
    table.note(Row {
        driver: "directory",
        kind: "sync",
        point: "kill -9 amid 200 MiB".into(),
        outcome: Ok(outcome),
    });
}

/// Cut by `SIGTERM`, which the server obeys in order and in bounded time.
pub fn cut_by_a_stop(table: &Table) {
    let mut scene = Scene::begin();
    let start = Instant::now();
    let status = scene.lab.server.stop();
    let took = start.elapsed();
    assert!(status.success() && !was_killed(status), "{status}:\n{}", scene.lab.server.log());
    let outcome = format!("ended in {:.1} s; {}", took.as_secs_f64(), scene.end());
    table.note(Row {
        driver: "directory",
        kind: "sync",
        point: "SIGTERM amid 200 MiB".into(),
        outcome: Ok(outcome),
    });
}

struct Scene {
    lab: Lab,
    arrived: u64,
}

impl Scene {
    /// A share with a large file, and a replica to which about a quarter of it has arrived.
    fn begin() -> Self {
        let mut lab = Lab::prepare_with(Stage::Share, Beneath::Directory, SLOW, &[]);
        lab.server.launch();
        lab.backends_are_up();
        fill(&lab.export(lab.active()).join("very large"), LARGE);
        lab.ask(|api| api.create_replica(lab.share(), THERE));
        let arrived = wait::until("a part of the transfer to arrive", || {
            let running = lab.ask(|api| api.operations("kind=sync&unfinished=true"));
            let arrived = running.first().and_then(arrived);
            let over = lab.fresh("sync").iter().any(|op| op["status"] == "done");
            assert!(!over, "the transfer was over before it could be cut");
            arrived.filter(|bytes| *bytes >= CUT)
        });
        Self { lab, arrived }
    }

    /// The next start ends the transfer.
    fn end(&mut self) -> String {
        let lab = &mut self.lab;
        lab.server.launch();
        lab.backends_are_up();
        audit::at_rest(lab);
        let op = lab.fresh("sync").remove(0);
        assert_eq!(op["status"], "done", "{op:#}");
        let sent = op["bytes"].as_u64().unwrap();
        let most = LARGE.saturating_sub(self.arrived) + LOST;
        assert!(
            sent <= most,
            "{} bytes had arrived, and {sent} were sent by the next start instead of {most} at most: {:#}",
            self.arrived,
            lab.ask(|api| api.operation(&word(&op["id"])))
        );
        audit::usable(lab);
        assert!(lab.server.stop().success(), "SIGTERM ends it in order");
        let mib = |bytes: u64| bytes >> 20;
        format!("{} of {} MiB had arrived, {} were sent after", mib(self.arrived), mib(LARGE), mib(sent))
    }
}

/// Bytes that have arrived, as the running transfer's progress says; before, the source is scanned.
fn arrived(op: &Value) -> Option<u64> {
    let runs = op["step"]["name"] == "transfer" && op["progress"]["phase"] == "transfer";
    runs.then(|| op["progress"]["done"].as_u64())?
}

/// Bytes that do not compress and repeat nowhere.
fn fill(path: &Path, bytes: u64) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut dice = Dice::new(bytes);
    for _ in 0..bytes / 8 {
        file.write_all(&dice.below(u64::MAX).to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
}
