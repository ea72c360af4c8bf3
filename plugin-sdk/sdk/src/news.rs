//! What a driver tells without being asked.

use std::sync::Arc;

use tandem_contract::{InstanceId, Signal};

use crate::Host;

/// The way to tell the manager what changed by itself, for [`Driver::watch`](crate::Driver::watch).
#[derive(Clone)]
pub struct News(Arc<dyn Host>);

impl News {
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self(host)
    }

    /// An instance is not as it was. Never blocks; what is said often is looked at once.
    pub fn changed(&self, instance: InstanceId) {
        self.0.signal(Signal::Changed { instance });
    }
}
