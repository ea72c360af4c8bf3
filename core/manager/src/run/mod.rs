//! Runs operations.

use std::time::Duration;

use crate::core::SharedCore;

pub(crate) fn start(_core: &SharedCore) {}

pub(crate) async fn stop(core: &SharedCore, _within: Duration) {
    core.stop.cancel();
}
