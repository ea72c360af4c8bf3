//! The doctor: looks for everything that breaks a law, in the store and on the storage. Changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};

use tandem_contract::{InstanceId, ListInstances, ReplicaState, ResourceId, Style};

use crate::core::Core;
use crate::denied::Denied;
use crate::face::{BackendState, Finding};
use crate::model::{Counted, Instance, InstanceStatus, Operation, Part, Share};
use crate::oplog::{OpState, Rebuilt};
use crate::reconcile::{cx, is_overdue};
use crate::store::{InstanceQuery, ShareQuery};

/// Rows read at once.
const PAGE: u64 = 1000;
/// Events read at once.
const EVENTS: u32 = 5000;

/// Everything in the store, read page by page.
struct Chart {
    shares: HashMap<ResourceId, Share>,
    instances: Vec<Instance>,
    unfinished: Vec<Operation>,
}

impl Core {
    /// Looks for everything that breaks a law.
    pub(crate) async fn doctor(&self) -> Result<Vec<Finding>, Denied> {
        let chart = self.chart().await?;
        let mut findings = Vec::new();
        owners(&chart, &mut findings);
        actives(&chart, &mut findings);
        self.unchecked(&chart, &mut findings);
        self.waiting(&chart, &mut findings);
        self.logs(&chart, &mut findings).await?;
        self.rebuilt(&chart, &mut findings).await?;
        self.usages(&chart, &mut findings).await?;
        self.storage(&chart, &mut findings).await?;
        Ok(findings)
    }

    async fn chart(&self) -> Result<Chart, Denied> {
        // Operations first: one that is admitted afterwards is no owner missed, but a status not yet read.
        let mut instances = Vec::new();
        loop {
            let query = InstanceQuery {
                offset: instances.len() as u64,
                limit: Some(PAGE),
                ..InstanceQuery::default()
            };
            let page = self.store.instances(&query).await?.items;
            let last = (page.len() as u64) < PAGE;
            instances.extend(page);
            if last {
                break;
            }
        }
        let mut shares = HashMap::new();
        loop {
            let query =
                ShareQuery { offset: shares.len() as u64, limit: Some(PAGE), ..ShareQuery::default() };
            let page = self.store.shares(&query).await?.items;
            let last = (page.len() as u64) < PAGE;
            shares.extend(page.into_iter().map(|s| (s.id, s)));
            if last {
                break;
            }
        }
        let unfinished = self.store.unfinished().await?;
        Ok(Chart { shares, instances, unfinished })
    }

