//! Instances in the group: found, locked, changed.

use std::path::PathBuf;
use std::time::Duration;

use tandem_sdk::{Error, InstanceId, Lock, OpContext, Result, Retry};

use crate::image::{self, Found, Image};
use crate::report::{LVS, Report, State, TAGS, Volume};
use crate::{Inner, names};

/// How long a changing call waits for the one before: a look that renews what users read of a replica takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// An instance that this call alone may change.
pub(crate) struct Locked {
    pub(crate) image: Image,
    /// Held until the call ends.
    _lock: Lock,
}

impl Inner {
    /// Where an instance is mounted, when it is.
    pub(crate) fn path(&self, id: InstanceId) -> PathBuf {
        self.config.mounts.join(id.to_string())
    }

    /// The volume of an instance, as LVM's commands name it.
    pub(crate) fn of(&self, id: InstanceId) -> String {
        self.config.of_group(&names::of_instance(id))
    }

    /// The thin pool, among what was reported.
    pub(crate) fn pool_of<'r>(&self, report: &'r Report) -> Result<&'r Volume> {
        let name = &self.config.thin_pool;
        match report.volume(name) {
            Some(pool) if pool.is_thin_pool() => Ok(pool),
            Some(_) => Err(Error::invalid(format!("`{}` is no thin pool", self.config.of_group(name)))
                .retry(Retry::AfterOperator)),
            None => Err(Error::unavailable(format!(
                "there is no thin pool `{}`; make it with `lvcreate --type thin-pool`, or see `pvs` for devices that are \
                 missing",
                self.config.of_group(name)
            ))
            .retry(Retry::AfterOperator)),
        }
    }

    /// Lets a suspended pool go on; `true` when it was.
    pub(crate) async fn wake_pool(&self, cx: &OpContext, pool: &Volume) -> Result<bool> {
        let suspended = pool.state == State::Suspended;
        if suspended {
            let name = self.config.of_group(&self.config.thin_pool);
            self.worker.run(cx, &["lvchange", "-y", "--refresh", &name]).await?;
        }
        Ok(suspended)
    }

    /// The thin pool, which more is to be taken of: awake, and known to be as full as it is.
    ///
    /// # Errors
    /// `OutOfSpace` when it is nearly full: once it is full, every share in it fails.
    pub(crate) async fn ready_pool(&self, cx: &OpContext) -> Result<Volume> {
        let name = self.config.of_group(&self.config.thin_pool);
        let words: Vec<&str> = LVS.iter().copied().chain([name.as_str()]).collect();
        let mut report = self.worker.report(cx, &words).await?;
        let pool = self.pool_of(&report)?;
        self.require_zeroes(pool)?;
        let asleep = self.wake_pool(cx, pool).await?;
        if pool.data.is_none() {
            self.worker.run(cx, &["lvchange", "-y", "-K", "-ay", &name]).await?;
        }
        if asleep || pool.data.is_none() {
            report = self.worker.report(cx, &words).await?;
        }
        let pool = self.pool_of(&report)?;
        self.require_room(pool)?;
        Ok(pool.clone())
    }

    /// Refuses a pool that hands out what others have left.
    pub(crate) fn require_zeroes(&self, pool: &Volume) -> Result<()> {
        if pool.zeroes() {
            return Ok(());
        }
        let name = self.config.of_group(&self.config.thin_pool);
        Err(Error::invalid(format!(
            "the thin pool `{name}` does not zero what it hands out, so that a share could read what another one left; \
             switch it on with `lvchange --zero y {name}`"
        ))
        .retry(Retry::AfterOperator))
    }

    /// Refuses a group with a pool in which nothing more is to be promised.
    fn require_room(&self, pool: &Volume) -> Result<()> {
        self.require_free(pool)?;
        let what = format!("metadata area of the volume group `{}`", self.config.group);
        let advice = "give it a larger one, as the driver's README tells";
        require_below(self.config.refuse_percent, &what, pool.group_metadata, advice)
    }

    /// Refuses a thin pool that is nearly full.
    pub(crate) fn require_free(&self, pool: &Volume) -> Result<()> {
        self.require_pool_below(self.config.refuse_percent, pool)
    }

    /// Refuses one that is soon to be so: what was removed to make room is not made again at once.
    pub(crate) fn require_much_free(&self, pool: &Volume) -> Result<()> {
        self.require_pool_below(self.config.warn_percent.midpoint(self.config.refuse_percent), pool)
    }

    fn require_pool_below(&self, percent: u8, pool: &Volume) -> Result<()> {
        let name = self.config.of_group(&self.config.thin_pool);
        for (what, full) in [("data", pool.data), ("metadata", pool.metadata)] {
            let what = format!("{what} of the thin pool `{name}`");
            require_below(percent, &what, full, "extend it with `lvextend`")?;
        }
        Ok(())
    }

    /// What the group says of an instance, by one command: its volume, and where the back end replicates what belongs to one
    /// beside that: the metadata of DRBD, and the snapshots that users read. Of one that does not replicate it is what a call
    /// that was cut has left.
    pub(crate) async fn look(&self, cx: &OpContext, id: InstanceId) -> Result<Found> {
        let mut names = vec![self.config.of_group(&self.config.thin_pool), self.of(id)];
        if self.config.drbd.is_some() {
            names.extend([self.metadata_of(id), self.view_of(id, 0), self.view_of(id, 1)]);
        }
        let words: Vec<&str> = LVS.iter().copied().chain(names.iter().map(String::as_str)).collect();
        let report = self.worker.report(cx, &words).await?;
        image::parse(&report, self.pool_of(&report)?, id)
    }

    /// Everything in the group.
    pub(crate) async fn all(&self, cx: &OpContext) -> Result<Report> {
        let words: Vec<&str> = LVS.iter().copied().chain([self.config.group.as_str()]).collect();
        self.worker.report(cx, &words).await
    }

    /// The tags of everything in the group. The kernel is not asked about each volume, as it is for what fills them.
    pub(crate) async fn tags(&self, cx: &OpContext) -> Result<Report> {
        self.worker.report(cx, &[&TAGS[..], &[self.config.group.as_str()]].concat()).await
    }

    /// An instance, to look at only.
    pub(crate) async fn find(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Image>> {
        match self.look(cx, id).await? {
            Found::Instance(image) => Ok(Some(*image)),
            Found::Nothing | Found::Foreign => Ok(None),
        }
    }

    /// [`find`](Self::find), where its absence is an error.
    pub(crate) async fn existing(&self, cx: &OpContext, id: InstanceId) -> Result<Image> {
        self.find(cx, id).await?.ok_or_else(|| self.missing(id))
    }

    /// An instance to change; `None` when it is not there.
    pub(crate) async fn lock(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Locked>> {
        let lock = Lock::within(cx, &self.config.run, id, PATIENCE).await?;
        self.locked(cx, id, lock).await
    }

    /// The same, at once or `Busy`.
    pub(crate) async fn lock_now(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Locked>> {
        let lock = Lock::at(&self.config.run, id)?;
        self.locked(cx, id, lock).await
    }

    async fn locked(&self, cx: &OpContext, id: InstanceId, lock: Lock) -> Result<Option<Locked>> {
        let Some(image) = self.find(cx, id).await? else {
            Lock::remove(&self.config.run, id);
            return Ok(None);
        };
        Ok(Some(Locked { image, _lock: lock }))
    }

    /// What is said where an instance should be. It says where, since an operator looks for it with LVM's tools.
    fn missing(&self, id: InstanceId) -> Error {
        Error::not_found(format!("there is no volume `{}` with Tandem's tag", self.of(id)))
    }

    /// [`lock`](Self::lock), where its absence is an error, and its being deleted one too.
    pub(crate) async fn lock_existing(&self, cx: &OpContext, id: InstanceId) -> Result<Locked> {
        let found = self.lock(cx, id).await?.ok_or_else(|| self.missing(id))?;
        if found.image.meta.deleting {
            return Err(Error::conflict(format!("instance {id} is being deleted")));
        }
        Ok(found)
    }

    /// Reads an instance again after it was changed.
    pub(crate) async fn refresh(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        *image = self.existing(cx, image.meta.birth.instance).await?;
        Ok(())
    }

    /// Makes what changed of the instance's data durable, by one command: all of it at once.
    pub(crate) async fn save(&self, cx: &OpContext, image: &mut Image) -> Result<()> {
        self.note(image)?;
        let wanted = image.meta.tags()?;
        let mut words = vec!["lvchange".to_owned(), "-y".to_owned()];
        words.extend(image.stored.difference(&wanted).map(|tag| format!("--deltag={tag}")));
        words.extend(wanted.difference(&image.stored).map(|tag| format!("--addtag={tag}")));
        if words.len() == 2 {
            return Ok(());
        }
        words.push(self.of(image.meta.birth.instance));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.worker.run(cx, &words).await?;
        image.stored = wanted;
        Ok(())
    }
}

/// `full` is in hundredths of a percent.
fn require_below(percent: u8, what: &str, full: Option<u32>, advice: &str) -> Result<()> {
    match full.filter(|full| *full >= u32::from(percent) * 100) {
        None => Ok(()),
        Some(full) => Err(Error::out_of_space(format!(
            "the {what} is {} % full, and from {percent} % on nothing more is promised; {advice}, or delete shares",
            full / 100
        ))),
    }
}

pub(crate) fn still_there(id: InstanceId) -> Error {
    Error::unavailable(format!("the volume of instance {id} is still there after it was removed; see `lvs`"))
}
