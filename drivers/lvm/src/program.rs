//! Where the driver's programs are: beside the library that this code was loaded from.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tandem_sdk::{Error, Result, Retry};

/// Runs LVM's library for the driver.
pub(crate) const WORKER: &str = "tandem-lvm-worker";
/// Asks, for the kernel, which side of a share goes on.
pub(crate) const FENCE_PEER: &str = "tandem-fence-peer";

/// A program of the driver's; `configured` where the settings name it.
///
/// # Errors
/// When it is not there, or somebody else could have written it.
pub(crate) fn find(name: &str, configured: Option<&Path>) -> Result<PathBuf> {
    let candidates = match configured {
        Some(path) => vec![path.to_owned()],
        None => {
            let library =
                own_file().ok_or_else(|| missing(name, "where the driver was loaded from is unknown"))?;
            // A test program lies one folder below.
            library.ancestors().skip(1).take(2).map(|folder| folder.join(name)).collect()
        }
    };
    let found = candidates.iter().find_map(|path| Some((path, fs::metadata(path).ok()?)));
    let Some((path, facts)) = found else {
        let first = candidates.first().map(|path| path.display().to_string()).unwrap_or_default();
        return Err(missing(name, &format!("there is no {first}; install it beside the driver's library")));
    };
    let me = rustix::process::geteuid().as_raw();
    if !facts.is_file() || (facts.uid() != 0 && facts.uid() != me) || facts.mode() & 0o022 != 0 {
        return Err(Error::invalid(format!(
            "{} is not trusted: it must be a file of root's or of this server's user, and nobody else may write to it",
            path.display()
        ))
        .retry(Retry::AfterOperator));
    }
    Ok(path.clone())
}

fn missing(name: &str, what: &str) -> Error {
    Error::unavailable(format!("the driver's program {name} is not found: {what}"))
        .retry(Retry::AfterOperator)
}

/// The file that this function was loaded from.
fn own_file() -> Option<PathBuf> {
    let here = own_file as fn() -> Option<PathBuf> as usize;
    holder(&fs::read_to_string("/proc/self/maps").ok()?, here)
}

/// The file that is mapped at an address.
fn holder(maps: &str, address: usize) -> Option<PathBuf> {
    maps.lines().find_map(|line| {
        let (from, rest) = line.split_once('-')?;
        let (to, rest) = rest.split_once(' ')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        let path = rest.get(rest.find('/')?..)?;
        // A library that was replaced while it runs.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        range.contains(&address).then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_behind_an_address() {
        let maps = "5000-6000 r-xp 00000000 fe:00 123   /usr/bin/tandemd\n\
                    7000-8000 r-xp 00000000 fe:00 124   /srv/a b/libx.so (deleted)\n\
                    9000-a000 rw-p 00000000 00:00 0\n";
        assert_eq!(holder(maps, 0x5fff).unwrap(), Path::new("/usr/bin/tandemd"));
        assert_eq!(holder(maps, 0x7000).unwrap(), Path::new("/srv/a b/libx.so"));
        assert_eq!(holder(maps, 0x8000), None);
        assert_eq!(holder(maps, 0x9000), None);
        assert_eq!(own_file().unwrap(), std::env::current_exe().unwrap());
    }

    #[test]
    fn what_others_could_have_written_is_not_run() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("tandem-worker-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        for (mode, fine) in [(0o755, true), (0o775, false), (0o757, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(find(WORKER, Some(&path)).is_ok(), fine, "{mode:o}");
        }
        fs::remove_file(&path).unwrap();
        assert!(find(WORKER, Some(&path)).unwrap_err().message.contains("tandem-worker-"));
    }
}
