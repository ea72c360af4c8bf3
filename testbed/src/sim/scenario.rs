//! Requests, and waiting for what follows from them.

use std::collections::BTreeMap;
use std::time::Duration;

use tandem_contract::{AccessLevel, InstanceId, ReplicaState, ResourceId, Retry, Style};
use tandem_manager::model::{InstanceStatus, Operation, Part};
use tandem_manager::store::{Store, StoreError};
use tandem_manager::{BackendState, Caller, Denied, NewReplica, NewRule, NewShare, NewType};
use uuid::Uuid;

use super::stage::Stage;
use super::{Life, SITES, check};

/// A manager that is not at rest after so long never will be.
const LONG: Duration = Duration::from_secs(10 * 60);
/// Nothing happened for so many seconds: longer than every interval of reconciliation but that of orphans.
const QUIET_SECONDS: u32 = 12;

/// An administrator.
pub fn admin() -> Caller {
    Caller { user_id: "user".into(), project_id: "project".into(), admin: true, request_id: None }
}

impl Life<'_> {
    /// The stage.
    pub fn stage(&self) -> &Stage {
        &self.sim.stage
    }

    /// Waits until every back end has answered.
    pub async fn up(&self) {
        while !self.manager.backends().iter().all(|b| b.state == BackendState::Up) {
            self.sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes a type of shares that replicate.
    pub async fn share_type(&self, style: impl Into<Option<Style>>) -> Uuid {
        let style = style.into().map(Style::as_str);
        let replicates = style.map(|style| [("replication_type", style), ("replication:rpo_seconds", "10")]);
        let specs = replicates.into_iter().flatten().chain([("driver_handles_share_servers", "False")]);
        let extra_specs: BTreeMap<String, String> =
            specs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let new = NewType {
            name: format!("type {}", style.unwrap_or("plain")),
            is_public: true,
            extra_specs,
            description: None,
        };
        self.manager.create_type(new).await.expect("a share type").id
    }

    /// Asks for a share in the first zone.
    ///
    /// # Errors
    /// Why not.
    pub async fn ask_share(&self, share_type_id: Uuid) -> Result<ResourceId, Denied> {
        let new = NewShare {
            size_gb: 1,
            protocol: "NFS".into(),
            share_type_id,
            availability_zone: Some(format!("zone-{}", SITES[0])),
            ..NewShare::default()
        };
        Ok(self.manager.create_share(&admin(), new).await?.id)
    }

    /// Asks for a replica in a zone.
    ///
    /// # Errors
    /// Why not.
    pub async fn ask_replica(&self, share: ResourceId, site: &str) -> Result<InstanceId, Denied> {
        let new = NewReplica { availability_zone: Some(format!("zone-{site}")), ..NewReplica::default() };
        Ok(self.manager.create_replica(&admin(), share, new).await?.id)
    }

    /// Asks for an access rule.
    ///
    /// # Errors
    /// Why not.
    pub async fn ask_rule(&self, share: ResourceId, to: &str) -> Result<(), Denied> {
        let new = NewRule {
            access_type: "ip".into(),
            access_to: to.into(),
            access_level: AccessLevel::Rw,
            metadata: BTreeMap::new(),
        };
        self.manager.allow_access(&admin(), share, new).await.map(drop)
    }

    /// The active instance of a share and its site.
    pub async fn active(&self, share: ResourceId) -> (InstanceId, String) {
        let family = self.sim.rows.family(share).await.expect("the store answers");
        let found = family
            .instances
            .iter()
            .find(|i| i.part == Part::Whole && i.replica_state.is_none_or(|s| s == ReplicaState::Active));
        let row = found.expect("a share has an active instance");
        (row.id, row.backend().expect("it is placed").to_owned())
    }

    /// Users write to the active instance of a share.
    pub async fn write(&self, share: ResourceId, files: u32, size: usize) {
        let (id, site) = self.active(share).await;
        for _ in 0..files {
            let taken = self.stage().clients(|clients, world| clients.write(world, &site, id, size));
            assert!(taken, "the active instance takes writes");
        }
    }

    /// Unfinished operations.
    pub async fn unfinished(&self) -> Vec<Operation> {
        self.sim.rows.unfinished().await.expect("the store answers")
    }

    /// Waits until no operation is unfinished; the stage is closed then.
    pub async fn idle(&self) {
        let began = self.now();
        while !self.unfinished().await.is_empty() {
            self.sleep(Duration::from_millis(250)).await;
            if self.now() > began.plus(LONG) {
                break;
            }
        }
    }

    /// Waits until the manager has come to rest by itself, and every law of rest holds.
    ///
    /// # Errors
    /// What is wrong when that never happens.
    pub async fn rest(&self) -> Result<(), Vec<String>> {
        let began = self.now();
        let mut quiet = 0;
        let mut was_idle = false;
        loop {
            self.sleep(Duration::from_secs(1)).await;
            self.stage().pass();
            let unfinished = self.unfinished().await;
            // A migration may wait for this for as long as it likes.
            for op in unfinished.iter().filter(|op| op.intent.kind() == "migrate") {
                let _ = self.manager.complete_migration(op.share_id).await;
            }
            quiet = if unfinished.is_empty() && !self.stage().is_disturbed() { quiet + 1 } else { 0 };
            if unfinished.is_empty() && !was_idle {
                was_idle = true;
                // What is counted ends with the request's operations.
                self.stage().close();
            }
            let mut wrong = Vec::new();
            if quiet > 0 && quiet % QUIET_SECONDS == 0 {
                wrong = check::at_rest(self).await;
                if wrong.is_empty() {
                    return Ok(());
                }
            }
            if self.now() > began.plus(LONG) {
                if wrong.is_empty() {
                    wrong = check::at_rest(self).await;
                }
                let unfinished =
                    unfinished.iter().map(|op| format!("{} is {:?}", op.intent.kind(), op.status));
                wrong.extend(unfinished);
                wrong.insert(0, format!("not at rest after {} simulated minutes", LONG.as_secs() / 60));
                return Err(wrong);
            }
        }
    }

    /// A share with a replica in the second zone, in sync, with something in it.
    pub async fn mirrored(&self, style: Style) -> (ResourceId, InstanceId) {
        let share_type = self.share_type(style).await;
        let share = self.ask_share(share_type).await.expect("a share is admitted");
        self.idle().await;
        self.write(share, 3, 200).await;
        let replica = self.ask_replica(share, SITES[1]).await.expect("a replica is admitted");
        self.in_sync(replica).await;
        (share, replica)
    }

    /// Whether all instances of a share are to be active.
    pub async fn is_writable(&self, share: ResourceId) -> bool {
        let share = self.sim.rows.share(share).await.expect("the store answers");
        share.is_some_and(|share| share.replication == Some(Style::Writable))
    }

    /// Waits until a replica is available and in sync, or active where all are.
    pub async fn in_sync(&self, replica: InstanceId) {
        for _ in 0..4 * LONG.as_secs() {
            let row = self.sim.rows.instance(replica).await.expect("the store answers");
            let writable = match &row {
                Some(row) => self.is_writable(row.share_id).await,
                None => false,
            };
            let state = if writable { ReplicaState::Active } else { ReplicaState::InSync };
            let is = |row: &tandem_manager::model::Instance| {
                row.status == InstanceStatus::Available && row.replica_state == Some(state)
            };
            if row.as_ref().is_some_and(is) && self.unfinished().await.is_empty() {
                return;
            }
            self.sleep(Duration::from_millis(250)).await;
        }
        panic!("replica {replica} was never in sync:\n{}", self.stage().trace().join("\n"));
    }
}

/// Whether a request was refused for a reason that a fault explains: the database died under it.
pub fn died(denied: &Denied) -> bool {
    matches!(denied, Denied::Store(StoreError::Failed(_)))
}

/// Every retry class.
pub const RETRIES: [Retry; 3] = [Retry::Never, Retry::Safe, Retry::AfterOperator];
