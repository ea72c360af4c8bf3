//! What the memory store holds, and how a batch changes it: row by row, each change remembered until the whole batch is
//! in, so that a refused one leaves no trace.

use std::collections::BTreeMap;

use tandem_contract::{InstanceId, OpId, ResourceId};
use uuid::Uuid;

use super::super::keys::{Table, eventless};
use super::super::{Batch, Gone, Result, Row, StoreError};
use crate::clock::Timestamp;
use crate::model::{AccessRule, Instance, Intent, Operation, Quota, Share, ShareType, Usage};
use crate::oplog::Logged;

/// Every row.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) shares: BTreeMap<ResourceId, Share>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) rules: BTreeMap<Uuid, AccessRule>,
    pub(super) types: BTreeMap<Uuid, ShareType>,
    pub(super) quotas: BTreeMap<String, Quota>,
    pub(super) usages: BTreeMap<String, Usage>,
    pub(super) operations: BTreeMap<OpId, Operation>,
    /// The log by position.
    pub(super) events: BTreeMap<i64, Logged>,
    /// Positions of each operation's events, in order.
    pub(super) log: BTreeMap<OpId, Vec<i64>>,
    /// Instances by share, so that a family costs no walk over all of them.
    pub(super) by_share: BTreeMap<(ResourceId, InstanceId), ()>,
    /// The newest position ever given.
    newest: i64,
}

/// A change that can be taken back.
pub(super) enum Undo {
    Share(ResourceId, Option<Share>),
    Instance(InstanceId, Option<Box<Instance>>),
    Rule(Uuid, Option<AccessRule>),
    Type(Uuid, Option<ShareType>),
    Quota(String, Option<Quota>),
    Usage(String, Option<Usage>),
    Operation(OpId, Option<Box<Operation>>),
    Event(i64),
}

