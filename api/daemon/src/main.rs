//! `tandemd`: reads its settings, wires the manager to the API, serves, and ends in order. Nothing else.

mod log;
mod settings;

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
    Ok(())
}
