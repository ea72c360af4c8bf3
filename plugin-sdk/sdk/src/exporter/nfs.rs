//! Kernel NFS exports: what is open is noted in a file, and brought about by `exportfs` client by client.
//!
//! `exportfs -r` is never called: it would close what an admin has opened by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tandem_contract::{Error, InstanceId, Result};

use super::rule::Client;
use super::settings::NfsSettings;
use crate::OpContext;
use crate::command::Command;

/// Where exportfs looks for exports besides /etc/exports.
const EXPORTS_D: &str = "/etc/exports.d";
/// How often a call of exportfs is tried that another one got in the way of.
const TRIES: u32 = 10;
/// How often a flush looks whether the second of the last one is over, and between two looks.
const FLUSH_TRIES: u32 = 100;
const FLUSH_PAUSE: Duration = Duration::from_millis(100);
/// Clients of one call of exportfs.
const AT_ONCE: usize = 64;

fn note(nfs: &NfsSettings, name: &str) -> PathBuf {
    nfs.run.join(format!("{name}.exports"))
}

fn link(name: &str) -> PathBuf {
    Path::new(EXPORTS_D).join(format!("tandem-{name}.exports"))
}

/// Removes our links that lead nowhere: after a boot they make exportfs complain, and do nothing else.
pub(super) fn sweep(nfs: &NfsSettings) {
    for entry in fs::read_dir(EXPORTS_D).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with("tandem-");
        let nowhere = |to: PathBuf| to.starts_with(&nfs.run) && !to.exists();
        if ours && fs::read_link(entry.path()).is_ok_and(nowhere) {
            // Best effort: the next one tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

pub(super) fn is_open(nfs: &NfsSettings, name: &str) -> bool {
    note(nfs, name).exists()
}

/// The options of a client's export.
fn options(nfs: &NfsSettings, write: bool, identity: Option<InstanceId>) -> String {
    let fsid = identity.map(|id| format!("fsid={id}"));
    let mut options = vec![
        if write { "rw" } else { "ro" },
        "sync",
        "no_subtree_check",
        "mp",
        if nfs.root_squash { "root_squash" } else { "no_root_squash" },
    ];
    options.extend(nfs.options.iter().map(String::as_str));
    options.extend(fsid.as_deref());
    options.join(",")
}

/// The file that says what is open. A path without clients would be open to the world, hence the comment.
fn file(path: &Path, wanted: &BTreeMap<String, String>) -> String {
    let mut text = format!("# Tandem: {}\n", path.display());
    for (client, options) in wanted {
        text.push_str(&format!("{} {client}({options})\n", path.display()));
    }
    text
}

/// The clients of such a file.
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (client, options) = line.split_once(' ')?.1.split_once('(')?;
            Some((client.to_owned(), options.strip_suffix(')')?.to_owned()))
        })
        .collect()
}

/// The argument of exportfs that means a client's export.
fn target(client: &str, path: &Path) -> String {
    if client.contains(':') {
        format!("[{client}]:{}", path.display())
    } else {
        format!("{client}:{}", path.display())
    }
}

fn read(nfs: &NfsSettings, name: &str) -> Result<Option<String>> {
    let file = note(nfs, name);
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", &file, &e)),
    }
}

/// What the server's own table says is exported at a path; `None` when it cannot be read.
fn etab(path: &Path) -> Option<BTreeSet<String>> {
    let text = fs::read_to_string("/var/lib/nfs/etab").ok()?;
    let path = path.display().to_string();
    let of = |line: &str| {
        let (at, rest) = line.split_once('\t')?;
        (at == path).then(|| rest.split('(').next().unwrap_or_default().to_owned())
    };
    Some(text.lines().filter_map(of).collect())
}

pub(super) async fn open(
    nfs: &NfsSettings,
    cx: &OpContext,
    name: &str,
    path: &Path,
    clients: &[Client],
    identity: Option<InstanceId>,
) -> Result<bool> {
    let wanted: BTreeMap<String, String> =
        clients.iter().map(|c| (c.to_string(), options(nfs, c.write, identity))).collect();
    let text = file(path, &wanted);
    let before = read(nfs, name)?;
    let noted = before.as_deref().map(parse).unwrap_or_default();
    let real = etab(path);
    let missing = |client: &String| real.as_ref().is_some_and(|real| !real.contains(client));
    if before.as_deref() == Some(text.as_str()) && !wanted.keys().any(missing) {
        return Ok(false);
    }
    // Who is to lose something loses it first; the note that says who may have it is never behind.
    let mut gone: BTreeSet<String> = noted.keys().filter(|c| !wanted.contains_key(*c)).cloned().collect();
    gone.extend(real.into_iter().flatten().filter(|c| !wanted.contains_key(c)));
    unexport(nfs, cx, path, gone).await?;
    write(nfs, name, &text)?;
    let mut by_options: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (client, options) in &wanted {
        by_options.entry(options).or_default().push(target(client, path));
    }
    // Read-only first: a cast takes effect before anything is granted.
    for (options, targets) in by_options {
        for targets in targets.chunks(AT_ONCE) {
            exportfs(nfs, cx, ["-o", options].into_iter().map(str::to_owned).chain(targets.iter().cloned()))
                .await?;
        }
    }
    Ok(true)
}

