//! Two sides of a share that are written to at once and lose each other: the kernel holds all writes back on both, until the
//! arbiter has told one of them to go on.
//!
//! The kernel is armed for it (`--fencing=resource-and-stonith`, an option of the disk) as soon as a peer is named. It then starts
//! `tandem-fence-peer`, which asks by the note that is kept here; also before it makes a side primary whose peer is away. A side
//! is set free by that program's yes, or by a promotion at a higher epoch, and by nothing else; one that lost goes down with its
//! host (o2cb), and comes back as a secondary.

use std::path::Path;

use tandem_sdk::command::Command;
use tandem_sdk::contract::Health;
use tandem_sdk::files::failed;
use tandem_sdk::{Error, ErrorKind, InstanceId, OpContext, Result, Retry, Role, Style};

use super::record::Record;
use super::status::Status;
use super::tools;
use crate::image::Image;
use crate::note::{self, Answered, FOLDER, Note};
use crate::{Inner, names, program};

/// Holds writes back when the peer is lost, and asks.
const ARMED: &str = "--fencing=resource-and-stonith";
const DISARMED: &str = "--fencing=dont-care";

/// Whether another side may be written to as well.
fn has_two(record: &Record) -> bool {
    record.style == Style::Writable && record.peer.is_some()
}

/// Whether this side must not go on alone by itself.
fn is_bound(image: &Image) -> bool {
    let meta = &image.meta;
    meta.role == Role::Active && !meta.deleting && meta.record.as_ref().is_some_and(has_two)
}

/// What attaching its disk is told more: who was cut off while its host was down is asked for before it is primary.
pub(super) fn attach_words(image: &Image) -> &'static [&'static str] {
    if is_bound(image) { &[ARMED] } else { &[] }
}

impl Inner {
    /// Keeps the note in line with what the instance is to be. Before its tags: a note that is ahead of them asks at an epoch
    /// that was raised already, one that is behind would lose.
    pub(crate) fn note(&self, image: &Image) -> Result<()> {
        let Some(record) = image.meta.record.as_ref().filter(|record| record.style == Style::Writable) else {
            return Ok(());
        };
        let path = note::path(Path::new(FOLDER), &names::of_instance(image.meta.birth.instance));
        if !is_bound(image) {
            let _ = std::fs::remove_file(path);
            return Ok(());
        }
        let arbiter = &self.writable()?.arbiter;
        let wanted = Note {
            instance: image.meta.birth.instance.to_string(),
            epoch: image.meta.epoch.0,
            minor: record.minor,
            url: arbiter.url.clone(),
            secret_file: arbiter.secret_file.clone(),
            ca_file: arbiter.ca_file.clone(),
        };
        if note::read(&path).is_ok_and(|there| there.as_ref() == Some(&wanted)) {
            return Ok(());
        }
        note::write(&path, &wanted).map_err(|e| failed("write", &path, &e))
    }

    /// Nothing of its resource is in the kernel any more.
    pub(super) fn forget(&self, id: InstanceId) {
        let (folder, name) = (Path::new(FOLDER), names::of_instance(id));
        let _ = std::fs::remove_file(note::path(folder, &name));
        let _ = std::fs::remove_file(note::answered(folder, &name));
    }

    fn writable(&self) -> Result<&super::writable::Writable> {
        self.drbd()?.writable.as_ref().ok_or_else(|| {
            Error::unavailable(
                "shares of the style `writable` need the setting `drbd.writable`: without an arbiter both sides would go on \
                 once they lose each other",
            )
            .retry(Retry::AfterOperator)
        })
    }

    /// From now on writes are held back where the peer is lost: before the other side may be written to. While the two do not
    /// see each other it holds nothing back that was not held back before. Nothing to do in other styles, or without a disk, since
    /// what has none acknowledges nothing alone.
    pub(super) async fn arm(&self, cx: &OpContext, image: &Image) -> Result<()> {
        if !is_bound(image) {
            return Ok(());
        }
        match self.status(cx, image.meta.birth.instance).await? {
            Some(status) if status.is_attached() => self.set_fencing(cx, &status, ARMED).await,
            _ => Ok(()),
        }
    }

