//! The style `readable`: users read a follower from a snapshot of its volume.
//!
//! ```text
//! GROUP/tandem-<instance>.read0    one of the two is mounted, read-only, where the instance is exported; the other one is
//! GROUP/tandem-<instance>.read1    the last one while somebody still reads it, or what a call that was cut has left
//! ```
//!
//! A snapshot is one moment of the share, as a power cut would leave it: its journal is replayed before it is mounted. Which one
//! is shown, the kernel's list of mounts says; how old it is, a tag of it (`tandem:at`, seconds since 1970 by this host).
//! A look of the manager renews it, and so nothing is shown before the epoch was confirmed, nor by a driver whose manager
//! has gone.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tandem_sdk::{Error, ErrorKind, InstanceId, OpContext, Result};

use super::generation::Generation;
use super::status::Status;
use crate::image::Image;
use crate::meta::MARK;
use crate::mount::{self, Mounted};
use crate::report::{State, Volume};
use crate::{Inner, names};

/// When a snapshot was made.
const AT: &str = "tandem:at=";
/// How often, and how far apart, it is looked whether the last reader of what is to be deleted has gone: NFS clients that are
/// told off are gone in a moment.
const TRIES: u32 = 15;
const PAUSE: Duration = Duration::from_millis(200);

impl Inner {
    /// A snapshot for readers, as LVM's commands name it.
    pub(crate) fn view_of(&self, id: InstanceId, slot: usize) -> String {
        self.config.of_group(&names::view_of(id, slot))
    }

    /// The snapshot that is mounted where users read.
    pub(crate) fn view_there(&self, image: &Image) -> Option<(usize, Mounted)> {
        let there = mount::mounted(&self.path(image.meta.birth.instance))?;
        let is = |view: &Option<Volume>| view.as_ref().is_some_and(|v| v.device == Some(there.device));
        image.views.iter().position(is).map(|slot| (slot, there))
    }

    /// The same, where it works.
    fn shown(&self, image: &Image) -> Option<usize> {
        self.view_there(image).filter(|(_, there)| !there.stopped).map(|(slot, _)| slot)
    }

    /// Keeps what users read of a follower young, and removes what nobody reads any more. What stands in the way, for a
    /// person.
    pub(crate) async fn keep_shown(
        &self,
        cx: &OpContext,
        image: &Image,
        status: Option<&Status>,
    ) -> Result<Option<String>> {
        if !image.meta.is_readable() {
            return Ok(None);
        }
        let shown = self.shown(image);
        // What the share overwrites is kept by a snapshot as well: it must not be what fills the pool for all shares in it.
        let room = self.require_free(&image.pool);
        let shows = image.meta.is_shown() && status.is_some() && room.is_ok();
        // A command that was cut leaves the volume suspended, at which the active side's writers wait too.
        let asleep = image.volume.state == State::Suspended;
        let kept = usize::from(shown.is_some() && shows);
        let left = asleep || image.views.iter().flatten().count() > kept;
        let is_young = || shown.is_some_and(|slot| !self.is_old(image, slot));
        let taken = room.err().filter(|_| image.meta.is_shown()).map(|error| error.message);
        if !left && (!shows || is_young()) {
            return Ok(taken);
        }
        let mut locked = match self.lock_now(cx, image.meta.birth.instance).await {
            Ok(Some(locked)) => locked,
            Ok(None) => return Ok(None),
            // Another call changes it, and the next look comes.
            Err(e) if e.kind == ErrorKind::Busy => return Ok(None),
            Err(e) => return Err(e),
        };
        let image = &mut locked.image;
        self.wake(cx, image).await?;
        let shows = shows && image.meta.is_shown();
        let done = if shows { self.show(cx, image).await } else { self.hide(cx, image).await };
        match done {
            Ok(_) => Ok(taken),
            Err(error) => {
                cx.check()?;
                tracing::warn!(instance = %image.meta.birth.instance, %error, "What users read is not renewed.");
                Ok(Some(error.message))
            }
        }
    }

