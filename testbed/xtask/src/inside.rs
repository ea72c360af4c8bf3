//! What `cargo xtask test` runs in guests, in two ways that go on beside each other: few of these keep both processors busy.

use crate::{
    command::Run,
    conformance::Case,
    report::Report,
    suite::{self, Counts, Suite},
    test::{TESTBED, all, some},
    testbed,
    workspace::Workspace,
};
use std::path::PathBuf;

/// The package of the guests, whose own tests boot some.
const GUESTS: &str = "tandem-guests";
/// What the names of the end-to-end tests that boot guests begin with.
const IN_GUESTS: &str = "guests";
/// The kill tests, which are repeated over ZFS in a guest.
const KILL: &str = "kill";
/// Scenarios of which each boots two guests: one after the other, for more than two share too few cores.
const TWO_GUESTS: [&str; 3] = ["guests_hosts", "guests_lvm_hosts", "guests_power"];
/// What conformance in guests is called where suites are named.
const CONFORMANCE: &str = "conformance";
/// The kind of guest whose drivers' suites go the second way.
const SECOND: &str = "zfs";

/// Whether a suite boots guests.
pub(crate) fn boots(suite: &Suite) -> bool {
    let inside = suite.package == TESTBED && suite.name.starts_with(IN_GUESTS);
    suite.integration && (suite.package == GUESTS || inside || lives_in(suite).is_some())
}

/// The kind of guest that a suite itself runs in: tests of a driver on storage that only a guest has, in a file
/// `guest_KIND`, or `guest_KIND_MORE`. Elsewhere they pass themselves by.
fn lives_in(suite: &Suite) -> Option<&str> {
    let name = suite
        .name
        .strip_prefix("guest_")
        .filter(|_| suite.integration && suite.package.starts_with("tandem-driver-"))?;
    name.split('_').next()
}

/// What needs a kernel of its own: the guests themselves, drivers of kernel storage, whole servers on it.
pub(crate) struct Inside<'a> {
    workspace: &'a Workspace,
    suites: Vec<&'a Suite>,
    cases: Vec<&'a Case>,
    environment: Vec<(&'static str, PathBuf)>,
    /// Seconds that one of them may take.
    deadline: &'static str,
}

impl<'a> Inside<'a> {
    /// `long`: everything at length, or, where any are named, these suites.
    pub(crate) fn new(
        workspace: &'a Workspace,
        suites: &'a [Suite],
        cases: &'a [Case],
        long: Option<&[&str]>,
    ) -> Self {
        let named = |name: &str| long.is_none_or(|only| only.is_empty() || only.contains(&name));
        let now = |case: &&Case| case.guest.is_some() && (long.is_some() || !case.long) && named(CONFORMANCE);
        let mut environment = vec![("TANDEM_ARTIFACTS", workspace.artifacts(false))];
        if long.is_some() {
            environment.push(("TANDEM_LONG", "1".into()));
        }
        Self {
            workspace,
            suites: suites.iter().filter(|suite| named(&suite.name)).collect(),
            cases: cases.iter().filter(now).collect(),
            environment,
            deadline: if long.is_some() { "28800" } else { "1800" },
        }
    }

    /// The guests themselves, drivers, and scenarios, those of two guests last.
    pub(crate) fn first(&self, report: &mut Report, total: &mut Counts) {
        if self.suites.is_empty() && self.cases.is_empty() {
            report.step("guests: suites", || Err("there is no suite of that name.".into()));
        }
        for suite in self.suites.iter().filter(|suite| suite.package == GUESTS && boots(suite)) {
            report.step(&format!("guests: {}", suite.name), || all([*suite], &self.environment, total));
        }
        self.drivers(|kind| kind != SECOND, report, total);
        let mut scenarios: Vec<&Suite> =
            self.suites.iter().copied().filter(|suite| suite.package == TESTBED && boots(suite)).collect();
        scenarios.sort_by_key(|suite| TWO_GUESTS.contains(&&*suite.name));
        for suite in scenarios {
            report.step(&format!("guests: scenarios: {}", suite.name), || {
                let mut environment = self.environment.clone();
                if TWO_GUESTS.contains(&&*suite.name) {
                    environment.push(("RUST_TEST_THREADS", "1".into()));
                }
                some(total, suite.run_below(self.bounded(), &environment)?)
            });
        }
    }

    /// The behaviour suite, the other drivers, and kills over ZFS: one guest at a time.
    pub(crate) fn second(&self, report: &mut Report, total: &mut Counts) {
        for case in &self.cases {
            report.step(&format!("guests: conformance: {}", case.name), || {
                some(total, case.run(self.workspace)?)
            });
        }
        self.drivers(|kind| kind == SECOND, report, total);
        let mut environment = self.environment.clone();
        environment.push(("TANDEM_KILL_BENEATH", "zfs".into()));
        for suite in self.suites.iter().filter(|suite| suite.package == TESTBED && suite.name == KILL) {
            report.step("guests: kill -9 over zfs", || {
                let inside = self.bounded().then(testbed::inside(self.workspace, "zfs"));
                some(total, suite.run_below(inside, &environment)?)
            });
        }
    }

    /// Suites of drivers that live in guests of these kinds.
    fn drivers(&self, wanted: impl Fn(&str) -> bool, report: &mut Report, total: &mut Counts) {
        let all = self.suites.iter().filter_map(|suite| Some((suite, lives_in(suite)?)));
        for (suite, kind) in all.filter(|(_, kind)| wanted(kind)) {
            report.step(&format!("guests: {}, {}", suite.package, suite.name), || {
                let artifacts = self.workspace.artifacts(false);
                let run =
                    self.bounded().args([artifacts.join("tandem-guest")]).args(["run", kind, "--share"]);
                let run = run.args([artifacts]).args(["--"]).args([suite.program()]);
                let run = self.environment.iter().fold(run, |run, (key, value)| run.env(key, value));
                some(total, suite::counted(run)?)
            });
        }
    }

    fn bounded(&self) -> Run {
        Run::new("timeout").args(["--foreground", "--kill-after=10", self.deadline])
    }
}
