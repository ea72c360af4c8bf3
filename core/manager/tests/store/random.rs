//! Random batches on both stores: the same answers, the same refusals.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tandem_contract::{ReplicaState, Style};
use tandem_manager::model::*;
use tandem_manager::oplog::Event;
use tandem_manager::store::memory::MemoryStore;
use tandem_manager::store::sqlite::SqliteStore;
use tandem_manager::store::{Batch, Gone, InstanceQuery, OperationQuery, Row, ShareQuery, ShareSort, Store};

use crate::rows::*;

/// Few ids, few versions: batches collide often, and as often they do not.
fn id() -> impl Strategy<Value = u64> {
    1_u64..5
}

fn version() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0_i64), 3 => Just(1), 2 => Just(2), 1 => Just(3)]
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![Just("a".to_owned()), Just("A'".to_owned()), Just("b%".to_owned()), Just("ä".to_owned())]
}

fn status() -> impl Strategy<Value = InstanceStatus> {
    proptest::sample::select(InstanceStatus::ALL.to_vec())
}

fn state() -> impl Strategy<Value = Option<ReplicaState>> {
    use ReplicaState as R;
    proptest::sample::select(vec![None, Some(R::Active), Some(R::InSync), Some(R::OutOfSync), Some(R::Error)])
}

fn any_share() -> impl Strategy<Value = Row> {
    let texts = (proptest::option::of(word()), proptest::option::of(word()), word(), word());
    (id(), version(), texts, 1_u64..9, any::<bool>(), any::<bool>(), 0_i64..4).prop_map(
        |(n, version, (name, description, project_id, key), size_gb, is_public, replicates, time)| {
            row(Share {
                version,
                name,
                description,
                project_id,
                size_gb,
                is_public,
                metadata: BTreeMap::from([(key, "v".to_owned())]),
                protocol: if is_public { "NFS" } else { "cifs" }.into(),
                replication: replicates.then_some(Style::Dr),
                created_at: at(time),
                updated_at: (time > 1).then(|| at(-time)),
                ..share(n)
            })
        },
    )
}

fn any_instance() -> impl Strategy<Value = Row> {
    let place = (proptest::option::of(word()), proptest::option::of(word()));
    (id(), id(), version(), status(), state(), place, 0_i64..4).prop_map(
        |(n, of, version, status, replica_state, (backend, zone), time)| {
            row(Instance {
                version,
                status,
                replica_state,
                exports: backend.iter().map(|b| export(n + of, &format!("/{b}"))).collect(),
                pool: backend.as_deref().and_then(pool),
                availability_zone: zone,
                created_at: at(time),
                ..instance(n, of)
            })
        },
    )
}

fn any_row() -> impl Strategy<Value = Row> {
    prop_oneof![
        3 => any_share(),
        4 => any_instance(),
        1 => (id(), id(), version()).prop_map(|(n, of, v)| row(AccessRule { version: v, ..rule(n, of) })),
        1 => (id(), word(), version()).prop_map(|(n, name, v)| row(ShareType { version: v, ..share_type(n, &name) })),
        1 => (word(), version()).prop_map(|(project_id, version)| {
            Row::Usage(Usage { project_id, version, in_use: BTreeMap::from([(Counted::Shares, version)]) })
        }),
        1 => (word(), version()).prop_map(|(project_id, version)| {
            Row::Quota(Quota { project_id, version, limits: BTreeMap::new() })
        }),
    ]
}

fn any_gone() -> impl Strategy<Value = Gone> {
    prop_oneof![
        (id(), version()).prop_map(|(n, v)| Gone::Share(share_id(n), v)),
        (id(), version()).prop_map(|(n, v)| Gone::Instance(instance_id(n), v)),
        (id(), version()).prop_map(|(n, v)| Gone::Rule(uuid(n), v)),
        (id(), version()).prop_map(|(n, v)| Gone::Type(uuid(n), v)),
        (word(), version()).prop_map(|(p, v)| Gone::Quota(p, v)),
    ]
}

/// An operation's row with events up to its number, from a number on that may or may not be the next.
fn any_events() -> impl Strategy<Value = Batch> {
    (id(), id(), 1_u64..4, 1_u64..3, any::<bool>(), 0_i64..6).prop_map(|(n, of, from, count, end, time)| {
        let to = from + count - 1;
        let events = (from..=to).map(|seq| event(n, seq, Event::CancelRequested)).collect();
        let op = Operation {
            seq: to,
            status: if end { OpStatus::Done } else { OpStatus::Running },
            updated_at: at(time),
            ..operation(n, of, sync(of))
        };
        Batch { events, operations: vec![op], ..Batch::default() }
    })
}

