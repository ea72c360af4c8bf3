//! The service user's password: where it is kept, and never shown.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// More than this is no password, in bytes.
const MAX_SIZE: u64 = 4096;

/// A text that no log and no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text out of sight.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for where it is needed.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Where the password is.
#[derive(Debug, Clone)]
pub enum Password {
    /// In a file of its own, read at each login, so that a new password needs no restart.
    File(PathBuf),
    /// Told by whoever started the program.
    Given(Secret),
}

impl Password {
    /// The password as it is now.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the file, and what to do.
    pub(super) fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Given(secret) => Ok(secret.clone()),
            Self::File(path) => read(path),
        }
    }
}

fn read(path: &Path) -> Result<Secret, String> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| format!("the password file {shown} cannot be read: {error}");
    let file = File::open(path).map_err(unreadable)?;
    // Of the opened file, so that it cannot be exchanged between the look and the reading.
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(format!("the password file {shown} is no file"));
    }
    // Its group may read it: that is how root hands a file to a service.
    if meta.mode() & 0o037 != 0 {
        return Err(format!(
            "the password file {shown} has mode {:03o}, so others can read or change it; type: chmod 600 {shown}",
            meta.mode() & 0o777
        ));
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != own {
        return Err(format!(
            "the password file {shown} belongs to user {}, who could change it; make it root's or this server's ({own})",
            meta.uid()
        ));
    }
    let mut text = String::new();
    file.take(MAX_SIZE + 1).read_to_string(&mut text).map_err(unreadable)?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(format!("the password file {shown} is empty"));
    }
    if text.len() as u64 > MAX_SIZE || password.contains('\n') {
        return Err(format!(
            "the password file {shown} must have one line with the password and nothing else"
        ));
    }
    Ok(Secret::new(password))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn only_a_guarded_file_of_one_line_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let with = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Password::File(path.clone()).read()
        };
        for mode in [0o600, 0o640, 0o400] {
            assert_eq!(with("s3cret pass\n", mode).unwrap().expose(), "s3cret pass");
        }
        for mode in [0o644, 0o660, 0o604, 0o602] {
            assert!(with("s3cret\n", mode).unwrap_err().contains("chmod 600"), "{mode:o}");
        }
        assert!(with("", 0o600).unwrap_err().contains("is empty"));
        assert!(with("\n", 0o600).unwrap_err().contains("is empty"));
        for text in ["s3cret\nmore\n", &"s3cret".repeat(1000)] {
            let why = with(text, 0o600).unwrap_err();
            assert!(why.contains("one line") && !why.contains("s3cret"), "{why}");
        }
        assert!(Password::File(folder.path().into()).read().unwrap_err().contains("is no file"));
        assert!(Password::File(folder.path().join("none")).read().unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Password::Given(Secret::new("s3cret"))), "Given(<secret>)");
    }
}
