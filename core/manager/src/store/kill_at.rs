//! Ends the process, for real, exactly at one logged event: how the kill tests reach every step of every operation.
//!
//! Whoever sets `TANDEM_KILL_AT=<kind>:<number>:<before|after>` gets a server that sends itself `SIGKILL` at the commit
//! that holds event `<number>` (from 1) of the first operation of that kind to get there: `before` anything of the
//! commit is written, or `after` it is durable and before anybody hears of it. `promote:7:after`, for instance.
//!
//! Only a build with debug assertions has it. A release refuses to start while the variable is set, so that a test that
//! was run against the wrong program cannot pass by never being killed.

use super::SharedStore;

/// The variable that names the commit.
pub const VARIABLE: &str = "TANDEM_KILL_AT";

/// The store itself, or one that ends the process as the environment says.
///
/// # Errors
/// A sentence, when the variable cannot be read, or this is a release.
pub fn from_environment(store: SharedStore) -> Result<SharedStore, String> {
    match std::env::var(VARIABLE) {
        Err(std::env::VarError::NotPresent) => Ok(store),
        Err(error) => Err(format!("{VARIABLE} cannot be read: {error}; unset it.")),
        Ok(text) => wrap(store, &text),
    }
}

#[cfg(not(debug_assertions))]
fn wrap(_: SharedStore, _: &str) -> Result<SharedStore, String> {
    Err(format!(
        "{VARIABLE} is set, but this program was built for release and cannot be killed that way; unset it."
    ))
}

#[cfg(debug_assertions)]
use armed::wrap;

#[cfg(debug_assertions)]
mod armed {
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::VARIABLE;
    use crate::store::around::{Around, Commits};
    use crate::store::{Batch, Result, SharedStore, Store};

    /// The commit at which the process ends.
    #[derive(Debug, PartialEq, Eq)]
    struct Point {
        kind: String,
        seq: u64,
        after: bool,
    }

    struct KillAt(Point);

    pub(super) fn wrap(store: SharedStore, text: &str) -> std::result::Result<SharedStore, String> {
        let point = Point::parse(text).ok_or_else(|| {
            format!("{VARIABLE} is {text:?}; it reads like promote:7:after or sync:3:before.")
        })?;
        tracing::warn!(?point, "This server will kill itself; {VARIABLE} says so.");
        Ok(Arc::new(Around { store, commits: KillAt(point) }))
    }

    impl Point {
        fn parse(text: &str) -> Option<Self> {
            let mut parts = text.split(':');
            let (kind, seq, side) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
            let after = match side {
                "before" => false,
                "after" => true,
                _ => return None,
            };
            (parts.next().is_none() && !kind.is_empty() && seq > 0).then(|| Self {
                kind: kind.to_owned(),
                seq,
                after,
            })
        }

        fn is_in(&self, batch: &Batch) -> bool {
            batch.events.iter().any(|event| {
                event.seq == self.seq
                    && batch.operations.iter().any(|op| op.id == event.op && op.intent.kind() == self.kind)
            })
        }
    }

    /// Never returns: nothing of this process runs after the signal.
    fn die() -> ! {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort();
    }

    #[async_trait]
    impl Commits for KillAt {
        async fn commit(&self, store: &dyn Store, batch: Batch) -> Result<()> {
            if !self.0.is_in(&batch) {
                return store.commit(batch).await;
            }
            if self.0.after {
                // Refused for a newer row is not written: the caller tries again, and then this is reached again.
                store.commit(batch).await?;
            }
            die()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn points_are_read_and_nonsense_refused() {
            let point = Point { kind: "promote".into(), seq: 7, after: true };
            assert_eq!(Point::parse("promote:7:after"), Some(point));
            for nonsense in
                ["", "promote", "promote:7", "promote:0:after", "promote:7:later", "a:1:after:b", ":1:after"]
            {
                assert_eq!(Point::parse(nonsense), None, "{nonsense}");
            }
        }
    }
}
