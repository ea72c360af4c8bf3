//! `cargo xtask test`: everything that CI runs, cheap first, in a fresh clone with an empty cache.

use crate::{
    Result, client,
    command::Run,
    conformance,
    inside::{Inside, boots},
    keystone,
    report::Report,
    suite::{self, Counts, Suite},
    system,
    temporary::Temporary,
    testbed, tidy, up_check,
    workspace::Workspace,
};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The package whose tests are run last: they start real servers.
pub(crate) const TESTBED: &str = "tandem-testbed";
/// The end-to-end test that is repeated under an unprivileged user.
const WALK: &str = "walk";
const STEPS: &[&str] = &["tidy", "unit", "conformance", "up", "end-to-end", "guests"];

/// Runs the steps, or only those that are named.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    steps_named(&only(arguments)?, None)
}

/// Everything that needs guests, at length; or only these suites.
pub(crate) fn long(suites: &[&str]) -> Result<()> {
    steps_named(&["guests".into()], Some(suites))
}

fn steps_named(only: &[String], long: Option<&[&str]>) -> Result<()> {
    let wants = |step: &str| only.is_empty() || only.iter().any(|wanted| wanted == step);
    let start = Instant::now();
    let workspace = Workspace::load()?;
    let mut report = Report::new();
    let mut total = Counts::default();
    let finished = steps(&workspace, wants, long, &mut report, &mut total);
    let verdict = finished.and(report.finish());
    for why in &total.why {
        println!("\n{}", why.trim_end());
    }
    // In the words of Rust's own test programs, which other tools recognise.
    let word = if verdict.is_ok() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; finished in {:.2}s",
        total.passed,
        total.failed,
        total.ignored,
        start.elapsed().as_secs_f64()
    );
    verdict
}

fn only(arguments: &[String]) -> Result<Vec<String>> {
    let mut steps = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), words.next()) {
            ("--only", Some(step)) if STEPS.contains(&step.as_str()) => steps.push(step.clone()),
            _ => return Err(format!("test takes --only with one of {STEPS:?}, not {arguments:?}.")),
        }
    }
    Ok(steps)
}

fn steps(
    workspace: &Workspace,
    wants: impl Fn(&str) -> bool,
    long: Option<&[&str]>,
    report: &mut Report,
    total: &mut Counts,
) -> Result<()> {
    if !report.step("system packages", system::prepare) {
        return Ok(());
    }
    // Before anything is built, because a driver is built only where its library is.
    if wants("guests") {
        report.step("guests: packages", testbed::packages);
    }
    if wants("tidy") {
        tidy::rules(workspace, report);
        tidy::compiled(report);
    }
    if wants("up") {
        report.step("end to end: cargo xtask up", || up_check::run(&workspace.root));
    }
    if !["unit", "conformance", "end-to-end", "guests"].iter().any(|step| wants(step)) {
        return Ok(());
    }
    let mut suites = Vec::new();
    let built = report.step("build", || {
        if wants("unit") || wants("end-to-end") || wants("guests") {
            suites = suite::build(workspace)?;
        }
        // The programs and the plug-ins themselves: the tests load and start what people will.
        let build = Run::cargo().args(["build", "--quiet", "--workspace", "--locked"]);
        build.args(workspace.features()).run()?;
        Ok(format!("{} test programs", suites.len()))
    });
    if !built {
        return Ok(());
    }
    if wants("unit") {
        report.step("unit and property tests", || {
            all(suites.iter().filter(|suite| suite.package != TESTBED && !boots(suite)), &[], total)
        });
        report.step("documentation tests", || {
            let tests = ["test", "--quiet", "--workspace", "--doc", "--locked"];
            add(total, suite::counted(Run::cargo().args(tests).args(workspace.features()))?)
        });
    }
    let mut cases = Vec::new();
    if wants("conformance") || wants("guests") {
        report.step("conformance", || {
            cases = conformance::cases(workspace)?;
            Ok(format!("{} sets of settings", cases.len()))
        });
    }
    if wants("conformance") {
        for case in cases.iter().filter(|case| case.guest.is_none()) {
            report.step(&format!("conformance: {}", case.name), || {
                let counts = case.run(workspace)?;
                some(total, counts)
            });
        }
    }
    let outside = wants("end-to-end");
    let inside = wants("guests") && report.step("guests: modules", testbed::prepare);
    let inside = inside.then(|| Inside::new(workspace, &suites, &cases, long));
    std::thread::scope(|scope| {
        // Two ways beside each other: both wait more than they compute.
        let beside = scope.spawn(|| {
            let (mut report, mut total) = (Report::beside(), Counts::default());
            if outside {
                end_to_end(workspace, &suites, &mut report, &mut total);
            }
            if let Some(inside) = &inside {
                inside.second(&mut report, &mut total);
            }
            (report, total)
        });
        if let Some(inside) = &inside {
            inside.first(report, total);
        }
        let (rows, counts) =
            beside.join().map_err(|_| "what goes on beside the guests was not run to its end.")?;
        report.join(rows);
        *total += counts;
        Ok(())
    })
}

