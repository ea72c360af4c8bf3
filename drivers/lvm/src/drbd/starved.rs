//! Disks that were left because their thin pool was full: attached again, once there is room, without being asked.
//!
//! A disk that failed for another reason is a person's to judge. Which is which, is only seen while the pool is full: what was
//! not looked at meanwhile, and what a start of the server has forgotten, is attached when it is ensured or told to resync.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tandem_sdk::{Error, InstanceId, OpContext, Result, Role};

use super::status::Status;
use crate::Inner;
use crate::image::Image;

/// Instances whose disk was left while their pool was full. A hint for the next look, nothing more.
#[derive(Debug, Default)]
pub(crate) struct Starved(Mutex<HashSet<InstanceId>>);

impl Starved {
    fn all(&self) -> MutexGuard<'_, HashSet<InstanceId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Attaches a disk that was left for want of room, where there is room now. `true` when it did.
    pub(crate) async fn attach_again(&self, cx: &OpContext, image: &Image, status: Option<&Status>) -> bool {
        let id = image.meta.birth.instance;
        let left = status.is_some_and(|status| status.minor.is_some() && !status.is_attached());
        if !left {
            self.starved.all().remove(&id);
            return false;
        }
        if self.pool_trouble(&image.pool).is_some() {
            if self.lacks_room(&image.pool).is_some() {
                self.starved.all().insert(id);
            }
            return false;
        }
        if !self.starved.all().contains(&id) {
            return false;
        }
        match self.attached(cx, id).await {
            Ok(true) => {
                tracing::info!(instance = %id, "There is room in the pool again; its disk is attached.");
                self.starved.all().remove(&id);
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!(instance = %id, %error, "There is room in the pool again, but its disk is not attached.");
                false
            }
        }
    }

    /// Attaches what nobody is changing now. Whether it is attached.
    async fn attached(&self, cx: &OpContext, id: InstanceId) -> Result<bool> {
        let Some(mut locked) = self.lock_now(cx, id).await? else { return Ok(false) };
        if locked.image.meta.deleting || locked.image.meta.role == Role::Fenced {
            return Ok(false);
        }
        self.stack_up(cx, &mut locked.image).await?;
        Ok(self.status(cx, id).await?.is_some_and(|status| status.is_attached()))
    }

    /// Refuses to attach a disk whose pool is full, where users are served without it: the first write would fail it again,
    /// and in the middle of a resync leave nothing whole.
    ///
    /// # Errors
    /// `OutOfSpace`, with what to extend.
    pub(crate) fn require_fed(&self, image: &Image, status: Option<&Status>) -> Result<()> {
        let spared = image.meta.role == Role::Secondary || status.is_some_and(Status::peer_serves);
        match self.lacks_room(&image.pool).filter(|_| spared) {
            None => Ok(()),
            Some(trouble) => Err(Error::out_of_space(format!(
                "the disk of instance {} is not attached: the {trouble}",
                image.meta.birth.instance
            ))),
        }
    }
}
