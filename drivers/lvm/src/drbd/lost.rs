//! An instance whose volume is gone while the kernel still knows it: its disk was replaced by a blank one, and the group made
//! anew. Nothing says any more what it is to be, so that nothing of it is served or replicates.

use tandem_sdk::{Error, InstanceId, OpContext, Result, Retry};

use super::settings::{Drbd, PROC};
use super::status::Status;
use super::tools;
use crate::{Inner, mount, names};

impl Inner {
    /// Takes away what the kernel and the folders still have of an instance without a volume; also what a removal that was
    /// killed has left. `true` when there was anything.
    ///
    /// # Errors
    /// `Unavailable` where the kernel has its disk, so that LVM does not tell the truth, or holds its writers back.
    pub(crate) async fn clear(&self, cx: &OpContext, id: InstanceId) -> Result<bool> {
        let status = match &self.config.drbd {
            Some(drbd) if std::path::Path::new(PROC).exists() => {
                self.status(cx, id).await?.filter(|status| is_of(drbd, status))
            }
            _ => None,
        };
        if let Some(status) = &status {
            require_lost(id, status)?;
        }
        let path = self.path(id);
        let closed = self.exporter.close(cx, &id.to_string(), &path).await?;
        let exporter = self.exporter.clone();
        let unmounted = cx.blocking(move |_| mount::unmount(&path, &exporter)).await?;
        self.forget(id);
        let Some(status) = status else { return Ok(closed || unmounted) };
        if let Some(minor) = status.minor {
            if self.config.drbd.as_ref().is_some_and(|drbd| drbd.writable.is_some()) {
                cx.blocking(move |_| Self::end_heartbeat(minor)).await?;
            }
            if status.is_primary {
                tools::when_free(cx, &["secondary", &minor.to_string()]).await?;
            }
        }
        tools::setup(cx, &["down", &names::of_instance(id)]).await?;
        tracing::warn!(instance = %id, "Its volume is gone; what the kernel had of it was taken away.");
        Ok(true)
    }
}

/// Whether it is one of this back end's: names of resources are those of the host.
fn is_of(drbd: &Drbd, status: &Status) -> bool {
    let [first, last] = drbd.minors;
    status.minor.is_none_or(|minor| (first..=last).contains(&minor))
}

/// Refuses where what the kernel has is more than a remnant.
fn require_lost(id: InstanceId, status: &Status) -> Result<()> {
    let why = if status.is_attached() {
        "while the kernel has its disk: see `pvs`, `lvs` and the setting `group`"
    } else if status.is_suspended {
        "and the kernel holds its writers back: let it see its peer again, or restart its host"
    } else {
        return Ok(());
    };
    Err(Error::unavailable(format!("LVM shows no volume of instance {id}, {why}"))
        .retry(Retry::AfterOperator))
}
