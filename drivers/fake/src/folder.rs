//! A world that is kept in a folder: a file of JSON for each instance, and a folder of plain files for each that is
//! served.
//!
//! The files of a served instance are the truth about its content, since users write there; whatever is not served
//! stands in the JSON alone. Every file is written beside and renamed into place, so that it survives `kill -9` whole.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tandem_sdk::{Error, InstanceId, Result};

use crate::instance::Instance;
use crate::world::{Data, Sites};

/// Instances that were read before, by file. A stale one is noticed by what identifies the file, and costs only time.
#[derive(Default)]
pub(crate) struct Cache(BTreeMap<PathBuf, (Identity, Instance)>);

/// A file that was renamed into place is another file.
type Identity = (u64, u64, i64, i64);

fn identity(facts: &Metadata) -> Identity {
    (facts.ino(), facts.len(), facts.mtime(), facts.mtime_nsec())
}

/// Loads the world, does something with it, and stores what changed.
pub(crate) fn with<T>(
    path: &Path,
    cache: &mut Cache,
    work: impl FnOnce(&mut Sites) -> Result<T>,
) -> Result<T> {
    let failed =
        |e: std::io::Error| Error::unavailable(format!("the world in {} failed: {e}", path.display()));
    fs::create_dir_all(path.join("sites")).map_err(failed)?;
    let lock = File::create(path.join("lock")).map_err(failed)?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    let (mut sites, written) = load(path, cache).map_err(failed)?;
    let before = sites.clone();
    for (site, instance) in written {
        crate::peers::propagate(&mut sites, &site, instance);
    }
    let done = work(&mut sites)?;
    store(path, cache, &before, &sites).map_err(failed)?;
    Ok(done)
}

/// Where the files of a served or attached instance are.
pub(crate) fn files_of(path: &Path, site: &str, instance: InstanceId) -> PathBuf {
    path.join("shares").join(site).join(instance.to_string())
}

fn json_of(path: &Path, site: &str, instance: InstanceId) -> PathBuf {
    path.join("sites").join(site).join(format!("{instance}.json"))
}

fn withdrawn(files: &Path) -> PathBuf {
    files.with_extension("withdrawn")
}

/// All sites, and the instances that users have written to since they were stored.
fn load(path: &Path, cache: &mut Cache) -> std::io::Result<(Sites, Vec<(String, InstanceId)>)> {
    let (mut sites, mut written) = (Sites::new(), Vec::new());
    for site in fs::read_dir(path.join("sites"))? {
        let site = site?;
        let name = site.file_name().to_string_lossy().into_owned();
        for entry in fs::read_dir(site.path())? {
            let file = entry?.path();
            if file.extension().is_none_or(|ext| ext != "json") {
                continue;
            }
            let mut instance = load_instance(&file, cache)?;
            let id = instance.spec.instance;
            if instance.has_files() && refresh(&files_of(path, &name, id), &mut instance.data)? {
                written.push((name.clone(), id));
            }
            sites.entry(name.clone()).or_default().instances.insert(id, instance);
        }
    }
    Ok((sites, written))
}

fn load_instance(file: &Path, cache: &mut Cache) -> std::io::Result<Instance> {
    let now = identity(&fs::metadata(file)?);
    if let Some((then, instance)) = cache.0.get(file)
        && *then == now
    {
        return Ok(instance.clone());
    }
    let instance: Instance = serde_json::from_slice(&fs::read(file)?)?;
    cache.0.insert(file.to_owned(), (now, instance.clone()));
    Ok(instance)
}

/// Brings `data` in line with the files; whether they differed.
fn refresh(files: &Path, data: &mut Data) -> std::io::Result<bool> {
    if !files.exists() && withdrawn(files).exists() {
        // A crash came between taking the files away and storing their content.
        fs::rename(withdrawn(files), files)?;
    }
    if !files.is_dir() {
        return Ok(false);
    }
    let found = read_files(files)?;
    let differ = found != *data;
    *data = found;
    Ok(differ)
}

fn read_files(folder: &Path) -> std::io::Result<Data> {
    let mut data = Data::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_file() {
            continue;
        }
        match fs::read(entry.path()) {
            Ok(content) => data.insert(entry.file_name().to_string_lossy().into_owned(), content),
            // Its users may remove it at any moment.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
    }
    Ok(data)
}

fn store(path: &Path, cache: &mut Cache, before: &Sites, after: &Sites) -> std::io::Result<()> {
    for (name, id, old) in all(before) {
        let files = files_of(path, name, id);
        let new = after.get(name).and_then(|site| site.instances.get(&id));
        // Nobody may write where the new state says nobody can; but what was written is thrown away only when it is
        // stored.
        if old.has_files() && new.is_none_or(|new| !new.has_files()) && files.exists() {
            fs::rename(&files, withdrawn(&files))?;
        }
        if new.is_none() {
            fs::remove_file(json_of(path, name, id))?;
            cache.0.remove(&json_of(path, name, id));
        }
    }
    for (name, id, new) in all(after) {
        let old = before.get(name).and_then(|site| site.instances.get(&id));
        let files = files_of(path, name, id);
        if old != Some(new) {
            save(&json_of(path, name, id), cache, new)?;
        }
        if !new.has_files() || (old == Some(new) && files.is_dir()) {
            continue;
        }
        // What users write meanwhile is theirs: files are only touched where the call itself changed the content.
        if !files.is_dir() || old.is_none_or(|old| old.data != new.data) {
            write_files(&files, &new.data)?;
        }
        fs::set_permissions(&files, Permissions::from_mode(if new.is_writable() { 0o755 } else { 0o555 }))?;
    }
    for (name, id, _) in all(before) {
        remove(&withdrawn(&files_of(path, name, id)))?;
    }
    Ok(())
}

fn all(sites: &Sites) -> impl Iterator<Item = (&str, InstanceId, &Instance)> {
    sites.iter().flat_map(|(name, site)| site.instances.iter().map(move |(id, i)| (name.as_str(), *id, i)))
}

fn save(file: &Path, cache: &mut Cache, instance: &Instance) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = file.with_extension("new");
    fs::write(&beside, serde_json::to_vec(instance)?)?;
    fs::rename(&beside, file)?;
    cache.0.insert(file.to_owned(), (identity(&fs::metadata(file)?), instance.clone()));
    Ok(())
}

fn write_files(folder: &Path, data: &Data) -> std::io::Result<()> {
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
    Ok(())
}

fn remove(folder: &Path) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    fs::remove_dir_all(folder)
}
