//! OCFS2: one file system, mounted on two hosts at once.

use std::path::Path;
use std::time::Duration;

use tandem_sdk::command::Command;
use tandem_sdk::files::failed;
use tandem_sdk::{OpContext, Result};

use crate::filesystem::refused;
use crate::image::Image;
use crate::{Inner, o2cb};

/// A mount hears the other host's heartbeats first, some ten seconds; and waits while that host is being declared dead.
const LONGEST: Duration = Duration::from_secs(120);
/// A look waits so long for a file system that may wait for the other host.
const SOON: Duration = Duration::from_secs(3);

impl Inner {
    /// Makes the file system of a new instance.
    pub(crate) async fn make_filesystem(&self, cx: &OpContext, image: &Image) -> Result<()> {
        let filesystem = image.meta.birth.filesystem;
        let more = if filesystem.is_shared() {
            vec![format!("--cluster-name={}", self.ready_cluster(cx).await?.name)]
        } else {
            Vec::new()
        };
        filesystem.make(cx, &image.node(), &more).await
    }

    /// Mounts it, by its own tool: that starts this host's heartbeat on it first.
    pub(crate) async fn mount_shared(
        &self,
        cx: &OpContext,
        image: &Image,
        path: &Path,
        read_only: bool,
    ) -> Result<()> {
        self.ready_cluster(cx).await?;
        std::fs::create_dir_all(path).map_err(|e| failed("create", path, &e))?;
        let (node, options) = (image.node(), if read_only { "nosuid,nodev,ro" } else { "nosuid,nodev" });
        let tool = Command::new(o2cb::MOUNTER).args(["-n", "-o", options, &node]).arg(path).deadline(LONGEST);
        let what = format!(
            "OCFS2 on `{node}` could not be mounted (the kernel's log says more; all hosts need the same \
             `drbd.writable`, and reach each other on its port)"
        );
        tool.run(cx).await.map(drop).map_err(|e| refused(&what, e))
    }

    /// A look into the file system of an instance; `else_` where that is one that waits for the other host now. Each look would
    /// leave a thread waiting: while writes are held back there is none.
    pub(crate) async fn soon<T>(
        &self,
        cx: &OpContext,
        image: &Image,
        look: impl Future<Output = Result<T>>,
        else_: T,
    ) -> Result<T> {
        if !image.meta.birth.filesystem.is_shared() {
            return look.await;
        }
        if self.require_told(cx, image).await.is_err() {
            return Ok(else_);
        }
        tokio::time::timeout(SOON, look).await.unwrap_or(Ok(else_))
    }
}
