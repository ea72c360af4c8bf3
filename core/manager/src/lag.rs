//! How far behind a replica is, by the manager's clock alone.

use crate::core::Core;
use crate::face::Lag;
use crate::model::Instance;

impl Core {
    /// Seconds since the newest point, counted from when the active was last known to be unchanged since that point;
    /// 0 for the active itself.
    pub fn lag(&self, replica: &Instance) -> Lag {
        use tandem_contract::ReplicaState;
        if replica.replica_state == Some(ReplicaState::Active) {
            return Lag { seconds: Some(0), bytes: Some(0) };
        }
        let fresh = self.board.freshness(replica.id);
        let since = replica.point.as_ref().map(|p| p.made_at).max(fresh.confirmed_at);
        Lag { seconds: since.map(|at| self.clock.now().seconds_since(at)), bytes: fresh.lag_bytes }
    }
}
