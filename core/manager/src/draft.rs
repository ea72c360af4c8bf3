//! A draft: a family of rows as read, changed in memory by pure code, then written whole or not at all.
//!
//! Every change of a share's rows goes this way, from a request's admission to the last step of its operation.
//! Statuses change only through [`Effect`]s, which are logged with the event that set them.

use tandem_contract::{InstanceId, OpId};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::denied::Denied;
use crate::face::Caller;
use crate::model::{
    AccessRule, Counted, Instance, Intent, OpStatus, Operation, Part, Quota, Share, Usage, default_limits,
};
use crate::oplog::{Effect, Ending, Event, Logged, OpState};
use crate::store::{Batch, Family, Gone, Row};

/// A family of rows being changed.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    before: Family,
    usage_before: Usage,
    /// Now, for every time that is written.
    pub now: Timestamp,
    /// The share; taken away to remove it.
    pub share: Option<Share>,
    /// Its instances; taken away to remove them.
    pub instances: Vec<Instance>,
    /// Its rules.
    pub rules: Vec<AccessRule>,
    /// What its project uses.
    pub usage: Usage,
    limits: std::collections::BTreeMap<String, i64>,
    touched: bool,
    events: Vec<Logged>,
    operations: Vec<Operation>,
}

impl Draft {
    /// A draft of what was read.
    pub fn new(family: Family, usage: Usage, quota: Option<Quota>, now: Timestamp) -> Self {
        let mut limits = default_limits();
        limits.extend(quota.into_iter().flat_map(|q| q.limits));
        Self {
            share: family.share.clone(),
            instances: family.instances.clone(),
            rules: family.rules.clone(),
            usage: usage.clone(),
            before: family,
            usage_before: usage,
            limits,
            now,
            touched: false,
            events: Vec::new(),
            operations: Vec::new(),
        }
    }

    /// The family as it was read.
    pub const fn before(&self) -> &Family {
        &self.before
    }

    /// One of its instances.
    pub fn instance(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.iter().find(|i| i.id == id)
    }

