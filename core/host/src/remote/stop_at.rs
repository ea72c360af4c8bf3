//! Stops the driver host, for real, exactly at the start or the end of a driver's call: how a test cuts a machine's power
//! at a moment of its choice.
//!
//! Whoever sets `TANDEM_STOP_AT=<file>` gets a driver host that reads that file before and after every call. While it says
//! `<verb>:<start|end>`, the next call of that verb sends the process `SIGSTOP`: before the driver hears of it (`start`), or
//! once the driver has returned and before the server hears of it (`end`). `promote_replica:end`, for instance. Nobody is
//! told, as when the power goes: connections stay open. The file goes as it happens.
//!
//! Only a build with debug assertions has it. A release refuses to start while the variable is set, so that a test that was
//! run against the wrong program cannot pass by never being stopped.

use std::path::PathBuf;

/// The variable that names the file.
const VARIABLE: &str = "TANDEM_STOP_AT";

/// A side of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Before the driver hears of it.
    Start,
    /// Before the server hears how it ended.
    End,
}

/// The file that says at which moment the process stops.
#[derive(Debug)]
pub(crate) struct StopAt(PathBuf);

impl StopAt {
    /// As the environment says.
    ///
    /// # Errors
    /// A sentence, when this is a release and the variable is set.
    pub(crate) fn from_environment() -> Result<Option<Self>, String> {
        let Some(file) = std::env::var_os(VARIABLE) else { return Ok(None) };
        if !cfg!(debug_assertions) {
            return Err(format!(
                "{VARIABLE} is set, but this program was built for release and cannot be stopped that way; unset it"
            ));
        }
        tracing::warn!(?file, "This driver host stops itself where a file says so; {VARIABLE} names it.");
        Ok(Some(Self(file.into())))
    }

    /// Stops the process when this is the moment; goes on when somebody continues it.
    pub(crate) fn reached(&self, verb: &str, side: Side) {
        let Ok(text) = std::fs::read_to_string(&self.0) else { return };
        // Of two calls that are there at once, the one that removes the file.
        if is(&text, verb, side) && std::fs::remove_file(&self.0).is_ok() {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        }
    }
}

/// Whether this is the moment that the text names.
fn is(text: &str, verb: &str, side: Side) -> bool {
    let side = match side {
        Side::Start => "start",
        Side::End => "end",
    };
    text.trim().split_once(':') == Some((verb, side))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_verb_and_a_side() {
        assert!(is("promote_replica:end\n", "promote_replica", Side::End));
        assert!(!is("promote_replica:end", "promote_replica", Side::Start));
        assert!(!is("promote_replica:end", "receive", Side::End));
        for nonsense in ["", "receive", "receive:", ":start", "receive:start:1"] {
            assert!(!is(nonsense, "receive", Side::Start), "{nonsense}");
        }
    }
}
