//! A small append-only file of [`Variants`]: forms of files that differ from what a manifest says.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use crate::codec::{Take, put_bytes};
use crate::diff::Variants;
use crate::entry::Entry;
use crate::error::{At, Result};
use crate::wire::{encode_entry, take_entry};

fn bytes_of(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

/// Adds a form, durably. `None` when the path is absent.
pub fn append_variant(file: &Path, path: &[u8], form: Option<&Entry>) -> Result<()> {
    let mut record = Vec::new();
    put_bytes(&mut record, path);
    encode_entry(&mut record, form);
    let mut out = Vec::new();
    put_bytes(&mut out, &record);
    let mut file = OpenOptions::new().append(true).create(true).open(file).at("open", bytes_of(file))?;
    file.write_all(&out).at("write", b"variants")?;
    file.sync_data().at("sync", b"variants")
}

/// Reads what was added; none when there is no such file. A record that a kill cut short was never sent.
pub fn read_variants(file: &Path) -> Result<Variants> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Variants::new()),
        Err(e) => return Err(e).at("read", bytes_of(file)),
    };
    let mut variants = Variants::new();
    let mut take = Take::new("the list of newer files", &bytes);
    while let Ok(record) = take.bytes() {
        let mut record = Take::new("the list of newer files", record);
        let path = record.bytes()?.to_vec();
        let form = take_entry(&mut record)?;
        variants.entry(path).or_default().push(form);
    }
    Ok(variants)
}
