//! Writing: compare-and-set, the log, and what is read at one moment.

use std::collections::BTreeMap;

use tandem_contract::ReplicaState;
use tandem_manager::model::*;
use tandem_manager::oplog::Event;
use tandem_manager::store::{
    Batch, Family, Gone, InstanceQuery, OperationQuery, Row, ShareQuery, Store, StoreError,
};

use crate::rows::*;

pub(crate) async fn empty_store_answers_nothing(store: &dyn Store) {
    assert_eq!(store.family(share_id(1)).await.unwrap(), Family::default());
    assert_eq!(store.share(share_id(1)).await.unwrap(), None);
    assert_eq!(store.instance(instance_id(1)).await.unwrap(), None);
    assert_eq!(store.rule(uuid(1)).await.unwrap(), None);
    assert_eq!(store.share_type(uuid(1)).await.unwrap(), None);
    assert_eq!(store.share_types().await.unwrap(), []);
    assert_eq!(store.quota("p").await.unwrap(), None);
    let none = Usage { project_id: "p".into(), ..Usage::default() };
    assert_eq!(store.usage("p").await.unwrap(), none);
    assert_eq!(store.operation(op_id(1)).await.unwrap(), None);
    assert_eq!(store.unfinished().await.unwrap(), []);
    assert_eq!(store.log(op_id(1)).await.unwrap(), []);
    assert_eq!(store.log_from(0, 10).await.unwrap(), []);
    assert_eq!(store.prune(at(i64::MAX)).await.unwrap(), 0);
    assert_eq!(store.promised().await.unwrap(), []);
    let shares = store.shares(&ShareQuery { count: true, ..ShareQuery::default() }).await.unwrap();
    assert_eq!((shares.items, shares.total), (vec![], Some(0)));
}

pub(crate) async fn empty_batch_is_written(store: &dyn Store) {
    store.commit(Batch::default()).await.unwrap();
}

pub(crate) async fn rows_come_back_as_they_were(store: &dyn Store) {
    let mut share = replicated(1);
    share.name = Some("name with \"quotes\", a\nnewline and ünïcödé".into());
    share.metadata = BTreeMap::from([("key\\".into(), "välue\"".into()), (String::new(), String::new())]);
    share.size_gb = u64::MAX;
    share.updated_at = Some(at(-7));
    let mut instance = replica(2, 1, ReplicaState::OutOfSync);
    instance.pool = pool("alpha");
    instance.exports = vec![export(3, "/srv/a b"), export(4, "host:/x")];
    instance.unfenced = true;
    let rule = rule(5, 1);
    let share_type = share_type(900, "gold");
    let quota = Quota { project_id: "p".into(), version: 0, limits: BTreeMap::from([("shares".into(), -1)]) };
    let mut usage = Usage { project_id: "p".into(), ..Usage::default() };
    usage.add(Counted::ReplicaGigabytes, 12);
    let rows = [row(share.clone()), row(instance.clone()), row(rule.clone()), row(share_type.clone())];
    let rows = rows.into_iter().chain([Row::Quota(quota.clone()), Row::Usage(usage.clone())]);
    store.commit(put(rows)).await.unwrap();

    assert_eq!(store.share(share.id).await.unwrap(), Some(Share { version: 1, ..share }));
    assert_eq!(store.instance(instance.id).await.unwrap(), Some(Instance { version: 1, ..instance }));
    assert_eq!(store.rule(rule.id).await.unwrap(), Some(AccessRule { version: 1, ..rule.clone() }));
    assert_eq!(store.rules(rule.share_id).await.unwrap(), [AccessRule { version: 1, ..rule }]);
    let share_type = ShareType { version: 1, ..share_type };
    assert_eq!(store.share_type(share_type.id).await.unwrap(), Some(share_type.clone()));
    assert_eq!(store.share_types().await.unwrap(), [share_type]);
    assert_eq!(store.quota("p").await.unwrap(), Some(Quota { version: 1, ..quota }));
    assert_eq!(store.usage("p").await.unwrap(), Usage { version: 1, ..usage });
}

