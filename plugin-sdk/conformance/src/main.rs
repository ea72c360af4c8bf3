//! `tandem-conformance`: puts a driver's library through the suite.
#![allow(clippy::print_stderr, reason = "a program that speaks to people")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;
use tandem_conformance::{Subject, trials};

/// Puts a driver's library through the behaviour suite.
///
/// Cases are chosen by the capabilities that the driver has with the given settings. Each name holds the number of the
/// law in docs/contract.md that it proves. The suite makes instances of 1 GiB in the first pool and deletes them.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The driver's library (a .so file). Code from it runs in this process.
    driver: PathBuf,
    /// Settings of the back end under test: a file in TOML or JSON, as below `[backends.NAME.settings]`.
    #[arg(long)]
    settings: PathBuf,
    /// Settings of a second back end, for the other side of replication; the first serves both without it.
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Only cases whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Lists the cases and runs none.
    #[arg(long)]
    list: bool,
    /// Cases at a time.
    #[arg(long, default_value_t = 4)]
    threads: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(code) => code,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let peer = arguments.peer.as_deref().map(settings).transpose()?;
    let driver = std::fs::canonicalize(&arguments.driver)
        .map_err(|e| format!("{} cannot be read: {e}", arguments.driver.display()))?;
    let subject = Subject::load(&driver, settings(&arguments.settings)?, peer)?;
    let mimic = libtest_mimic::Arguments {
        filter: arguments.filter.clone(),
        list: arguments.list,
        test_threads: Some(arguments.threads.max(1)),
        ..libtest_mimic::Arguments::default()
    };
    let conclusion = libtest_mimic::run(&mimic, trials(&subject, "")?);
    if !arguments.list && conclusion.num_passed + conclusion.num_failed == 0 {
        return Err("nothing ran: no case has that in its name".to_owned());
    }
    Ok(if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Settings from a file; JSON by its ending, else TOML.
fn settings(path: &Path) -> Result<Value, String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
    let wrong = |e: String| format!("{} does not hold settings: {e}", path.display());
    if path.extension().is_some_and(|ext| ext == "json") {
        serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))
    } else {
        toml::from_str(&text).map_err(|e| wrong(e.to_string()))
    }
}
