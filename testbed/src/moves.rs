//! A share's migration, as an administrator asks for it.

use serde_json::{Value, json};

use crate::api::{Api, word};
use crate::wait;

impl Api {
    /// The name by which Manila knows the pool of a back end: `host@backend#pool`.
    pub fn pool_of(&self, backend: &str) -> String {
        wait::until("the pools", || {
            let pools = self.get("v2/scheduler-stats/pools").ok()?;
            let all = pools["pools"].as_array()?;
            all.iter().find(|pool| pool["backend"] == backend).map(|pool| word(&pool["name"]))
        })
    }

    /// What starts a migration to that back end which keeps the share written to, until it is told to end; of snapshots nothing
    /// is asked.
    pub fn wish(&self, backend: &str, preserve_metadata: bool) -> Value {
        json!({"migration_start": {
            "host": self.pool_of(backend), "writable": true, "nondisruptive": false,
            "preserve_metadata": preserve_metadata, "preserve_snapshots": false,
        }})
    }

    /// Asks for something of a migration, which is accepted.
    pub fn migration(&self, share: &str, body: &Value) {
        let (status, said) = self.share_action(share, "2.97", false, body).expect("the server answers");
        assert_eq!(status, 202, "{body}: {said}");
    }

    /// Waits until the share has this `task_state`.
    pub fn until_task(&self, share: &str, task: &str) {
        wait::until_else(|| {
            let now = self.share(share).map_err(|_| "the server does not answer")?;
            if now["task_state"] == task {
                return Ok(());
            }
            let newest = self.operations("kind=migrate").unwrap_or_default().into_iter().next();
            Err(format!("{task}, not {}: {newest:?}", now["task_state"]))
        });
    }
}
