//! Queries: every filter, every sort key, pages.

use std::collections::BTreeMap;

use tandem_contract::{OpId, ReplicaState, ResourceId, Style};
use tandem_manager::model::*;
use tandem_manager::store::{InstanceQuery, OperationQuery, ShareQuery, ShareSort, Store};

use crate::rows::*;

async fn shares(store: &dyn Store, query: ShareQuery) -> Vec<u64> {
    let counted = ShareQuery { count: true, offset: 0, limit: None, ..query.clone() };
    let page = store.shares(&query).await.unwrap();
    let all = store.shares(&counted).await.unwrap();
    assert_eq!(page.total, query.count.then_some(all.items.len() as u64));
    assert_eq!(all.total, Some(all.items.len() as u64));
    page.items.iter().map(|s| number(s.id)).collect()
}

fn number(id: ResourceId) -> u64 {
    id.0.as_u64_pair().1
}

fn ascending() -> ShareQuery {
    ShareQuery { ascending: true, sort: ShareSort::Id, ..ShareQuery::default() }
}

pub(crate) async fn shares_filter(store: &dyn Store) {
    let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
    };
    let one = Share {
        name: Some("Photos 2026".into()),
        description: Some("of the CAT".into()),
        metadata: pairs(&[("env", "prod"), ("tier", "1")]),
        ..share(1)
    };
    let two = Share {
        project_id: "q".into(),
        is_public: true,
        protocol: "CIFS".into(),
        metadata: pairs(&[("env", "prod")]),
        ..share(2)
    };
    let three =
        Share { project_id: "q".into(), share_type_id: uuid(901), name: Some("photos".into()), ..share(3) };
    let placed = Instance {
        pool: pool("alpha"),
        exports: vec![export(50, "/srv/one"), export(51, "/srv/other")],
        ..instance(11, 1)
    };
    let second = Instance { pool: pool("beta"), status: InstanceStatus::Error, ..instance(12, 1) };
    let third = Instance { pool: pool("beta"), status: InstanceStatus::Creating, ..instance(13, 3) };
    store.commit(put([row(one), row(two), row(three), row(placed), row(second), row(third)])).await.unwrap();

    let all = ascending();
    assert_eq!(shares(store, all.clone()).await, [1, 2, 3]);
    let q = |change: &dyn Fn(&mut ShareQuery)| {
        let mut query = all.clone();
        change(&mut query);
        query
    };
    let cases: [(ShareQuery, &[u64]); 27] = [
        (q(&|q| q.project_id = Some("p".into())), &[1]),
        (q(&|q| (q.project_id, q.or_public) = (Some("p".into()), true)), &[1, 2]),
        (q(&|q| q.or_public = true), &[1, 2, 3]),
        (q(&|q| q.name = Some("photos".into())), &[3]),
        (q(&|q| q.name = Some("phot".into())), &[]),
        (q(&|q| q.name_contains = Some("PHOTO".into())), &[1, 3]),
        (q(&|q| q.name_contains = Some("%".into())), &[]),
        (q(&|q| q.name_contains = Some(String::new())), &[1, 3]),
        (q(&|q| q.description = Some("of the CAT".into())), &[1]),
        (q(&|q| q.description_contains = Some("the cat".into())), &[1]),
        (q(&|q| q.status = Some(InstanceStatus::Available)), &[1]),
        (q(&|q| q.status = Some(InstanceStatus::Error)), &[]),
        (q(&|q| q.status = Some(InstanceStatus::Creating)), &[3]),
        (q(&|q| q.host = Some("host@beta#main".into())), &[1, 3]),
        (q(&|q| q.host = Some("host@beta".into())), &[]),
        (q(&|q| q.share_types = Some(vec![uuid(901), uuid(7)])), &[3]),
        (q(&|q| q.share_types = Some(vec![])), &[]),
        (q(&|q| q.protocol = Some("nfs".into())), &[1, 3]),
        (q(&|q| q.is_public = Some(true)), &[2]),
        (q(&|q| q.is_public = Some(false)), &[1, 3]),
        (q(&|q| q.metadata = pairs(&[("env", "prod")])), &[1, 2]),
        (q(&|q| q.metadata = pairs(&[("env", "prod"), ("tier", "1")])), &[1]),
        (q(&|q| q.metadata = pairs(&[("env", "1")])), &[]),
        (q(&|q| q.export_id = Some(uuid(50))), &[1]),
        (q(&|q| q.export_path = Some("/srv/other".into())), &[1]),
        (q(&|q| q.export_path = Some("/srv".into())), &[]),
        (q(&|q| (q.project_id, q.protocol) = (Some("q".into()), Some("nfs".into()))), &[3]),
    ];
    for (query, expected) in cases {
        assert_eq!(shares(store, query.clone()).await, expected, "{query:?}");
    }
    // What hangs on a row follows it.
    let mut one = store.share(share_id(1)).await.unwrap().unwrap();
    one.metadata = pairs(&[("tier", "2")]);
    let mut placed = store.instance(instance_id(11)).await.unwrap().unwrap();
    placed.exports.remove(0);
    store.commit(put([row(one), row(placed)])).await.unwrap();
    assert_eq!(shares(store, q(&|q| q.metadata = pairs(&[("env", "prod")]))).await, [2]);
    assert_eq!(shares(store, q(&|q| q.export_id = Some(uuid(50)))).await, [0_u64; 0]);
    assert_eq!(shares(store, q(&|q| q.export_id = Some(uuid(51)))).await, [1]);
}

