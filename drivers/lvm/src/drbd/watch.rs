//! The kernel's events: a link that is cut, a disk that fails, a resync that ends are told at once.

use std::time::Duration;

use tandem_sdk::command::Command;
use tandem_sdk::{InstanceId, News};

use super::tools::SETUP;
use crate::{Inner, names};

/// Lets the kernel end the tool with the thread that started it: it would go on until the next event after a kill.
const SETPRIV: &str = "/usr/bin/setpriv";
/// Before it is followed again: the module may not be loaded yet.
const AGAIN: Duration = Duration::from_secs(10);

impl Inner {
    /// Follows the events for as long as the driver is open.
    pub(crate) async fn watch(&self, news: &News) {
        if self.config.drbd.is_none() {
            return;
        }
        loop {
            let follow = Command::new(SETPRIV).args(["--pdeathsig", "KILL", "--", SETUP, "events2"]);
            let ended = follow.follow(|line| {
                if let Some(id) = concerned(line) {
                    news.changed(id);
                }
            });
            match ended.await {
                Ok(status) => {
                    tracing::debug!(%status, "DRBD's events have ended; they are followed again in a while.")
                }
                Err(error) => tracing::debug!(%error, "DRBD's events cannot be followed; again in a while."),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// The instance that an event is about: `change peer-device name:tandem-<instance> …`. What is there at the beginning is no
/// news, and a role changes by a call.
fn concerned(line: &str) -> Option<InstanceId> {
    let mut words = line.split_whitespace();
    if words.next()? != "change" || !matches!(words.next()?, "connection" | "device" | "peer-device") {
        return None;
    }
    names::instance_of(words.find_map(|word| word.strip_prefix("name:"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_by_itself_is_told_and_what_is_there_is_not() {
        let name = "tandem-6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1";
        let of = |event: &str, name: &str| {
            concerned(&format!("{event} name:{name} conn-name:x connection:Connecting"))
        };
        for kind in ["connection", "device", "peer-device"] {
            assert!(of(&format!("change {kind}"), name).is_some());
            assert!(of(&format!("exists {kind}"), name).is_none());
            assert!(of(&format!("change {kind}"), "r0").is_none());
        }
        assert!(of("change resource", name).is_none());
        assert!(concerned("exists -").is_none());
        assert!(concerned("").is_none());
    }
}
