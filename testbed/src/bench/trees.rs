//! Trees that benchmarks copy, and what they change in them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::kill::storm::Dice;

/// Small files, of 4 KiB on average.
pub const SMALL: u64 = 20_000;

/// Fills a folder with them, in 100 folders.
pub fn small(root: &Path, dice: &mut Dice) {
    for folder in 0..100 {
        fs::create_dir(root.join(format!("{folder:02}"))).unwrap();
    }
    for number in 0..SMALL {
        let length = 1 + dice.below(8 << 10);
        fs::write(small_file(root, number), bytes(dice, length)).unwrap();
    }
}

/// Writes one in a hundred of them anew.
pub fn change_small(root: &Path, dice: &mut Dice) {
    for _ in 0..SMALL / 100 {
        let number = dice.below(SMALL);
        let length = 1 + dice.below(8 << 10);
        fs::write(small_file(root, number), bytes(dice, length)).unwrap();
    }
}

/// So many bytes that nothing compresses.
pub fn bytes(dice: &mut Dice, length: u64) -> Vec<u8> {
    (0..length.div_ceil(8))
        .flat_map(|_| dice.below(u64::MAX).to_le_bytes())
        .take(usize::try_from(length).unwrap())
        .collect()
}

fn small_file(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{:02}/{number}", number % 100))
}
