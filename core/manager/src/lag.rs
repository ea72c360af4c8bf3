//! How far behind a replica is, by the manager's clock alone.

use crate::core::Core;
use crate::face::Lag;
use crate::model::Instance;

impl Core {
    /// 0 for the active itself, and while the last look found the active unchanged since the replica's newest point;
    /// else the seconds since that point, or since it was last known to be the present.
    pub fn lag(&self, replica: &Instance) -> Lag {
        use tandem_contract::ReplicaState;
        if replica.replica_state == Some(ReplicaState::Active) {
            return Lag { seconds: Some(0), bytes: Some(0) };
        }
        let fresh = self.board.freshness(replica.id);
        let now = self.clock.now();
        if fresh.unchanged_until.is_some_and(|until| now <= until) {
            return Lag { seconds: Some(0), bytes: Some(0) };
        }
        let since = replica.point.as_ref().map(|p| p.made_at).max(fresh.confirmed_at);
        Lag { seconds: since.map(|at| now.seconds_since(at)), bytes: fresh.lag_bytes }
    }
}
