//! An instance whose volume is gone while the kernel still knows it: its disk was replaced by a blank one, and the group made
//! anew. Nothing says any more what it is to be, so that nothing of it is served or replicates.

use tandem_sdk::{InstanceId, OpContext, Result};

use super::settings::PROC;
use super::tools;
use crate::{Inner, mount, names};

impl Inner {
    /// Takes away what the kernel and the folders still have of an instance without a volume; also what a removal that was
    /// killed has left. `true` when there was anything.
    pub(crate) async fn clear(&self, cx: &OpContext, id: InstanceId) -> Result<bool> {
        let path = self.path(id);
        let closed = self.exporter.close(cx, &id.to_string(), &path).await?;
        let exporter = self.exporter.clone();
        let unmounted = cx.blocking(move |_| mount::unmount(&path, &exporter)).await?;
        if self.config.drbd.is_none() || !std::path::Path::new(PROC).exists() {
            return Ok(closed || unmounted);
        }
        let Some(status) = self.status(cx, id).await? else { return Ok(closed || unmounted) };
        if let Some(minor) = status.minor {
            if self.config.drbd.as_ref().is_some_and(|drbd| drbd.writable.is_some()) {
                cx.blocking(move |_| Self::end_heartbeat(minor)).await?;
            }
            if status.is_primary {
                tools::when_free(cx, &["secondary", &minor.to_string()]).await?;
            }
        }
        tools::setup(cx, &["down", &names::of_instance(id)]).await?;
        self.forget(id);
        tracing::warn!(instance = %id, "Its volume is gone; what the kernel had of it was taken away.");
        Ok(true)
    }
}
