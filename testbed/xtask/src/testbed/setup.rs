//! Everything that guests need on this machine: packages, and modules built once.

use super::{modules, packages};
use crate::Result;

/// A remark on what was there or done.
pub(crate) fn prepare() -> Result<String> {
    Ok(format!("{}; {}", packages::prepare()?, modules::prepare()?))
}

/// The same for guests of one kind: others than those with ZFS need no modules of ours.
pub(super) fn prepare_for(kind: &str) -> Result<()> {
    packages::prepare()?;
    if kind == "zfs" { modules::prepare().map(drop) } else { Ok(()) }
}