pub(crate) async fn every_write_raises_the_version(store: &dyn Store) {
    store.commit(put([row(share(1))])).await.unwrap();
    for version in 1..5 {
        let mut share = store.share(share_id(1)).await.unwrap().unwrap();
        assert_eq!(share.version, version);
        share.size_gb += 1;
        store.commit(put([row(share)])).await.unwrap();
    }
    let mut usage = store.usage("p").await.unwrap();
    assert_eq!(usage.version, 0);
    usage.add(Counted::Shares, 1);
    store.commit(put([Row::Usage(usage)])).await.unwrap();
    assert_eq!(store.usage("p").await.unwrap().version, 1);
}

/// Whatever the refused part, nothing of the batch is written.
pub(crate) async fn stale_writes_are_refused_whole(store: &dyn Store) {
    let mut usage = Usage { project_id: "p".into(), ..Usage::default() };
    usage.add(Counted::Shares, 1);
    let quota = Quota { project_id: "p".into(), ..Quota::default() };
    let rows = [row(share(1)), row(instance(2, 1)), row(rule(3, 1)), row(share_type(4, "t"))];
    let rows: Vec<Row> = rows.into_iter().chain([Row::Quota(quota), Row::Usage(usage)]).collect();
    store.commit(put(rows.clone())).await.unwrap();

    let named = [
        format!("share {}", uuid(1)),
        format!("instance {}", uuid(2)),
        format!("access rule {}", uuid(3)),
        format!("share type {}", uuid(4)),
        "the quota of project p".into(),
        "the usage of project p".into(),
    ];
    let stale = |row: &Row, to: i64| {
        let mut row = row.clone();
        match &mut row {
            Row::Share(r) => r.version = to,
            Row::Instance(r) => r.version = to,
            Row::Rule(r) => r.version = to,
            Row::Type(r) => r.version = to,
            Row::Quota(r) => r.version = to,
            Row::Usage(r) => r.version = to,
        }
        row
    };
    for (stands, name) in rows.iter().zip(&named) {
        // 0: it is new, says the caller; 2: a version that nobody wrote yet.
        for version in [0, 2] {
            let batch = put([row(share(77)), stale(stands, version), row(share(78))]);
            assert_eq!(store.commit(batch).await, Err(StoreError::Conflict(name.clone())));
        }
    }
    // A row that is not there cannot be changed.
    let missing = put([stale(&row(share(50)), 1)]);
    assert_eq!(store.commit(missing).await, Err(StoreError::Conflict(format!("share {}", uuid(50)))));
    let gone = [
        Gone::Share(share_id(1), 2),
        Gone::Instance(instance_id(2), 2),
        Gone::Rule(uuid(3), 2),
        Gone::Type(uuid(4), 2),
        Gone::Quota("p".into(), 2),
    ];
    for (gone, name) in gone.into_iter().zip(&named) {
        let batch = Batch { gone: vec![gone], put: vec![row(share(77))], ..Batch::default() };
        assert_eq!(store.commit(batch).await, Err(StoreError::Conflict(name.clone())));
    }
    // The same row twice in one batch: the second is stale.
    let twice = put([row(share(60)), row(share(60))]);
    assert_eq!(store.commit(twice).await, Err(StoreError::Conflict(format!("share {}", uuid(60)))));

    assert_eq!(store.shares(&ShareQuery::default()).await.unwrap().items.len(), 1);
    assert_eq!(store.share(share_id(1)).await.unwrap().unwrap().version, 1);
}

