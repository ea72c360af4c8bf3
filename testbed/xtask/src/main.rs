//! `cargo xtask`: what a contributor and the CI do with this repository, without a shell script.
//!
//! Kept to the standard library, `serde_json` and `toml`, so that it builds in seconds.
#![allow(clippy::print_stdout, reason = "a command line tool talks on standard output")]

mod announce;
mod bench;
mod client;
mod command;
mod conformance;
mod inside;
mod keystone;
mod python;
mod report;
mod suite;
mod system;
mod temporary;
mod test;
mod testbed;
mod tidy;
mod up;
mod up_check;
mod workspace;

use std::process::ExitCode;

/// Every failure is a sentence for the person at the keyboard.
type Result<T> = std::result::Result<T, String>;

const HELP: &str = "\
cargo xtask <command>

  up [--state DIR] [--listen ADDRESS] [--release]
        build the server and its drivers, start it in the foreground, say what to type next
  test [--only STEP]...
        install what is missing and run everything that CI runs
  testbed setup | run KIND -- ARGV | shell KIND | --long [SUITE]...
        guests with real kernels (KIND: plain, zfs, lvm), without root and without hardware;
        --long: every scenario in them, for hours, or only the suites that are named
  bench [NAME]...
        build for release and print the benchmarks
  tidy [--fast]
        the rules of the repository: layout, links, format, lints, documentation, dependencies;
        --fast leaves out all that compiles
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Help is asked for by the first word after a command, not further on: what follows may be another program's words.
    let asks = arguments.get(1).is_some_and(|word| matches!(word.as_str(), "-h" | "--help"));
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) if !asks => (command.as_str(), rest),
        _ => ("help", &[][..]),
    };
    let outcome = match command {
        "up" => up::run(rest),
        "test" => test::run(rest),
        "testbed" => testbed::run(rest),
        "bench" => bench::run(rest),
        "tidy" => tidy::run(rest),
        announce::COMMAND => announce::run(rest),
        temporary::COMMAND => temporary::run(rest),
        "help" | "-h" | "--help" => {
            println!("{HELP}");
            Ok(())
        }
        other => Err(format!("there is no command {other:?}.\n\n{HELP}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("xtask: {sentence}");
            ExitCode::FAILURE
        }
    }
}
