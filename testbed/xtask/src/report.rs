//! The table of steps at the end of `cargo xtask test` and `tidy`.

use crate::Result;
use std::cell::RefCell;
use std::time::{Duration, Instant};

thread_local! {
    /// What a thread that runs beside the main one has said within its present step.
    static HELD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Prints a line; beside the main thread, once the step has ended, so that what belongs together stands together.
pub(crate) fn say(line: &str) {
    HELD.with_borrow_mut(|held| match held {
        Some(held) => {
            held.push_str(line);
            held.push('\n');
        }
        None => println!("{line}"),
    });
}

/// Runs steps one after the other and remembers how each went.
#[derive(Debug)]
pub(crate) struct Report {
    rows: Vec<Row>,
    start: Instant,
}

#[derive(Debug)]
struct Row {
    step: String,
    took: Duration,
    outcome: Result<String>,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new(), start: Instant::now() }
    }

    /// One for steps that run on this thread beside those of the main one.
    pub(crate) fn beside() -> Self {
        HELD.set(Some(String::new()));
        Self::new()
    }

    /// Takes over the rows of one that ran beside this.
    pub(crate) fn join(&mut self, other: Self) {
        self.rows.extend(other.rows);
    }

    /// Runs one step; its outcome is a remark for the table, or the sentence that says why it failed.
    pub(crate) fn step(&mut self, step: &str, work: impl FnOnce() -> Result<String>) -> bool {
        say(&format!("\n== {step}"));
        let start = Instant::now();
        let outcome = work();
        if let Err(sentence) = &outcome {
            say(sentence);
        }
        HELD.with_borrow_mut(|held| held.as_mut().map(std::mem::take))
            .iter()
            .for_each(|text| print!("{text}"));
        let good = outcome.is_ok();
        self.rows.push(Row { step: step.into(), took: start.elapsed(), outcome });
        good
    }

    /// Prints the table, and fails with the names of the steps that failed.
    pub(crate) fn finish(&self) -> Result<()> {
        let width = self.rows.iter().map(|row| row.step.len()).max().unwrap_or(0);
        println!();
        for row in &self.rows {
            let (state, remark) = match &row.outcome {
                Ok(remark) => ("ok", remark.as_str()),
                Err(sentence) => ("FAILED", sentence.lines().last().unwrap_or_default()),
            };
            println!("{:width$}  {:>8}  {state:6}  {remark}", row.step, seconds(row.took));
        }
        println!("{:width$}  {:>8}", "total", seconds(self.start.elapsed()));
        let failed: Vec<&str> =
            self.rows.iter().filter(|row| row.outcome.is_err()).map(|row| row.step.as_str()).collect();
        if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}.", failed.join(", "))) }
    }
}

fn seconds(took: Duration) -> String {
    let whole = took.as_secs();
    if whole >= 60 {
        format!("{}m{:02}s", whole / 60, whole % 60)
    } else {
        format!("{:.1}s", took.as_secs_f64())
    }
}
