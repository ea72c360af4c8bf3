//! Waiting, through the API, until a server has come to rest.

use serde_json::Value;

use crate::api::{Api, ended, word};
use crate::wait;

/// The server is where it should be; what these ask for must be answered.
impl Api {
    /// Waits until every back end serves.
    pub fn backends_are_up(&self) {
        wait::until("the back ends to be up", || {
            let status = self.get("v1/status").ok()?;
            (status["status"]["backends"]["down"] == 0).then_some(())
        });
    }

    /// Waits until every operation has ended.
    pub fn settle(&self) {
        wait::until_else(|| match self.operations("unfinished=true") {
            Ok(list) if list.is_empty() => Ok(()),
            Ok(list) => Err(format!("operations have not ended: {list:#?}")),
            Err(_) => Err("the server does not answer".into()),
        });
    }

    /// The replicas of a share, as `/v1` shows them.
    pub fn replicas_of(&self, share: &str) -> Vec<Value> {
        let mut all = self.replicas().unwrap();
        all.retain(|replica| replica["share_id"] == share);
        all
    }

    /// The one replica of a share in this state.
    pub fn only_replica(&self, share: &str, state: &str) -> String {
        only(&self.replicas_of(share), state)
    }

    /// Waits until every replica of a share follows; those that do.
    pub fn in_sync(&self, share: &str) -> Vec<String> {
        wait::until_else(|| following(&self.replicas_of(share)))
    }

    /// Syncs of a replica, the newest first.
    pub fn syncs(&self, replica: &str) -> Vec<Value> {
        self.operations(&format!("kind=sync&instance_id={replica}&limit=1000")).unwrap()
    }

    /// Asks for a sync and waits until it, or a later one, has ended, however it did.
    pub fn resync(&self, replica: &str) -> Value {
        let before = self.syncs(replica).len();
        self.act(replica, "resync").unwrap();
        wait::until("the sync to end", || {
            let now = self.syncs(replica);
            if now.len() > before {
                return now.first().filter(|op| ended(op)).cloned();
            }
            if now.iter().all(ended) {
                // One was on its way when it was asked for, and none more was begun.
                self.act(replica, "resync").unwrap();
            }
            None
        })
    }
}

/// The one replica among those of a share that is in this state.
pub(crate) fn only(all: &[Value], state: &str) -> String {
    let with: Vec<&Value> = all.iter().filter(|replica| replica["replica_state"] == state).collect();
    match with[..] {
        [one] => word(&one["id"]),
        _ => panic!("one replica should be {state}: {all:#?}"),
    }
}

/// Those that follow, when all of a share's do; else what is still missing.
pub(crate) fn following(all: &[Value]) -> Result<Vec<String>, String> {
    let follows = |r: &&Value| r["replica_state"] == "in_sync";
    let rests = |r: &Value| r["status"] == "available" && (follows(&r) || r["replica_state"] == "active");
    if !all.iter().all(rests) {
        return Err(format!("these replicas should be in sync: {all:#?}"));
    }
    Ok(all.iter().filter(follows).map(|r| word(&r["id"])).collect())
}