pub(crate) async fn shares_sort_and_page(store: &dyn Store) {
    let a = Share {
        name: Some("b".into()),
        size_gb: 10,
        created_at: at(30),
        updated_at: Some(at(1)),
        project_id: "y".into(),
        ..share(1)
    };
    let b =
        Share { name: Some("B".into()), size_gb: 9, created_at: at(10), protocol: "CIFS".into(), ..share(2) };
    let c = Share {
        size_gb: 10,
        created_at: at(20),
        updated_at: Some(at(9)),
        share_type_id: uuid(5),
        ..share(3)
    };
    store.commit(put([row(a), row(b), row(c)])).await.unwrap();

    use ShareSort as S;
    let cases: [(ShareSort, [u64; 3]); 8] = [
        (S::CreatedAt, [2, 3, 1]),
        (S::UpdatedAt, [2, 1, 3]),
        (S::Id, [1, 2, 3]),
        (S::Name, [3, 2, 1]),
        (S::Size, [2, 1, 3]),
        (S::Protocol, [2, 1, 3]),
        (S::ProjectId, [2, 3, 1]),
        (S::ShareType, [3, 1, 2]),
    ];
    for (sort, expected) in cases {
        let up = ShareQuery { sort, ascending: true, ..ShareQuery::default() };
        assert_eq!(shares(store, up).await, expected, "{sort:?}");
        let mut down = expected;
        down.reverse();
        assert_eq!(shares(store, ShareQuery { sort, ..ShareQuery::default() }).await, down, "{sort:?}");
    }
    let pages: [(u64, Option<u64>, &[u64]); 7] = [
        (0, Some(2), &[1, 2]),
        (1, Some(1), &[2]),
        (2, Some(5), &[3]),
        (1, None, &[2, 3]),
        (9, None, &[]),
        (0, Some(0), &[]),
        (u64::MAX, Some(u64::MAX), &[]),
    ];
    for (offset, limit, expected) in pages {
        for count in [false, true] {
            let query = ShareQuery { offset, limit, count, ..ascending() };
            assert_eq!(shares(store, query).await, expected, "{offset} {limit:?}");
        }
    }
}

