//! What an instance holds, as its users see it: through a folder on this host.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tandem_contract::ExportLocation;

use crate::check::Check;

/// Names and contents of plain files.
pub(crate) type Content = BTreeMap<String, Vec<u8>>;

/// Bytes that do not compress and that differ by `seed`.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(length)
    .collect()
}

/// Twelve files of 40 KiB: enough to be cut in the middle.
pub(crate) fn sample(seed: u64) -> Content {
    (0..12).map(|i| (format!("file {i}"), noise(seed * 100 + i, 40 << 10))).collect()
}

/// The folder of an export, when it is one on this host.
pub(crate) fn folder_of(exports: &[ExportLocation]) -> Option<PathBuf> {
    exports.iter().map(|export| PathBuf::from(&export.path)).find(|path| path.is_absolute() && path.is_dir())
}

/// Makes a folder hold exactly this. What is so already is not written again: for storage that counts blocks, that would be
/// a change.
pub(crate) fn write(folder: &Path, content: &Content) -> Check {
    let failed = |e: std::io::Error| format!("the export {} cannot be written: {e}", folder.display());
    let before = read(folder)?;
    for name in before.keys().filter(|name| !content.contains_key(*name)) {
        fs::remove_file(folder.join(name)).map_err(failed)?;
    }
    for (name, bytes) in content.iter().filter(|(name, bytes)| before.get(*name) != Some(bytes)) {
        fs::write(folder.join(name), bytes).map_err(failed)?;
    }
    Ok(())
}

/// What a folder holds.
pub(crate) fn read(folder: &Path) -> Check<Content> {
    let failed = |e: std::io::Error| format!("the export {} cannot be read: {e}", folder.display());
    let mut content = Content::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            content.insert(name, fs::read(entry.path()).map_err(failed)?);
        }
    }
    Ok(content)
}
