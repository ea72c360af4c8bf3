//! Whose disk is the newest: asked of the peer before users are served.
//!
//! A disk that failed was left, and the active side went on with its peer's. After a boot that disk may be back, older than what
//! users were told. The kernel finds this out when the two sides meet, and not before: so they are let meet first. Where the
//! peer does not answer, a tag tells, set as soon as the disk was seen to be gone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tandem_sdk::{Error, InstanceId, OpContext, Result, Role};

use super::record::Peer;
use super::status::Status;
use crate::Inner;
use crate::image::Image;

/// So long a peer has to answer. Two kernels that reach each other need a second or two.
const LONG: Duration = Duration::from_secs(15);
/// The same, of a host that just now did not answer for another share: a hundred shares are served soon.
const SHORT: Duration = Duration::from_secs(3);
/// So long that is remembered.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Hosts of peers that did not answer, and when. A hint for how long to wait, nothing more.
#[derive(Debug, Default)]
pub(crate) struct Silent(Mutex<HashMap<IpAddr, Instant>>);

impl Silent {
    fn all(&self) -> MutexGuard<'_, HashMap<IpAddr, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn patience(&self, host: IpAddr) -> Duration {
        if self.all().get(&host).is_some_and(|at| at.elapsed() < REMEMBERED) { SHORT } else { LONG }
    }

    fn note(&self, host: IpAddr, answered: bool) {
        if answered {
            self.all().remove(&host);
        } else {
            self.all().insert(host, Instant::now());
        }
    }
}

impl Inner {
    /// Waits for the peer, for a bounded time; what the kernel says then.
    pub(crate) async fn handshake(&self, cx: &OpContext, id: InstanceId, peer: &Peer) -> Result<Status> {
        let until = Instant::now() + self.silent.patience(peer.at.ip());
        loop {
            let status = self.status(cx, id).await?.unwrap_or_default();
            if status.has_agreed() || status.stands_alone() {
                self.silent.note(peer.at.ip(), true);
                return Ok(status);
            }
            if Instant::now() >= until {
                self.silent.note(peer.at.ip(), false);
                return Ok(status);
            }
            cx.sleep(PAUSE).await?;
        }
    }

    /// Refuses to serve users what is known to be older than what they were told.
    pub(crate) async fn require_newest(&self, cx: &OpContext, image: &Image) -> Result<()> {
        let id = image.meta.birth.instance;
        let Some(record) = &image.meta.record else { return Ok(()) };
        let mut status = self.status(cx, id).await?.unwrap_or_default();
        if status.is_primary {
            return Ok(());
        }
        if let Some(peer) = &record.peer {
            status = self.handshake(cx, id, peer).await?;
        }
        if record.diskless && !status.is_connected() {
            return Err(Error::unavailable(format!(
                "the disk of instance {id} was left while it was served from its peer, and what lies here is older than what \
                 its users were told; it is served once that peer answers. Where it never comes back, say with `lvchange \
                 --deltag tandem:diskless=yes {}` that the older data is to be served",
                self.of(id)
            )));
        }
        Ok(())
    }

    /// Keeps in mind whether the active side is served from its peer. What could not be noted now is noted at the next look.
    pub(crate) async fn note_disk(&self, cx: &OpContext, image: &Image, status: Option<&Status>) {
        let Some((is, was)) = differs(image, status) else { return };
        if is == was {
            return;
        }
        let noted = async {
            let Some(mut locked) = self.lock(cx, image.meta.birth.instance).await? else { return Ok(()) };
            let image = &mut locked.image;
            let status = self.status(cx, image.meta.birth.instance).await?;
            if let Some((is, _)) = differs(image, status.as_ref())
                && let Some(record) = image.meta.record.as_mut()
            {
                record.diskless = is;
            }
            self.save(cx, image).await
        };
        let noted: Result<()> = noted.await;
        if let Err(error) = noted {
            tracing::debug!(instance = %image.meta.birth.instance, %error, "The state of its disk was not noted.");
        }
    }
}

/// Whether an active side is served from its peer, and whether that is noted; `None` where nobody can tell now.
fn differs(image: &Image, status: Option<&Status>) -> Option<(bool, bool)> {
    let (record, status) = (image.meta.record.as_ref()?, status?);
    if image.meta.role != Role::Active || image.meta.deleting || !status.is_connected() {
        return None;
    }
    if !status.is_attached() {
        return Some((status.is_primary, record.diskless));
    }
    status.is_up_to_date().then_some((false, record.diskless))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_host_is_not_waited_for_again_and_again() {
        let (silent, host) = (Silent::default(), "192.0.2.1".parse().unwrap());
        assert_eq!(silent.patience(host), LONG);
        silent.note(host, false);
        assert_eq!(silent.patience(host), SHORT);
        assert_eq!(silent.patience("192.0.2.2".parse().unwrap()), LONG);
        silent.note(host, true);
        assert_eq!(silent.patience(host), LONG);
    }
}