    /// Law 3: each unfinished operation's log folds, and its row agrees with it.
    async fn logs(&self, chart: &Chart, findings: &mut Vec<Finding>) -> Result<(), Denied> {
        for op in &chart.unfinished {
            let log = self.store.log(op.id).await?;
            match OpState::fold(&log) {
                Err(illegal) => findings.push(error(3, format!("operation {}", op.id), format!(
                    "its log is broken: {illegal}; it cannot go on by itself. Restore the database, or remove its share by force"
                ))),
                // The row may be one event older than the log that was read after it.
                Ok(state) if state.seq < op.seq => findings.push(error(3, format!("operation {}", op.id), format!(
                    "its row is at event {}, its log ends at {}", op.seq, state.seq
                ))),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Law 3: statuses follow from the log.
    async fn rebuilt(&self, chart: &Chart, findings: &mut Vec<Finding>) -> Result<(), Denied> {
        let mut rebuilt = Rebuilt::default();
        let mut position = 0;
        loop {
            let events = self.store.log_from(position, EVENTS).await?;
            let Some((last, _)) = events.last() else { break };
            position = *last;
            events.iter().for_each(|(_, logged)| rebuilt.take(logged));
        }
        for row in &chart.instances {
            // Rows that changed since they were read are judged the next time.
            let now = self.store.instance(row.id).await?;
            if now.as_ref() != Some(row) {
                continue;
            }
            for difference in rebuilt.differences(row) {
                findings.push(error(3, format!("instance {}", row.id), difference));
            }
        }
        Ok(())
    }

    /// What projects use is what their rows say.
    async fn usages(&self, chart: &Chart, findings: &mut Vec<Finding>) -> Result<(), Denied> {
        let mut used: BTreeMap<&str, BTreeMap<Counted, i64>> = BTreeMap::new();
        for share in chart.shares.values() {
            let project = used.entry(&share.project_id).or_default();
            let size = i64::try_from(share.size_gb).unwrap_or(i64::MAX);
            *project.entry(Counted::Shares).or_default() += 1;
            *project.entry(Counted::Gigabytes).or_default() += size;
        }
        for row in &chart.instances {
            let Some(share) = chart.shares.get(&row.share_id) else { continue };
            if share.replication.is_some() && row.part == Part::Whole {
                let project = used.entry(&share.project_id).or_default();
                *project.entry(Counted::ShareReplicas).or_default() += 1;
                *project.entry(Counted::ReplicaGigabytes).or_default() +=
                    i64::try_from(share.size_gb).unwrap_or(i64::MAX);
            }
        }
        if !chart.unfinished.is_empty() {
            // What is being made, removed or resized is counted at one end of its operation.
            return Ok(());
        }
        for (project, counts) in used {
            let usage = self.store.usage(project).await?;
            for what in Counted::ALL {
                let (is, says) = (counts.get(&what).copied().unwrap_or(0), usage.of(what));
                if is != says {
                    findings.push(error(
                        3,
                        format!("project {project}"),
                        format!("its quota counts {says} {}, its rows hold {is}", what.as_str()),
                    ));
                }
            }
        }
        Ok(())
    }

    /// What is on the storage against what rows name.
    async fn storage(&self, chart: &Chart, findings: &mut Vec<Finding>) -> Result<(), Denied> {
        for slot in self.backends.slots() {
            let name = slot.name();
            if let Some(reason) =
                self.backends.views().into_iter().find(|v| v.name == name).and_then(|v| match v.state {
                    BackendState::Down { reason } => Some(reason),
                    BackendState::Up => None,
                })
            {
                findings.push(notice(
                    10,
                    format!("back end {name}"),
                    format!("it is down and was not looked at: {reason}"),
                ));
                continue;
            }
            match self.orphans(slot).await {
                Ok(orphans) => findings.extend(orphans.into_iter().map(|id| {
                    error(0, format!("back end {name}"), format!(
                        "instance {id} is on its storage, but nothing owns it; it is removed by itself within minutes"
                    ))
                })),
                Err(e) => findings.push(notice(10, format!("back end {name}"), format!("it could not list its instances: {e}"))),
            }
            let listed = match slot.opened().await {
                Ok(backend) => backend.call(&cx(self), ListInstances {}).await,
                Err(e) => Err(e),
            };
            let Ok(listed) = listed else { continue };
            let listed: HashSet<InstanceId> = listed.into_iter().collect();
            let rows = chart.instances.iter().filter(|i| i.backend() == Some(name.as_str()));
            for row in rows.filter(|i| i.status == InstanceStatus::Available && !listed.contains(&i.id)) {
                findings.push(error(0, format!("instance {}", row.id), format!(
                    "it is available, but back end {name} does not have it; restore its storage, or remove it"
                )));
            }
        }
        Ok(())
    }
}

impl Core {
    /// Active sides of `writable` shares whose users wait.
    fn waiting(&self, chart: &Chart, findings: &mut Vec<Finding>) {
        let is_joint = |row: &&Instance| {
            let share = chart.shares.get(&row.share_id);
            share.is_some_and(|share| share.replication == Some(Style::Writable))
        };
        let actives = chart.instances.iter().filter(|row| row.replica_state == Some(ReplicaState::Active));
        for row in actives.filter(is_joint) {
            if let Some(why) = self.board.freshness(row.id).degraded {
                findings.push(notice(5, format!("instance {}", row.id), format!(
                    "it takes no writes, is not served, or has another fault: {why}. Where it waits, it goes on by itself once it is told \
                     so, or sees the other side again: mend the link between them, and see that its host reaches this server with the \
                     secret of its back end"
                )));
            }
        }
    }

    /// Followers whose content checks never come to their end.
    fn unchecked(&self, chart: &Chart, findings: &mut Vec<Finding>) {
        let is_active = |row: &&Instance| row.replica_state == Some(ReplicaState::Active);
        let active: HashMap<ResourceId, &Instance> =
            chart.instances.iter().filter(is_active).map(|row| (row.share_id, row)).collect();
        for row in chart.instances.iter().filter(|row| row.replica_state.is_some() && !is_active(row)) {
            if active.get(&row.share_id).is_some_and(|active| is_overdue(self, row, active)) {
                findings.push(notice(0, format!("instance {}", row.id),
                    "what it holds was not verified for two intervals of the schedule; where its syncs come faster than it can \
                     be read, raise `verify.bandwidth`, or its type's `replication:rpo_seconds` for a while".into()));
            }
        }
    }
}

/// Law 1: no transient status without an owner.
fn owners(chart: &Chart, findings: &mut Vec<Finding>) {
    for row in chart.instances.iter().filter(|i| i.status.is_transient()) {
        let owned =
            chart.unfinished.iter().any(|op| op.share_id == row.share_id && op.intent.concerns(row.id));
        let subject = format!("instance {}", row.id);
        if row.reset_by_admin {
            findings.push(notice(1, subject, format!("an administrator set its status to {}", row.status)));
        } else if !owned {
            findings.push(error(
                1,
                subject,
                format!("it is {}, but no operation owns that; reset its status", row.status),
            ));
        }
    }
    for row in &chart.instances {
        if !chart.shares.contains_key(&row.share_id) {
            findings.push(error(
                1,
                format!("instance {}", row.id),
                format!("its share {} is gone", row.share_id),
            ));
        }
    }
}

/// Law 5: at most one active instance, but for `writable`.
fn actives(chart: &Chart, findings: &mut Vec<Finding>) {
    let mut active: HashMap<ResourceId, u32> = HashMap::new();
    for row in &chart.instances {
        if row.replica_state == Some(ReplicaState::Active) {
            *active.entry(row.share_id).or_default() += 1;
        }
        if row.unfenced && row.part != Part::Whole {
            findings.push(notice(5, format!("instance {}", row.id),
                "it was to become the active one when its migration failed, and could not be told that it does not: should it be \
                 reached, what is written to it is lost. It is removed as soon as its back end can be asked".into()));
        } else if row.unfenced {
            findings.push(notice(5, format!("instance {}", row.id),
                "it was active before a forced promotion and has not been seen since; it is fenced as soon as it is".into()));
        }
        if row.fenced {
            findings.push(notice(5, format!("instance {}", row.id),
                "it was fenced after a forced promotion and follows nobody; resync it to let it follow the active one, or delete it".into()));
        }
    }
    for row in
        chart.instances.iter().filter(|row| row.yields && row.replica_state != Some(ReplicaState::Active))
    {
        findings.push(notice(5, format!("instance {}", row.id),
            "it lost an arbitration, or was joining the active one; it serves nobody, and does so again by itself once it has followed. \
             Where the one that went on is lost for good, promote this one".into()));
    }
    for row in &chart.instances {
        if let Some(damage) = &row.damage {
            findings.push(error(
                0,
                format!("instance {}", row.id),
                format!("a content check found it damaged: {damage}"),
            ));
        }
    }
    for (share, count) in active {
        let many = chart.shares.get(&share).is_some_and(|s| s.replication != Some(Style::Writable));
        if count > 1 && many {
            findings.push(error(5, format!("share {share}"), format!("{count} of its replicas are active")));
        }
    }
}

fn error(law: u32, subject: String, message: String) -> Finding {
    Finding { law, severity: "error", subject, message }
}

fn notice(law: u32, subject: String, message: String) -> Finding {
    Finding { law, severity: "notice", subject, message }
}