    /// The peer is left in order: nobody is asked any more when it is away.
    pub(super) async fn disarm(&self, cx: &OpContext, image: &Image) -> Result<()> {
        if image.meta.record.as_ref().is_none_or(|record| record.style != Style::Writable) {
            return Ok(());
        }
        match self.status(cx, image.meta.birth.instance).await? {
            Some(status) if status.is_attached() => {
                require_free(image, Some(&status))?;
                self.set_fencing(cx, &status, DISARMED).await
            }
            _ => Ok(()),
        }
    }

    async fn set_fencing(&self, cx: &OpContext, status: &Status, how: &str) -> Result<()> {
        let Some(minor) = status.minor else { return Ok(()) };
        tools::setup(cx, &["disk-options", &minor.to_string(), how]).await.map(drop)
    }

    /// It was decided that this active side goes on, at an epoch higher than the one at which it lost the other. `leave`: without
    /// hearing of the other one before somebody says so.
    pub(super) async fn go_on(&self, cx: &OpContext, image: &mut Image, leave: bool) -> Result<()> {
        let id = image.meta.birth.instance;
        let Some(status) = self.status(cx, id).await?.filter(|status| status.is_suspended) else {
            return Ok(());
        };
        if leave {
            self.cut(cx, id).await?;
            if let Some(record) = image.meta.record.as_mut() {
                record.peer = None;
            }
            self.save(cx, image).await?;
        }
        if let Some(minor) = status.minor {
            tools::setup(cx, &["resume-io", &minor.to_string()]).await?;
            tracing::warn!(instance = %id, epoch = %image.meta.epoch, "It was cut off from its peer, and goes on without it.");
        }
        if leave { self.disarm(cx, image).await } else { Ok(()) }
    }

    /// Refuses to touch what writes are held back in: to look at its file system would wait for ever, as taking it away would.
    pub(crate) async fn require_told(&self, cx: &OpContext, image: &Image) -> Result<()> {
        if image.meta.record.as_ref().is_none_or(|record| record.style != Style::Writable) {
            return Ok(());
        }
        require_free(image, self.status(cx, image.meta.birth.instance).await?.as_ref())
    }

    /// Asks once more for a side that is held back: whoever asked for it may have been ended. The manager acts on the answer.
    pub(super) async fn ask_again(&self, cx: &OpContext, image: &Image, status: Option<&Status>) {
        if !is_bound(image) || !status.is_some_and(|status| status.is_suspended && !status.is_connected()) {
            return;
        }
        let id = image.meta.birth.instance;
        let asked = async {
            // What was looked at may be older than the note; where another call changes it now, that one writes the note.
            match self.lock_now(cx, id).await {
                Ok(Some(locked)) => self.note(&locked.image)?,
                Ok(None) => return Ok(()),
                Err(error) if error.kind == ErrorKind::Busy => {}
                Err(error) => return Err(error),
            }
            let words = ["ask", &names::of_instance(id)];
            Command::new(program::find(program::FENCE_PEER, None)?).args(words).run_any(cx).await.map(drop)
        };
        if let Err(error) = asked.await {
            tracing::warn!(instance = %id, %error, "The arbiter was not asked.");
        }
    }
}

/// The same, of what the kernel says.
pub(super) fn require_free(image: &Image, status: Option<&Status>) -> Result<()> {
    if status.is_none_or(|status| !status.is_suspended) {
        return Ok(());
    }
    Err(Error::unavailable(format!(
        "{}; until then nothing of it can be changed",
        held_back(image, said(image))
    )))
}

/// What is wrong with a side that is held back.
pub(super) fn health(image: &Image, status: Option<&Status>) -> Health {
    if status.is_none_or(|status| !status.is_suspended) {
        return Health::Ok;
    }
    Health::Degraded { reason: held_back(image, said(image)) }
}

