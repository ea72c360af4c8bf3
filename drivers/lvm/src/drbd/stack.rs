//! The layer between volume and file system: a resource of the kernel, made from what the tags say, and taken away.

use std::net::SocketAddr;

use tandem_sdk::{Error, InstanceId, OpContext, Result, Retry, Role, Style};

use super::generation::Generation;
use super::record::{Peer, Protocol, Record};
use super::settings::Drbd;
use super::status::Status;
use super::{fence, generation, numbers, tools};
use crate::image::Image;
use crate::report::State;
use crate::{Inner, names};

/// Bytes that one discard of a volume is about at most.
const MOST_DISCARDED: u64 = 1 << 30;

impl Inner {
    /// The settings of replication.
    pub(crate) fn drbd(&self) -> Result<&Drbd> {
        self.config.drbd.as_ref().ok_or_else(|| {
            Error::unsupported(
                "this back end does not replicate; give it the setting `drbd`, or use a share type without \
                 `replication_type`",
            )
        })
    }

    /// What the kernel says of an instance's resource; `None` when there is none.
    pub(crate) async fn status(&self, cx: &OpContext, id: InstanceId) -> Result<Option<Status>> {
        let name = names::of_instance(id);
        let text = tools::setup(cx, &["events2", "--now", "--statistics", &name]).await?;
        Ok(Status::all(&text).remove(&name))
    }

    /// The generation of an attached disk.
    pub(crate) async fn generation(&self, cx: &OpContext, minor: u32) -> Option<Generation> {
        let said = tools::setup(cx, &["get-gi", &minor.to_string()]).await.ok()?;
        Generation::parse(&said)
    }

    /// Makes sure that the resource is there and its disk attached; with its peer, where it was not there before. A
    /// resource that has lost its disk and serves its users from its peer stays as it is when the disk does not come back, and
    /// so does one whose thin pool is full.
    pub(crate) async fn stack_up(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let Some(mut record) = image.meta.record.clone() else { return Ok(false) };
        let drbd = self.drbd()?;
        drbd.require()?;
        let id = image.meta.birth.instance;
        let name = names::of_instance(id);
        let status = self.status(cx, id).await?;
        let there = status.as_ref().is_some_and(|status| status.minor == Some(record.minor));
        // Left by force: it must not hear from a peer that the tags know nothing of.
        let left = record.peer.is_none()
            && status.as_ref().is_some_and(|status| !status.stands_alone() && !status.is_primary);
        let there = there && !left;
        if there && status.as_ref().is_some_and(Status::is_attached) {
            return Ok(false);
        }
        // Rules and roles change without a disk too: who asks for the disk is told.
        let unfed = self.require_fed(image, status.as_ref().filter(|_| there)).err();
        if !there {
            if status.is_some() {
                tools::setup(cx, &["down", &name]).await?;
            }
            let _numbers = self.lock_numbers(cx).await?;
            if numbers::kernel_minors(cx).await?.contains(&record.minor) {
                // Something else got it while this one was down; a minor means nothing to the peer.
                record.minor = self.free_numbers(cx, drbd).await?.0;
                image.meta.record = Some(record.clone());
                self.save(cx, image).await?;
            }
            tools::setup(cx, &["new-resource", &name]).await?;
            tools::setup(cx, &["new-minor", &name, &record.minor.to_string(), "0"]).await?;
        }
        if let Some(error) = &unfed {
            tracing::warn!(instance = %id, %error, "The disk stays away for want of room.");
        } else if let Err(e) = self.attach_disk(cx, image, &record).await {
            cx.check()?;
            // Whatever it is now, or is to become: its peer has everything.
            if !status.is_some_and(|status| there && status.peer_serves()) {
                return Err(e);
            }
            tracing::warn!(instance = %id, error = %e, "The disk does not come back; the peer serves.");
        }
        // What was made by a call that was cut has no peer yet.
        let told = there && self.ends(cx, id).await?.is_some();
        if !told && let Some(peer) = record.peer {
            self.connect(cx, image, &record, &peer, false).await?;
            return Ok(true);
        }
        Ok(!there || unfed.is_none())
    }