/// Status, host and zone are those of the instance that speaks for the share.
pub(crate) async fn shares_by_speaker(store: &dyn Store) {
    let in_zone = |instance: Instance, backend: &str, zone: &str| {
        row(Instance { pool: pool(backend), availability_zone: Some(zone.into()), ..instance })
    };
    let mut failing = replica(12, 1, ReplicaState::Active);
    failing.status = InstanceStatus::Error;
    let mut changing = instance(22, 2);
    changing.status = InstanceStatus::ReplicationChange;
    let mut odd = instance(31, 3);
    odd.status = InstanceStatus::Inactive;
    let rows = [
        row(replicated(1)),
        row(share(2)),
        row(share(3)),
        row(share(4)),
        // An active replica comes before others, whatever their status.
        in_zone(replica(11, 1, ReplicaState::InSync), "alpha", "a"),
        in_zone(failing, "beta", "z"),
        // Without replication the status decides.
        in_zone(instance(21, 2), "alpha", "a"),
        in_zone(changing, "gamma", "c"),
        in_zone(odd, "delta", "b"),
    ];
    store.commit(put(rows)).await.unwrap();
    let by = |sort| ShareQuery { sort, ascending: true, ..ShareQuery::default() };
    assert_eq!(shares(store, by(ShareSort::Status)).await, [4, 1, 3, 2]);
    assert_eq!(shares(store, by(ShareSort::Host)).await, [4, 1, 3, 2]);
    assert_eq!(shares(store, by(ShareSort::AvailabilityZone)).await, [4, 3, 2, 1]);
    let with = |status| ShareQuery { status: Some(status), ..ascending() };
    assert_eq!(shares(store, with(InstanceStatus::Error)).await, [1]);
    assert_eq!(shares(store, with(InstanceStatus::ReplicationChange)).await, [2]);
    assert_eq!(shares(store, with(InstanceStatus::Available)).await, [0_u64; 0]);
    let zone = |zone: &str| ShareQuery { availability_zone: Some(zone.into()), ..ascending() };
    assert_eq!(shares(store, zone("z")).await, [1]);
    assert_eq!(shares(store, zone("a")).await, [0_u64; 0]);
}

pub(crate) async fn instances_filter(store: &dyn Store) {
    let dr = Share { replication: Some(Style::Dr), ..share(1) };
    let mut first = replica(19, 1, ReplicaState::Active);
    first.created_at = at(1);
    first.pool = pool("alpha");
    first.exports = vec![export(50, "/a")];
    let mut second = replica(12, 1, ReplicaState::InSync);
    second.pool = pool("beta");
    second.exports = vec![export(51, "/b")];
    let mut third = instance(13, 2);
    (third.status, third.project_id) = (InstanceStatus::Error, "q".into());
    third.unfenced = true;
    let orphan = replica(14, 99, ReplicaState::Active);
    store
        .commit(put([row(dr), row(share(2)), row(first), row(second), row(third), row(orphan)]))
        .await
        .unwrap();

    let d = InstanceQuery::default;
    let ids = |ids: &[u64]| Some(ids.iter().copied().map(instance_id).collect::<Vec<_>>());
    let cases: [(InstanceQuery, &[u64]); 20] = [
        (InstanceQuery { unfenced: true, ..d() }, &[13]),
        (InstanceQuery { share_ids: Some([2, 99].map(share_id).to_vec()), ..d() }, &[13, 14]),
        (InstanceQuery { share_ids: Some(vec![]), ..d() }, &[]),
        (d(), &[19, 12, 13, 14]),
        (InstanceQuery { share_id: Some(share_id(1)), ..d() }, &[19, 12]),
        (InstanceQuery { project_id: Some("q".into()), ..d() }, &[13]),
        (InstanceQuery { ids: ids(&[13, 19, 77]), ..d() }, &[19, 13]),
        (InstanceQuery { ids: ids(&[]), ..d() }, &[]),
        (InstanceQuery { replicas_only: true, ..d() }, &[19, 12]),
        (InstanceQuery { status: Some(InstanceStatus::Error), ..d() }, &[13]),
        (InstanceQuery { replica_state: Some(ReplicaState::Active), ..d() }, &[19, 14]),
        (InstanceQuery { backend: Some("beta".into()), ..d() }, &[12]),
        (InstanceQuery { backend: Some("bet".into()), ..d() }, &[]),
        (InstanceQuery { export_id: Some(uuid(50)), ..d() }, &[19]),
        (InstanceQuery { export_path: Some("/b".into()), ..d() }, &[12]),
        (InstanceQuery { offset: 1, limit: Some(2), ..d() }, &[12, 13]),
        (InstanceQuery { limit: Some(0), ..d() }, &[]),
        (InstanceQuery { offset: 3, ..d() }, &[14]),
        (InstanceQuery { project_id: Some("p".into()), replicas_only: true, limit: Some(1), ..d() }, &[19]),
        (
            InstanceQuery { share_id: Some(share_id(1)), replica_state: Some(ReplicaState::InSync), ..d() },
            &[12],
        ),
    ];
    for (query, expected) in cases {
        let found = store.instances(&query).await.unwrap();
        let numbers: Vec<_> = found.items.iter().map(|i| i.id.0.as_u64_pair().1).collect();
        assert_eq!((numbers.as_slice(), found.total), (expected, None), "{query:?}");
        let counted = InstanceQuery { count: true, ..query.clone() };
        let all = InstanceQuery { offset: 0, limit: None, ..query };
        let total = store.instances(&all).await.unwrap().items.len() as u64;
        assert_eq!(store.instances(&counted).await.unwrap().total, Some(total));
    }
}

