//! What the conformance suite cannot bring about: a side that is away, notes that are dead, removals of many files.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;

use common::{Backend, spec};
use serde_json::{Map, Value};
use tandem_sdk::ErrorKind;
use tandem_sdk::contract::*;
use uuid::Uuid;

struct Pair {
    _folder: tempfile::TempDir,
    alpha: Backend,
    beta: Backend,
    source: InstanceSpec,
}

impl Pair {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let alpha = Backend::open(&folder.path().join("alpha")).await;
        let beta = Backend::open(&folder.path().join("beta")).await;
        let source = InstanceSpec { replication: None, ..spec(ResourceId(Uuid::new_v4()), Style::Dr) };
        alpha.create(&source).await;
        fs::write(alpha.export(source.instance).join("file"), "content").unwrap();
        Self { _folder: folder, alpha, beta, source }
    }

    /// A migration that has begun.
    async fn begin(&self) -> MigrationSpec {
        let instance = InstanceId(Uuid::new_v4());
        let spec = InstanceSpec { instance, epoch: Epoch(2), ..self.source.clone() };
        self.beta.call(PrepareDestination { spec }).await.unwrap();
        let endpoint = self.beta.call(GetEndpoint { instance }).await.unwrap();
        let migration = MigrationSpec {
            resource: self.source.resource,
            kind: ResourceKind::Share,
            source: self.source.instance,
            destination: instance,
            epoch: Epoch(1),
            endpoint: serde_json::to_value(endpoint).unwrap(),
            destination_driver: Map::new(),
        };
        self.alpha.call(MigrationStart { migration: migration.clone() }).await.unwrap();
        migration
    }

    /// What the manager knows while the destination does not answer.
    fn alone(migration: &MigrationSpec) -> MigrationSpec {
        MigrationSpec { endpoint: Value::Null, ..migration.clone() }
    }

    async fn is_writable(&self) {
        let seen = self.alpha.observe(self.source.instance).await.unwrap();
        assert_eq!((seen.role, seen.read_only), (Role::Active, false));
        fs::write(self.alpha.export(self.source.instance).join("still"), "writable").unwrap();
    }
}

#[tokio::test]
async fn it_is_ended_while_the_destination_is_away() {
    let pair = Pair::new().await;
    let migration = pair.begin().await;
    pair.alpha.call(MigrationContinue { migration: migration.clone() }).await.unwrap();
    fs::rename(&pair.beta.root, pair.beta.root.with_extension("away")).unwrap();
    fs::write(&pair.beta.root, "no folder").unwrap();
    let failed = pair.alpha.call(MigrationComplete { migration: migration.clone() }).await;
    assert!(failed.is_err());
    let migration = Pair::alone(&migration);
    assert!(pair.alpha.call(MigrationCancel { migration: migration.clone() }).await.unwrap().is_changed());
    assert!(!pair.alpha.call(MigrationCancel { migration }).await.unwrap().is_changed());
    pair.is_writable().await;
}

#[tokio::test]
async fn once_it_has_switched_the_source_says_so_alone() {
    let pair = Pair::new().await;
    let migration = pair.begin().await;
    while !pair.alpha.call(MigrationContinue { migration: migration.clone() }).await.unwrap().first_phase_done
    {
    }
    pair.alpha.call(MigrationComplete { migration: migration.clone() }).await.unwrap();
    let cancel = MigrationCancel { migration: Pair::alone(&migration) };
    assert_eq!(pair.alpha.call(cancel.clone()).await.unwrap_err().kind, ErrorKind::Conflict);
    // Not even while the destination is away is anything taken back.
    fs::rename(&pair.beta.root, pair.beta.root.with_extension("away")).unwrap();
    fs::write(&pair.beta.root, "no folder").unwrap();
    assert!(pair.alpha.call(cancel).await.is_err());
    assert!(!pair.alpha.export(pair.source.instance).exists());
}

#[tokio::test]
async fn a_move_whose_destination_is_no_more_gives_way_to_the_next() {
    let pair = Pair::new().await;
    let dead = pair.begin().await;
    pair.beta.call(DeleteInstance { instance: dead.destination }).await.unwrap();
    let migration = pair.begin().await;
    while !pair.alpha.call(MigrationContinue { migration: migration.clone() }).await.unwrap().first_phase_done
    {
    }
    pair.alpha.call(MigrationComplete { migration: migration.clone() }).await.unwrap();
    let there = pair.beta.export(migration.destination);
    assert_eq!(fs::read_to_string(there.join("file")).unwrap(), "content");
}

#[tokio::test]
async fn a_move_without_readable_notes_is_ended_by_a_cancel() {
    let pair = Pair::new().await;
    let migration = pair.begin().await;
    let notes = pair.alpha.root.join("instances").join(pair.source.instance.to_string()).join("moving.json");
    fs::write(&notes, "{").unwrap();
    assert!(pair.alpha.call(MigrationContinue { migration: migration.clone() }).await.is_err());
    pair.alpha.call(MigrationCancel { migration }).await.unwrap();
    assert!(!notes.exists());
    pair.is_writable().await;
    pair.begin().await;
}

#[tokio::test]
async fn a_fenced_share_is_given_back_as_it_was() {
    let pair = Pair::new().await;
    let (instance, epoch) = (pair.source.instance, Epoch(1));
    pair.alpha.call(DemoteReplica { instance, epoch, to: Demotion::Fenced }).await.unwrap();
    assert!(!pair.alpha.export(instance).exists());
    let promotion = Promotion::Planned { point: None };
    pair.alpha.call(PromoteReplica { instance, epoch, promotion }).await.unwrap();
    pair.is_writable().await;
    assert_eq!(fs::read_to_string(pair.alpha.export(instance).join("file")).unwrap(), "content");
}

#[tokio::test]
async fn a_long_removal_and_a_long_look_tell_that_they_move() {
    let pair = Pair::new().await;
    let folder = pair.alpha.export(pair.source.instance).join("many");
    fs::create_dir(&folder).unwrap();
    for n in 0..3000 {
        fs::write(folder.join(n.to_string()), "").unwrap();
    }
    pair.alpha.observe(pair.source.instance).await.unwrap();
    assert_eq!(pair.alpha.told("count"), Some(2048));
    pair.alpha.call(DeleteInstance { instance: pair.source.instance }).await.unwrap();
    assert_eq!(pair.alpha.told("remove"), Some(2048));
}
