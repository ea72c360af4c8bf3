//! Growth, of the layer between volume and file system.

use tandem_sdk::{Error, ErrorKind, OpContext, Result, Role, Style};

use super::peers::record_of;
use super::status::Status;
use super::{stack, tools};
use crate::Inner;
use crate::image::Image;

/// How often, and how far apart, it is looked whether both sides have agreed on a size.
const TRIES: u32 = 100;
/// The same where the other side may be about to grow.
const FEW: u32 = 10;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

impl Inner {
    /// Ends the growth of a side whose peer, active as well, grew after it. What could not be ended now is at the next look.
    pub(crate) async fn end_growth(&self, cx: &OpContext, image: &Image) {
        let meta = &image.meta;
        if !meta.growing || !meta.birth.filesystem.is_shared() || meta.role != Role::Active {
            return;
        }
        let ended = async {
            if self.lags(cx, image).await? {
                return Ok(());
            }
            let Some(mut locked) = self.lock_now(cx, meta.birth.instance).await? else { return Ok(()) };
            self.grow(cx, &mut locked.image).await
        };
        let ended: Result<()> = ended.await;
        match ended {
            Err(error) if error.kind != ErrorKind::Busy => {
                tracing::warn!(instance = %meta.birth.instance, %error, "Its file system has not grown yet.");
            }
            _ => {}
        }
    }

    /// Whether DRBD uses less of its volume than the instance's size.
    pub(crate) async fn lags(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        let status = self.status(cx, image.meta.birth.instance).await?;
        let wanted = stack::sectors(image.meta.size_bytes);
        Ok(status.is_some_and(|status| status.size_kib.saturating_mul(2) < wanted))
    }

    /// Lets DRBD use what its volume has grown by, on both sides: the other one has grown before. What is new was never
    /// written to, reads as zeros here and there, and is not carried. `false` where two sides are active, and the other one's
    /// volume is to grow yet.
    pub(crate) async fn grow_stack(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        if image.meta.record.is_none() {
            return Ok(true);
        }
        let (id, record) = (image.meta.birth.instance, record_of(image)?);
        let wanted = stack::sectors(image.meta.size_bytes);
        let is_large = |status: &Status| status.size_kib.saturating_mul(2) >= wanted;
        let status = self.status(cx, id).await?.unwrap_or_default();
        if is_large(&status) {
            return Ok(true);
        }
        if record.peer.is_some() && !status.is_connected() {
            return Err(Error::unavailable(format!(
                "instance {id} grows once its peer is connected again: both sides need to be of one size"
            )));
        }
        let (minor, size) = (record.minor.to_string(), format!("--size={wanted}s"));
        // Alone the kernel marks what is new as changed, and finds zeros when it comes to carry them.
        let how = if record.peer.is_none() { "--assume-peer-has-space" } else { "--assume-clean" };
        tools::setup(cx, &["resize", &minor, &size, how]).await?;
        let waits = record.style == Style::Writable && status.peer_is_primary;
        for _ in 0..if waits { FEW } else { TRIES } {
            if self.status(cx, id).await?.as_ref().is_some_and(is_large) {
                return Ok(true);
            }
            cx.sleep(PAUSE).await?;
        }
        if waits {
            return Ok(false);
        }
        Err(Error::unavailable(format!(
            "instance {id} has not grown: its peer is smaller than {} bytes still; resize it again",
            image.meta.size_bytes
        )))
    }
}
