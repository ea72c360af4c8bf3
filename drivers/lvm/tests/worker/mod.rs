//! The worker: ended, signalled, left alone, and held up by a lock.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tandem_sdk::contract::*;

use crate::common::{Backend, MIB, workers};

/// A worker that a test itself is the driver of.
struct Own {
    process: Child,
    driver: UnixStream,
}

impl Own {
    /// Asked for the volumes of a group, with a lock file of its own.
    fn asked(lock: &str) -> Self {
        let (mut driver, theirs) = UnixStream::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_tandem-lvm-worker"))
            .args(["2", lock])
            .env("LVM_SYSTEM_DIR", std::env::var("LVM_SYSTEM_DIR").unwrap())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        let ask = json!({"words": ["lvs", "vg_beta"], "wait_ms": 600_000, "within_ms": 60_000});
        writeln!(driver, "{ask}").unwrap();
        Self { process, driver }
    }

    async fn ends(mut self) {
        drop(self.driver);
        let until = Instant::now() + Duration::from_secs(60);
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the worker waits although its driver is gone");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn held(lock: &str) -> File {
    let held = File::options().create(true).append(true).open(lock).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    held
}

/// It holds the file, and is still there.
async fn waits(own: &mut Own) {
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(own.process.try_wait().unwrap().is_none(), "it waits for the lock");
}

pub async fn a_worker_that_waits_for_a_lock_ends_with_its_driver() {
    // Its own lock, which another worker holds, and LVM's, which a person's command holds.
    for lock in ["/run/own-worker.lock", "/run/lock/lvm/V_vg_beta"] {
        let held = held(lock);
        let mut own = Own::asked("/run/own-worker.lock");
        waits(&mut own).await;
        own.ends().await;
        drop(held);
    }
}

pub async fn a_worker_outlives_the_signals_of_a_service_manager() {
    let alpha = Backend::open("alpha", "signals", json!({})).await;
    let there = workers();
    assert_eq!(there.len(), 1, "{there:?}");
    let spec = alpha.spec(64 * MIB, "ext4");
    let instance = spec.instance;
    let signals = async {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            tokio::time::sleep(Duration::from_millis(150)).await;
            kill_process(Pid::from_raw(there[0]).unwrap(), signal).unwrap();
        }
    };
    tokio::join!(alpha.call(CreateInstance { spec }), signals).0.unwrap();
    assert_eq!(alpha.observe(instance).await.health, Health::Ok);
    assert_eq!(workers(), there, "the same process as before");
    alpha.leaves_nothing(instance).await;
}

pub async fn a_lock_that_somebody_holds_delays_and_does_no_harm() {
    let alpha = Backend::open("alpha", "lock", json!({})).await;
    let spec = alpha.spec(64 * MIB, "ext4");
    let share = spec.instance;
    let held_by_us = held("/run/lock/lvm/V_vg_alpha");
    let stopped = alpha.within(CreateInstance { spec: spec.clone() }, 4_000).await.unwrap_err();
    assert_eq!((stopped.kind, stopped.retry), (ErrorKind::Busy, Retry::Safe), "{stopped}");
    assert!(stopped.message.contains("another command of LVM on this host"), "{stopped}");
    // One that waits behind it is told too.
    let (first, second) = tokio::join!(
        alpha.within(ObserveInstance { instance: share }, 4_000),
        alpha.within(ObserveInstance { instance: share }, 2_000)
    );
    assert_eq!(first.unwrap_err().kind, ErrorKind::Busy);
    let second = second.unwrap_err();
    assert!(second.kind == ErrorKind::Unavailable && second.message.contains("another call"), "{second}");
    let worker = workers();
    drop(held_by_us);
    // Whatever the stopped call had begun has ended before this one begins, and waiting has not cost it anything.
    let held_by_us = held("/run/lock/lvm/V_vg_alpha");
    let frees = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(held_by_us);
    };
    tokio::join!(alpha.call(CreateInstance { spec }), frees).0.unwrap();
    assert_eq!(workers(), worker, "nobody was ended for it");
    assert_eq!(alpha.observe(share).await.health, Health::Ok);
    alpha.leaves_nothing(share).await;
}
