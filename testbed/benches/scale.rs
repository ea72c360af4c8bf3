//! A server with 100,000 replicas in its store and on its storage: start, memory, idle processor time, latency of a page.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tandem_testbed::bench::{begin, clones, load, process, seconds};

/// Replicas, the active ones among them: 50,000 shares of two.
const REPLICAS: usize = 100_000;
/// Seconds that a replica may be behind: each share is looked at twice as often.
const RPO: u64 = 3600;

fn main() {
    begin("100,000 replicas");
    let start = Instant::now();
    let mut lab = clones::many(REPLICAS, RPO);
    println!("made {REPLICAS} rows and their folders in {}", seconds(start.elapsed().as_secs_f64()));
    let start = Instant::now();
    lab.server.launch();
    println!("start until ready:        {}", seconds(start.elapsed().as_secs_f64()));
    lab.backends_are_up();
    let pid = lab.server.pid();
    println!("memory once ready:        {} MiB", process::resident(pid) >> 20);
    for (what, path) in [
        ("first page of 1000", "/v2/share-replicas/detail?limit=1000"),
        ("last page of 1000", "/v2/share-replicas/detail?limit=1000&offset=99000"),
        ("page of 20", "/v2/share-replicas/detail?limit=20"),
        ("shares, page of 20", "/v2/shares/detail?limit=20"),
    ] {
        load::get(&lab.server.endpoint(), path, 1, Duration::from_millis(500));
        let load = load::get(&lab.server.endpoint(), path, 1, Duration::from_secs(3));
        let (p50, p99) = (seconds(load.latency.at(0.5)), seconds(load.latency.at(0.99)));
        println!("{:25} p50 {p50}, p99 {p99}, one connection", format!("{what}:"));
    }
    // After a start every share is looked at once, some a second; idle is what comes after that.
    let spread = Duration::from_secs(REPLICAS as u64 / 2 / 200 + 30);
    println!("waiting {} for the looks of the start", seconds(spread.as_secs_f64()));
    let (began, before) = (Instant::now(), process::cpu(pid));
    std::thread::sleep(spread);
    let share = (process::cpu(pid) - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("processor while looking:  {:.1} % of one core", share * 100.0);
    let (began, before) = (Instant::now(), process::cpu(pid));
    std::thread::sleep(Duration::from_secs(60));
    let share = (process::cpu(pid) - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("processor while idle:     {:.1} % of one core", share * 100.0);
    println!("memory after that:        {} MiB", process::resident(pid) >> 20);
    let unfinished = lab.ask(|api| api.operations("unfinished=true")).len();
    let replicas = lab.ask(|api| api.get("v1/status"))["status"]["replicas"].clone();
    println!("replicas {replicas}, {unfinished} operations under way");
}