fn end_to_end(workspace: &Workspace, suites: &[Suite], report: &mut Report, total: &mut Counts) {
    let mut stock = PathBuf::new();
    let ready = report.step("stock client", || {
        stock = client::prepare()?;
        client::version(&stock)
    });
    if !ready {
        return;
    }
    // Without it only the tests that need it fail.
    let mut identity = PathBuf::new();
    report.step("Keystone", || {
        identity = keystone::prepare(&workspace.root)?;
        keystone::version(&identity)
    });
    let artifacts = workspace.artifacts(false);
    let environment = [
        ("TANDEM_ARTIFACTS", artifacts.clone()),
        ("TANDEM_CLIENT", stock.clone()),
        ("TANDEM_KEYSTONE", identity),
    ];
    for suite in suites.iter().filter(|suite| suite.package == TESTBED && !boots(suite)) {
        let kind = if suite.integration { "end to end" } else { "testbed" };
        report.step(&format!("{kind}: {}", suite.name), || all([suite], &environment, total));
    }
    if system::is_root() {
        report.step("end to end: walk, unprivileged", || {
            let walk = suites.iter().find(|s| s.package == TESTBED && s.name == WALK);
            let walk = walk.ok_or("there is no test program for the walk.")?;
            unprivileged(workspace, walk, &artifacts, &stock, total)
        });
    }
}

/// Repeats the walk as `nobody`, from copies that `nobody` may read.
fn unprivileged(
    workspace: &Workspace,
    walk: &Suite,
    artifacts: &Path,
    stock: &Path,
    total: &mut Counts,
) -> Result<String> {
    let temporary = Temporary::folder("tandem-walk")?;
    let folder = temporary.path();
    let outcome = (|| {
        let (programs, scratch, client) = (folder.join("bin"), folder.join("tmp"), folder.join("client"));
        for new in [&programs, &scratch] {
            std::fs::create_dir(new).map_err(|error| format!("creating {}: {error}.", new.display()))?;
        }
        let libraries = workspace.drivers().into_iter().filter_map(|driver| driver.library());
        let names = ["tandemd".to_string(), "tandem".into()].into_iter().chain(libraries);
        Run::new("cp").args(names.map(|name| artifacts.join(name))).args([&programs]).run()?;
        Run::new("cp").args([walk.program(), &programs.join(WALK)]).run()?;
        Run::new("cp").args([workspace.root.join("README.md"), folder.join("README.md")]).run()?;
        client::copy(stock, &client)?;
        Run::new("chmod").args(["-R", "a+rX,go-w"]).args([folder]).run()?;
        Run::new("chown").args(["nobody"]).args([&scratch]).run()?;
        let program = Run::new("timeout")
            .args(["--foreground", "--kill-after=10", "1800", "setpriv"])
            .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"])
            .args([programs.join(WALK)])
            .dir(&scratch)
            .env("HOME", &scratch)
            .env("TMPDIR", &scratch)
            .env("TANDEM_README", folder.join("README.md"))
            .env("TANDEM_ARTIFACTS", &programs)
            .env("TANDEM_CLIENT", &client);
        let counts = suite::counted(program)?;
        some(total, counts)
    })();
    let swept = temporary.remove();
    outcome.and_then(|remark| swept.map(|()| remark))
}

pub(crate) fn all<'a>(
    suites: impl IntoIterator<Item = &'a Suite>,
    environment: &[(&str, PathBuf)],
    total: &mut Counts,
) -> Result<String> {
    let mut sum = Counts::default();
    let mut broken = Vec::new();
    for suite in suites {
        match suite.run(environment) {
            Ok(counts) => sum += counts,
            Err(sentence) => broken.push(sentence),
        }
    }
    let remark = some(total, sum);
    if broken.is_empty() { remark } else { Err(broken.join("\n")) }
}

/// Nothing run is nothing proven.
pub(crate) fn some(total: &mut Counts, counts: Counts) -> Result<String> {
    if counts.passed + counts.failed == 0 {
        return Err("no test ran.".into());
    }
    add(total, counts)
}

fn add(total: &mut Counts, counts: Counts) -> Result<String> {
    let (passed, failed) = (counts.passed, counts.failed);
    *total += counts;
    match failed {
        0 => Ok(format!("{passed} tests")),
        _ => Err(format!("{failed} of {} tests failed.", failed + passed)),
    }
}
