//! Chores: what could not be done and is tried again, each after a pause that grows. Kept in memory: what a start
//! forgets, it finds again (back ends come up anew, and points that nobody needs are looked for).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_contract::{InstanceId, ResourceId};

use crate::clock::Timestamp;

/// First pause between two tries; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Something to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Chore {
    /// An instance is not served as its row says.
    Repair(InstanceId),
    /// The rules could not be applied to an instance.
    Rules(InstanceId),
    /// What a migration left could not be removed.
    Leftover(InstanceId),
    /// A share holds points that nobody needs.
    Release(ResourceId),
}

/// Everything to be tried again.
#[derive(Debug, Default)]
pub(crate) struct Chores(Mutex<BTreeMap<Chore, Due>>);

#[derive(Clone, Copy, Debug)]
struct Due {
    at: Timestamp,
    pause: Duration,
}

impl Chores {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Chore, Due>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a chore; due at once, unless it was noted before.
    pub fn note(&self, chore: Chore, now: Timestamp) {
        self.all().entry(chore).or_insert(Due { at: now, pause: FIRST_PAUSE });
    }

    /// Notes a chore whose earlier tries say nothing any more: due at once, and its pauses begin anew.
    pub fn anew(&self, chore: Chore, now: Timestamp) {
        self.all().insert(chore, Due { at: now, pause: FIRST_PAUSE });
    }

    /// What a chore waited for has ended, or may have: it is due at this time at the latest, where it was noted.
    pub fn hurry(&self, chore: Chore, at: Timestamp) {
        if let Some(due) = self.all().get_mut(&chore) {
            due.at = due.at.min(at);
        }
    }

    /// Forgets a chore: it is done, or nobody needs it any more.
    pub fn done(&self, chore: Chore) {
        self.all().remove(&chore);
    }

    /// The chores that are due; each is due again after its pause, unless it is done by then.
    pub fn due(&self, now: Timestamp) -> Vec<Chore> {
        let mut due = Vec::new();
        for (chore, when) in self.all().iter_mut().filter(|(_, when)| when.at <= now) {
            due.push(*chore);
            when.at = now.plus(when.pause);
            when.pause = (when.pause * 2).min(LONGEST_PAUSE);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_it_is_done() {
        let (chores, chore) = (Chores::default(), Chore::Release(ResourceId(uuid::Uuid::nil())));
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        chores.note(chore, at(0));
        let mut tries = Vec::new();
        for second in 0..100 {
            chores.note(chore, at(second));
            tries.extend(chores.due(at(second)).iter().map(|_| second));
        }
        assert_eq!(tries, [0, 10, 30, 70]);
        chores.done(chore);
        assert!(chores.due(at(10_000)).is_empty());
        chores.note(chore, at(10_000));
        assert_eq!(chores.due(at(10_000)), [chore]);
    }
}
