//! Every driver's library through the behaviour suite, with every set of settings that stands beside the driver.
//!
//! `drivers/NAME/conformance/CASE.toml` holds settings of a back end, `CASE.peer.toml` those of a second one for the
//! other side of replication. `{folder}` stands for a fresh folder. Settings whose first line is `# guest: zfs` are for a
//! guest of that kind, where the suite then runs (`cargo xtask testbed run zfs` shows what is there); with `, long` after
//! the kind, only `cargo xtask testbed --long conformance` runs it. A driver without such a file fails: nothing run is
//! nothing proven.

use crate::{
    Result,
    command::Run,
    suite::{self, Counts},
    temporary::Temporary,
    workspace::{Package, Workspace},
};
use std::path::{Path, PathBuf};

/// One set of settings of one driver.
#[derive(Debug)]
pub(crate) struct Case {
    /// `directory: small`, for people.
    pub(crate) name: String,
    library: PathBuf,
    settings: PathBuf,
    /// The kind of guest it needs, if it needs one.
    pub(crate) guest: Option<String>,
    /// Too long for every change.
    pub(crate) long: bool,
}

/// The first line of settings for a guest; its kind follows.
const GUEST: &str = "# guest: ";
/// What follows the kind where the suite takes too long for every change.
const LONG: &str = ", long";

/// All sets of settings of all drivers.
pub(crate) fn cases(workspace: &Workspace) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for driver in workspace.drivers() {
        let of_driver = of(workspace, driver)?;
        if of_driver.is_empty() {
            return Err(format!(
                "{0} has no {0}/conformance/*.toml, so nothing would be proven of it.",
                driver.dir
            ));
        }
        cases.extend(of_driver);
    }
    for case in &mut cases {
        let text = std::fs::read_to_string(&case.settings)
            .map_err(|error| format!("reading {}: {error}.", case.settings.display()))?;
        let kind = text.lines().next().and_then(|line| line.strip_prefix(GUEST)).map(str::trim);
        case.long = kind.is_some_and(|kind| kind.ends_with(LONG));
        case.guest = kind.map(|kind| kind.trim_end_matches(LONG).into());
    }
    Ok(cases)
}

fn of(workspace: &Workspace, driver: &Package) -> Result<Vec<Case>> {
    let folder = workspace.root.join(&driver.dir).join("conformance");
    let library = driver.library().ok_or(format!("{} builds no library.", driver.name))?;
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.to_string_lossy().ends_with(".toml") && !path.to_string_lossy().ends_with(".peer.toml")
        })
        .collect();
    files.sort();
    let short = driver.dir.trim_start_matches("drivers/");
    let case = |settings: PathBuf| Case {
        name: format!("{short}, {}", settings.file_stem().unwrap_or_default().to_string_lossy()),
        library: workspace.artifacts(false).join(&library),
        settings,
        guest: None,
        long: false,
    };
    Ok(files.into_iter().map(case).collect())
}

impl Case {
    /// Runs the suite.
    pub(crate) fn run(&self, workspace: &Workspace) -> Result<Counts> {
        let folder = Temporary::folder("tandem-conformance")?;
        let outcome = self.run_in(workspace, folder.path());
        folder.remove().and(outcome)
    }

    fn run_in(&self, workspace: &Workspace, folder: &Path) -> Result<Counts> {
        let kit = workspace.artifacts(false).join("tandem-conformance");
        let settings = fill(&self.settings, folder)?;
        let mut run = Run::new("timeout").args(["--foreground", "--kill-after=10", "900"]);
        if let Some(kind) = &self.guest {
            let artifacts = workspace.artifacts(false);
            run = run.args([artifacts.join("tandem-guest")]).args(["run", kind]);
            for shared in [&artifacts, folder] {
                run = run.args(["--share"]).args([shared]);
            }
            run = run.args(["--"]);
        }
        let mut run = run.args([&kit, &self.library]).args(["--settings"]).args([settings]);
        let peer = self.settings.with_extension("peer.toml");
        if peer.exists() {
            run = run.args(["--peer"]).args([fill(&peer, folder)?]);
        }
        suite::counted(run)
    }
}

/// Writes the settings with the folder filled in, into that folder.
fn fill(settings: &Path, folder: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(settings)
        .map_err(|error| format!("reading {}: {error}.", settings.display()))?;
    let filled = folder.join(settings.file_name().unwrap_or_default());
    std::fs::write(&filled, text.replace("{folder}", &folder.to_string_lossy()))
        .map_err(|error| format!("writing {}: {error}.", filled.display()))?;
    Ok(filled)
}