    /// Shows users what a follower holds now, where that is due.
    pub(crate) async fn show(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        if !image.meta.is_shown() {
            return Ok(false);
        }
        let id = image.meta.birth.instance;
        let status = self.status(cx, id).await?.unwrap_or_default();
        let path = self.path(id);
        cx.blocking(move |_| mount::uncover(&path)).await?;
        let shown = self.shown(image);
        let changed = self.drop_views(cx, image, shown).await?;
        if shown.is_some_and(|slot| !status.is_up_to_date() || !self.is_old(image, slot)) {
            return Ok(changed);
        }
        let Some(moment) = self.moment(cx, image, &status).await? else { return Ok(changed) };
        if shown.is_none() {
            self.require_much_free(&image.pool)?;
        }
        let slot = image.views.iter().position(Option::is_none).ok_or_else(|| still_read(image))?;
        self.make_view(cx, image, slot).await?;
        self.refresh(cx, image).await?;
        let status = self.status(cx, id).await?.unwrap_or_default();
        if self.moment(cx, image, &status).await? != Some(moment) {
            // The link was lost meanwhile: what came since came in no order. The next look removes it.
            return Ok(true);
        }
        let node = match image.views.get(slot) {
            Some(Some(view)) if mount::is_node_of(&view.node, view.device) => view.node.clone(),
            _ => {
                let view = self.view_of(id, slot);
                return Err(Error::unavailable(format!("the snapshot `{view}` was made and has no device")));
            }
        };
        let (path, filesystem) = (self.path(id), image.meta.birth.filesystem);
        filesystem.repair(cx, &node).await?;
        let before = self.exporter.revocable(&path).filter(|_| shown.is_some());
        cx.blocking(move |cx| {
            let mount = mount::detached(&node, filesystem)?;
            // The call may be gone by now, and somebody else may serve what was promoted meanwhile.
            cx.check()?;
            mount::replace(&path, &mount)
        })
        .await?;
        self.exporter.remounted(cx).await?;
        self.open_export(cx, image).await?;
        if let Some(before) = before {
            self.exporter.revoke(&before);
        }
        self.let_go(image, Some(slot));
        self.refresh(cx, image).await?;
        self.drop_views(cx, image, Some(slot)).await?;
        Ok(true)
    }

    /// Nobody is shown anything; what nobody reads any more is removed. Somebody on this host who still has a file open holds
    /// up nothing but the removal.
    pub(crate) async fn hide(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let mut changed = false;
        if self.view_there(image).is_some() {
            let (id, path) = (image.meta.birth.instance, self.path(image.meta.birth.instance));
            self.exporter.close(cx, &id.to_string(), &path).await?;
            changed = cx.blocking(move |_| mount::leave(&path)).await?;
            self.refresh(cx, image).await?;
        }
        match self.drop_views(cx, image, None).await {
            Ok(dropped) => Ok(dropped || changed),
            Err(error) => {
                cx.check()?;
                // Nobody is shown it any more, which is what counts; the next look removes it.
                tracing::warn!(instance = %image.meta.birth.instance, %error, "A snapshot of a replica is still there.");
                Ok(changed)
            }
        }
    }

    /// Removes every snapshot; who reads one is waited for a while.
    pub(crate) async fn end_views(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        for _ in 0..TRIES {
            self.hide(cx, image).await?;
            if image.views.iter().all(Option::is_none) {
                return Ok(());
            }
            cx.sleep(PAUSE).await?;
            self.refresh(cx, image).await?;
        }
        Err(still_read(image))
    }

    /// The generation that a follower holds a moment of that can be shown. None while it receives one, and none that the other
    /// side lacks.
    async fn moment(&self, cx: &OpContext, image: &Image, status: &Status) -> Result<Option<Generation>> {
        let own = self.generation_now(cx, image).await?;
        let holds = |own: &Generation| status.is_up_to_date() || (status.is_whole() && !own.has_own());
        Ok(own.filter(|own| holds(own) && !own.is_blank(image.meta.birth.resource)))
    }

