//! `tandemd`: reads its settings, wires the manager to the API, serves, and ends in order. Nothing else.

mod drivers;
mod log;
mod serve;
mod settings;
mod wire;

use clap::Parser;
use settings::Settings;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// The Tandem server: mirrors and moves storage, and serves the OpenStack share API.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The settings file.
    #[arg(long, value_name = "FILE", default_value = "/etc/tandem/tandem.toml", env = "TANDEM_SETTINGS")]
    settings: PathBuf,
    /// Serve on this address instead of the one in the settings.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Check the settings and end.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("tandemd: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let mut settings = Settings::load(&arguments.settings)?;
    if let Some(listen) = arguments.listen {
        settings.listen = listen;
    }
    settings.check()?;
    if arguments.check {
        return Ok(());
    }
    log::start(&settings.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("The server's threads cannot be started: {error}."))?;
    let outcome = runtime.block_on(serve::serve(&settings));
    // A driver that hangs in a thread must not keep the process: the log has everything.
    runtime.shutdown_background();
    outcome
}
