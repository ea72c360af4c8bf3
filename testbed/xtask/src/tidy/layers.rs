//! Which crate may build upon which: `drivers -> plugin-sdk -> core <- api`, and nothing runs back.

use crate::{
    Result,
    workspace::{Package, Workspace},
};

/// A folder, and the folders whose crates it may name. A folder that is not in the table may name none.
const LAYERS: &[(&str, &[&str])] = &[
    ("core/contract", &[]),
    ("core/abi", &["core/contract"]),
    ("core/mirror", &["core/contract"]),
    ("core/host", &["core/abi", "core/contract"]),
    ("core/manager", &["core/host", "core/mirror", "core/contract"]),
    ("plugin-sdk/sdk", VENDOR),
    ("plugin-sdk/conformance", VENDOR),
    ("plugin-sdk/template", VENDOR),
    ("drivers/", VENDOR),
    ("api/cli", &["core/contract"]),
    ("api/server", &["core/"]),
    ("api/daemon", &["core/", "api/server"]),
    ("testbed/xtask", &[]),
    ("testbed/guests", &[]),
    ("testbed", &["testbed/guests", "core/", "plugin-sdk/", "drivers/", "api/"]),
];

/// All that a vendor's crate may pull in; above all, neither the host nor the manager.
const VENDOR: &[&str] =
    &["plugin-sdk/sdk", "plugin-sdk/conformance", "core/contract", "core/abi", "core/mirror"];

/// Only this crate may name the two libraries that the binary interface is made of.
const QUARANTINE: &str = "core/abi";
const QUARANTINED: &[&str] = &["abi_stable", "async-ffi"];

/// One sentence for each arrow that runs the wrong way.
pub(super) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut findings: Vec<String> = workspace.packages.iter().flat_map(arrows).collect();
    for file in workspace.files()? {
        if !file.ends_with(".rs") || file.starts_with(QUARANTINE) || file.starts_with("testbed/xtask") {
            continue;
        }
        let text = std::fs::read_to_string(workspace.root.join(&file))
            .map_err(|error| format!("reading {file}: {error}."))?;
        for name in QUARANTINED {
            if text.contains(&format!("{}::", name.replace('-', "_"))) {
                findings.push(format!("{file}: only {QUARANTINE} may name {name}."));
            }
        }
    }
    Ok(findings)
}

fn arrows(package: &Package) -> Vec<String> {
    let mut findings = Vec::new();
    for dependency in &package.dependencies {
        match &dependency.dir {
            Some(dir) if !allowed(&package.dir, dir) => findings.push(format!(
                "{} ({}) must not depend on {} ({dir}).",
                package.name, package.dir, dependency.name
            )),
            None if QUARANTINED.contains(&dependency.name.as_str()) && package.dir != QUARANTINE => {
                findings.push(format!("{}: only {QUARANTINE} may name {}.", package.dir, dependency.name));
            }
            _ => {}
        }
    }
    findings
}

fn allowed(from: &str, to: &str) -> bool {
    let within =
        |dir: &str, rule: &str| if rule.ends_with('/') { dir.starts_with(rule) } else { dir == rule };
    LAYERS
        .iter()
        .find(|(folder, _)| within(from, folder))
        .is_some_and(|(_, may)| may.iter().any(|rule| within(to, rule)))
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn the_arrows_of_the_design_hold_and_none_runs_back() {
        for (from, to) in [
            ("drivers/zfs", "plugin-sdk/sdk"),
            ("plugin-sdk/sdk", "core/abi"),
            ("core/manager", "core/host"),
            ("core/manager", "core/mirror"),
            ("api/server", "core/manager"),
            ("api/daemon", "api/server"),
            ("testbed", "drivers/fake"),
        ] {
            assert!(allowed(from, to), "{from} -> {to}");
        }
        for (from, to) in [
            ("drivers/zfs", "core/host"),
            ("drivers/zfs", "drivers/lvm"),
            ("plugin-sdk/conformance", "core/manager"),
            ("core/manager", "drivers/fake"),
            ("core/manager", "api/server"),
            ("core/host", "core/mirror"),
            ("core/contract", "core/abi"),
            ("api/cli", "core/manager"),
            ("api/server", "plugin-sdk/sdk"),
            ("elsewhere", "core/contract"),
        ] {
            assert!(!allowed(from, to), "{from} -> {to}");
        }
    }
}
