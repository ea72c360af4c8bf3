//! An instance, as the volume group tells of it.

use std::collections::BTreeSet;

use tandem_sdk::{InstanceId, Result};

use crate::meta::{self, MARK, Meta};
use crate::report::{Report, Volume};
use crate::{drbd, names};

/// What bears the name of an instance.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Nothing,
    /// A volume without Tandem's tags: somebody else's.
    Foreign,
    Instance(Box<Image>),
}

/// An instance.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) meta: Meta,
    pub(crate) volume: Volume,
    /// The volume of DRBD's metadata, where it replicates.
    pub(crate) metadata: Option<Volume>,
    /// The snapshots that users read, where it is shown to them.
    pub(crate) views: [Option<Volume>; 2],
    /// Its tags as they stand.
    pub(crate) stored: BTreeSet<String>,
    /// The thin pool that it lies in.
    pub(crate) pool: Volume,
}

impl Image {
    /// The device that its file system is on.
    pub(crate) fn node(&self) -> String {
        match &self.meta.record {
            Some(record) => format!("/dev/drbd{}", record.minor),
            None => self.volume.node.clone(),
        }
    }

    /// Major and minor number of that device.
    pub(crate) fn device(&self) -> Option<(u32, u32)> {
        match &self.meta.record {
            Some(record) => Some((drbd::MAJOR, record.minor)),
            None => self.volume.device,
        }
    }
}

/// Finds an instance in a report that holds its thin pool too.
pub(crate) fn parse(report: &Report, pool: &Volume, id: InstanceId) -> Result<Found> {
    let Some(volume) = report.volume(&names::of_instance(id)) else { return Ok(Found::Nothing) };
    let Some(meta) = Meta::read(id, &volume.name, &volume.tags)? else { return Ok(Found::Foreign) };
    let stored = meta::ours(&volume.tags);
    // What bears such a name without the mark is somebody else's.
    let ours = |name: String| report.volume(&name).filter(|v| v.tags.iter().any(|tag| tag == MARK)).cloned();
    let metadata = ours(names::metadata_of(id));
    let views = [0, 1].map(|slot| ours(names::view_of(id, slot)));
    let (volume, pool) = (volume.clone(), pool.clone());
    Ok(Found::Instance(Box::new(Image { meta, volume, metadata, views, stored, pool })))
}
