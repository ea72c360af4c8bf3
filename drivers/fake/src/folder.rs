//! A world that is kept in a folder: `world.json`, and a folder of plain files for each instance that is served.
//!
//! The files of a served instance are the truth about its content, since users write there; whatever is not served
//! stands in `world.json` alone. Every change is written beside and renamed into place.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tandem_sdk::{Error, InstanceId, Result};

use crate::world::{Data, Sites};

/// Loads the world, does something with it, and stores what changed.
pub(crate) fn with<T>(path: &Path, work: impl FnOnce(&mut Sites) -> Result<T>) -> Result<T> {
    let failed =
        |e: std::io::Error| Error::unavailable(format!("the world in {} failed: {e}", path.display()));
    fs::create_dir_all(path).map_err(failed)?;
    let lock = File::create(path.join("lock")).map_err(failed)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    let mut sites = load(path).map_err(failed)?;
    let before = sites.clone();
    let done = work(&mut sites)?;
    if sites != before {
        store(path, &before, &sites).map_err(failed)?;
    }
    Ok(done)
}

/// Where the files of a served or attached instance are.
pub(crate) fn files_of(path: &Path, site: &str, instance: InstanceId) -> PathBuf {
    path.join("shares").join(site).join(instance.to_string())
}

fn withdrawn(files: &Path) -> PathBuf {
    files.with_extension("withdrawn")
}

fn load(path: &Path) -> std::io::Result<Sites> {
    let mut sites: Sites = match fs::read(path.join("world.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Sites::new(),
        Err(e) => return Err(e),
    };
    for (name, site) in &mut sites {
        for (id, instance) in &mut site.instances {
            if !instance.has_files() {
                continue;
            }
            let files = files_of(path, name, *id);
            if !files.exists() && withdrawn(&files).exists() {
                // A crash came between taking the files away and storing their content.
                fs::rename(withdrawn(&files), &files)?;
            }
            if files.is_dir() {
                instance.data = read_files(&files)?;
            }
        }
    }
    Ok(sites)
}

fn read_files(folder: &Path) -> std::io::Result<Data> {
    let mut data = Data::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            data.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
        }
    }
    Ok(data)
}

fn store(path: &Path, before: &Sites, after: &Sites) -> std::io::Result<()> {
    // Nobody may write where the new state says nobody can; but what was written is thrown away only when it is stored.
    let gone: Vec<PathBuf> = served(before)
        .filter(|key| !served(after).any(|other| other == *key))
        .map(|(name, id)| files_of(path, name, id))
        .collect();
    for files in gone.iter().filter(|files| files.exists()) {
        fs::rename(files, withdrawn(files))?;
    }
    let beside = path.join("world.json.new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(after)?)?;
    file.sync_all()?;
    fs::rename(&beside, path.join("world.json"))?;
    for files in &gone {
        remove(&withdrawn(files))?;
    }
    for (name, site) in after {
        for (id, instance) in site.instances.iter().filter(|(_, i)| i.has_files()) {
            let same = before.get(name).and_then(|s| s.instances.get(id)) == Some(instance);
            let files = files_of(path, name, *id);
            if !same || !files.is_dir() {
                write_files(&files, &instance.data, instance.is_writable())?;
            }
        }
    }
    Ok(())
}

fn served(sites: &Sites) -> impl Iterator<Item = (&str, InstanceId)> {
    sites.iter().flat_map(|(name, site)| {
        site.instances.iter().filter(|(_, i)| i.has_files()).map(move |(id, _)| (name.as_str(), *id))
    })
}

fn write_files(folder: &Path, data: &Data, writable: bool) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    let present = read_files(folder)?;
    for name in present.keys().filter(|name| !data.contains_key(*name)) {
        fs::remove_file(folder.join(name))?;
    }
    for (name, content) in data.iter().filter(|(name, content)| present.get(*name) != Some(content)) {
        let beside = folder.with_extension("new");
        fs::write(&beside, content)?;
        fs::rename(&beside, folder.join(name))?;
    }
    fs::set_permissions(folder, Permissions::from_mode(if writable { 0o755 } else { 0o555 }))
}

fn remove(folder: &Path) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    fs::remove_dir_all(folder)
}
