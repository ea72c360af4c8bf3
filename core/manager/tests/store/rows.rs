//! Rows for tests, from small numbers, so that a failing case can be read.

use std::collections::BTreeMap;

use tandem_contract::{AccessLevel, Epoch, InstanceId, OpId, ReplicaState, ResourceId, Style};
use tandem_manager::clock::Timestamp;
use tandem_manager::model::*;
use tandem_manager::oplog::{Ending, Event, Logged};
use tandem_manager::store::{Batch, Row};
use uuid::Uuid;

pub(crate) fn uuid(n: u64) -> Uuid {
    Uuid::from_u64_pair(n.rotate_left(32), n)
}

pub(crate) fn share_id(n: u64) -> ResourceId {
    ResourceId(uuid(n))
}

pub(crate) fn instance_id(n: u64) -> InstanceId {
    InstanceId(uuid(n))
}

pub(crate) fn op_id(n: u64) -> OpId {
    OpId(uuid(n))
}

pub(crate) fn at(n: i64) -> Timestamp {
    Timestamp(n)
}

/// Built from JSON, so that a field which joins the row later needs no change here.
pub(crate) fn share(n: u64) -> Share {
    serde_json::from_value(serde_json::json!({
        "id": uuid(n), "project_id": "p", "user_id": "u", "name": null, "description": null, "size_gb": 1,
        "protocol": "NFS", "share_type_id": uuid(900), "is_public": false, "epoch": 0, "created_at": n,
        "updated_at": null,
    }))
    .unwrap()
}

pub(crate) fn replicated(n: u64) -> Share {
    Share { replication: Some(Style::Readable), epoch: Epoch(3), ..share(n) }
}

pub(crate) fn instance(n: u64, of: u64) -> Instance {
    serde_json::from_value(serde_json::json!({
        "id": uuid(n), "share_id": uuid(of), "project_id": "p", "share_type_id": uuid(900), "pool": null,
        "availability_zone": null, "status": "available", "replica_state": null, "created_at": n,
        "updated_at": null,
    }))
    .unwrap()
}

pub(crate) fn replica(n: u64, of: u64, state: ReplicaState) -> Instance {
    Instance { replica_state: Some(state), ..instance(n, of) }
}

pub(crate) fn pool(backend: &str) -> Option<PoolAddress> {
    Some(format!("host@{backend}#main").parse().unwrap())
}

pub(crate) fn export(n: u64, path: &str) -> Export {
    Export {
        id: uuid(n),
        path: path.into(),
        preferred: true,
        admin_only: false,
        created_at: at(1),
        updated_at: None,
    }
}

pub(crate) fn rule(n: u64, of: u64) -> AccessRule {
    AccessRule {
        id: uuid(n),
        version: 0,
        share_id: share_id(of),
        access_type: "ip".into(),
        access_to: "10.0.0.0/8".into(),
        access_level: AccessLevel::Rw,
        states: BTreeMap::from([(instance_id(1), RuleState::Active)]),
        enforced: false,
        metadata: BTreeMap::new(),
        created_at: at(n.cast_signed()),
        updated_at: None,
    }
}

pub(crate) fn share_type(n: u64, name: &str) -> ShareType {
    ShareType {
        id: uuid(n),
        version: 0,
        name: name.into(),
        description: Some("a type".into()),
        is_public: true,
        extra_specs: BTreeMap::from([("replication_type".into(), "readable".into())]),
        created_at: at(n.cast_signed()),
        updated_at: None,
    }
}

pub(crate) fn operation(n: u64, of: u64, intent: Intent) -> Operation {
    Operation {
        id: op_id(n),
        seq: 1,
        share_id: share_id(of),
        project_id: "p".into(),
        intent,
        request_id: None,
        status: OpStatus::Accepted,
        cancel: false,
        proceed: false,
        error: None,
        bytes: 0,
        resumed_bytes: 0,
        remarks: Vec::new(),
        created_at: at(n.cast_signed()),
        updated_at: at(n.cast_signed()),
    }
}

pub(crate) fn sync(instance: u64) -> Intent {
    Intent::Sync { instance: instance_id(instance), asked: false, point: None }
}

pub(crate) fn event(op: u64, seq: u64, event: Event) -> Logged {
    Logged { op: op_id(op), seq, at: at(seq.cast_signed()), event, effects: Vec::new() }
}

pub(crate) fn accepted(op: &Operation) -> Logged {
    let event = Event::Accepted { intent: op.intent.clone() };
    Logged { op: op.id, seq: 1, at: op.created_at, event, effects: Vec::new() }
}

/// A batch that admits an operation.
pub(crate) fn admit(op: &Operation) -> Batch {
    Batch { events: vec![accepted(op)], operations: vec![op.clone()], ..Batch::default() }
}

/// A batch that ends an admitted operation.
pub(crate) fn finish(op: &Operation, when: i64) -> Batch {
    let last = Event::Finished { ending: Ending::Done, error: None };
    let events = vec![Logged { op: op.id, seq: 2, at: at(when), event: last, effects: Vec::new() }];
    let done = Operation { seq: 2, status: OpStatus::Done, updated_at: at(when), ..op.clone() };
    Batch { events, operations: vec![done], ..Batch::default() }
}

pub(crate) fn put(rows: impl IntoIterator<Item = Row>) -> Batch {
    Batch { put: rows.into_iter().collect(), ..Batch::default() }
}

impl From<Wrap<Share>> for Row {
    fn from(row: Wrap<Share>) -> Self {
        Self::Share(Box::new(row.0))
    }
}

impl From<Wrap<Instance>> for Row {
    fn from(row: Wrap<Instance>) -> Self {
        Self::Instance(Box::new(row.0))
    }
}

impl From<Wrap<AccessRule>> for Row {
    fn from(row: Wrap<AccessRule>) -> Self {
        Self::Rule(Box::new(row.0))
    }
}

impl From<Wrap<ShareType>> for Row {
    fn from(row: Wrap<ShareType>) -> Self {
        Self::Type(Box::new(row.0))
    }
}

/// Carries a model row to [`Row`].
pub(crate) struct Wrap<T>(T);

/// Any row as a [`Row`].
pub(crate) fn row<T>(row: T) -> Row
where
    Wrap<T>: Into<Row>,
{
    Wrap(row).into()
}
