//! Who on this host keeps a mounted share in use, for a sentence to the operator.

use std::fs;
use std::path::{Path, PathBuf};

/// So many are named; a person ends these and looks again.
const MOST: usize = 3;

/// Processes with an open file, or their folder, below `path`, as `process 7 (tail)`. Best effort: what ends meanwhile,
/// and what this process may not see, is left out.
pub(crate) fn of(path: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered =
        processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    let holding = numbered.filter(|(_, process)| uses(process).any(|used| used.starts_with(path)));
    let named = holding.map(|(pid, process)| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        format!("process {pid} ({})", name.trim())
    });
    named.take(MOST).collect()
}

/// What a process uses of file systems; memory that maps a file is left out.
fn uses(process: &Path) -> impl Iterator<Item = PathBuf> {
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let links = ["cwd", "root", "exe"].map(|link| process.join(link));
    links.into_iter().chain(open).filter_map(|link| fs::read_link(link).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_file_open_is_named() {
        let folder = std::env::temp_dir().join(format!("tandem-holders-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let folder = folder.canonicalize().unwrap();
        assert_eq!(of(&folder), [] as [String; 0]);
        let open = fs::File::create(folder.join("open")).unwrap();
        let held = of(&folder);
        assert!(
            held.len() == 1 && held[0].starts_with(&format!("process {} (", std::process::id())),
            "{held:?}"
        );
        drop(open);
        assert_eq!(of(&folder), [] as [String; 0]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
