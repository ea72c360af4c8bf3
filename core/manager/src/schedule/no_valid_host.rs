//! Why nothing could be placed.

use std::fmt;

use crate::model::PoolAddress;

/// Pools that are named for one reason; of more only the number is said.
const NAMED: usize = 4;

/// Pools that one filter took away for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The filter.
    pub filter: &'static str,
    /// The pools, in the order in which they were looked at.
    pub pools: Vec<PoolAddress>,
    /// Why; true of each of them.
    pub why: String,
}

impl Removed {
    /// Adds a pool to those removed for the same reason.
    pub(super) fn add(all: &mut Vec<Self>, filter: &'static str, pool: &PoolAddress, why: String) {
        match all.iter_mut().find(|r| r.filter == filter && r.why == why) {
            Some(same) => same.pools.push(pool.clone()),
            None => all.push(Self { filter, pools: vec![pool.clone()], why }),
        }
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, pool) in self.pools.iter().take(NAMED).enumerate() {
            write!(f, "{}{pool}", if n > 0 { ", " } else { "" })?;
        }
        if self.pools.len() > NAMED {
            write!(f, " and {} more", self.pools.len() - NAMED)?;
        }
        write!(f, ": {}", self.why)
    }
}

/// No pool can take the instance. Its text is one sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoValidHost {
    /// How many pools were looked at.
    pub pools: usize,
    /// What took them away, in the order of the filters.
    pub removed: Vec<Removed>,
}

impl fmt::Display for NoValidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pools == 0 {
            return f
                .write_str("no valid host was found: there is no pool, for no back end has answered yet");
        }
        let pools = if self.pools == 1 { "pool" } else { "pools" };
        write!(f, "no valid host was found among {} {pools}", self.pools)?;
        let mut filter = "";
        for removed in &self.removed {
            if removed.filter == filter {
                write!(f, "; {removed}")?;
            } else {
                filter = removed.filter;
                let count: usize =
                    self.removed.iter().filter(|r| r.filter == filter).map(|r| r.pools.len()).sum();
                write!(f, "; {count} by {filter}: {removed}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for NoValidHost {}
