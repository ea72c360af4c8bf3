//! Carries what a source holds to a destination on another pool of the same host: snapshot after snapshot, in order, so
//! that the destination comes to have those of other people too.
//!
//! ```text
//! lzc_send ──> pipe ──> lzc_receive
//! ```
//! A bookmark is made of every snapshot before it goes, and is where the next one starts: whoever made the snapshot may
//! destroy it at any time.

use std::os::fd::AsFd;

use tandem_sdk::{Error, InstanceId, OpContext, Result, Retry};

use crate::apart::{Apart, Way};
use crate::image::{Image, Mark, Version};
use crate::lzc::{self, Flags};
use crate::pump;
use crate::stream::{content, tolerate};
use crate::token::Token;
use crate::{Inner, error, names, tool};

/// One stream: from a snapshot or bookmark, where there is one, to a snapshot.
struct Leg {
    from: Option<String>,
    snapshot: String,
    target: String,
    flags: Flags,
    /// Object and offset to go on at.
    at: Option<(u64, u64)>,
}

/// The number of the destination's dataset.
pub(crate) const FIRST: u64 = 1;

/// What has arrived.
pub(crate) fn arrived(dest: &Image) -> Option<&Version> {
    dest.versions.iter().find(|v| v.number == FIRST)
}

/// The newest snapshot of a destination, whoever made it.
fn newest(dest: &Image) -> Option<&Mark> {
    let version = arrived(dest)?;
    version.others.iter().chain(&version.moves).max_by_key(|mark| mark.txg)
}

/// Before this transaction group a destination's snapshots came from the source, which may have lost them since: a stream
/// builds on the newest one only. What is newer was made by somebody there.
pub(crate) fn carried_until(source: &Version, arrived: &Version) -> u64 {
    let knows = |mark: &&Mark| {
        let mut all = source.others.iter().chain(&source.moves).chain(&source.trail);
        all.any(|other| other.guid == mark.guid)
    };
    arrived.others.iter().chain(&arrived.moves).filter(knows).map(|mark| mark.txg).max().unwrap_or(0)
}

impl Inner {
    /// One round: everything up to a moment of now, or up to that of a round that was cut. The bytes that went; `before` of
    /// them went in earlier rounds and count in the progress. Both images are read anew.
    pub(crate) async fn advance(
        &self,
        cx: &OpContext,
        there: &Self,
        source: &mut Image,
        dest: &mut Image,
        before: u64,
    ) -> Result<u64> {
        let to = dest.meta.spec.instance;
        self.align(cx, there, source, dest).await?;
        let target = self.moment(cx, source, dest, to).await?;
        let version = content(source)?;
        let older = |mark: &&Mark| mark.txg < target.txg;
        let mut todo: Vec<Mark> = version.others.iter().filter(older).cloned().collect();
        todo.push(target.clone());
        let mut base = base(version, dest)?;
        if let Some((_, mark)) = &base {
            todo.retain(|next| next.txg > mark.txg);
        }
        let total = self.size(cx, version, base.as_ref(), &todo).await;
        let mut bytes = 0;
        for next in todo {
            if !self.note(cx, version, &next, to).await? && next != target {
                continue; // somebody destroyed it meanwhile
            }
            let flags = Flags { embedded: !dest.encrypted, raw: version.encrypted, ..Flags::whole() };
            let mut leg = Leg {
                from: base.as_ref().map(|(name, _)| name.clone()),
                snapshot: format!("{}@{}", version.name, next.short),
                target: format!("{}/{}@{}", dest.name, names::of_version(FIRST), next.short),
                flags,
                at: None,
            };
            there
                .go_on(cx, dest, &mut leg, next.guid, base.as_ref().map_or(0, |(_, mark)| mark.guid))
                .await?;
            tool::alive(&leg.snapshot)?;
            tool::alive(&leg.target)?;
            let done = before.saturating_add(bytes);
            let total = total.map(|total| before.saturating_add(total));
            bytes += cx.blocking(move |cx| carry(cx, leg, done, total)).await?;
            base = Some((format!("{}#{}", version.name, names::of_move(to, next.txg)), next));
            there.refresh(cx, dest).await?;
            base = base.map(|(bookmark, mark)| (self.still(version, &mark).unwrap_or(bookmark), mark));
        }
        if newest(dest).map(|mark| mark.guid) != Some(target.guid) {
            return Err(Error::unavailable(format!("`{}` is not there after it arrived", target.short))
                .retry(Retry::Safe));
        }
        self.refresh(cx, source).await?;
        let passed = |mark: &Mark| mark.goes_to(to) && mark.txg < target.txg;
        self.destroy_moves(cx, content(source)?, passed).await?;
        if let Some(version) = arrived(dest) {
            let old = |mark: &Mark| mark.goes_to(to) && mark.guid != target.guid;
            there.destroy_moves(cx, version, old).await?;
        }
        there.refresh(cx, dest).await?;
        self.refresh(cx, source).await?;
        Ok(bytes)
    }

