//! The queue: which unfinished operations wait, which run, and which may start. Order is kept here, for each share, and
//! not by holding a lock while a driver works.
//!
//! The store is the truth: the queue is filled from it at the start, and told of every commit.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use tandem_contract::{InstanceId, OpId, ResourceId};
use tokio_util::sync::CancellationToken;

use crate::model::{Intent, Operation};

/// An operation that waits or runs.
struct Entry {
    op: Operation,
    cancel: CancellationToken,
    proceed: CancellationToken,
    running: bool,
}

/// An operation that may start now.
pub(crate) struct Claim {
    pub op: OpId,
    pub share: ResourceId,
    /// The replica that a sync fills.
    pub sync: Option<InstanceId>,
    /// It compares contents.
    pub verify: bool,
    pub cancel: CancellationToken,
    /// Cancelled once somebody told it to go on after its first phase.
    pub proceed: CancellationToken,
}

/// Unfinished operations by share, in the order of their admission.
#[derive(Default)]
pub(crate) struct Queue {
    shares: Mutex<HashMap<ResourceId, Vec<Entry>>>,
    touched: Mutex<Vec<ResourceId>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Queue {
    /// Takes note of an operation as it was just committed.
    pub fn note(&self, op: &Operation) {
        let mut shares = lock(&self.shares);
        let entries = shares.entry(op.share_id).or_default();
        if op.status.is_finished() {
            entries.retain(|e| e.op.id != op.id);
        } else {
            match entries.iter_mut().find(|e| e.op.id == op.id) {
                Some(entry) => entry.op.clone_from(op),
                None => {
                    let (cancel, proceed) = (CancellationToken::new(), CancellationToken::new());
                    entries.push(Entry { op: op.clone(), cancel, proceed, running: false });
                    // What a start finds again comes before what was admitted meanwhile.
                    entries.sort_by_key(|e| (e.op.created_at, e.op.id));
                }
            }
            if let Some(entry) = entries.iter().find(|e| e.op.id == op.id) {
                if op.cancel {
                    entry.cancel.cancel();
                }
                if op.proceed {
                    entry.proceed.cancel();
                }
            }
        }
        if entries.is_empty() {
            shares.remove(&op.share_id);
        }
        lock(&self.touched).push(op.share_id);
    }

    /// Takes every operation that may start now, in the shares that changed since the last look.
    pub fn claim(&self) -> Vec<Claim> {
        let mut touched = std::mem::take(&mut *lock(&self.touched));
        touched.sort();
        touched.dedup();
        let mut shares = lock(&self.shares);
        let mut claims = Vec::new();
        for share in touched {
            let Some(entries) = shares.get_mut(&share) else { continue };
            for i in 0..entries.len() {
                let free = !entries[i].running
                    && !entries[..i].iter().any(|before| conflict(&before.op, &entries[i].op));
                // Something later may run already (a sync beside a waiting one of another replica).
                let free =
                    free && !entries[i + 1..].iter().any(|e| e.running && conflict(&e.op, &entries[i].op));
                if free {
                    entries[i].running = true;
                    claims.push(Claim {
                        op: entries[i].op.id,
                        share,
                        sync: match entries[i].op.intent {
                            Intent::Sync { instance, .. } => Some(instance),
                            _ => None,
                        },
                        verify: matches!(entries[i].op.intent, Intent::Verify { .. }),
                        cancel: entries[i].cancel.clone(),
                        proceed: entries[i].proceed.clone(),
                    });
                }
            }
        }
        claims
    }

    /// An operation's task ended, finished or not; what is unfinished may be claimed again.
    pub fn released(&self, share: ResourceId, op: OpId) {
        if let Some(entry) =
            lock(&self.shares).get_mut(&share).and_then(|entries| entries.iter_mut().find(|e| e.op.id == op))
        {
            entry.running = false;
        }
        lock(&self.touched).push(share);
    }

    /// An operation has ended, by its log; it leaves even when an old row of it was noted meanwhile.
    pub fn ended(&self, share: ResourceId, op: OpId) {
        if let Some(entries) = lock(&self.shares).get_mut(&share) {
            entries.retain(|e| e.op.id != op);
        }
    }

    /// How many operations run.
    pub fn running(&self) -> usize {
        lock(&self.shares).values().flatten().filter(|e| e.running).count()
    }
}

/// Whether two operations of one share must not run at once: they concern the same instance, or one concerns the
/// whole share. Rules may change while data is carried.
fn conflict(a: &Operation, b: &Operation) -> bool {
    let whole = |op: &Operation| match op.intent {
        Intent::Promote { .. } | Intent::Migrate { .. } => true,
        _ => op.intent.instance().is_none(),
    };
    let rules_beside_sync = |a: &Operation, b: &Operation| {
        matches!((&a.intent, &b.intent), (Intent::UpdateAccess, Intent::Sync { .. } | Intent::Verify { .. }))
    };
    if rules_beside_sync(a, b) || rules_beside_sync(b, a) {
        return false;
    }
    // What a migration left is no part of the share any more, and its storage may be away for long.
    let leaves = |op: &Operation| matches!(op.intent, Intent::Release { .. });
    let removes = |op: &Operation| matches!(op.intent, Intent::DeleteShare { .. });
    if (leaves(a) && !removes(b)) || (leaves(b) && !removes(a)) {
        return match (&a.intent, &b.intent) {
            (Intent::Release { instance, .. }, other) | (other, Intent::Release { instance, .. }) => {
                other.instance() == Some(*instance)
            }
            _ => false,
        };
    }
    whole(a) || whole(b) || a.intent.instance() == b.intent.instance()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::model::OpStatus;

    fn op(n: u128, intent: Intent) -> Operation {
        Operation {
            id: OpId(Uuid::from_u128(n)),
            seq: 1,
            share_id: ResourceId(Uuid::nil()),
            project_id: String::new(),
            intent,
            request_id: None,
            status: OpStatus::Accepted,
            cancel: false,
            proceed: false,
            error: None,
            bytes: 0,
            resumed_bytes: 0,
            remarks: Vec::new(),
            created_at: Timestamp(0),
            updated_at: Timestamp(0),
        }
    }

    fn intent() -> impl Strategy<Value = Intent> {
        let instance = (0_u128..3).prop_map(|n| InstanceId(Uuid::from_u128(n)));
        (0..8, instance).prop_map(|(kind, instance)| match kind {
            0 => Intent::Sync { instance, asked: false, point: None },
            1 => Intent::Promote { instance, quiesce_wait_seconds: None, epoch: None, keep: false },
            2 => Intent::CreateReplica { instance, only_host: None },
            3 => Intent::DeleteReplica { instance, force: false },
            4 => Intent::UpdateAccess,
            5 => Intent::Verify { instance, asked: false },
            6 => Intent::Release { instance, force: false },
            7 => Intent::DeleteShare { force: false },
            _ => Intent::Resize { from_gb: 1, to_gb: 2 },
        })
    }

    proptest! {
        /// Nothing that conflicts runs at once, nothing overtakes what it conflicts with, and everything runs.
        #[test]
        fn order_is_kept_and_everything_runs(intents in proptest::collection::vec(intent(), 1..20), pick: u64) {
            let queue = Queue::default();
            let ops: Vec<Operation> = intents.into_iter().enumerate().map(|(n, i)| op(n as u128, i)).collect();
            ops.iter().for_each(|op| queue.note(op));
            let (mut running, mut ended) = (Vec::<Operation>::new(), Vec::<OpId>::new());
            let mut pick = pick;
            while ended.len() < ops.len() {
                for claim in queue.claim() {
                    let new = ops.iter().find(|o| o.id == claim.op).unwrap().clone();
                    prop_assert!(!running.iter().any(|r| conflict(r, &new)));
                    for earlier in ops.iter().take_while(|o| o.id != new.id) {
                        prop_assert!(!conflict(earlier, &new) || ended.contains(&earlier.id));
                    }
                    running.push(new);
                }
                prop_assert!(!running.is_empty(), "stuck");
                pick = pick.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let mut one = running.remove((pick >> 33) as usize % running.len());
                one.status = OpStatus::Done;
                queue.note(&one);
                ended.push(one.id);
            }
        }
    }
}
