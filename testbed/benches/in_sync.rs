//! `POST /v2/share-replicas` over the model driver: until the 202, and until `in_sync`.
//!
//! A real Manila 23.0.1 over its dummy driver took 229 ms to the 202 and 777 ms to `in_sync` (medians).
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tandem_testbed::api::Api;
use tandem_testbed::bench::{Figures, begin};
use tandem_testbed::kill::lab::{Beneath, HERE, Lab, Stage, THERE};
use tandem_testbed::wait;

/// Replicas made one after the other.
const RUNS: u32 = 50;

fn main() {
    begin("POST /v2/share-replicas until in_sync, over the driver fake");
    let mut lab = Lab::prepare_with(Stage::Nothing, Beneath::Streamed, "", &[]);
    lab.server.launch();
    lab.backends_are_up();
    let share = lab.ask(|api| api.create_share(&lab.share_type, HERE));
    lab.settle();
    let (mut accepted, mut in_sync) = (Figures::default(), Figures::default());
    for _ in 0..RUNS {
        let start = Instant::now();
        let replica = lab.ask(|api| api.create_replica(&share, THERE));
        accepted.add(start.elapsed());
        while state(&lab.api, &replica) != "in_sync" {
            assert!(start.elapsed() < wait::LONG, "it never came in sync");
            std::thread::sleep(Duration::from_millis(1));
        }
        in_sync.add(start.elapsed());
        lab.ask(|api| api.delete_replica(&replica));
        wait::until("the replica to be gone", || (lab.replicas_of(&share).len() == 1).then_some(()));
        lab.settle();
    }
    println!("until the 202:   {accepted}; Manila's 229 ms are {:.0} times that", 0.229 / accepted.median());
    println!("until in_sync:   {in_sync}; Manila's 777 ms are {:.0} times that", 0.777 / in_sync.median());
}

fn state(api: &Api, replica: &str) -> String {
    let found = api.get(&format!("v2/share-replicas/{replica}")).unwrap();
    tandem_testbed::api::word(&found["share_replica"]["replica_state"])
}
