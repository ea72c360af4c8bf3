//! Room in a pool, by the rules of Manila's capacity filter and capacity weigher. In bytes, as fractions: a pool of less
//! than a GiB is not taken for an empty one, which is the one difference from Manila's whole gigabytes.

use super::GIB;
use crate::PoolView;

/// Whether an instance of that size fits; a sentence when it does not.
pub(super) fn fits(size_gb: u64, view: &PoolView) -> Result<(), String> {
    let size = size_gb as f64 * GIB;
    // Storage that cannot tell its room is believed to have it.
    let Some(free) = view.pool.free_bytes else { return Ok(()) };
    let free = free as f64;
    let reserved = view.backend.reserved_percentage;
    let Some(total) = view.pool.total_bytes else {
        if reserved > 0 {
            return Err(format!("it does not tell its total, of which {reserved} % are to be kept free"));
        }
        return if size <= free { Ok(()) } else { Err(short(size, free)) };
    };
    let total = total as f64;
    if total <= 0.0 {
        return Err("it has no room at all".into());
    }
    let free = free - total * f64::from(reserved) / 100.0;
    if !view.backend.capabilities.thin {
        return if size <= free { Ok(()) } else { Err(short(size, free)) };
    }
    let ratio = view.backend.max_over_subscription_ratio;
    if ratio < 1.0 || ratio.is_nan() {
        return Err(format!("its max_over_subscription_ratio is {ratio}, which must be at least 1"));
    }
    if (provisioned(view) + size) / total > ratio {
        return Err(format!(
            "{} GiB of {} GiB are promised, and {ratio} times its room may be at most",
            gib(provisioned(view)),
            gib(total)
        ));
    }
    if size <= free * ratio { Ok(()) } else { Err(short(size, free * ratio)) }
}

/// How good a pool is: the room that can still be promised. One that cannot tell comes last.
pub(super) fn weight(view: &PoolView) -> f64 {
    let (Some(free), Some(total)) = (view.pool.free_bytes, view.pool.total_bytes) else {
        return view.pool.free_bytes.map_or(f64::NEG_INFINITY, |free| free as f64);
    };
    let (free, total) = (free as f64, total as f64);
    let reserved = total * f64::from(view.backend.reserved_percentage) / 100.0;
    if view.backend.capabilities.thin {
        total * view.backend.max_over_subscription_ratio - provisioned(view) - reserved
    } else {
        free - reserved
    }
}

/// Bytes promised there, by us or by the storage's own account of it.
fn provisioned(view: &PoolView) -> f64 {
    view.provisioned_bytes.max(view.pool.allocated_bytes.unwrap_or(0)) as f64
}

fn short(size: f64, room: f64) -> String {
    format!("it has room for {} GiB, not for {} GiB", gib(room.max(0.0)), gib(size))
}

/// With at most one decimal, downwards.
fn gib(bytes: f64) -> f64 {
    (bytes / GIB * 10.0).floor() / 10.0
}
