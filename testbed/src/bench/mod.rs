//! What the benchmarks share: figures that say how sure they are, load over loopback, many rows, and a look at a
//! process.
//!
//! Machines differ and are shared; so every comparison is made in one run, in turns, and printed as a ratio of medians.

pub mod clones;
pub mod guest;
pub mod load;
pub mod process;
pub mod span;
pub mod trees;

use std::fmt;
use std::time::{Duration, Instant};

/// Measurements of one thing, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<f64>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64());
    }

    /// Measures one.
    pub fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.add(start.elapsed());
        done
    }

    /// The value below which this share (0 to 1) of the measurements is.
    pub fn at(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a length is an index"
        )]
        let index = ((sorted.len() as f64 - 1.0) * share).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The median of these divided by those that were measured in the same turns.
    pub fn over(&self, others: &Self) -> f64 {
        Self(self.0.iter().zip(&others.0).map(|(ours, theirs)| ours / theirs).collect()).median()
    }

    /// The median of by how many seconds these exceed those of the same turns.
    pub fn beyond(&self, others: &Self) -> f64 {
        Self(self.0.iter().zip(&others.0).map(|(ours, theirs)| ours - theirs).collect()).median()
    }

    /// The middle one, or what is between the middle two.
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = sorted.get(middle).copied().unwrap_or(f64::NAN);
        if sorted.len() % 2 == 1 {
            upper
        } else {
            sorted.get(middle.wrapping_sub(1)).map_or(f64::NAN, |v| f64::midpoint(*v, upper))
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} to {}, {} runs)",
            seconds(self.median()),
            seconds(self.at(0.0)),
            seconds(self.at(1.0)),
            self.0.len()
        )
    }
}

/// Seconds in the unit that fits.
pub fn seconds(value: f64) -> String {
    match value {
        v if v >= 1.0 => format!("{v:.2} s"),
        v if v >= 1e-3 => format!("{:.2} ms", v * 1e3),
        v => format!("{:.1} µs", v * 1e6),
    }
}

/// A turn of a comparison in which who goes later has an advantage: both are done twice, the first between the two of the second or
/// the other way round, in every other turn. The mean of each.
pub fn turn<'a>(
    number: usize,
    one: &'a mut dyn FnMut() -> Duration,
    other: &'a mut dyn FnMut() -> Duration,
) -> (Duration, Duration) {
    let even = number.is_multiple_of(2);
    let (outer, inner) = if even { (one, other) } else { (other, one) };
    let first = outer();
    let between = (inner() + inner()) / 2;
    let around = (first + outer()) / 2;
    if even { (around, between) } else { (between, around) }
}

/// Warns where figures would mean nothing.
pub fn begin(name: &str) {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\n== {name} ({cores} cores, load before: {load})");
    if cfg!(debug_assertions) {
        println!("built without optimisation: these figures mean nothing; use `cargo xtask bench`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_ordered() {
        let mut figures = Figures::default();
        for ms in [5, 1, 4, 2, 3] {
            figures.add(Duration::from_millis(ms));
        }
        assert_eq!(seconds(figures.median()), "3.00 ms");
        assert_eq!(seconds(figures.at(1.0)), "5.00 ms");
        assert_eq!(seconds(figures.at(0.0)), "1.00 ms");
        let mut others = Figures::default();
        for ms in [10, 1, 2, 2, 1] {
            others.add(Duration::from_millis(ms));
        }
        // 0.5, 1, 2, 1, 3 and -5, 0, 2, 0, 2.
        assert!((figures.over(&others) - 1.0).abs() < 1e-9);
        figures.add(Duration::from_millis(6));
        assert_eq!(seconds(figures.median()), "3.50 ms");
        assert!(Figures::default().median().is_nan());
        assert!(figures.beyond(&others).abs() < 1e-9);
    }

    #[test]
    fn neither_goes_later_than_the_other() {
        let at = std::cell::Cell::new(0);
        let next = || {
            at.set(at.get() + 1);
            Duration::from_secs(at.get())
        };
        let same = (Duration::from_millis(2500), Duration::from_millis(2500));
        assert_eq!(turn(0, &mut { next }, &mut { next }), same);
        at.set(0);
        assert_eq!(turn(1, &mut { next }, &mut { next }), same);
    }
}
