//! What migrations put on a pool, and what is theirs to remove: snapshots, holds and bookmarks of their own, and copies.

use tandem_sdk::contract::Role;
use tandem_sdk::{ErrorKind, InstanceId, OpContext, Result};

use crate::image::{self, Found, Image, Version};
use crate::stream::{tolerate, tolerate_gone};
use crate::{Inner, error, lzc, names, tool};

impl Inner {
    /// Removes what ended migrations left: all that the one that goes on does not need.
    pub(crate) async fn forget_moves(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        let going_on = match (&image.meta.moving, image.meta.role) {
            (Some(moving), _) => Some(moving.destination),
            (None, Role::Destination) => Some(image.meta.spec.instance),
            (None, _) => None,
        };
        let ended = |to: InstanceId| going_on != Some(to);
        for version in &image.versions {
            self.destroy_moves(cx, version, |mark| {
                names::move_of(&mark.short).is_none_or(|(to, _)| ended(to))
            })
            .await?;
        }
        for version in &mut image.versions {
            for marks in [&mut version.moves, &mut version.trail] {
                marks.retain(|mark| going_on.is_some_and(|to| mark.goes_to(to)));
            }
        }
        Ok(())
    }

    /// Destroys those snapshots and bookmarks of migrations that `which` picks.
    pub(crate) async fn destroy_moves(
        &self,
        cx: &OpContext,
        version: &Version,
        which: impl Fn(&image::Mark) -> bool,
    ) -> Result<()> {
        for mark in version.trail.iter().filter(|mark| which(mark)) {
            let bookmark = format!("{}#{}", version.name, mark.short);
            tool::kernel(cx, "destroy", &bookmark, |bookmark| {
                tolerate(lzc::destroy_bookmark(bookmark), error::ENOENT)
            })
            .await?;
        }
        for mark in version.moves.iter().filter(|mark| which(mark)) {
            let snapshot = format!("{}@{}", version.name, mark.short);
            match self.destroy_snapshot(cx, &snapshot, mark.held).await {
                // Somebody reads it, such as a backup of the newest snapshot: it goes at a later call.
                Err(error) if error.kind == ErrorKind::Busy => {
                    tracing::info!(snapshot, "A snapshot of a migration is in use; it goes later.");
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Destroys a snapshot that may be held as ours.
    pub(crate) async fn destroy_snapshot(&self, cx: &OpContext, snapshot: &str, held: bool) -> Result<()> {
        tool::kernel(cx, "destroy", snapshot, move |snapshot| {
            if held {
                tolerate(tolerate_gone(lzc::release(snapshot, names::HOLD)), error::ESRCH)?;
            }
            tolerate_gone(lzc::destroy_snapshot(snapshot))
        })
        .await
    }

    /// Snapshots of somebody else that are at the other side of a migration as well: in a destination that never became
    /// active, what was carried there; in a source after the switch, what was carried away. They go with the instance.
    pub(crate) async fn copied(&self, cx: &OpContext, image: &Image) -> Vec<String> {
        let until = match image.meta.role {
            // What is newer than the newest round was made here.
            Role::Destination => {
                let arrived = image.versions.iter().filter_map(|v| v.moves.last()).map(|mark| mark.txg).max();
                arrived.unwrap_or(u64::MAX)
            }
            Role::Fenced if self.is_switched(cx, image).await.unwrap_or(false) => {
                image.meta.moving.as_ref().and_then(|moving| moving.carried).unwrap_or(0)
            }
            _ => return Vec::new(),
        };
        let of_version = |v: &Version| {
            // One that is held is to be kept, by whoever holds it.
            let carried = v.others.iter().filter(|mark| mark.txg <= until && !mark.held);
            carried.map(|mark| format!("{}@{}", v.name, mark.short)).collect::<Vec<_>>()
        };
        // Those of a source's own dataset hold nothing; a destination's were made here.
        let source = image.meta.role != Role::Destination;
        let hollow = image.hollow.iter().filter(|mark| source && mark.txg <= until && !mark.held);
        let hollow = hollow.map(|mark| format!("{}@{}", image.name, mark.short));
        image.versions.iter().flat_map(of_version).chain(hollow).collect()
    }

    /// Whether the users of a source are served by its destination now. The source may have been left before it could
    /// note that.
    pub(crate) async fn is_switched(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        let Some(moving) = &image.meta.moving else { return Ok(false) };
        if moving.switched || moving.carried.is_none() {
            return Ok(moving.switched);
        }
        let tree = tool::kernel(cx, "look at", &moving.dataset, lzc::look).await?;
        let found = image::parse(&moving.dataset, &tree)?;
        Ok(matches!(found, Found::Instance(there) if there.meta.role == Role::Active))
    }
}
