//! What the driver leaves on its host for `tandem-fence-peer`, which the kernel starts with the name of a resource and nothing
//! else: whom to ask, and as whom. Beside it stands what came of the last question.
//!
//! Both the library and that program are built with this file. The folder is one that a boot empties, as the kernel forgets its
//! resources then. It is one for all back ends of a host, since the kernel starts one program for all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// The folder of the notes; only its owner looks into it.
pub(crate) const FOLDER: &str = "/run/tandem/fence";

/// How a resource's side asks whether it goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The instance that claims.
    pub(crate) instance: String,
    /// The epoch at which it serves.
    pub(crate) epoch: u64,
    /// Its device is `/dev/drbd<minor>`.
    pub(crate) minor: u32,
    /// Where the arbiter is.
    pub(crate) url: String,
    /// The file of the secret with which it is asked.
    pub(crate) secret_file: PathBuf,
    /// The file of the authorities that the arbiter's certificate may come from; the system's when absent.
    pub(crate) ca_file: Option<PathBuf>,
}

/// What came of a question, as a sentence for whoever looks at the share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// It lost, and is not to go on before it has followed.
    pub(crate) lost: bool,
    /// The arbiter's own words, or why there was no answer.
    pub(crate) why: String,
}

/// The file of a resource's note.
pub(crate) fn path(folder: &Path, resource: &str) -> PathBuf {
    folder.join(format!("{resource}.json"))
}

/// The file of what came of its last question.
pub(crate) fn answered(folder: &Path, resource: &str) -> PathBuf {
    folder.join(format!("{resource}.said"))
}

/// Reads either of them; `None` where there is none.
pub(crate) fn read<T: for<'d> Deserialize<'d>>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes either of them whole, or not at all.
pub(crate) fn write<T: Serialize>(path: &Path, what: &T) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    // The driver, in several calls, and the program may write at one time.
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let draft = path.with_extension(format!("{}-{number}.new", std::process::id()));
    let mut file = File::options().write(true).create(true).truncate(true).open(&draft)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(&serde_json::to_vec(what)?)?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_read_back_and_are_their_owners_alone() {
        let folder = std::env::temp_dir().join(format!("tandem-notes-{}", std::process::id()));
        let file = path(&folder, "tandem-x");
        assert_eq!(read::<Note>(&file).unwrap(), None);
        let note = Note {
            instance: "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1".into(),
            epoch: 3,
            minor: 1000,
            url: "https://192.0.2.9".into(),
            secret_file: "/etc/tandem/alpha.secret".into(),
            ca_file: None,
        };
        write(&file, &note).unwrap();
        write(&file, &Note { epoch: 4, ..note.clone() }).unwrap();
        assert_eq!(read(&file).unwrap(), Some(Note { epoch: 4, ..note }));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::write(&file, "half").unwrap();
        assert!(read::<Note>(&file).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
