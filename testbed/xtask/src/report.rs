//! The table of steps at the end of `cargo xtask test` and `tidy`.

use crate::Result;
use std::time::{Duration, Instant};

/// Runs steps one after the other and remembers how each went.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    step: String,
    took: Duration,
    outcome: Result<String>,
}

impl Report {
    /// Runs one step; its outcome is a remark for the table, or the sentence that says why it failed.
    pub(crate) fn step(&mut self, step: &str, work: impl FnOnce() -> Result<String>) -> bool {
        println!("\n== {step}");
        let start = Instant::now();
        let outcome = work();
        if let Err(sentence) = &outcome {
            println!("{sentence}");
        }
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
        let total: Duration = self.rows.iter().map(|row| row.took).sum();
        println!("{:width$}  {:>8}", "total", seconds(total));
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
