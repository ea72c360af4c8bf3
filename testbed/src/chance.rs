//! How long random tests run, and what makes a run of them repeat.

use crate::kill::storm::Dice;

/// Whether `TANDEM_LONG` asks for the runs that CI has no time for.
pub fn long() -> bool {
    std::env::var_os("TANDEM_LONG").is_some_and(|value| value != "0")
}

/// `TANDEM_SEED`, or another one in every run.
///
/// # Panics
/// When the variable is no number.
pub fn seed() -> u64 {
    let given = std::env::var("TANDEM_SEED").ok();
    let given = given.map(|text| text.parse().expect("TANDEM_SEED is a number"));
    given.unwrap_or_else(|| u64::from(std::process::id()))
}

/// Dice of that seed, which is printed.
pub fn dice() -> Dice {
    let seed = seed();
    println!("TANDEM_SEED={seed}");
    Dice::new(seed)
}
