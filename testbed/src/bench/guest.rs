//! Figures of what happens in a guest: lines of a shell that are timed in it, and operations by the server's own log.

use std::time::Duration;

use serde_json::Value;
use tandem_guests::{Command, Host, lvm};

use crate::api::{Api, word};
use crate::wait;

/// How long a line of a shell takes in a guest; its arguments are `$1`, `$2`, …
pub fn timed(guest: &dyn Host, line: &str, arguments: &[&str]) -> Duration {
    let script =
        format!("set -e -o pipefail\nfrom=$EPOCHREALTIME\n{line}\nto=$EPOCHREALTIME\necho $from $to");
    let argv = [&["bash", "-c", &script, "bash"], arguments].concat();
    let command = Command::new(&argv).env("LVM_SYSTEM_DIR", lvm::SYSTEM).deadline(wait::LONG);
    let output = guest.output(&command).unwrap();
    assert_eq!(output.status, 0, "{argv:?}: {}", output.stderr_text());
    let said = output.stdout_text();
    let last = said.lines().last().unwrap_or_default();
    let times: Vec<f64> = last.split_whitespace().map(|word| word.parse().unwrap()).collect();
    Duration::from_secs_f64(times[1] - times[0])
}

/// The newest operation of a kind of a replica, which ended well, with its log.
pub fn last(api: &Api, kind: &str, replica: &str) -> Value {
    let query = format!("kind={kind}&instance_id={replica}&limit=1");
    let newest = api.operations(&query).unwrap().remove(0);
    assert_eq!(newest["status"], "done", "{newest:#}");
    api.operation(&word(&newest["id"])).unwrap()
}
