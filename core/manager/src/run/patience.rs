//! How long a step that fails is taken again.

use std::time::Duration;

use super::execute::Run;
use crate::model::Intent;
use crate::plan::Step;

/// First pause before a step is taken again; doubles up to [`LONGEST_PAUSE`].
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause before a step is taken again.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// So many attempts take half an hour, with the pauses between them.
const HALF_AN_HOUR: u32 = 64;

/// Attempts that take at least seven seconds: a host whose program is upgraded is back by then.
pub(super) const SECONDS: u32 = 5;

impl Run {
    /// How often a step is taken before it has failed.
    pub(super) fn most_attempts(&self, step: &Step) -> u32 {
        match step {
            _ if self.forced() => 1,
            // What a migration gives up is removed in any case; its source's users wait.
            Step::Withdraw { .. } if self.state.undoing() => 1,
            _ if self.state.undoing() => 8,
            step if step.is_patient() => u32::MAX,
            Step::Demote { .. } if self.intent().deletes() => u32::MAX,
            Step::Promote { .. }
            | Step::Demote { .. }
            | Step::Ensure { .. }
            | Step::Succeed { .. }
            | Step::Withdraw { .. } => 4,
            // A cut link is no reason to carry everything once more.
            Step::MakePoint { .. } | Step::Transfer { .. } | Step::Follow { .. }
                if self.copies_beside_users() =>
            {
                HALF_AN_HOUR
            }
            // A host that boots is back in minutes; a replica is waited for by nobody.
            Step::CreateReplica { .. } | Step::Connect { .. }
                if matches!(self.intent(), Intent::CreateReplica { .. }) =>
            {
                12
            }
            Step::Place { .. } | Step::CreateInstance { .. } | Step::EndReplication { .. } => SECONDS,
            _ if self.copies_beside_users() => SECONDS,
            // Users wait to be given the share back.
            _ if self.migrates() => 4,
            _ => 2,
        }
    }

    fn migrates(&self) -> bool {
        matches!(self.intent(), Intent::Migrate { .. })
    }

    /// Whether it is a migration in whose present step the source's users write.
    fn copies_beside_users(&self) -> bool {
        let holds = |step: &Step| match step {
            Step::Quiesce { .. } => Some(true),
            Step::Cast { read_only, .. } => Some(*read_only),
            _ => None,
        };
        self.migrates() && self.state.steps[..self.state.next].iter().rev().find_map(holds) != Some(true)
    }
}
