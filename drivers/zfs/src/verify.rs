//! What an instance holds at a point, read again from the snapshot.
//!
//! The snapshot is mounted nowhere: the kernel hands out its root, to which no path leads, and lets it go with the last
//! open file, however this call or this process ends.

use tandem_sdk::contract::{ContentFingerprint, Progress, ReadFingerprint};
use tandem_sdk::mirror::{self, Control, Recorded, Skipped, Tree};
use tandem_sdk::{Error, OpContext, Result, Verifiable, fingerprint};

use crate::{Inner, Zfs, aside, tool};

impl Verifiable for Zfs {
    async fn fingerprint(&self, cx: &OpContext, call: ReadFingerprint) -> Result<ContentFingerprint> {
        self.inner.fingerprint(cx, &call).await
    }
}

impl Inner {
    async fn fingerprint(&self, cx: &OpContext, call: &ReadFingerprint) -> Result<ContentFingerprint> {
        fingerprint::of_trees(&call.form)?;
        let image = self.existing(cx, call.instance).await?;
        // A full copy that arrives may have the point too, and is not whole yet.
        let version =
            image.current().filter(|version| version.point(call.point).is_some()).ok_or_else(|| {
                Error::not_found(format!("instance {} holds no point {}", call.instance, call.point))
            })?;
        let snapshot = version.snapshot(call.point);
        // Of data and of what describes it: about what there is to read.
        let total = tool::property(cx, "logicalreferenced", &snapshot).await?.parse().ok();
        let bandwidth = call.bandwidth;
        cx.blocking(move |cx| {
            let root = aside::read_only(&snapshot)?;
            let tree = Tree::at(root)
                .map_err(|e| Error::unavailable(format!("`{snapshot}` could not be opened: {e}")))?;
            let cancelled = || cx.is_cancelled();
            let tell = |step: mirror::Step<'_>| {
                let mut progress = Progress::of(step.phase, step.done, step.total);
                progress.estimate = true;
                progress.current = Some(step.current.to_owned()).filter(|current| !current.is_empty());
                cx.progress(progress);
            };
            let control = Control::new(&cancelled, &tell).reading_limited(bandwidth).expecting(total);
            let read = mirror::fingerprint(&tree, Recorded::Nothing, Skipped::default(), &control);
            let read = read.map_err(|e| match (&e, cx.check()) {
                (mirror::Error::Cancelled, Err(stop)) => stop,
                _ => Error::unavailable(format!("`{snapshot}` could not be read: {e}")),
            })?;
            Ok(fingerprint::of_tree(read))
        })
        .await
    }
}