    /// Gives the destination's snapshots of other people the names that they have at the source now, and destroys those that
    /// were destroyed there: their names may be those of others by now.
    async fn align(&self, cx: &OpContext, there: &Self, source: &Image, dest: &mut Image) -> Result<()> {
        let Some(version) = arrived(dest) else { return Ok(()) };
        let (name, to) = (version.name.clone(), dest.meta.spec.instance);
        let current = content(source)?;
        let called = |mark: &Mark| {
            let kept = current.others.iter().find(|other| other.guid == mark.guid);
            kept.map(|other| other.short.as_str())
        };
        let known = |mark: &Mark| current.trail.iter().any(|other| other.guid == mark.guid);
        let until = carried_until(current, version);
        let rename = async |from: &str, to: &str| {
            let (from, to) = (format!("{name}@{from}"), format!("{name}@{to}"));
            tool::zfs(cx, &name, &["rename", &from, &to]).await.map(drop)
        };
        let mut changed = false;
        for mark in version.others.iter().filter(|mark| called(mark) != Some(mark.short.as_str())) {
            if called(mark).is_none() && mark.txg < until {
                changed = true;
                there.destroy_snapshot(cx, &format!("{name}@{}", mark.short), false).await?;
            } else if called(mark).is_some() || known(mark) {
                // Two may have changed names with each other; and the next stream builds on the newest.
                changed = true;
                rename(&mark.short, &names::of_move(to, mark.guid)).await?;
            }
        }
        if changed {
            there.refresh(cx, dest).await?;
        }
        let aside = arrived(dest).map(|version| version.moves.clone()).unwrap_or_default();
        let back = aside.iter().filter_map(|mark| Some((mark, called(mark)?)));
        for (mark, name) in back {
            changed = true;
            rename(&mark.short, name).await?;
        }
        if changed {
            there.refresh(cx, dest).await?;
        }
        Ok(())
    }

    /// The name of a snapshot that is still there.
    fn still(&self, version: &Version, mark: &Mark) -> Option<String> {
        let name = format!("{}@{}", version.name, mark.short);
        lzc::exists(&name).then_some(name)
    }

    /// The moment to carry: that of a round that was cut, else a new snapshot, held.
    async fn moment(&self, cx: &OpContext, source: &mut Image, dest: &Image, to: InstanceId) -> Result<Mark> {
        let version = content(source)?;
        let of_this = |version: &Version| version.moves.iter().rev().find(|mark| mark.goes_to(to)).cloned();
        let last = of_this(version);
        let has = |mark: &Mark| arrived(dest).is_some_and(|v| v.moves.iter().any(|m| m.guid == mark.guid));
        let number = match &last {
            Some(mark) if !has(mark) => names::move_of(&mark.short).map_or(0, |(_, number)| number),
            Some(mark) => names::move_of(&mark.short).map_or(0, |(_, number)| number) + 1,
            None => 1,
        };
        let snapshot = format!("{}@{}", version.name, names::of_move(to, number));
        self.replay(cx, source).await?;
        tool::kernel(cx, "snapshot", &snapshot, |snapshot| {
            tolerate(lzc::snapshot(snapshot), error::EEXIST)?;
            tolerate(lzc::hold(snapshot, names::HOLD), error::EEXIST)
        })
        .await?;
        self.refresh(cx, source).await?;
        of_this(content(source)?).ok_or_else(|| {
            Error::unavailable(format!("the snapshot `{snapshot}` vanished while it was made"))
                .retry(Retry::Safe)
        })
    }

    /// Bookmarks a snapshot; `false` when it is not there any more.
    async fn note(&self, cx: &OpContext, version: &Version, mark: &Mark, to: InstanceId) -> Result<bool> {
        let (snapshot, bookmark) = (
            format!("{}@{}", version.name, mark.short),
            format!("{}#{}", version.name, names::of_move(to, mark.txg)),
        );
        tool::kernel(cx, "bookmark", &snapshot, move |snapshot| match lzc::bookmark(&bookmark, snapshot) {
            // The pool may lack the feature; then the snapshot has to stay.
            Ok(()) | Err(error::EEXIST | error::ENOTSUP) => Ok(lzc::exists(snapshot)),
            Err(error::ENOENT | error::ESRCH) => Ok(false),
            Err(other) => Err(other),
        })
        .await
    }

