//! What `cargo metadata` says about this repository.

use crate::{Result, command::Run};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The repository, its packages and where cargo builds them.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
}

/// One package of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    /// Folder inside the repository, such as `core/manager`.
    pub(crate) dir: String,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
    /// `package.metadata.tandem.test_only = true`: a driver that is never installed for a person.
    pub(crate) test_only: bool,
    /// `package.metadata.tandem.system_features.FEATURE = "LIBRARY"`: features to switch on where pkg-config finds a library.
    pub(crate) system_features: Vec<(String, String)>,
}

/// A declared dependency, of whatever kind.
#[derive(Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// Folder inside the repository, when the dependency is one of ours.
    pub(crate) dir: Option<String>,
}

/// Something that cargo builds out of a package.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kinds: Vec<String>,
}

impl Workspace {
    /// Asks cargo, without looking at third-party packages.
    pub(crate) fn load() -> Result<Self> {
        let text = Run::cargo().args(["metadata", "--format-version=1", "--no-deps"]).output()?;
        let metadata = parse(&text)?;
        let root = PathBuf::from(string(&metadata, "workspace_root"));
        let packages = array(&metadata, "packages").iter().map(|p| package(p, &root)).collect();
        Ok(Self { target: PathBuf::from(string(&metadata, "target_directory")), root, packages })
    }

    /// All files that git knows or would add, relative to the root.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        let listing = Run::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .dir(&self.root)
            .output()?;
        let mut files: Vec<String> =
            listing.split('\0').filter(|f| !f.is_empty()).map(String::from).collect();
        // A file that was deleted but not yet committed is still listed.
        files.retain(|file| self.root.join(file).symlink_metadata().is_ok());
        files.sort();
        files.dedup();
        Ok(files)
    }

    /// The folder of built programs and libraries of a profile.
    pub(crate) fn artifacts(&self, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" })
    }

    /// Arguments of cargo that switch on what this machine has the libraries for. The same for every build of the workspace,
    /// else each would throw the others' work away.
    pub(crate) fn features(&self) -> Vec<String> {
        let features: Vec<String> = self
            .packages
            .iter()
            .flat_map(|package| package.system_features.iter().map(move |feature| (package, feature)))
            .filter(|(_, (_, library))| Run::new("pkg-config").args(["--exists", library]).succeeds())
            .map(|(package, (feature, _))| format!("{}/{feature}", package.name))
            .collect();
        if features.is_empty() { features } else { vec!["--features".into(), features.join(",")] }
    }

    /// The packages under `drivers/` that build a loadable library.
    pub(crate) fn drivers(&self) -> Vec<&Package> {
        self.packages.iter().filter(|p| p.dir.starts_with("drivers/") && p.library().is_some()).collect()
    }
}

impl Package {
    /// The file name of the loadable library it builds, if it builds one.
    pub(crate) fn library(&self) -> Option<String> {
        let target = self.targets.iter().find(|t| t.kinds.iter().any(|k| k == "cdylib"))?;
        Some(format!("lib{}.so", target.name.replace('-', "_")))
    }

    /// The names of the programs it builds.
    pub(crate) fn programs(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().filter(|t| t.kinds.iter().any(|k| k == "bin")).map(|t| t.name.as_str())
    }
}

/// Parses a JSON document that cargo printed.
pub(crate) fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|error| format!("cargo's answer is not the JSON it should be: {error}."))
}

/// A string field, empty when absent.
pub(crate) fn string<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// An array field, empty when absent.
pub(crate) fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn package(value: &Value, root: &Path) -> Package {
    let manifest = Path::new(string(value, "manifest_path"));
    let inside = |path: &Path| path.strip_prefix(root).ok().map(|p| p.to_string_lossy().into_owned());
    let dependencies = array(value, "dependencies")
        .iter()
        .map(|dependency| Dependency {
            name: string(dependency, "name").into(),
            dir: dependency.get("path").and_then(Value::as_str).and_then(|path| inside(Path::new(path))),
        })
        .collect();
    let targets = array(value, "targets")
        .iter()
        .map(|target| Target {
            name: string(target, "name").into(),
            kinds: array(target, "kind").iter().filter_map(Value::as_str).map(String::from).collect(),
        })
        .collect();
    Package {
        id: string(value, "id").into(),
        name: string(value, "name").into(),
        dir: manifest.parent().and_then(inside).unwrap_or_default(),
        dependencies,
        targets,
        system_features: value
            .pointer("/metadata/tandem/system_features")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(feature, library)| Some((feature.clone(), library.as_str()?.to_string())))
            .collect(),
        test_only: value.pointer("/metadata/tandem/test_only") == Some(&Value::Bool(true)),
    }
}
