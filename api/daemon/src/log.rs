//! The log: one line an event on standard error, for people or for machines.

use crate::settings::{Log, LogFormat};
use tracing_subscriber::EnvFilter;

/// Starts logging. `TANDEM_LOG` wins over the settings, for one run that needs more detail.
///
/// # Errors
/// A sentence, when the filter cannot be read.
pub(crate) fn start(log: &Log) -> Result<(), String> {
    let wanted = std::env::var("TANDEM_LOG").unwrap_or_else(|_| log.filter.clone());
    let filter = EnvFilter::try_new(&wanted)
        .map_err(|error| format!("log.filter is {wanted:?}, which is no filter: {error}."))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(|error| format!("The log cannot be started: {error}."))
}