pub(crate) async fn removals_come_first(store: &dyn Store) {
    let rows = [row(share(1)), row(instance(2, 1)), row(rule(3, 1)), row(share_type(4, "t"))];
    store.commit(put(rows)).await.unwrap();
    let quota = Row::Quota(Quota { project_id: "p".into(), ..Quota::default() });
    store.commit(put([quota.clone()])).await.unwrap();
    let batch = Batch {
        gone: vec![
            Gone::Share(share_id(1), 1),
            Gone::Instance(instance_id(2), 1),
            Gone::Rule(uuid(3), 1),
            Gone::Type(uuid(4), 1),
            Gone::Quota("p".into(), 1),
        ],
        // The name and the ids are free again.
        put: vec![row(share_type(5, "t")), row(share(1)), quota],
        ..Batch::default()
    };
    store.commit(batch).await.unwrap();
    assert_eq!(store.share(share_id(1)).await.unwrap().unwrap().version, 1);
    assert_eq!(store.instance(instance_id(2)).await.unwrap(), None);
    assert_eq!(store.rules(share_id(1)).await.unwrap(), []);
    assert_eq!(store.share_types().await.unwrap().len(), 1);
    assert_eq!(store.quota("p").await.unwrap().unwrap().version, 1);
    let again = Batch { gone: vec![Gone::Instance(instance_id(2), 1)], ..Batch::default() };
    assert_eq!(store.commit(again).await, Err(StoreError::Conflict(format!("instance {}", uuid(2)))));
}

pub(crate) async fn type_names_are_unique(store: &dyn Store) {
    store.commit(put([row(share_type(1, "gold")), row(share_type(2, "silver"))])).await.unwrap();
    let exists = || Err(StoreError::Exists("share type `gold`".into()));
    assert_eq!(store.commit(put([row(share_type(3, "gold"))])).await, exists());
    let silver = store.share_type(uuid(2)).await.unwrap().unwrap();
    let renamed = ShareType { name: "gold".into(), ..silver.clone() };
    assert_eq!(store.commit(put([row(renamed.clone())])).await, exists());
    // A stale version is the first thing said.
    let stale = ShareType { version: 9, ..renamed };
    let conflict = Err(StoreError::Conflict(format!("share type {}", uuid(2))));
    assert_eq!(store.commit(put([row(stale)])).await, conflict);
    // Its own name is free for it, and a name given up is free for another.
    let other = ShareType { name: "bronze".into(), ..silver };
    store.commit(put([row(other), row(share_type(3, "silver"))])).await.unwrap();
    let names: Vec<_> = store.share_types().await.unwrap().into_iter().map(|t| t.name).collect();
    assert_eq!(names, ["gold", "bronze", "silver"]);
}

