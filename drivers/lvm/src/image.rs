//! An instance, as the volume group tells of it.

use std::collections::BTreeSet;

use tandem_sdk::{InstanceId, Result};

use crate::meta::{self, Meta};
use crate::names;
use crate::report::{Report, Volume};

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
    /// Its tags as they stand.
    pub(crate) stored: BTreeSet<String>,
    /// The thin pool that it lies in.
    pub(crate) pool: Volume,
}

/// Finds an instance in a report that holds its thin pool too.
pub(crate) fn parse(report: &Report, pool: &Volume, id: InstanceId) -> Result<Found> {
    let Some(volume) = report.volume(&names::of_instance(id)) else { return Ok(Found::Nothing) };
    let Some(meta) = Meta::read(id, &volume.name, &volume.tags)? else { return Ok(Found::Foreign) };
    let stored = meta::ours(&volume.tags);
    Ok(Found::Instance(Box::new(Image { meta, volume: volume.clone(), stored, pool: pool.clone() })))
}
