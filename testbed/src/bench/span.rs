//! How long an operation and its steps took, by its own log.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::seconds;

const DAY: f64 = 86_400.0;

/// Seconds since midnight of a moment as the server writes it: `2026-11-05T12:34:56.123456Z`.
pub fn moment(text: &str) -> Option<f64> {
    let (_, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let mut parts = clock.split(':').map(str::parse::<f64>);
    let mut next = || parts.next()?.ok();
    Some(next()? * 3600.0 + next()? * 60.0 + next()?)
}

/// Seconds from one moment to a later one, less than a day.
pub fn between(from: f64, to: f64) -> f64 {
    (to - from).rem_euclid(DAY)
}

/// An operation that has ended: its steps, when each began and when it was done.
#[derive(Debug)]
pub struct Span {
    accepted: f64,
    finished: f64,
    steps: Vec<(String, f64, f64)>,
}

impl Span {
    /// Of an operation as `/v1/operations/{id}` shows it.
    ///
    /// # Panics
    /// When it has not ended well.
    pub fn of(operation: &Value) -> Self {
        let names = operation["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap());
        let mut span = Self {
            accepted: f64::NAN,
            finished: f64::NAN,
            steps: names.map(|name| (name.to_owned(), f64::NAN, f64::NAN)).collect(),
        };
        for event in operation["events"].as_array().unwrap() {
            let at = moment(event["at"].as_str().unwrap()).unwrap();
            let step = || usize::try_from(event["step"].as_u64().unwrap()).unwrap();
            match event["event"].as_str().unwrap() {
                "accepted" => span.accepted = at,
                "step_started" => span.steps[step()].1 = at,
                "step_done" => span.steps[step()].2 = at,
                "finished" => span.finished = at,
                _ => {}
            }
        }
        assert!(span.finished.is_finite(), "{operation:#}");
        span
    }

    /// From the request until all was over.
    pub fn all(&self) -> Duration {
        Duration::from_secs_f64(between(self.accepted, self.finished))
    }

    /// The step of that name; the last, where there are several.
    pub fn step(&self, name: &str) -> Duration {
        self.from_to(name, name)
    }

    /// From the request until that step was done.
    pub fn until_done(&self, name: &str) -> Duration {
        Duration::from_secs_f64(between(self.accepted, self.named(name).2))
    }

    /// From the beginning of a step to the end of another.
    pub fn from_to(&self, from: &str, to: &str) -> Duration {
        Duration::from_secs_f64(between(self.named(from).1, self.named(to).2))
    }

    fn named(&self, name: &str) -> &(String, f64, f64) {
        self.steps.iter().rfind(|step| step.0 == name).unwrap_or_else(|| panic!("no step {name}: {self}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = self.accepted;
        for (name, from, to) in &self.steps {
            let (before, took) = (between(at, *from), between(*from, *to));
            write!(f, "({}) {name} {}, ", seconds(before), seconds(took))?;
            at = *to;
        }
        write!(
            f,
            "({}) all {}",
            seconds(between(at, self.finished)),
            seconds(between(self.accepted, self.finished))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_past_midnight() {
        let (late, early) = (moment("2026-11-05T23:59:59.900000Z"), moment("2026-11-06T00:00:00.150000Z"));
        assert!((between(late.unwrap(), early.unwrap()) - 0.25).abs() < 1e-6);
        assert_eq!(moment("INFO"), None);
    }

    #[test]
    fn a_log_gives_its_steps() {
        let at = |second: u32| format!("2026-11-05T12:00:{second:02}.000000Z");
        let operation = serde_json::json!({
            "steps": [{"step": "make_point"}, {"step": "transfer"}],
            "events": [
                {"event": "accepted", "at": at(0)},
                {"event": "planned", "at": at(1)},
                {"event": "step_started", "at": at(1), "step": 0},
                {"event": "step_done", "at": at(3), "step": 0},
                {"event": "step_started", "at": at(4), "step": 1},
                {"event": "step_done", "at": at(8), "step": 1},
                {"event": "finished", "at": at(9)},
            ],
        });
        let span = Span::of(&operation);
        assert_eq!(span.all(), Duration::from_secs(9));
        assert_eq!(span.step("transfer"), Duration::from_secs(4));
        assert_eq!(span.until_done("make_point"), Duration::from_secs(3));
        assert_eq!(span.from_to("make_point", "transfer"), Duration::from_secs(7));
    }
}
