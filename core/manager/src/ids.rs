//! Names for what is made: random, except on a thread that a simulation has given a seed, so that its runs repeat.

use std::cell::Cell;

use uuid::{Builder, Uuid};

thread_local! {
    /// Where the thread's repeatable ids stand; `None` where they are random.
    static REPEATED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Makes every id that this thread makes from now on follow from `seed`. For simulations, which run on one thread.
pub fn repeat_on_this_thread(seed: u64) {
    REPEATED.set(Some(seed << 32));
}

/// An id that tells nothing.
pub(crate) fn random() -> Uuid {
    match count() {
        Some(n) => Builder::from_random_bytes(bytes(n)).into_uuid(),
        None => Uuid::new_v4(),
    }
}

/// An id that sorts by time.
pub(crate) fn by_time() -> Uuid {
    match count() {
        Some(n) => {
            let [random @ .., _, _, _, _, _, _] = bytes(n);
            Builder::from_unix_timestamp_millis(n & 0xffff_ffff, &random).into_uuid()
        }
        None => Uuid::now_v7(),
    }
}

fn count() -> Option<u64> {
    let n = REPEATED.get()?;
    REPEATED.set(Some(n + 1));
    Some(n)
}

/// Sixteen bytes that look random and follow from `n` (splitmix64, twice).
fn bytes(n: u64) -> [u8; 16] {
    let mix = |mut z: u64| {
        z = z.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let both = (u128::from(mix(2 * n + 1)) << 64) | u128::from(mix(2 * n + 2));
    both.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_seed_repeat_and_sort_by_time() {
        let take = || {
            repeat_on_this_thread(7);
            (0..100).map(|_| (random(), by_time())).collect::<Vec<_>>()
        };
        let first = take();
        assert_eq!(first, take());
        assert!(first.is_sorted_by_key(|(_, by_time)| *by_time));
        assert_eq!(first[0].1.get_version_num(), 7);
    }
}