pub(super) async fn close(nfs: &NfsSettings, cx: &OpContext, name: &str, path: &Path) -> Result<bool> {
    let before = read(nfs, name)?;
    let mut clients: BTreeSet<String> =
        before.as_deref().map(parse).unwrap_or_default().into_keys().collect();
    clients.extend(etab(path).into_iter().flatten());
    let open = before.is_some() || !clients.is_empty();
    let link = link(name);
    remove(&link)?;
    unexport(nfs, cx, path, clients).await?;
    remove(&note(nfs, name))?;
    if open {
        super::clients::expire(path);
    }
    Ok(open)
}

/// The server forgets what it has looked up, and asks again. The kernel tells flushes apart by the second: one that comes within
/// that of another only puts off the clean-up of both (`cache_clean` in net/sunrpc/cache.c), so that what was looked up keeps its
/// mount for as long as flushes come faster than that. Hence the wait.
pub(super) async fn flush(nfs: &NfsSettings, cx: &OpContext) -> Result<()> {
    for _ in 0..FLUSH_TRIES {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if flushed_at() < now {
            break;
        }
        cx.sleep(FLUSH_PAUSE).await?;
    }
    exportfs(nfs, cx, ["-f".to_owned()].into_iter()).await
}

/// The last second whose entries a flush has given up; it may lie ahead.
fn flushed_at() -> u64 {
    let of =
        |table: &str| fs::read_to_string(format!("/proc/net/rpc/{table}/flush")).ok()?.trim().parse().ok();
    ["nfsd.export", "nfsd.fh"].into_iter().filter_map(of).max().unwrap_or(0)
}

async fn unexport(nfs: &NfsSettings, cx: &OpContext, path: &Path, clients: BTreeSet<String>) -> Result<()> {
    for client in clients {
        let args = ["-u".to_owned(), target(&client, path)];
        let done = exportfs(nfs, cx, args.into_iter()).await;
        // What is not exported cannot be unexported: that is no failure.
        if etab(path).is_none_or(|real| real.contains(&client)) {
            done?;
        }
    }
    Ok(())
}

async fn exportfs(nfs: &NfsSettings, cx: &OpContext, args: impl Iterator<Item = String>) -> Result<()> {
    let args: Vec<String> = args.collect();
    let mut tries = 0;
    let (ended, said) = loop {
        let ended = Command::new(&nfs.exportfs).args(&args).run_any(cx).await?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.output.stderr).trim().to_owned();
        tries += 1;
        if tries >= TRIES || !lost_a_file(&said) {
            break (ended, said);
        }
    };
    Err(Error::unavailable(format!("the NFS server's table of exports could not be changed: {said}"))
        .with("tool", ended.into_error()))
}

/// exportfs reads all of the folder, and fails when another call's file goes away between its listing and its reading.
fn lost_a_file(said: &str) -> bool {
    let gone = |line: &str| {
        let file = line.split_once("can't open ").and_then(|(_, rest)| rest.strip_suffix(" for reading"));
        file.map(Path::new).is_some_and(|file| file.parent() == Some(Path::new(EXPORTS_D)) && !file.exists())
    };
    said.lines().any(gone)
}

fn write(nfs: &NfsSettings, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(&nfs.run).map_err(|e| failed("create", &nfs.run, &e))?;
    fs::create_dir_all(EXPORTS_D).map_err(|e| failed("create", Path::new(EXPORTS_D), &e))?;
    let (file, link) = (note(nfs, name), link(name));
    let new = nfs.run.join(format!(".{name}.new"));
    fs::write(&new, text).map_err(|e| failed("write", &new, &e))?;
    fs::rename(&new, &file).map_err(|e| failed("rename", &new, &e))?;
    if fs::read_link(&link).ok().as_deref() != Some(file.as_path()) {
        remove(&link)?;
        symlink(&file, &link).map_err(|e| failed("create", &link, &e))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, &e)),
        _ => Ok(()),
    }
}

fn failed(action: &str, path: &Path, e: &io::Error) -> Error {
    let error = Error::unavailable(format!("could not {action} `{}`: {e}", path.display()));
    match e.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            error.retry(tandem_contract::Retry::AfterOperator)
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_reads_back() {
        let wanted: BTreeMap<String, String> = [("192.0.2.1", "rw,sync"), ("2001:db8::/64", "ro,sync")]
            .into_iter()
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect();
        let text = file(Path::new("/srv/a"), &wanted);
        assert_eq!(parse(&text), wanted);
        let none = file(Path::new("/srv/a"), &BTreeMap::new());
        assert!(
            none.lines().all(|line| line.starts_with('#')),
            "a line without clients opens it to the world"
        );
    }

    #[test]
    fn a_file_that_another_call_removed_is_no_failure() {
        let gone = format!("exportfs: can't open {EXPORTS_D}/tandem-no-such.exports for reading");
        assert!(lost_a_file(&gone));
        assert!(lost_a_file(&format!("exportfs: duplicated export\n{gone}\nexportfs: something else")));
        for other in [
            "",
            "exportfs: /srv/a does not support NFS export",
            "exportfs: can't open /etc/exports for reading",
            "exportfs: can't open /etc/exports.d for reading",
        ] {
            assert!(!lost_a_file(other), "{other}");
        }
    }

    #[test]
    fn a_client_of_version_6_is_bracketed() {
        assert_eq!(target("192.0.2.0/24", Path::new("/srv/a")), "192.0.2.0/24:/srv/a");
        assert_eq!(target("2001:db8::/64", Path::new("/srv/a")), "[2001:db8::/64]:/srv/a");
    }
}