pub(crate) async fn operations_filter(store: &dyn Store) {
    let numbers = |ops: Vec<Operation>| ops.iter().map(|op| op_number(op.id)).collect::<Vec<_>>();
    let other = Operation { project_id: "q".into(), ..operation(2, 2, sync(8)) };
    let reset = Intent::Reset { instance: instance_id(7), status: None, replica_state: None };
    for op in [operation(1, 1, sync(7)), other, operation(3, 1, reset), operation(4, 1, Intent::UpdateAccess)]
    {
        store.commit(admit(&op)).await.unwrap();
    }
    store.commit(finish(&operation(1, 1, sync(7)), 40)).await.unwrap();

    let d = OperationQuery::default;
    let cases: [(OperationQuery, &[u64]); 11] = [
        (d(), &[4, 3, 2, 1]),
        (OperationQuery { share_id: Some(share_id(1)), ..d() }, &[4, 3, 1]),
        (OperationQuery { project_id: Some("q".into()), ..d() }, &[2]),
        (OperationQuery { instance: Some(instance_id(7)), ..d() }, &[3, 1]),
        (OperationQuery { kind: Some("sync".into()), ..d() }, &[2, 1]),
        (OperationQuery { kind: Some("Sync".into()), ..d() }, &[]),
        (OperationQuery { status: Some(OpStatus::Done), ..d() }, &[1]),
        (OperationQuery { unfinished: true, ..d() }, &[4, 3, 2]),
        (OperationQuery { unfinished: true, status: Some(OpStatus::Done), ..d() }, &[]),
        (OperationQuery { offset: 1, limit: Some(2), ..d() }, &[3, 2]),
        (
            OperationQuery {
                instance: Some(instance_id(7)),
                kind: Some("sync".into()),
                limit: Some(1),
                ..d()
            },
            &[1],
        ),
    ];
    for (query, expected) in cases {
        assert_eq!(numbers(store.operations(&query).await.unwrap()), expected, "{query:?}");
    }
}

fn op_number(id: OpId) -> u64 {
    id.0.as_u64_pair().1
}

/// Quotes, wild cards, a whole statement: none of them means anything.
pub(crate) async fn odd_texts_are_only_texts(store: &dyn Store) {
    let odd = ["'; DROP TABLE shares; --", "%_\\", "\"", "\u{1F600}", "a\u{0}b", "", "[1]", "null", "ÄÖ"];
    for (n, text) in (1_u64..).zip(odd) {
        let share = Share {
            name: Some(text.into()),
            project_id: text.into(),
            metadata: BTreeMap::from([(text.into(), text.into())]),
            ..share(n)
        };
        let instance = Instance { exports: vec![export(n, text)], ..instance(100 + n, n) };
        store.commit(put([row(share), row(instance)])).await.unwrap();
    }
    for (n, text) in (1_u64..).zip(odd) {
        let found = [
            ShareQuery { name: Some(text.into()), ..ascending() },
            ShareQuery { project_id: Some(text.into()), ..ascending() },
            ShareQuery { metadata: BTreeMap::from([(text.into(), text.into())]), ..ascending() },
            ShareQuery { export_path: Some(text.into()), ..ascending() },
        ];
        for query in found {
            assert_eq!(shares(store, query.clone()).await, [n], "{query:?}");
        }
        let contains = shares(store, ShareQuery { name_contains: Some(text.into()), ..ascending() }).await;
        assert!(contains.contains(&n), "{text:?}");
    }
    // Only ASCII letters have two cases here, in both stores.
    assert_eq!(
        shares(store, ShareQuery { name_contains: Some("äö".into()), ..ascending() }).await,
        [0_u64; 0]
    );
}