/// Why the kernel did not make it primary, where it asked for that.
pub(super) fn refused(image: &Image, error: Error) -> Error {
    let asked = is_bound(image) && error.kind != ErrorKind::Busy;
    let Some(answered) = said(image).filter(|_| asked) else { return error };
    let id = image.meta.birth.instance;
    if answered.lost {
        return Error::conflict(format!(
            "instance {id} does not see its peer and is not to go on alone: {}; the kernel says: {error}",
            answered.why
        ));
    }
    Error::unavailable(format!(
        "instance {id} does not see its peer, and nobody says whether it may go on alone: {}; it is served once either \
         answers; the kernel says: {error}",
        answered.why
    ))
}

fn said(image: &Image) -> Option<Answered> {
    let name = names::of_instance(image.meta.birth.instance);
    note::read(&note::answered(Path::new(FOLDER), &name)).ok().flatten()
}

fn held_back(image: &Image, said: Option<Answered>) -> String {
    let id = image.meta.birth.instance;
    let cut = format!("instance {id} is cut off from its peer, and all writes to it are held back");
    match said {
        Some(Answered { lost: true, why }) => format!(
            "{cut}: it does not go on ({why}). Its host restarts by itself, and it follows again once both see each other; \
             where the host does not, restart it"
        ),
        Some(Answered { lost: false, why }) => format!(
            "{cut} until the arbiter says who goes on: {why}. It is asked again and again; let this host reach it, or mend \
             the link to the peer"
        ),
        None => format!("{cut} until the arbiter says who goes on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drbd::record::{Peer, Protocol};
    use crate::meta::{Birth, Meta};
    use crate::report::Volume;
    use tandem_sdk::{InstanceId, ResourceId};
    use uuid::Uuid;

    fn image(style: Style, role: Role, with_peer: bool) -> Image {
        let instance = InstanceId(Uuid::from_u128(2));
        let peer = Peer { instance, at: "192.0.2.2:7000".parse().unwrap(), leads: true };
        let peer = with_peer.then_some(peer);
        let record =
            Record { style, protocol: Protocol::C, minor: 1, port: 7001, peer, last: false, diskless: false };
        let birth = Birth {
            instance: InstanceId(Uuid::from_u128(1)),
            resource: ResourceId(Uuid::from_u128(9)),
            size_bytes: 1 << 30,
            filesystem: crate::Filesystem::Ext4,
        };
        Image {
            meta: Meta { role, record: Some(record), ..Meta::blank(birth) },
            volume: Volume::default(),
            metadata: None,
            views: [None, None],
            stored: std::collections::BTreeSet::default(),
            pool: Volume::default(),
        }
    }

    #[test]
    fn only_active_sides_beside_which_another_may_be_written_to_are_bound() {
        for (style, role, with_peer, bound) in [
            (Style::Writable, Role::Active, true, true),
            (Style::Writable, Role::Active, false, false),
            (Style::Writable, Role::Secondary, true, false),
            (Style::Writable, Role::Fenced, true, false),
            (Style::Dr, Role::Active, true, false),
            (Style::Readable, Role::Active, true, false),
        ] {
            let image = image(style, role, with_peer);
            assert_eq!(attach_words(&image) == [ARMED], bound, "{style:?} {role:?} {with_peer}");
        }
        let mut image = image(Style::Writable, Role::Active, true);
        image.meta.deleting = true;
        assert!(attach_words(&image).is_empty());
    }

    #[test]
    fn nothing_is_taken_away_from_under_what_is_held_back() {
        let image = image(Style::Writable, Role::Active, true);
        let mut status = Status::default();
        assert!(require_free(&image, None).is_ok() && require_free(&image, Some(&status)).is_ok());
        assert_eq!(health(&image, Some(&status)), Health::Ok);
        status.is_suspended = true;
        let error = require_free(&image, Some(&status)).unwrap_err();
        assert!(error.message.contains("held back"), "{error}");
        assert!(matches!(health(&image, Some(&status)), Health::Degraded { .. }));
    }

    #[test]
    fn what_the_arbiter_said_is_told() {
        let image = image(Style::Writable, Role::Active, true);
        let of = |lost, why: &str| held_back(&image, Some(Answered { lost, why: why.to_owned() }));
        assert!(of(true, "another one goes on").contains("another one goes on). Its host restarts"));
        assert!(of(false, "it does not answer").contains("it does not answer. It is asked again"));
        assert!(held_back(&image, None).ends_with("who goes on"));
    }
}
