//! `cargo xtask bench`: everything built for release, then the benchmarks of the testbed.

use crate::{Result, command::Run, system, testbed, workspace::Workspace};

/// Those that boot guests.
const IN_GUESTS: &[&str] = &["lvm", "zfs"];

/// Runs all benchmarks, or those that are named.
pub(crate) fn run(names: &[String]) -> Result<()> {
    let workspace = Workspace::load()?;
    let testbed = workspace.packages.iter().find(|p| p.name == "tandem-testbed");
    let mut benches: Vec<&str> = testbed
        .iter()
        .flat_map(|p| &p.targets)
        .filter(|t| t.kinds.iter().any(|k| k == "bench"))
        .map(|t| t.name.as_str())
        .collect();
    if let Some(stranger) = names.iter().find(|name| !benches.contains(&name.as_str())) {
        return Err(format!("there is no benchmark {stranger:?}; there are {benches:?}."));
    }
    if !names.is_empty() {
        benches.retain(|bench| names.iter().any(|name| name == bench));
    }
    if benches.is_empty() {
        return Err("the testbed has no benchmarks.".into());
    }
    system::prepare()?;
    if benches.iter().any(|bench| IN_GUESTS.contains(bench)) {
        println!("-- {}", testbed::prepare()?);
    }
    let build = Run::cargo().args(["build", "--release", "--workspace", "--locked"]);
    build.args(workspace.features()).run()?;
    for bench in benches {
        Run::cargo()
            .args(["bench", "--package", "tandem-testbed", "--locked", "--bench", bench])
            .env("TANDEM_ARTIFACTS", workspace.artifacts(true))
            .run()?;
    }
    Ok(())
}
