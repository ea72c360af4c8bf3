//! The folders that shares are mounted on.
//!
//! While nothing is mounted there, as after a boot, nobody can write into one: the mount would hide what they wrote. Root is
//! held back where the file system knows immutable folders, everybody else by the folder's permissions.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::IFlags;
use tandem_sdk::Result;
use tandem_sdk::files::failed;

/// Makes the folder for a mount.
pub(crate) fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| failed("create", path, &e))?;
    if !is_empty(path)? {
        set_aside(path)?;
        fs::create_dir(path).map_err(|e| failed("create", path, &e))?;
    }
    seal(path, false);
    fs::set_permissions(path, fs::Permissions::from_mode(0o000))
        .map_err(|e| failed("set the permissions of", path, &e))?;
    seal(path, true);
    Ok(())
}

/// Removes it; `false` when it was not there.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    seal(path, false);
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => set_aside(path).map(|()| true),
        // Nothing is reached by it, so that nobody is kept from anything by its staying.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            tracing::warn!(
                path = %path.display(), error = %e,
                "The folder of a share that is not mounted could not be removed; `chattr -i` lets it go."
            );
            Ok(false)
        }
        Err(e) => Err(failed("remove", path, &e)),
    }
}

/// Makes a folder immutable, or not.
fn seal(path: &Path, sealed: bool) {
    let Ok(folder) = fs::File::open(path) else { return };
    // Not every file system has such flags.
    let Ok(flags) = rustix::fs::ioctl_getflags(&folder) else { return };
    let mut wanted = flags;
    wanted.set(IFlags::IMMUTABLE, sealed);
    if wanted != flags
        && let Err(errno) = rustix::fs::ioctl_setflags(&folder, wanted)
    {
        tracing::debug!(path = %path.display(), %errno, "The folder's flags stay as they are.");
    }
}

fn is_empty(path: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(path).map_err(|e| failed("list", path, &e))?;
    Ok(entries.next().is_none())
}

/// Keeps beside it what somebody wrote into a folder while nothing was mounted on it.
fn set_aside(path: &Path) -> Result<()> {
    seal(path, false);
    let mut number = 1;
    let aside = loop {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".unmounted-{number}"));
        if fs::symlink_metadata(&aside).is_err() {
            break aside;
        }
        number += 1;
    };
    fs::rename(path, &aside).map_err(|e| failed("rename", path, &e))?;
    tracing::warn!(
        kept = %Path::new(&aside).display(),
        "Somebody wrote into the folder of a share that was not mounted; what they wrote is kept there."
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_it_is_kept_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        for turn in 1..=2 {
            make(&share).unwrap();
            seal(&share, false);
            fs::set_permissions(&share, fs::Permissions::from_mode(0o700)).unwrap();
            fs::write(share.join("lost"), format!("{turn}")).unwrap();
            if turn == 1 {
                make(&share).unwrap();
                seal(&share, false);
                fs::set_permissions(&share, fs::Permissions::from_mode(0o700)).unwrap();
                assert!(is_empty(&share).unwrap());
            }
            assert!(remove(&share).unwrap());
            assert!(!remove(&share).unwrap());
            let kept = folder.path().join(format!("share.unmounted-{turn}/lost"));
            assert_eq!(fs::read_to_string(kept).unwrap(), format!("{turn}"));
        }
    }

    #[test]
    fn nobody_writes_into_it() {
        let folder = tempfile::tempdir().unwrap();
        let share = folder.path().join("share");
        make(&share).unwrap();
        assert_eq!(fs::metadata(&share).unwrap().permissions().mode() & 0o777, 0);
        let sealed = fs::File::open(&share).ok().and_then(|f| rustix::fs::ioctl_getflags(&f).ok());
        if sealed.is_some_and(|flags| flags.contains(IFlags::IMMUTABLE)) {
            assert!(fs::write(share.join("file"), "x").is_err());
        }
        assert!(remove(&share).unwrap());
    }
}