pub(crate) async fn log_takes_only_the_next_event(store: &dyn Store) {
    let op = operation(1, 1, Intent::UpdateAccess);
    let conflict = || Err(StoreError::Conflict(format!("operation {}", op.id)));
    // It starts at 1, and nothing comes twice or leaves a gap.
    for wrong in [0, 2] {
        let batch = Batch { events: vec![event(1, wrong, Event::CancelRequested)], ..Batch::default() };
        assert_eq!(store.commit(batch).await, conflict());
    }
    store.commit(admit(&op)).await.unwrap();
    assert_eq!(store.commit(admit(&op)).await, conflict());
    let two = Operation { seq: 3, cancel: true, ..op.clone() };
    let events = vec![event(1, 2, Event::Planned { steps: Vec::new() }), event(1, 3, Event::CancelRequested)];
    let batch = Batch { events, operations: vec![two.clone()], ..Batch::default() };
    store.commit(batch.clone()).await.unwrap();
    assert_eq!(store.commit(batch).await, conflict());
    assert_eq!(store.operation(op.id).await.unwrap(), Some(two));
    let seqs: Vec<_> = store.log(op.id).await.unwrap().into_iter().map(|e| e.seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
}

pub(crate) async fn operation_needs_its_event(store: &dyn Store) {
    let op = operation(1, 1, Intent::UpdateAccess);
    let alone = Batch { operations: vec![op.clone()], ..Batch::default() };
    assert!(matches!(store.commit(alone).await, Err(StoreError::Failed(_))));
    let behind = Batch {
        events: vec![accepted(&op), event(1, 2, Event::CancelRequested)],
        operations: vec![op.clone()],
        ..Batch::default()
    };
    assert!(matches!(store.commit(behind).await, Err(StoreError::Failed(_))));
    assert_eq!(store.log(op.id).await.unwrap(), []);
    // The store goes on.
    store.commit(admit(&op)).await.unwrap();
}

pub(crate) async fn log_keeps_the_order_of_commits(store: &dyn Store) {
    for n in [3, 1, 2] {
        store.commit(admit(&operation(n, 1, Intent::UpdateAccess))).await.unwrap();
    }
    let refused = put([row(Share { version: 4, ..share(1) })]);
    let batch = Batch { events: vec![event(1, 2, Event::CancelRequested)], ..refused };
    assert!(store.commit(batch).await.is_err());
    store.commit(finish(&operation(1, 1, Intent::UpdateAccess), 9)).await.unwrap();

    let mut all = Vec::new();
    let mut position = 0;
    loop {
        let part = store.log_from(position, 2).await.unwrap();
        assert!(part.len() <= 2);
        let Some((last, _)) = part.last() else { break };
        assert!(*last > position);
        position = *last;
        all.extend(part.into_iter().map(|(_, logged)| (logged.op, logged.seq)));
    }
    assert_eq!(all, [(op_id(3), 1), (op_id(1), 1), (op_id(2), 1), (op_id(1), 2)]);
}

/// Many callers raise one counter by compare-and-set; each success is one raise.
pub(crate) async fn concurrent_writers_lose_nothing(store: &dyn Store) {
    let raise = async || {
        let mut refused = 0_u32;
        for _ in 0..5 {
            loop {
                let mut usage = store.usage("p").await.unwrap();
                usage.add(Counted::Shares, 1);
                match store.commit(put([Row::Usage(usage)])).await {
                    Ok(()) => break,
                    Err(StoreError::Conflict(_)) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
                tokio::task::yield_now().await;
            }
        }
        refused
    };
    tokio::join!(raise(), raise(), raise(), raise(), raise(), raise(), raise(), raise());
    let usage = store.usage("p").await.unwrap();
    assert_eq!((usage.of(Counted::Shares), usage.version), (40, 40));
}

pub(crate) async fn prune_keeps_the_newest_of_each_kind(store: &dyn Store) {
    let do_and_finish = async |n: u64, intent: Intent, end: i64| {
        let op = operation(n, 1, intent);
        store.commit(admit(&op)).await.unwrap();
        store.commit(finish(&op, end)).await.unwrap();
    };
    let admit_and_finish =
        async |n: u64, instance: u64, end: i64| do_and_finish(n, sync(instance), end).await;
    let check = Intent::Verify { instance: instance_id(70), asked: false };
    do_and_finish(8, check.clone(), 10).await;
    do_and_finish(9, check, 15).await;
    admit_and_finish(1, 70, 10).await;
    admit_and_finish(2, 70, 20).await;
    admit_and_finish(3, 70, 30).await;
    admit_and_finish(4, 71, 10).await;
    // Unfinished, though the newest of its instance; and of another kind.
    store.commit(admit(&operation(5, 1, sync(70)))).await.unwrap();
    let other = operation(6, 1, Intent::UpdateAccess);
    store.commit(admit(&other)).await.unwrap();
    store.commit(finish(&other, 10)).await.unwrap();

    // A sync and a check.
    assert_eq!(store.prune(at(20)).await.unwrap(), 2);
    assert_eq!(store.operation(op_id(1)).await.unwrap(), None);
    assert_eq!(store.log(op_id(1)).await.unwrap(), []);
    assert_eq!(store.prune(at(100)).await.unwrap(), 1);
    assert_eq!(store.prune(at(100)).await.unwrap(), 0);
    let left = store.operations(&OperationQuery::default()).await.unwrap();
    assert_eq!(left.iter().map(|op| op.id).collect::<Vec<_>>(), [9, 6, 5, 4, 3].map(op_id));
    // Positions are not given again.
    let newest = store.log_from(0, 100).await.unwrap().last().unwrap().0;
    store.commit(admit(&operation(7, 1, Intent::UpdateAccess))).await.unwrap();
    assert_eq!(store.log_from(newest, 100).await.unwrap().len(), 1);
}

pub(crate) async fn family_is_whole(store: &dyn Store) {
    let mut first = replica(12, 1, ReplicaState::Active);
    first.created_at = at(5);
    let rows = [
        row(share_type(900, "t")),
        row(replicated(1)),
        row(first),
        row(replica(11, 1, ReplicaState::InSync)),
        row(rule(21, 1)),
        row(rule(20, 1)),
        row(share(2)),
        row(instance(13, 2)),
        row(rule(22, 2)),
    ];
    store.commit(put(rows)).await.unwrap();
    for (n, of) in [(31, 1), (30, 1), (32, 2), (33, 1)] {
        store.commit(admit(&operation(n, of, Intent::UpdateAccess))).await.unwrap();
    }
    store.commit(finish(&operation(33, 1, Intent::UpdateAccess), 50)).await.unwrap();

    let family = store.family(share_id(1)).await.unwrap();
    assert_eq!(family.share, store.share(share_id(1)).await.unwrap());
    assert_eq!(family.instances.iter().map(|i| i.id).collect::<Vec<_>>(), [12, 11].map(instance_id));
    assert!(family.instances.iter().all(|i| i.version == 1));
    assert_eq!(family.rules.iter().map(|r| r.id).collect::<Vec<_>>(), [20, 21].map(uuid));
    assert_eq!(family.share_type, store.share_type(uuid(900)).await.unwrap());
    assert_eq!(family.operations.iter().map(|o| o.id).collect::<Vec<_>>(), [30, 31].map(op_id));
    let unfinished = store.unfinished().await.unwrap();
    assert_eq!(unfinished.iter().map(|o| o.id).collect::<Vec<_>>(), [30, 31, 32].map(op_id));
}

pub(crate) async fn following_names_each_share_once(store: &dyn Store) {
    let rows = [
        row(replica(11, 2, ReplicaState::Active)),
        row(replica(12, 2, ReplicaState::OutOfSync)),
        row(replica(13, 2, ReplicaState::Error)),
        row(replica(14, 1, ReplicaState::InSync)),
        row(replica(15, 3, ReplicaState::Active)),
        row(instance(16, 4)),
    ];
    store.commit(put(rows)).await.unwrap();
    assert_eq!(store.following().await.unwrap(), [1, 2].map(share_id));
}

pub(crate) async fn promised_counts_shares_by_pool(store: &dyn Store) {
    const GIB: u64 = 1 << 30;
    let placed = |n: u64, of: u64, backend: &str| row(Instance { pool: pool(backend), ..instance(n, of) });
    let rows = [
        row(Share { size_gb: 3, ..share(1) }),
        row(Share { size_gb: 5, ..share(2) }),
        placed(11, 1, "beta"),
        placed(12, 1, "alpha"),
        placed(13, 2, "alpha"),
        row(instance(14, 2)),
        placed(15, 99, "alpha"),
    ];
    store.commit(put(rows)).await.unwrap();
    let expected = [("host@alpha#main".into(), 8 * GIB), ("host@beta#main".into(), 3 * GIB)];
    assert_eq!(store.promised().await.unwrap(), expected);
    let mut grown = store.share(share_id(2)).await.unwrap().unwrap();
    grown.size_gb = 6;
    let gone = vec![Gone::Instance(instance_id(12), 1), Gone::Instance(instance_id(11), 1)];
    store.commit(Batch { gone, ..put([row(grown)]) }).await.unwrap();
    assert_eq!(store.promised().await.unwrap(), [("host@alpha#main".into(), 6 * GIB)]);
    let all = store.instances(&InstanceQuery::default()).await.unwrap();
    assert_eq!(all.items.len(), 3);
}