    async fn attach_disk(&self, cx: &OpContext, image: &mut Image, record: &Record) -> Result<()> {
        self.activate_metadata(cx, image).await?;
        let meta = self.metadata_node(image)?;
        // After a power cut what was being written is to be marked first.
        if let Some(marked) = tools::apply_log(cx, record.minor, &meta).await? {
            tracing::info!(instance = %image.meta.birth.instance, marked, "Its host went down while it was written to.");
        }
        // Before the volume is active: a call that is cut, and made again, finds it as this one does.
        if image.volume.state == State::Inactive
            && is_cut_short(&tools::meta(cx, record.minor, &meta, &["get-gi"]).await?)
        {
            // The kernels clear a block's mark once it was written, and a thin pool forgets the last second of what is new in it: what
            // had come is not what its peer takes it for.
            tracing::warn!(
                instance = %image.meta.birth.instance,
                "Its host went down while it was brought up to date: the whole share is carried."
            );
            tools::meta(cx, record.minor, &meta, &["create-md"]).await?;
        }
        self.activate_volumes(cx, image).await?;
        let (data, meta) = self.nodes(image)?;
        let dump = tools::meta(cx, record.minor, &meta, &["dump-md"]).await?;
        let agreed = agreed_sectors(&dump).filter(|sectors| *sectors > 0);
        let size = format!("--size={}s", agreed.unwrap_or_else(|| sectors(image.meta.size_bytes)));
        bound_discards(image);
        let rate = self.drbd()?.resync_mib;
        let (rate, minor) = (format!("--resync-rate={}M", rate), record.minor.to_string());
        let words = [
            "attach",
            &minor,
            &data,
            &meta,
            "flexible",
            &size,
            // A disk that fails is left, and the peer's is used.
            "--on-io-error=detach",
            // What reads as zeros takes no room on the other side either.
            "--rs-discard-granularity=65536",
            // At the speed that is set, and not below this while users write.
            "--c-plan-ahead=0",
            "--c-min-rate=10M",
            &rate,
        ];
        let words = [&words, fence::attach_words(image)].concat();
        tools::setup(cx, &words).await.map(drop)
    }

    /// Names the peer to the kernel.
    pub(crate) async fn connect(
        &self,
        cx: &OpContext,
        image: &Image,
        record: &Record,
        peer: &Peer,
        discard: bool,
    ) -> Result<()> {
        let (here, there) = self.addresses(record, peer)?;
        let protocol = format!("--protocol={}", record.protocol.as_str());
        // No secret, but a proof that both mean the same share: ports are given anew.
        let pairing = format!("--shared-secret={}", image.meta.birth.resource);
        let name = names::of_instance(image.meta.birth.instance);
        let mut words = vec!["connect", &name, &here, &there, &protocol, "--cram-hmac-alg=sha256", &pairing];
        // For `drbdsetup verify`. Both sides must name one and the same.
        words.push("--verify-alg=crc32c");
        // A cable that was mended is found soon; the kernel's own 10 s leave users unprotected for longer than they need be.
        words.push("--connect-int=3");
        if record.style == Style::Writable {
            words.push("--allow-two-primaries=yes");
        }
        if record.protocol == Protocol::A {
            words.push("--on-congestion=block");
        }
        if discard {
            words.push("--discard-my-data");
        }
        tools::setup(cx, &words).await.map(drop)
    }

    /// Both ends of the connection, as `drbdsetup` takes them.
    pub(crate) fn addresses(&self, record: &Record, peer: &Peer) -> Result<(String, String)> {
        let here = SocketAddr::new(self.drbd()?.address, record.port);
        Ok((tools::address(here), tools::address(peer.at)))
    }

    /// Both ends of the connection that the kernel has, which may be older than what the tags say.
    pub(crate) async fn ends(&self, cx: &OpContext, id: InstanceId) -> Result<Option<(String, String)>> {
        let shown = tools::setup(cx, &["show", &names::of_instance(id)]).await?;
        Ok(super::status::ends(&shown))
    }

    /// The kernel forgets the peer; what is written here is noted for it.
    pub(crate) async fn cut(&self, cx: &OpContext, id: InstanceId) -> Result<()> {
        let Some((here, there)) = self.ends(cx, id).await? else { return Ok(()) };
        match tools::setup(cx, &["disconnect", &here, &there]).await {
            // By force: it would wait for a peer that does not answer.
            Err(_) => tools::setup(cx, &["disconnect", &here, &there, "--force"]).await.map(drop),
            Ok(_) => Ok(()),
        }
    }

    /// Makes the device writable here, or not. `true` when it was otherwise.
    pub(crate) async fn set_primary(
        &self,
        cx: &OpContext,
        image: &Image,
        primary: bool,
        force: bool,
    ) -> Result<bool> {
        let id = image.meta.birth.instance;
        let Some(status) = self.status(cx, id).await? else { return Ok(false) };
        let Some(minor) = status.minor.filter(|_| status.is_primary != primary) else { return Ok(false) };
        if !primary {
            fence::require_free(image, Some(&status))?;
        }
        let minor = minor.to_string();
        let words: &[&str] = match (primary, force) {
            (true, true) => &["primary", &minor, "--force"],
            (true, false) => &["primary", &minor],
            _ => &["secondary", &minor],
        };
        tools::when_free(cx, words).await.map(|()| true).map_err(|error| fence::refused(image, error))
    }

    /// Takes the resource away; the volumes stay active. `true` when it was there.
    pub(crate) async fn stack_down(&self, cx: &OpContext, image: &Image) -> Result<bool> {
        if image.meta.record.is_none() || !std::path::Path::new(super::settings::PROC).exists() {
            return Ok(false);
        }
        let id = image.meta.birth.instance;
        if self.status(cx, id).await?.is_none() {
            return Ok(false);
        }
        self.set_primary(cx, image, false, false).await?;
        tools::setup(cx, &["down", &names::of_instance(id)]).await?;
        self.forget(id);
        Ok(true)
    }

