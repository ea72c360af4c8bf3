//! Kills at random moments, from outside, while users ask for everything at once.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::lab::{Beneath, HERE, Lab, Stage, THERE};
use super::{Row, Table, audit};
use crate::api::{Answered, Gone, word};

/// Shares at one time.
const SHARES: usize = 3;

/// A small generator, so that a seed says everything.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `most`.
    pub fn below(&mut self, most: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)) % most
    }

    fn one_of<'a>(&mut self, values: &'a [Value]) -> Option<&'a Value> {
        let index = self.below(values.len().max(1) as u64);
        values.get(usize::try_from(index).unwrap())
    }
}

/// Kills so many times; then everything must be at rest, lawful, usable and removable.
pub fn run(seed: u64, kills: u32, table: &Table) {
    println!("storm: seed {seed}, {kills} kills");
    let mut lab = Lab::prepare(Stage::Nothing, Beneath::Directory);
    let mut dice = Dice::new(seed);
    let mut asked = 0;
    for _ in 0..kills {
        lab.server.spawn(&[]);
        // Some die while they start, most in the middle of work.
        let life =
            Duration::from_millis(if dice.below(4) == 0 { dice.below(300) } else { 300 + dice.below(1500) });
        let start = Instant::now();
        while start.elapsed() < life {
            match ask(&lab, &mut dice) {
                Ok(()) => asked += 1,
                Err(Gone) => std::thread::sleep(Duration::from_millis(10)),
            }
            std::thread::sleep(
                Duration::from_millis(dice.below(60)).min(life.saturating_sub(start.elapsed())),
            );
        }
        if let Some(status) = lab.server.try_ended() {
            panic!("tandemd ended by itself with {status}:\n{}", lab.server.log_end());
        }
        lab.server.kill();
    }
    lab.server.launch();
    lab.backends_are_up();
    audit::at_rest(&lab);
    let ended = lab.ask(|api| api.operations("limit=1000"));
    let failed: Vec<&Value> = ended.iter().filter(|op| op["status"] == "failed").collect();
    let mut outcome =
        format!("seed {seed}: {asked} requests, {} operations, {} failed", ended.len(), failed.len());
    for op in failed {
        outcome.push_str(&format!("; {}: {}", word(&op["kind"]), op["error"]["message"]));
    }
    audit::removed(&lab);
    assert!(lab.server.stop().success(), "SIGTERM ends it in order");
    let point = format!("{kills} kills from outside, at random");
    table.note(Row { driver: "directory", kind: "everything", point, outcome: Ok(outcome) });
}

/// One request of some user; refusals are part of life.
fn ask(lab: &Lab, dice: &mut Dice) -> Answered<()> {
    let shares = lab.api.shares()?;
    if shares.len() < SHARES {
        let body = json!({"share": {
            "share_proto": "NFS", "size": 1, "share_type": lab.share_type, "availability_zone": HERE,
        }});
        return lab.api.attempt("POST", "v2/shares", &body).map(drop);
    }
    let replicas = lab.api.replicas()?;
    let (Some(share), Some(replica)) = (dice.one_of(&shares), dice.one_of(&replicas)) else { return Ok(()) };
    let id = word(&replica["id"]);
    let share_id = word(&share["id"]);
    let action = format!("v2/share-replicas/{id}/action");
    match dice.below(12) {
        0..3 => {
            // One replica to a back end: zone-a has two, zone-b one.
            let (zone, room) = if dice.below(2) == 0 { (HERE, 2) } else { (THERE, 1) };
            let there = |r: &&Value| r["share_id"] == share["id"] && r["availability_zone"] == zone;
            if replicas.iter().filter(there).count() >= room {
                return Ok(());
            }
            let body = json!({"share_replica": {"share_id": share_id, "availability_zone": zone}});
            lab.api.attempt("POST", "v2/share-replicas", &body).map(drop)
        }
        3..5 => lab.api.attempt("POST", &action, &json!({"resync": null})).map(drop),
        5..7 => lab.api.attempt("POST", &action, &json!({"promote": null})).map(drop),
        7 => lab.api.attempt("DELETE", &format!("v2/share-replicas/{id}"), &Value::Null).map(drop),
        8 => lab.api.attempt("DELETE", &format!("v2/shares/{share_id}"), &Value::Null).map(drop),
        _ => {
            // A user writes into whatever is served to it now; what is read-only just then refuses.
            if replica["replica_state"] == "active"
                && let Some(export) = lab.api.export(&id)?
            {
                let name = format!("written {}", dice.below(30));
                let _ =
                    fs::write(export.join(name), vec![b'w'; usize::try_from(dice.below(300_000)).unwrap()]);
            }
            Ok(())
        }
    }
}
