//! Looks through a folder for drivers, and refuses what others could have put there.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{FarDriver, Library};

/// What a folder of drivers holds.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Drivers that can be opened, by name.
    pub drivers: BTreeMap<String, Library>,
    /// Files that were refused.
    pub refused: Vec<Refusal>,
}

/// A file that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The file, or the folder itself.
    pub path: PathBuf,
    /// One sentence.
    pub reason: String,
}

impl Discovery {
    /// What it holds, as it is told to people and to servers.
    pub fn report(&self) -> Vec<FarDriver> {
        let name = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let loaded = self.drivers.values().map(|library| FarDriver {
            file: library.path().map(|path| name(&path)).unwrap_or_default(),
            driver: Ok(library.manifest().clone()),
        });
        let refused = self
            .refused
            .iter()
            .map(|refusal| FarDriver { file: name(&refusal.path), driver: Err(refusal.reason.clone()) });
        loaded.chain(refused).collect()
    }
}

/// Loads every `.so` of `folder`. Code from these files runs in this process, so a file or folder that somebody else
/// could have written is refused, and so is a link out of the folder. One bad file does not hinder the others.
pub fn discover(folder: &Path) -> Discovery {
    let mut found = Discovery::default();
    let entries = match list(folder) {
        Ok(entries) => entries,
        Err(reason) => {
            found.refused.push(Refusal { path: folder.to_owned(), reason });
            return found;
        }
    };
    for path in entries {
        match check_file(folder, &path).and_then(|()| Library::load(&path).map_err(|e| e.to_string())) {
            Ok(library) => {
                let name = library.manifest().name.clone();
                if let Some(first) = found.drivers.get(&name).and_then(Library::path) {
                    let reason = format!(
                        "{} holds a driver `{name}` too, as {} does; remove one",
                        path.display(),
                        first.display()
                    );
                    found.refused.push(Refusal { path, reason });
                } else {
                    found.drivers.insert(name, library);
                }
            }
            Err(reason) => found.refused.push(Refusal { path, reason }),
        }
    }
    found
}

/// The `.so` files of the folder, sorted.
fn list(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let cannot =
        |e: std::io::Error| format!("the folder of drivers {} cannot be read: {e}", folder.display());
    let facts = fs::metadata(folder).map_err(cannot)?;
    if !facts.is_dir() {
        return Err(format!("{} is no folder", folder.display()));
    }
    check_writers("folder", folder, &facts)?;
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|ext| ext == "so") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn check_file(folder: &Path, path: &Path) -> Result<(), String> {
    let cannot = |e: std::io::Error| format!("{} cannot be read: {e}", path.display());
    let real = fs::canonicalize(path).map_err(cannot)?;
    let home = fs::canonicalize(folder).map_err(cannot)?;
    if real.parent() != Some(home.as_path()) {
        return Err(format!(
            "{} is a link out of its folder, to {}; copy the file instead",
            path.display(),
            real.display()
        ));
    }
    let facts = fs::metadata(&real).map_err(cannot)?;
    if !facts.is_file() {
        return Err(format!("{} is no plain file", path.display()));
    }
    check_writers("file", &real, &facts)
}

/// Only root and the user of this process may be able to write.
fn check_writers(what: &str, path: &Path, facts: &Metadata) -> Result<(), String> {
    let me = rustix::process::geteuid().as_raw();
    if facts.uid() != 0 && facts.uid() != me {
        return Err(format!(
            "the {what} {} belongs to user {}, neither root nor the user of this server ({me}); it is not trusted",
            path.display(),
            facts.uid()
        ));
    }
    if facts.mode() & 0o022 != 0 {
        return Err(format!(
            "the {what} {} can be written by its group or by others (mode {:04o}); it is not trusted until `chmod go-w` is run on it",
            path.display(),
            facts.mode() & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn put(folder: &Path, name: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, "not a library").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn reasons(folder: &Path) -> Vec<String> {
        discover(folder).refused.into_iter().map(|r| r.reason).collect()
    }

    #[test]
    fn what_others_can_write_is_refused() {
        let folder = folder();
        put(folder.path(), "a.so", 0o664);
        put(folder.path(), "b.so", 0o646);
        put(folder.path(), "c.txt", 0o666);
        let reasons = reasons(folder.path());
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons.iter().all(|r| r.contains("not trusted until `chmod go-w`")), "{reasons:?}");

        fs::set_permissions(folder.path(), Permissions::from_mode(0o775)).unwrap();
        let reasons = self::reasons(folder.path());
        assert_eq!(reasons.len(), 1);
        assert!(reasons[0].starts_with("the folder"), "{reasons:?}");
    }

    #[test]
    fn what_belongs_to_another_user_is_refused() {
        let folder = folder();
        let path = put(folder.path(), "a.so", 0o644);
        // Only root can give a file away; elsewhere there is nothing to test with.
        if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
            let reasons = reasons(folder.path());
            assert!(reasons[0].contains("belongs to user 12345"), "{reasons:?}");
        }
    }

    #[test]
    fn what_is_no_driver_is_refused_in_one_sentence() {
        let folder = folder();
        let path = put(folder.path(), "a.so", 0o644);
        fs::create_dir(folder.path().join("b.so")).unwrap();
        let reasons = reasons(folder.path());
        assert!(
            reasons[0].starts_with(&format!("{} cannot be loaded as a library", path.display())),
            "{reasons:?}"
        );
        assert!(reasons[1].ends_with("is no plain file"), "{reasons:?}");
        assert!(reasons.iter().all(|r| !r.contains('\n') && r.len() < 400), "{reasons:?}");
    }

    #[test]
    fn a_link_out_of_the_folder_is_refused() {
        let (folder, elsewhere) = (folder(), folder());
        symlink(put(elsewhere.path(), "x.so", 0o644), folder.path().join("x.so")).unwrap();
        assert!(reasons(folder.path())[0].contains("is a link out of its folder"));
    }

    #[test]
    fn a_missing_folder_is_one_sentence() {
        let reasons = reasons(Path::new("/nonexistent/drivers"));
        assert!(
            reasons[0].starts_with("the folder of drivers /nonexistent/drivers cannot be read"),
            "{reasons:?}"
        );
    }
}
