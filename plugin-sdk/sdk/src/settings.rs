//! Checks of what settings of several drivers have in common.

use std::path::Path;

use tandem_contract::{Error, Result};

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
