//! Everything that guests need on this machine: packages, and modules built once.

use super::{modules, packages};
use crate::Result;

/// A remark on what was there or done.
pub(crate) fn prepare() -> Result<String> {
    Ok(format!("{}; {}", packages::prepare()?, modules::prepare()?))
}
