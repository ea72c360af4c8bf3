//! `kill -9` of a real server, at every logged event and at random moments: the next start ends every operation in a
//! legal resting state, with no hand on it.
//!
//! By default: each operation over `directory`, killed after each of its events and before those that follow a driver's
//! work; one run in which the server dies after every single event; some kills over storage that replicates by itself;
//! and a storm of random kills. `TANDEM_KILL_BENEATH=zfs`, in a guest with pools, is the same over ZFS. `TANDEM_LONG=1` adds the rest. `TANDEM_SEED` repeats a storm.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what fails here ends the run with its reason"
)]

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use tandem_testbed::chance;
use tandem_testbed::kill::lab::Beneath;
use tandem_testbed::kill::matrix::reason;
use tandem_testbed::kill::{Kind, Table, matrix, storm, transfer};

static TABLE: Table = Table::new();

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let (long, seed) = (chance::long(), chance::seed());
    if std::env::var_os("TANDEM_KILL_BENEATH").is_some_and(|beneath| beneath == "zfs") {
        return on_pools(arguments, long);
    }
    let mut trials = Vec::new();
    // The longest first: two run at once.
    for kind in [
        Kind::Promote,
        Kind::Migrate,
        Kind::Sync,
        Kind::CreateReplica,
        Kind::CreateShare,
        Kind::DeleteReplica,
        Kind::DeleteShare,
    ] {
        trials.push(trial(format!("{}_at_each_event", kind.word()), move || {
            matrix::run(kind, Beneath::Directory, long, &TABLE);
        }));
    }
    trials.push(trial("migrate_by_the_driver_at_each_event".into(), move || {
        matrix::run(Kind::Assist, Beneath::Directory, long, &TABLE);
    }));
    trials.push(trial("a_storm".into(), move || storm::run(seed, if long { 150 } else { 12 }, &TABLE)));
    let lives = if long {
        &[Kind::Promote, Kind::Migrate, Kind::Sync, Kind::CreateReplica, Kind::CreateShare][..]
    } else {
        &[Kind::Promote]
    };
    for &kind in lives {
        trials.push(trial(format!("{}_one_event_a_life", kind.word()), move || {
            matrix::one_event_a_life(kind, Beneath::Directory, &TABLE);
        }));
    }
    let by_storage = if long {
        &[Kind::Promote, Kind::CreateReplica, Kind::DeleteReplica][..]
    } else {
        &[Kind::CreateReplica]
    };
    for &kind in by_storage {
        trials.push(trial(format!("{}_by_the_storage_at_each_event", kind.word()), move || {
            matrix::run(kind, Beneath::Storage, long, &TABLE);
        }));
    }
    trials.push(trial("a_transfer_goes_on_where_a_kill_cut_it".into(), || transfer::cut_by_a_kill(&TABLE)));
    trials.push(trial("a_transfer_goes_on_where_sigterm_cut_it".into(), || transfer::cut_by_a_stop(&TABLE)));

    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{TABLE}");
    }
    conclusion.exit_code()
}

/// The same over ZFS, in a guest; one after the other, for there is one set of pools.
fn on_pools(mut arguments: Arguments, long: bool) -> ExitCode {
    arguments.test_threads = Some(1);
    let few = [Kind::Sync, Kind::Promote, Kind::Assist];
    let more =
        [Kind::CreateReplica, Kind::Migrate, Kind::DeleteReplica, Kind::CreateShare, Kind::DeleteShare];
    let kinds = few.into_iter().chain(more.into_iter().filter(|_| long));
    let trials = kinds.map(|kind| {
        let how = if kind == Kind::Assist { "_by_the_driver" } else { "" };
        let name = format!("{}{how}_over_zfs", kind.word());
        trial(name, move || matrix::run(kind, Beneath::Zfs, long, &TABLE))
    });
    let mut trials: Vec<Trial> = trials.collect();
    if long {
        trials.push(trial("migrate_one_event_a_life_over_zfs".into(), || {
            matrix::one_event_a_life(Kind::Assist, Beneath::Zfs, &TABLE);
        }));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!("{TABLE}");
    }
    conclusion.exit_code()
}

/// A trial whose panic is its failure.
fn trial(name: String, work: impl Fn() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(&work)).map_err(|panic| reason(&*panic).into())
    })
}
