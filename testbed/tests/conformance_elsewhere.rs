//! The behaviour suite, with the driver in a child process, and on another host over TLS.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test with its reason")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use tandem_abi::{BoxFuture, HostSide, Opened};
use tandem_conformance::{Opener, Subject, trials};
use tandem_host::remote::Bare;
use tandem_testbed::far::{Far, InProcesses};
use tokio::runtime::Runtime;

/// A driver, and where it runs.
struct There {
    bare: Bare,
    driver: &'static str,
}

impl Opener for There {
    fn open(&self, host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'_, Opened> {
        Box::pin(self.bare.open(self.driver, host, opening))
    }
}

fn settings(driver: &str, folder: &Path) -> [Value; 2] {
    ["one", "two"].map(|side| match driver {
        "directory" => json!({"root": folder.join(side)}),
        _ => json!({"path": folder.join("world"), "site": side, "mode": "streamed"}),
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let drivers = ["directory", "fake"];
    let far = Far::start(&drivers);
    let children = InProcesses::new(&drivers);
    let places =
        [("process", Bare::Process(children.processes())), ("host", Bare::Host(far.registered(None)))];
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut all: Vec<Trial> = Vec::new();
    for (place, bare) in places {
        for driver in drivers {
            let label = format!("{place}::{driver}::");
            let own = folder.path().join(format!("{place}-{driver}"));
            std::fs::create_dir(&own).unwrap();
            let manifest = runtime.block_on(bare.manifest(driver)).unwrap();
            let [here, peer] = settings(driver, &own);
            let opener = Arc::new(There { bare: bare.clone(), driver });
            let subject = Subject::new(opener, manifest, here, Some(peer));
            // Opening anew for every call is a matter of connections, not of drivers: one of each shows that it works.
            let fresh = format!("{label}fresh::");
            let chosen = trials(&subject, &label).unwrap().into_iter();
            all.extend(chosen.filter(|trial| {
                (place == "host" && driver == "directory") || !trial.name().starts_with(&fresh)
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, all);
    drop(runtime);
    let mut failed = conclusion.has_failed();
    if !arguments.list {
        children.all_ended();
        if failed {
            eprintln!("--- the log of the driver host\n{}", far.log());
        }
        failed |= conclusion.num_passed == 0 && arguments.filter.is_none();
    }
    drop((far, children, folder));
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
