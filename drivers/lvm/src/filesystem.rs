//! File systems on volumes: made, grown.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tandem_sdk::command::Command;
use tandem_sdk::{Error, ErrorKind, OpContext, Result, Retry, schemars};

/// Making and growing writes little, but a busy pool is slow.
const LONGEST: Duration = Duration::from_secs(300);

/// Repairs ext4.
const CHECKER: &str = "/usr/sbin/e2fsck";

/// The file system of a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filesystem {
    /// ext4.
    #[default]
    Ext4,
    /// XFS, for shares of 300 MiB and more.
    Xfs,
    /// OCFS2, which two hosts mount at once: that of every share in the style `writable`, and of no other.
    #[serde(skip)]
    Ocfs2,
}

impl Filesystem {
    /// Its name, as `mount` takes it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Ocfs2 => "ocfs2",
        }
    }

    /// The file system of a name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Ext4, Self::Xfs, Self::Ocfs2].into_iter().find(|fs| fs.as_str() == name)
    }

    /// The smallest volume that can bear one. Bytes.
    pub(crate) const fn smallest(self) -> u64 {
        match self {
            Self::Ext4 => 16 << 20,
            Self::Xfs => 300 << 20,
            // Two journals take a quarter of it.
            Self::Ocfs2 => 512 << 20,
        }
    }

    /// Whether several hosts mount it at once.
    pub(crate) const fn is_shared(self) -> bool {
        matches!(self, Self::Ocfs2)
    }

    const fn maker(self) -> &'static str {
        match self {
            Self::Ext4 => "/usr/sbin/mkfs.ext4",
            Self::Xfs => "/usr/sbin/mkfs.xfs",
            Self::Ocfs2 => "/usr/sbin/mkfs.ocfs2",
        }
    }

    const fn grower(self) -> &'static str {
        match self {
            Self::Ext4 => "/usr/sbin/resize2fs",
            Self::Xfs => "/usr/sbin/xfs_growfs",
            Self::Ocfs2 => "/usr/sbin/tunefs.ocfs2",
        }
    }

    /// Refuses a file system whose tools are not installed.
    pub(crate) fn require_tools(self) -> Result<()> {
        let missing = [self.maker(), self.grower()].into_iter().find(|tool| !Path::new(tool).exists());
        match missing {
            None => Ok(()),
            Some(tool) => Err(Error::unavailable(format!(
                "a share with the file system {} needs {tool}, which is not installed",
                self.as_str()
            ))
            .retry(Retry::AfterOperator)),
        }
    }

    /// Makes one on a thin volume that was never written to: what reads as zeros need not be written as such, and would
    /// take room. `more`: what OCFS2 is to know of its cluster.
    pub(crate) async fn make(self, cx: &OpContext, node: &str, more: &[String]) -> Result<()> {
        self.require_tools()?;
        let args: &[&str] = match self {
            Self::Ext4 => {
                &["-q", "-F", "-m", "0", "-e", "remount-ro", "-E", "nodiscard,assume_storage_prezeroed=1"]
            }
            Self::Xfs => &["-q", "-f", "-K"],
            // A discard would mark all of it as changed for the peer, which has the same zeros. A journal for each host.
            Self::Ocfs2 => &["-q", "-N", "2", "-J", "size=64M", "--nodiscard", "--cluster-stack=o2cb"],
        };
        let done = Command::new(self.maker()).args(args).args(more).arg(node).deadline(LONGEST).run(cx).await;
        done.map(drop).map_err(|e| refused(&format!("the file system on `{node}` could not be made"), e))
    }

    /// Brings it in order after a power cut or an error of its volume, before it is mounted. Quick where nothing is wrong.
    pub(crate) async fn repair(self, cx: &OpContext, node: &str) -> Result<()> {
        if self != Self::Ext4 {
            return Ok(()); // the mount replays its log; of OCFS2 that of any host which is gone
        }
        let ended = Command::new(CHECKER).args(["-p", node]).deadline(LONGEST).run_any(cx).await?;
        match Checked::of(ended.status.code()) {
            Checked::InOrder => Ok(()),
            Checked::Damaged => Err(refused(
                &format!("the file system on `{node}` is damaged beyond what is repaired without being asked; check it with fsck"),
                ended.into_error(),
            )
            .retry(Retry::AfterOperator)),
            Checked::Unknown => {
                Err(refused(&format!("the file system on `{node}` could not be checked"), ended.into_error()))
            }
        }
    }

    /// Lets it fill its volume, while it is mounted and written to. What fills it already is left alone.
    pub(crate) async fn grow(self, cx: &OpContext, node: &str, mounted: &Path) -> Result<()> {
        self.require_tools()?;
        let tool = Command::new(self.grower()).deadline(LONGEST);
        let tool = match self {
            Self::Ext4 => tool.arg(node),
            Self::Xfs => tool.arg("-d").arg(mounted),
            Self::Ocfs2 => tool.arg("-S").arg(node),
        };
        let done = tool.run(cx).await;
        done.map(drop).map_err(|e| refused(&format!("the file system on `{node}` could not be grown"), e))
    }
}

/// What e2fsck says by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checked {
    InOrder,
    /// A person has to decide what becomes of it.
    Damaged,
    /// The check itself failed, or was killed: it says nothing of the file system.
    Unknown,
}

impl Checked {
    /// e2fsck(8): 1 is "errors corrected", 2 "reboot" (for a root file system), 4 "errors left uncorrected"; 8 and above
    /// are failures of its own, such as memory or a device that is busy.
    fn of(status: Option<i32>) -> Self {
        match status {
            Some(0..=3) => Self::InOrder,
            Some(code) if code & 4 != 0 => Self::Damaged,
            _ => Self::Unknown,
        }
    }
}

/// A tool failed: that is no defect of the driver's, and a person may have to look.
pub(crate) fn refused(what: &str, e: Error) -> Error {
    match e.kind {
        ErrorKind::Cancelled | ErrorKind::Unavailable => e,
        _ => {
            let error = Error::unavailable(format!("{what}: {}", e.message));
            e.context.into_iter().fold(error, |error, (name, value)| error.with(name, value))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for fs in [Filesystem::Ext4, Filesystem::Xfs, Filesystem::Ocfs2] {
            assert_eq!(Filesystem::named(fs.as_str()), Some(fs));
        }
        assert_eq!(Filesystem::named("btrfs"), None);
    }

    #[test]
    fn only_errors_that_are_left_are_damage() {
        for (status, checked) in [
            (Some(0), Checked::InOrder),
            (Some(3), Checked::InOrder),
            (Some(4), Checked::Damaged),
            (Some(5), Checked::Damaged),
            (Some(12), Checked::Damaged),
            (Some(8), Checked::Unknown),
            (Some(16), Checked::Unknown),
            (Some(32), Checked::Unknown),
            (Some(128), Checked::Unknown),
            (None, Checked::Unknown),
        ] {
            assert_eq!(Checked::of(status), checked, "{status:?}");
        }
    }
}
