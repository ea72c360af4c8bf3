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

/// `TANDEM_PART=2/8`: the second eighth of these; all of them where it is not set.
///
/// # Panics
/// When the variable is no such part.
pub fn part<T>(all: Vec<T>) -> Vec<T> {
    let Ok(text) = std::env::var("TANDEM_PART") else { return all };
    let (part, parts) = text.split_once('/').expect("TANDEM_PART is PART/PARTS");
    let [part, parts] = [part, parts].map(|n| n.parse::<usize>().expect("TANDEM_PART is PART/PARTS"));
    assert!((1..=parts).contains(&part), "TANDEM_PART={text} is no part");
    let count = all.len();
    let (from, to) = (count * (part - 1) / parts, count * part / parts);
    all.into_iter().skip(from).take(to - from).collect()
}

/// Dice of that seed, which is printed.
pub fn dice() -> Dice {
    let seed = seed();
    println!("TANDEM_SEED={seed}");
    Dice::new(seed)
}