    /// Brings the layer in line with the role. `true` when anything changed.
    pub(crate) async fn serve_stack(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        match image.meta.role {
            Role::Active => {
                let up = self.stack_up(cx, image).await?;
                self.require_newest(cx, image).await?;
                // A promotion may have been interrupted before it came to that.
                self.arm(cx, image).await?;
                Ok(self.set_primary(cx, image, true, false).await? || up)
            }
            Role::Secondary => {
                let demoted = self.set_primary(cx, image, false, false).await?;
                Ok(self.stack_up(cx, image).await? || demoted)
            }
            _ => Ok(false),
        }
    }

    /// The nodes of data and metadata.
    pub(crate) fn nodes(&self, image: &Image) -> Result<(String, String)> {
        let meta = self.metadata_node(image)?;
        match image.volume.node.as_str() {
            "" => Err(self.not_there(&self.of(image.meta.birth.instance), image)),
            data => Ok((data.to_owned(), meta)),
        }
    }

    /// The node of the metadata.
    fn metadata_node(&self, image: &Image) -> Result<String> {
        let node = image.metadata.as_ref().map(|metadata| metadata.node.clone());
        node.filter(|node| !node.is_empty())
            .ok_or_else(|| self.not_there(&self.metadata_of(image.meta.birth.instance), image))
    }

    fn not_there(&self, volume: &str, image: &Image) -> Error {
        Error::unavailable(format!(
            "the volume `{volume}` of instance {} is not there; restore it, or delete the instance and make a replica anew",
            image.meta.birth.instance
        ))
        .retry(Retry::AfterOperator)
    }
}

/// 512-byte sectors of a size, whole blocks of the bitmap only.
pub(crate) const fn sectors(bytes: u64) -> u64 {
    bytes / 4096 * 8
}

/// Lets a volume take discards of 1 GiB at most. DRBD counts the limit's bytes in 32 bits (`sanitize_disk_conf` of the kernel's
/// drbd_nl.c), takes the 16 GiB of a thin volume for none, and would store every zero of a resync. Left alone where the disks below
/// take less than one chunk of the pool: the kernel would not let it be more than that.
fn bound_discards(image: &Image) {
    let Some((major, minor)) = image.volume.device else { return };
    let queue = format!("/sys/dev/block/{major}:{minor}/queue");
    let number = |name: &str| {
        std::fs::read_to_string(format!("{queue}/{name}"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let fits = number("discard_max_hw_bytes") >= number("discard_granularity").map(|chunk| chunk.max(1));
    if fits
        && number("discard_max_bytes").is_some_and(|now| now > MOST_DISCARDED)
        && let Err(error) = std::fs::write(format!("{queue}/discard_max_bytes"), MOST_DISCARDED.to_string())
    {
        tracing::warn!(queue, %error, "Zeros that a resync carries will take room.");
    }
}

/// Whether `drbdmeta get-gi` tells of a disk that was being brought up to date: of a generation, and not whole. (What `dump-md`
/// prints as flags of metadata of 8.4 is always 0.)
fn is_cut_short(said: &str) -> bool {
    let Some(line) = said.lines().map(str::trim).find(|line| line.matches(':').count() >= 5) else {
        return false;
    };
    let mut fields = line.split(':');
    let current = fields.next().and_then(|field| u64::from_str_radix(field, 16).ok());
    current.is_some_and(|current| current > generation::JUST_CREATED) && fields.nth(3) == Some("0")
}

/// The size that both sides last agreed on, in `drbdmeta dump-md`.
fn agreed_sectors(dump: &str) -> Option<u64> {
    dump.lines()
        .find_map(|line| line.trim().strip_prefix("la-size-sect")?.trim().trim_end_matches(';').parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_was_being_filled_is_known() {
        let said =
            |current: &str, whole: u8| format!("\n{current}:0000000000000000:0:0:{whole}:1:0:0:0:0:0\n");
        assert!(is_cut_short(&said("2A2CEE2F0D843DC6", 0)));
        assert!(!is_cut_short(&said("2A2CEE2F0D843DC6", 1)), "whole");
        assert!(!is_cut_short(&said("0000000000000004", 0)), "never filled");
        assert!(!is_cut_short(""));
    }

    #[test]
    fn the_agreed_size_is_found() {
        assert_eq!(agreed_sectors("uuid {\n}\nla-size-sect 2097152;\nbm {\n"), Some(2_097_152));
        assert_eq!(agreed_sectors("version \"v08\";\n"), None);
        assert_eq!(sectors(1 << 30), 2_097_152);
        assert_eq!(sectors((1 << 30) + 4095), 2_097_152);
    }
}
