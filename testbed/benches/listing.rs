//! `GET /v2/share-replicas/detail` with 1, 100 and 1,000 replicas over 8 kept connections: requests a second, latency.
//!
//! A real Manila 23.0.1 on a like machine (2 cores, its default of one worker, MariaDB) gave 66, 37 and 4.9 a second.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Duration;

use tandem_testbed::bench::{begin, clones, load, process, seconds};

/// What a real Manila gave.
const MANILA: [(usize, f64); 3] = [(1, 66.0), (100, 37.0), (1000, 4.9)];

fn main() {
    begin("GET /v2/share-replicas/detail, 8 connections");
    for (replicas, manila) in MANILA {
        let mut lab = clones::many(replicas, 3600);
        lab.server.launch();
        lab.backends_are_up();
        let path = "/v2/share-replicas/detail";
        // A start looks at every share once; what it writes then is not what is measured.
        std::thread::sleep(Duration::from_secs(8));
        load::get(&lab.server.endpoint(), path, 8, Duration::from_secs(1));
        let before = process::cpu(lab.server.pid());
        let load = load::get(&lab.server.endpoint(), path, 8, Duration::from_secs(5));
        let cpu = (process::cpu(lab.server.pid()) - before).as_secs_f64() / load.latency.count() as f64;
        println!(
            "{replicas:5} replicas: {:8.0} requests/s, p50 {}, p99 {}, {} KiB and {} of the server's processor time each; \
             {:.0} times Manila's {manila}",
            load.per_second,
            seconds(load.latency.at(0.5)),
            seconds(load.latency.at(0.99)),
            load.bytes / 1024,
            seconds(cpu),
            load.per_second / manila,
        );
    }
}