    /// One of its instances, to be changed. Statuses are not changed this way but by [`Draft::apply`].
    pub fn instance_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|i| i.id == id)
    }

    /// The active instance (or the only one of a share that does not replicate).
    pub fn active(&self) -> Option<&Instance> {
        active_of(&self.instances)
    }

    /// Instances that count as replicas: what a migration makes or left is paid for as the share.
    pub fn counted(&self) -> i64 {
        i64::try_from(self.instances.iter().filter(|i| i.part == Part::Whole).count()).unwrap_or(i64::MAX)
    }

    /// Its unfinished operations as they will be after this draft, oldest first.
    pub fn unfinished(&self) -> Vec<Operation> {
        let mut all: Vec<Operation> = self.before.operations.clone();
        for op in &self.operations {
            match all.iter_mut().find(|o| o.id == op.id) {
                Some(old) => old.clone_from(op),
                None => all.push(op.clone()),
            }
        }
        all.retain(|o| !o.status.is_finished());
        all
    }

    /// The change of size that is on its way: from how many GiB to how many.
    pub fn resizing(&self) -> Option<(u64, u64)> {
        self.unfinished().into_iter().find_map(|op| match op.intent {
            Intent::Resize { from_gb, to_gb } => Some((from_gb, to_gb)),
            _ => None,
        })
    }

    /// Takes from the project's quota, or gives back (negative amounts always fit).
    pub fn reserve(&mut self, what: Counted, amount: i64) -> Result<(), Denied> {
        let in_use = self.usage.of(what);
        let limit = self.limits.get(what.as_str()).copied().unwrap_or(-1);
        if amount > 0 && limit >= 0 && in_use + amount > limit {
            return Err(Denied::OverQuota { what, limit, in_use, asked: amount });
        }
        self.usage.add(what, amount);
        Ok(())
    }

    /// A limit of the project that is no count (`per_share_gigabytes`); -1 is unlimited.
    pub fn limit(&self, key: &str) -> i64 {
        self.limits.get(key).copied().unwrap_or(-1)
    }

    /// Takes the share's row along: of two such changes at one moment one is done after the other.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// Admits an operation: its row, its first event, and the statuses it sets, in one. Taking the share's row along
    /// makes two admissions for one share exclude each other.
    pub fn admit(
        &mut self,
        id: OpId,
        intent: Intent,
        effects: Vec<Effect>,
        caller: Option<&Caller>,
    ) -> Operation {
        let (share_id, project_id) = match &self.share {
            Some(share) => (share.id, share.project_id.clone()),
            None => (tandem_contract::ResourceId(Uuid::nil()), String::new()),
        };
        let op = Operation {
            id,
            seq: 0,
            share_id,
            project_id,
            intent: intent.clone(),
            request_id: caller.and_then(|c| c.request_id.clone()),
            status: OpStatus::Accepted,
            cancel: false,
            proceed: false,
            error: None,
            bytes: 0,
            resumed_bytes: 0,
            remarks: Vec::new(),
            created_at: self.now,
            updated_at: self.now,
        };
        self.touch();
        for check in self.unfinished().iter().filter(|op| op.intent.gives_way_to(&intent)) {
            self.request_cancel(check);
        }
        self.append(op, Event::Accepted { intent }, effects, None)
    }

    /// Appends an event and sets its statuses. `state` is the fold before the event, where the caller has it; it
    /// gives the row what only the fold knows.
    pub fn append(
        &mut self,
        mut op: Operation,
        event: Event,
        effects: Vec<Effect>,
        state: Option<&OpState>,
    ) -> Operation {
        for effect in &effects {
            self.apply(effect);
        }
        op.seq += 1;
        op.updated_at = self.now;
        match &event {
            Event::CancelRequested => op.cancel = true,
            Event::ProceedRequested => op.proceed = true,
            Event::Finished { ending, error } => {
                op.status = match ending {
                    Ending::Done => OpStatus::Done,
                    Ending::Failed => OpStatus::Failed,
                    Ending::Cancelled => OpStatus::Cancelled,
                };
                if error.is_some() {
                    op.error.clone_from(error);
                }
            }
            _ => {}
        }
        if let Some(Ok(after)) = state.map(|s| s.clone().next(&event)) {
            op.status = after.status;
            op.cancel = after.cancel;
            op.proceed = after.proceed;
            op.error = after.error;
            op.bytes = after.bytes;
            op.resumed_bytes = after.resumed_bytes;
            op.remarks = after.remarks;
        }
        self.events.push(Logged { op: op.id, seq: op.seq, at: self.now, event, effects });
        self.operations.retain(|o| o.id != op.id);
        self.operations.push(op.clone());
        op
    }

    /// Asks an unfinished operation to end; once is enough.
    pub fn request_cancel(&mut self, op: &Operation) {
        if !op.cancel {
            self.append(op.clone(), Event::CancelRequested, Vec::new(), None);
        }
    }

    fn apply(&mut self, effect: &Effect) {
        match effect {
            Effect::Status { instance, status } => {
                if let Some(i) = self.instance_mut(*instance) {
                    i.status = *status;
                    i.reset_by_admin = false;
                }
            }
            Effect::ReplicaState { instance, state } => {
                if let Some(i) = self.instance_mut(*instance) {
                    i.replica_state = *state;
                    // What an admin set is overtaken.
                    i.reset_by_admin = false;
                }
            }
            Effect::Epoch { epoch } => {
                if let Some(share) = &mut self.share {
                    share.epoch = *epoch;
                }
            }
            Effect::Gone { instance } => {
                self.instances.retain(|i| i.id != *instance);
                self.rules.retain_mut(|rule| rule.forget(*instance));
            }
        }
    }

    /// What is to be written.
    pub fn finish(self) -> Batch {
        let mut batch = Batch { events: self.events, operations: self.operations, ..Batch::default() };
        let (now, before) = (self.now, self.before);
        match (before.share, self.share) {
            (old, Some(mut share)) => {
                let changed = old.as_ref() != Some(&share);
                if changed && old.is_some() {
                    share.updated_at = Some(now);
                }
                if changed || self.touched {
                    batch.put.push(Row::Share(Box::new(share)));
                }
            }
            (Some(old), None) => batch.gone.push(Gone::Share(old.id, old.version)),
            (None, None) => {}
        }
        for mut row in self.instances.iter().cloned() {
            let old = before.instances.iter().find(|o| o.id == row.id);
            if old != Some(&row) {
                row.updated_at = old.map(|_| now);
                batch.put.push(Row::Instance(Box::new(row)));
            }
        }
        for old in &before.instances {
            if !self.instances.iter().any(|i| i.id == old.id) {
                batch.gone.push(Gone::Instance(old.id, old.version));
            }
        }
        for mut row in self.rules.iter().cloned() {
            let old = before.rules.iter().find(|o| o.id == row.id);
            if old != Some(&row) {
                row.updated_at = old.map(|_| now);
                batch.put.push(Row::Rule(Box::new(row)));
            }
        }
        for old in &before.rules {
            if !self.rules.iter().any(|r| r.id == old.id) {
                batch.gone.push(Gone::Rule(old.id, old.version));
            }
        }
        if self.usage != self.usage_before {
            batch.put.push(Row::Usage(self.usage));
        }
        batch
    }
}

/// The active instance (or the only one of a share that does not replicate).
pub(crate) fn active_of(instances: &[Instance]) -> Option<&Instance> {
    use tandem_contract::ReplicaState::Active;
    let whole = || instances.iter().filter(|i| i.part == Part::Whole);
    whole().find(|i| i.replica_state == Some(Active)).or_else(|| {
        let mut all = whole();
        all.next().filter(|only| only.replica_state.is_none() && all.next().is_none())
    })
}

/// An active instance other than this one.
pub(crate) fn active_beside(instances: &[Instance], id: InstanceId) -> Option<&Instance> {
    use tandem_contract::ReplicaState::Active;
    instances.iter().find(|i| i.id != id && i.part == Part::Whole && i.replica_state == Some(Active))
}

/// The instance that an active one, which its storage has demoted, waits for: it was promoted, nobody knows whether it
/// serves its users, and what it took would be lost.
pub(crate) fn holds_back(instances: &[Instance], active: &Instance) -> Option<InstanceId> {
    let newer =
        |i: &&Instance| i.id != active.id && i.part == Part::Whole && i.unfenced && i.epoch >= active.epoch;
    let is_active = active.replica_state == Some(tandem_contract::ReplicaState::Active);
    instances.iter().find(newer).filter(|_| is_active).map(|i| i.id)
}