    /// Whether what is shown is to be renewed: at the interval, and at twice of it where NFS clients have files open. What
    /// they read is then renewed below them.
    fn is_old(&self, image: &Image, slot: usize) -> bool {
        let (Ok(drbd), Some(Some(view))) = (self.drbd(), image.views.get(slot)) else { return false };
        let at = view.tags.iter().find_map(|tag| tag.strip_prefix(AT)?.parse::<u64>().ok());
        let is_read = || view.device.is_some_and(|device| self.exporter.has_readers(device));
        is_due(at, now(), drbd.readable_seconds, is_read)
    }

    async fn make_view(&self, cx: &OpContext, image: &Image, slot: usize) -> Result<()> {
        // It takes room as the share goes on being written.
        self.ready_pool(cx).await?;
        let id = image.meta.birth.instance;
        let (name, at, origin) = (names::view_of(id, slot), format!("{AT}{}", now()), self.of(id));
        let words = [
            "lvcreate", "-y", "-s", "-k", "y", "-K", "-n", &name, "--addtag", MARK, "--addtag", &at, &origin,
        ];
        self.worker.run(cx, &words).await
    }

    /// NFS clients let go of all snapshots but one.
    fn let_go(&self, image: &Image, keep: Option<usize>) {
        let others = image.views.iter().enumerate().filter(|(slot, _)| Some(*slot) != keep);
        for device in others.filter_map(|(_, view)| view.as_ref()?.device) {
            self.exporter.expire_device(device);
        }
    }

    /// Removes the snapshots but one that nobody reads. `true` when there was one.
    async fn drop_views(&self, cx: &OpContext, image: &mut Image, keep: Option<usize>) -> Result<bool> {
        let others: Vec<usize> = (0..image.views.len())
            .filter(|slot| image.views.get(*slot).is_some_and(Option::is_some))
            .collect();
        let others: Vec<usize> = others.into_iter().filter(|slot| Some(*slot) != keep).collect();
        if others.is_empty() {
            return Ok(false);
        }
        // The call that took it out of sight may have been cut before the server was told.
        self.exporter.remounted(cx).await?;
        self.let_go(image, keep);
        let (marked, mut changed) = (format!("lv_tags={MARK}"), false);
        for slot in others {
            let view = self.view_of(image.meta.birth.instance, slot);
            let Some(place) = image.views.get_mut(slot) else { continue };
            // LVM would wait for whoever has it open.
            if place.as_ref().is_some_and(Volume::is_open) {
                continue;
            }
            self.worker.run(cx, &["lvremove", "-y", "-S", &marked, &view]).await?;
            *place = None;
            changed = true;
        }
        Ok(changed)
    }
}

fn still_read(image: &Image) -> Error {
    let node = image.views.iter().flatten().map(|view| view.node.as_str()).find(|node| !node.is_empty());
    Error::busy(format!(
        "a program on this host still has files open in an earlier snapshot of instance {}; end it (`fuser -vm {}` shows it)",
        image.meta.birth.instance,
        node.unwrap_or("its device")
    ))
}

/// Seconds since 1970, by this host.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a snapshot made at `at` is to be renewed. A clock that was set back makes it so too.
fn is_due(at: Option<u64>, now: u64, interval: u32, is_read: impl FnOnce() -> bool) -> bool {
    let interval = u64::from(interval);
    match at.and_then(|at| now.checked_sub(at)) {
        None => true,
        Some(age) => age >= interval && (age >= 2 * interval || !is_read()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_left_alone_for_one_interval_more() {
        for (at, is_read, due) in [
            (Some(100), false, false),
            (Some(50), false, false),
            (Some(40), false, true),
            (Some(40), true, false),
            (Some(0), true, false),
            (Some(101), false, true),
            (None, true, true),
        ] {
            assert_eq!(is_due(at, 100, 60, || is_read), due, "{at:?} {is_read}");
        }
        assert!(is_due(Some(0), 120, 60, || true) && is_due(Some(500), 120, 60, || true));
    }
}