fn any_batch() -> impl Strategy<Value = Batch> {
    let rows = proptest::collection::vec(any_row(), 0..3);
    let gone = proptest::collection::vec(any_gone(), 0..2);
    let events = prop_oneof![2 => Just(Batch::default()), 1 => any_events()];
    (rows, gone, events).prop_map(|(put, gone, events)| Batch { put, gone, ..events })
}

fn any_share_query() -> impl Strategy<Value = ShareQuery> {
    use ShareSort as S;
    let sorts = [
        S::CreatedAt,
        S::UpdatedAt,
        S::Id,
        S::Name,
        S::Size,
        S::Protocol,
        S::ProjectId,
        S::ShareType,
        S::Status,
        S::Host,
        S::AvailabilityZone,
    ];
    let texts = (proptest::option::weighted(0.3, word()), proptest::option::weighted(0.2, word()));
    let status = proptest::option::weighted(0.3, status());
    let page = (0_u64..3, proptest::option::of(0_u64..4));
    let metadata = proptest::option::weighted(0.2, word());
    let sort = proptest::sample::select(sorts.to_vec());
    (sort, any::<[bool; 3]>(), texts, status, page, metadata).prop_map(
        |(sort, [ascending, or_public, count], (project_id, part), status, (offset, limit), key)| {
            ShareQuery {
                sort,
                ascending,
                or_public,
                count,
                project_id,
                name_contains: part,
                status,
                offset,
                limit,
                metadata: key.into_iter().map(|key| (key, "v".to_owned())).collect(),
                ..ShareQuery::default()
            }
        },
    )
}

async fn same(memory: &MemoryStore, sqlite: &SqliteStore, queries: &[ShareQuery]) {
    for query in queries {
        assert_eq!(memory.shares(query).await, sqlite.shares(query).await, "{query:?}");
    }
    for query in [
        InstanceQuery { count: true, ..InstanceQuery::default() },
        InstanceQuery { replicas_only: true, count: true, limit: Some(2), ..InstanceQuery::default() },
        InstanceQuery { export_path: Some("/a".into()), ..InstanceQuery::default() },
    ] {
        assert_eq!(memory.instances(&query).await, sqlite.instances(&query).await, "{query:?}");
    }
    for n in 1..5 {
        assert_eq!(memory.family(share_id(n)).await, sqlite.family(share_id(n)).await);
        assert_eq!(memory.rules(share_id(n)).await, sqlite.rules(share_id(n)).await);
        assert_eq!(memory.log(op_id(n)).await, sqlite.log(op_id(n)).await);
    }
    for project in ["a", "A'", "b%", "ä"] {
        assert_eq!(memory.usage(project).await, sqlite.usage(project).await);
        assert_eq!(memory.quota(project).await, sqlite.quota(project).await);
    }
    assert_eq!(memory.share_types().await, sqlite.share_types().await);
    assert_eq!(memory.unfinished().await, sqlite.unfinished().await);
    assert_eq!(memory.following().await, sqlite.following().await);
    assert_eq!(memory.promised().await, sqlite.promised().await);
    let all = OperationQuery::default();
    assert_eq!(memory.operations(&all).await, sqlite.operations(&all).await);
    // Positions may differ after refused batches; their order may not.
    let order = |log: Vec<(i64, _)>| log.into_iter().map(|(_, logged)| logged).collect::<Vec<_>>();
    let logs = (memory.log_from(0, 1000).await.unwrap(), sqlite.log_from(0, 1000).await.unwrap());
    assert_eq!(order(logs.0), order(logs.1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn both_stores_answer_alike(
        batches in proptest::collection::vec(any_batch(), 1..40),
        queries in proptest::collection::vec(any_share_query(), 12),
        pruned in 0_i64..6,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let sqlite = SqliteStore::open(&folder.path().join("tandem.db")).await.unwrap();
            let memory = MemoryStore::new();
            for batch in batches {
                assert_eq!(memory.commit(batch.clone()).await, sqlite.commit(batch.clone()).await, "{batch:?}");
            }
            same(&memory, &sqlite, &queries).await;
            assert_eq!(memory.prune(at(pruned)).await, sqlite.prune(at(pruned)).await);
            same(&memory, &sqlite, &queries).await;
        });
    }
}