    /// About how many bytes will go.
    async fn size(
        &self,
        cx: &OpContext,
        version: &Version,
        base: Option<&(String, Mark)>,
        todo: &[Mark],
    ) -> Option<u64> {
        let mut from = base.map(|(name, _)| name.clone());
        let snapshots: Vec<String> = todo.iter().map(|m| format!("{}@{}", version.name, m.short)).collect();
        let flags = Flags { raw: version.encrypted, ..Flags::whole() };
        let sizes = cx.blocking(move |_| {
            let mut total = 0u64;
            for snapshot in snapshots {
                // An estimate that the kernel cannot make is not worth failing for.
                let Ok(bytes) = lzc::send_space(&snapshot, from.as_deref(), flags) else { return Ok(None) };
                total = total.saturating_add(bytes);
                from = Some(snapshot);
            }
            Ok(Some(total))
        });
        sizes.await.ok().flatten()
    }

    /// Lets a leg go on where it was cut, if what is half there is of it; else that is thrown away.
    async fn go_on(&self, cx: &OpContext, dest: &mut Image, leg: &mut Leg, to: u64, from: u64) -> Result<()> {
        let Some((name, text)) = arrived(dest).and_then(|v| Some((v.name.clone(), v.token.clone()?))) else {
            return Ok(());
        };
        match Token::parse(&text).filter(|token| (token.to, token.from) == (to, from)) {
            Some(token) => {
                leg.flags = token.flags();
                leg.at = Some((token.object, token.offset));
            }
            None => {
                tool::zfs(cx, &name, &["receive", "-A", &name]).await?;
                self.refresh(cx, dest).await?;
            }
        }
        Ok(())
    }
}

/// What the next stream builds on: the newest that has arrived, as the source still has it.
fn base(version: &Version, dest: &Image) -> Result<Option<(String, Mark)>> {
    let Some(there) = newest(dest) else { return Ok(None) };
    let same = |mark: &&Mark| mark.guid == there.guid;
    if let Some(mark) = version.others.iter().chain(&version.moves).find(same) {
        return Ok(Some((format!("{}@{}", version.name, mark.short), mark.clone())));
    }
    if let Some(mark) = version.trail.iter().find(same) {
        return Ok(Some((format!("{}#{}", version.name, mark.short), mark.clone())));
    }
    Err(Error::conflict(format!(
        "the destination has the snapshot `{}/{}@{}`, which the source does not know; if somebody made it there, destroy it, \
         else cancel the migration and start it again",
        dest.name,
        names::of_version(FIRST),
        there.short
    ))
    .retry(Retry::AfterOperator))
}

/// Runs one stream through; the bytes that went.
fn carry(cx: &OpContext, leg: Leg, before: u64, total: Option<u64>) -> Result<u64> {
    let (read, write) = pump::pipe()?;
    let (snapshot, target) = (leg.snapshot.clone(), leg.target.clone());
    let sending = Apart::run(&snapshot, Way::Out, write, move |to| {
        pump::sent(to, lzc::send(&leg.snapshot, leg.from.as_deref(), to.as_fd(), leg.flags, leg.at))
    })?;
    let receiving = Apart::run(&target, Way::In, read, move |from| {
        lzc::receive(&leg.target, leg.flags.raw, None, from.as_fd())
    })?;
    let sent = sending.watch(cx, before, Some(&target), total);
    // A sender that hangs in a pool that stopped keeps its end of the pipe open.
    let received = if sent.is_ok() { receiving.end() } else { receiving.stop() };
    match (received, sent) {
        // The kernel says so once it has seen the last record, and proven every one of them.
        (Ok(Ok(())), sent) => Ok(sent.map_or(0, |(_, bytes)| bytes)),
        (_, Err(stop)) => Err(stop),
        (Err(stopped), Ok(_)) => Err(stopped),
        // The sender's own reason comes first: the receiver then sees a stream that ends early.
        (Ok(Err(_)), Ok((Err(errno), _))) if errno != error::EPIPE => {
            Err(error::of_errno("send", &snapshot, errno))
        }
        (Ok(Err(errno)), Ok(_)) => {
            let error = error::of_errno("receive", &target, errno);
            // Somebody gave a snapshot that name, or renamed one, while it went: the next round begins with that.
            Err(if errno == error::EEXIST { error.retry(Retry::Safe) } else { error })
        }
    }
}
