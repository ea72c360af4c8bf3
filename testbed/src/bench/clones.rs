//! Very many replicas: one real share with its replica, copied row by row and folder by folder.
//!
//! The rows are those that the server wrote, with other ids, through the store's own door; the folders are those that
//! the driver `directory` made. So a server that starts on them finds nothing unusual, only much of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde_json::Value;
use tandem_contract::{InstanceId, ResourceId};
use tandem_manager::model::{Instance, Share};
use tandem_manager::store::sqlite::SqliteStore;
use tandem_manager::store::{Batch, Row, Store};
use uuid::Uuid;

use crate::kill::lab::{Beneath, Lab, Stage};
use crate::server::{BACKENDS, Server};

/// Rows in one commit.
const BATCH: usize = 500;

/// A stopped server with so many replicas (active ones count, as in Manila's list), two to a share, in sync and at
/// rest; the share type allows a replica to be `rpo_seconds` behind.
pub fn many(replicas: usize, rpo_seconds: u64) -> Lab {
    let stage = if replicas == 1 { Stage::Share } else { Stage::Pair };
    let rpo_seconds = rpo_seconds.to_string();
    // Empty shares: a file would look changed for its inode is another.
    let lab = Lab::empty(stage, Beneath::Directory, "", &[("replication:rpo_seconds", &rpo_seconds)]);
    let more = (replicas / 2).saturating_sub(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(copy(&lab, more));
    lab
}

async fn copy(lab: &Lab, more: usize) {
    let store = SqliteStore::open(&lab.server.folder().join("state/tandem.db")).await.unwrap();
    let share: ResourceId = lab.share().parse().unwrap();
    let family = store.family(share).await.unwrap();
    let template = family.share.unwrap();
    let mut batch = Batch::default();
    for _ in 0..more {
        let new = ResourceId(Uuid::new_v4());
        let row: Share = renamed(&template, &[(share.0, new.0)]);
        batch.put.push(Row::Share(Box::new(row)));
        for instance in &family.instances {
            let id = InstanceId(Uuid::new_v4());
            let mut pairs = vec![(share.0, new.0), (instance.id.0, id.0)];
            pairs.extend(instance.exports.iter().map(|export| (export.id, Uuid::new_v4())));
            let row: Instance = renamed(instance, &pairs);
            folders(&lab.server, instance, &pairs, id);
            batch.put.push(Row::Instance(Box::new(row)));
        }
        if batch.put.len() >= BATCH {
            store.commit(std::mem::take(&mut batch)).await.unwrap();
        }
    }
    store.commit(batch).await.unwrap();
}

/// The same with other ids, as a new row.
fn renamed<T: serde::Serialize + serde::de::DeserializeOwned>(row: &T, pairs: &[(Uuid, Uuid)]) -> T {
    serde_json::from_str(&replaced(&serde_json::to_string(row).unwrap(), pairs)).unwrap()
}

fn replaced(text: &str, pairs: &[(Uuid, Uuid)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (old, new)| text.replace(&old.to_string(), &new.to_string()))
}

/// The folders of one instance under another id.
fn folders(server: &Server, instance: &Instance, pairs: &[(Uuid, Uuid)], new: InstanceId) {
    let backend = instance.backend().unwrap();
    assert!(BACKENDS.iter().any(|(name, _)| *name == backend));
    let root = server.backend(backend);
    let old = instance.id.to_string();
    let (from, to) = (root.join("instances").join(&old), root.join("instances").join(new.to_string()));
    tree(&from, &to, pairs);
    let link = root.join("exports").join(&old);
    if let Ok(target) = fs::read_link(&link) {
        symlink(replaced(target.to_str().unwrap(), pairs), root.join("exports").join(new.to_string()))
            .unwrap();
    }
}

fn tree(from: &Path, to: &Path, pairs: &[(Uuid, Uuid)]) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (old, new) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            tree(&old, &new, pairs);
        } else if entry.file_name() == "meta.json" {
            let text = fs::read_to_string(&old).unwrap();
            let _: Value = serde_json::from_str(&text).unwrap();
            fs::write(&new, replaced(&text, pairs)).unwrap();
        } else {
            fs::copy(&old, &new).unwrap();
        }
    }
    let meta = fs::metadata(from).unwrap();
    fs::set_permissions(to, meta.permissions()).unwrap();
    let time = Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, to, &times, AtFlags::empty()).unwrap();
}
