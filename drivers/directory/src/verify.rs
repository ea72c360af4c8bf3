//! What an instance holds at a point, read again from the disk.
//!
//! A point of the active one is a list, and its users go on writing: what did not change since is read, and of the rest the
//! list stands. A replica's tree stands still; should a sync put another one in its place meanwhile, the call ends.

use tandem_sdk::contract::{ContentFingerprint, PointId, ReadFingerprint};
use tandem_sdk::mirror::{self, Control, Recorded, Skipped};
use tandem_sdk::{Error, OpContext, Result, Verifiable, fingerprint};

use crate::Directory;
use crate::store::{Instance, Store, from_mirror};
use crate::stream::{stopped, tell};

impl Verifiable for Directory {
    async fn fingerprint(&self, cx: &OpContext, call: ReadFingerprint) -> Result<ContentFingerprint> {
        self.run(cx, move |store, cx| fingerprint(store, &call, cx)).await
    }
}

fn fingerprint(store: &Store, call: &ReadFingerprint, cx: &OpContext) -> Result<ContentFingerprint> {
    fingerprint::of_trees(&call.form)?;
    let instance = store.existing(call.instance)?;
    let tree = instance.open_tree()?;
    let here = instance.version_dir();
    let is_copy = instance.meta.point.as_ref().is_some_and(|point| point.id == call.point);
    if !is_copy && instance.meta.point(call.point).is_none() {
        return Err(missing(call.point, &instance));
    }
    let manifest = if is_copy { here.join("manifest") } else { instance.point_file(call.point, "manifest") };
    let newer = if is_copy { here.join("variants") } else { instance.point_file(call.point, "variants") };
    let variants = mirror::read_variants(&newer).map_err(|e| from_mirror(&e))?;
    let recorded = if is_copy {
        Recorded::Copy { manifest: &manifest, variants: &variants }
    } else {
        Recorded::Source { manifest: &manifest, sent: &variants }
    };
    let (tell, cancelled) = (tell(cx), || cx.is_cancelled());
    let control = Control::new(&cancelled, &tell).reading_limited(call.bandwidth);
    let read = mirror::fingerprint(&tree, recorded, lacks(&instance), &control);
    // What was read while the tree was taken apart says nothing.
    let now = store.existing(call.instance)?;
    let same = if is_copy {
        now.meta.point.as_ref().is_some_and(|point| point.id == call.point)
            && now.meta.version == instance.meta.version
    } else {
        now.meta.point(call.point).is_some()
    };
    if !same {
        cx.check()?;
        return Err(missing(call.point, &now));
    }
    let read = read.map_err(|e| stopped(cx, &e))?;
    Ok(fingerprint::of_tree(read))
}

/// What could not be set when the content arrived. Where nobody counted: nothing for root, and anything for others.
fn lacks(instance: &Instance) -> Skipped {
    let anything = Skipped { owners: 1, xattrs: 1, devices: 1 };
    match instance.meta.lacks {
        Some(lacks) => lacks.into(),
        None if rustix::process::geteuid().is_root() => Skipped::default(),
        None => anything,
    }
}

fn missing(point: PointId, instance: &Instance) -> Error {
    Error::not_found(format!("instance {} holds no point {point}", instance.meta.spec.instance))
}