impl State {
    /// Writes a batch, or refuses it whole. The order is that of the SQLite store.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<Vec<Undo>> {
        // Refused first by SQLite's store too, which sees it before it writes.
        let eventful = |op: &Operation| batch.events.iter().any(|e| e.op == op.id);
        if let Some(op) = batch.operations.iter().find(|op| !eventful(op)) {
            return Err(eventless(op.id));
        }
        let mut undo = Vec::new();
        match self.apply_all(batch, &mut undo) {
            Ok(()) => Ok(undo),
            Err(error) => {
                self.take_back(undo);
                Err(error)
            }
        }
    }

    /// Takes a batch's changes back.
    pub(super) fn take_back(&mut self, undo: Vec<Undo>) {
        fn restore<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, old: Option<V>) {
            match old {
                Some(old) => map.insert(key, old),
                None => map.remove(&key),
            };
        }
        for change in undo.into_iter().rev() {
            match change {
                Undo::Share(id, old) => restore(&mut self.shares, id, old),
                Undo::Instance(id, old) => {
                    self.set_instance(id, old.map(|old| *old));
                }
                Undo::Rule(id, old) => restore(&mut self.rules, id, old),
                Undo::Type(id, old) => restore(&mut self.types, id, old),
                Undo::Quota(id, old) => restore(&mut self.quotas, id, old),
                Undo::Usage(id, old) => restore(&mut self.usages, id, old),
                Undo::Operation(id, old) => restore(&mut self.operations, id, old.map(|old| *old)),
                Undo::Event(position) => {
                    let op = self.events.remove(&position).map(|event| event.op);
                    if let Some(positions) = op.and_then(|op| self.log.get_mut(&op)) {
                        positions.pop();
                    }
                    self.newest = position - 1;
                }
            }
        }
    }

    fn apply_all(&mut self, batch: Batch, undo: &mut Vec<Undo>) -> Result<()> {
        for gone in batch.gone {
            let key = gone.key();
            if key.2 == 0 {
                // Version 0 is that of a row which is not there.
                return Err(StoreError::Conflict(key.0.describe(&key.1)));
            }
            self.check(key)?;
            undo.push(self.remove(gone));
        }
        for row in batch.put {
            self.check(row.key())?;
            let change = self.put(row)?;
            undo.push(change);
        }
        for event in batch.events {
            if event.seq != self.newest_of(event.op) + 1 {
                return Err(StoreError::Conflict(format!("operation {}", event.op)));
            }
            self.newest += 1;
            undo.push(Undo::Event(self.newest));
            self.log.entry(event.op).or_default().push(self.newest);
            self.events.insert(self.newest, event);
        }
        for op in batch.operations {
            if op.seq != self.newest_of(op.id) {
                return Err(eventless(op.id));
            }
            let id = op.id;
            undo.push(Undo::Operation(id, self.operations.insert(id, op).map(Box::new)));
        }
        Ok(())
    }

    fn newest_of(&self, op: OpId) -> u64 {
        let position = self.log.get(&op).and_then(|positions| positions.last());
        position.and_then(|position| self.events.get(position)).map_or(0, |event| event.seq)
    }

    /// Refuses another version than the one that stands there.
    fn check(&self, (table, id, version): (Table, String, i64)) -> Result<()> {
        let uuid = Uuid::parse_str(&id).unwrap_or_default();
        let stands = match table {
            Table::Shares => self.shares.get(&ResourceId(uuid)).map(|row| row.version),
            Table::Instances => self.instances.get(&InstanceId(uuid)).map(|row| row.version),
            Table::Rules => self.rules.get(&uuid).map(|row| row.version),
            Table::Types => self.types.get(&uuid).map(|row| row.version),
            Table::Quotas => self.quotas.get(&id).map(|row| row.version),
            Table::Usages => self.usages.get(&id).map(|row| row.version),
        };
        if stands.unwrap_or(0) == version { Ok(()) } else { Err(StoreError::Conflict(table.describe(&id))) }
    }

    fn put(&mut self, row: Row) -> Result<Undo> {
        Ok(match row {
            Row::Share(mut share) => {
                share.version += 1;
                Undo::Share(share.id, self.shares.insert(share.id, *share))
            }
            Row::Instance(mut instance) => {
                instance.version += 1;
                let id = instance.id;
                Undo::Instance(id, self.set_instance(id, Some(*instance)).map(Box::new))
            }
            Row::Rule(mut rule) => {
                rule.version += 1;
                Undo::Rule(rule.id, self.rules.insert(rule.id, *rule))
            }
            Row::Type(mut share_type) => {
                if self.types.values().any(|t| t.name == share_type.name && t.id != share_type.id) {
                    return Err(StoreError::Exists(format!("share type `{}`", share_type.name)));
                }
                share_type.version += 1;
                Undo::Type(share_type.id, self.types.insert(share_type.id, *share_type))
            }
            Row::Quota(mut quota) => {
                quota.version += 1;
                let id = quota.project_id.clone();
                Undo::Quota(id.clone(), self.quotas.insert(id, quota))
            }
            Row::Usage(mut usage) => {
                usage.version += 1;
                let id = usage.project_id.clone();
                Undo::Usage(id.clone(), self.usages.insert(id, usage))
            }
        })
    }

    fn remove(&mut self, gone: Gone) -> Undo {
        match gone {
            Gone::Share(id, _) => Undo::Share(id, self.shares.remove(&id)),
            Gone::Instance(id, _) => Undo::Instance(id, self.set_instance(id, None).map(Box::new)),
            Gone::Rule(id, _) => Undo::Rule(id, self.rules.remove(&id)),
            Gone::Type(id, _) => Undo::Type(id, self.types.remove(&id)),
            Gone::Quota(project, _) => {
                let old = self.quotas.remove(&project);
                Undo::Quota(project, old)
            }
        }
    }

    fn set_instance(&mut self, id: InstanceId, new: Option<Instance>) -> Option<Instance> {
        let new_share = new.as_ref().map(|instance| instance.share_id);
        let old = match new {
            Some(instance) => self.instances.insert(id, instance),
            None => self.instances.remove(&id),
        };
        if let Some(old) = &old {
            self.by_share.remove(&(old.share_id, id));
        }
        if let Some(share) = new_share {
            self.by_share.insert((share, id), ());
        }
        old
    }

    /// Removes old syncs and content checks, except the newest finished one of each instance.
    pub(super) fn prune(&mut self, before: Timestamp) -> u64 {
        let mut newest: BTreeMap<(InstanceId, &str), (Timestamp, OpId)> = BTreeMap::new();
        let mut old = Vec::new();
        for op in self.operations.values().filter(|op| op.status.is_finished()) {
            let (Intent::Sync { instance, .. } | Intent::Verify { instance, .. }) = op.intent else {
                continue;
            };
            let of = (instance, op.intent.kind());
            let place = newest.entry(of).or_insert((op.created_at, op.id));
            *place = (*place).max((op.created_at, op.id));
            if op.updated_at < before {
                old.push((of, op.id));
            }
        }
        old.retain(|(of, op)| newest.get(of).is_none_or(|(_, id)| id != op));
        for (_, op) in &old {
            self.operations.remove(op);
            for position in self.log.remove(op).unwrap_or_default() {
                self.events.remove(&position);
            }
        }
        old.len() as u64
    }
}
