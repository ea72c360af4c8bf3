//! Checks of what settings of several drivers have in common.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tandem_contract::{Error, Result};

use crate::files::failed;

/// The permissions of a share's root, written in octal (`0755`), as bits; the owner may do everything.
///
/// # Errors
/// `InvalidArgument`, naming `share_mode`.
pub fn share_mode(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777 && mode & 0o700 == 0o700).ok_or_else(
        || {
            Error::invalid(
                "`share_mode` must be octal permissions that let the owner do everything, as `0755`",
            )
        },
    )
}

/// Checks the name of a pool towards the manager, which names pools `host@backend#pool`.
///
/// # Errors
/// `InvalidArgument`, naming `pool`.
pub fn pool_name(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['#', '@', '/']) {
        return Err(Error::invalid("`pool` must be a name without `#`, `@` and `/`"));
    }
    Ok(())
}

/// Checks the setting `key`: an absolute path that needs no quoting in files of other programs, such as /etc/exports.
///
/// # Errors
/// `InvalidArgument`, naming `key`.
pub fn plain_path(key: &str, path: &Path) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let text = path.to_string_lossy();
    if !path.is_absolute() || !text.chars().all(plain) || text.split('/').any(|part| part == "..") {
        return Err(Error::invalid(format!(
            "`{key}` is `{text}`; it must be an absolute path of letters, digits, `.`, `_` and `-`"
        )));
    }
    Ok(())
}

/// The folder that the setting `key` leads to, without links on the way: as the kernel lists it among the mounts, and as an
/// NFS server exports it. Made where it is missing.
///
/// # Errors
/// `InvalidArgument`, naming `key`, where a link leads to a path that [`plain_path`] refuses; `Unavailable` where there is no
/// such folder and none can be made.
pub fn real_folder(key: &str, path: &Path) -> Result<PathBuf> {
    plain_path(key, path)?;
    let found = match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path).and_then(|()| path.canonicalize())
        }
        other => other,
    };
    let real = found.map_err(|e| failed("find the folder", path, &e))?;
    if !real.is_dir() {
        return Err(Error::invalid(format!("`{key}` is `{}`, which is no folder", path.display())));
    }
    plain_path(key, &real)?;
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tandem_contract::ErrorKind;

    #[test]
    fn a_folder_is_known_by_its_real_path() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path().canonicalize().unwrap();
        let (real, link) = (scratch.join("real"), scratch.join("link"));
        assert_eq!(real_folder("mounts", &real.join("new")).unwrap(), real.join("new"));
        symlink(&real, &link).unwrap();
        assert_eq!(real_folder("mounts", &link).unwrap(), real);
        assert_eq!(real_folder("mounts", &link.join("other")).unwrap(), real.join("other"));

        fs::create_dir(scratch.join("with blank")).unwrap();
        symlink(scratch.join("with blank"), scratch.join("odd")).unwrap();
        fs::write(real.join("file"), "").unwrap();
        for wrong in ["odd", "real/file"] {
            let error = real_folder("mounts", &scratch.join(wrong)).unwrap_err();
            assert!(
                error.kind == ErrorKind::InvalidArgument && error.message.contains("`mounts`"),
                "{error}"
            );
        }
        symlink(scratch.join("nowhere/at/all"), scratch.join("lost")).unwrap();
        assert!(real_folder("mounts", &scratch.join("lost")).is_err());
        assert!(real_folder("mounts", Path::new("relative")).is_err());
    }
}
