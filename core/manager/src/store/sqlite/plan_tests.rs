//! Which index each of the main queries uses: a hundred thousand instances are no more work than a hundred.

use sqlx::{AssertSqlSafe, QueryBuilder, Row as _, Sqlite};

use super::*;
use crate::model::{InstanceStatus, OpStatus};
use crate::store::ShareSort;

/// SQLite's plan of a statement, one line a step.
async fn plan(store: &SqliteStore, text: impl AsRef<str>) -> String {
    // Parameters stay unbound: the plan does not depend on them.
    let explain = format!("EXPLAIN QUERY PLAN {}", text.as_ref());
    let rows = sqlx::query(AssertSqlSafe(explain)).fetch_all(&store.readers).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("\n")
}

fn text(query: QueryBuilder<Sqlite>) -> String {
    query.into_string()
}

#[tokio::test]
async fn main_queries_use_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("tandem.db")).await.unwrap();
    let instances = |query: InstanceQuery| text(sql::instances(&InstanceQuery { limit: Some(9), ..query }));
    let shares = |query: ShareQuery| text(sql::shares(&ShareQuery { limit: Some(9), ..query }));
    let operations =
        |query: OperationQuery| text(sql::operations(&OperationQuery { limit: Some(9), ..query }));
    let (i, s, o) = (InstanceQuery::default, ShareQuery::default, OperationQuery::default);
    let (share, instance) = (ResourceId(Uuid::nil()), InstanceId(Uuid::nil()));
    let project = || Some("p".to_owned());

    // Found and ordered by one index: nothing is sorted, whatever there is.
    let by_index: &[(&str, String, &str)] = &[
        ("instances", instances(i()), "i USING INDEX instances_by_age"),
        (
            "instances of a share",
            instances(InstanceQuery { share_id: Some(share), ..i() }),
            "i USING INDEX instances_by_share",
        ),
        (
            "instances of a project",
            instances(InstanceQuery { project_id: project(), ..i() }),
            "i USING INDEX instances_by_project",
        ),
        (
            "replicas of a project",
            instances(InstanceQuery { project_id: project(), replicas_only: true, ..i() }),
            "i USING INDEX instances_by_project",
        ),
        (
            "replicas",
            instances(InstanceQuery { replicas_only: true, ..i() }),
            "i USING INDEX instances_by_age",
        ),
        (
            "instances of a back end",
            instances(InstanceQuery { backend: Some("b".into()), ..i() }),
            "i USING INDEX instances_by_backend",
        ),
        (
            "instances by status",
            instances(InstanceQuery { status: Some(InstanceStatus::Error), ..i() }),
            "i USING INDEX instances_by_status",
        ),
        (
            "unfenced instances",
            instances(InstanceQuery { unfenced: true, ..i() }),
            "i USING INDEX instances_unfenced",
        ),
        ("shares", shares(s()), "s USING INDEX shares_by_age"),
        (
            "shares of a project",
            shares(ShareQuery { project_id: project(), ..s() }),
            "s USING INDEX shares_by_project",
        ),
        (
            "shares of a project, oldest first",
            shares(ShareQuery { project_id: project(), ascending: true, ..s() }),
            "s USING INDEX shares_by_project",
        ),
        ("operations", operations(o()), "o USING INDEX operations_by_age"),
        (
            "operations of a project",
            operations(OperationQuery { project_id: project(), ..o() }),
            "o USING INDEX operations_by_project",
        ),
        ("unfinished operations", sql::UNFINISHED.to_owned(), "operations USING INDEX operations_unfinished"),
        (
            "unfinished operations, asked for",
            operations(OperationQuery { unfinished: true, ..o() }),
            "o USING INDEX operations_unfinished",
        ),
        (
            "the newest sync of an instance",
            operations(OperationQuery { instance: Some(instance), kind: Some("sync".into()), ..o() }),
            "o USING INDEX operations_by_instance",
        ),
        (
            "unfinished operations of a share",
            operations(OperationQuery { share_id: Some(share), unfinished: true, ..o() }),
            "o USING INDEX operations_by_share",
        ),
        ("rules", sql::RULES.to_owned(), "rules USING INDEX rules_by_share"),
        (
            "shares that follow",
            sql::FOLLOWING.to_owned(),
            "instances USING COVERING INDEX instances_following",
        ),
        ("a log", sql::LOG.to_owned(), "events USING INDEX sqlite_autoindex_events_1"),
        ("the log", sql::LOG_FROM.to_owned(), "events USING INTEGER PRIMARY KEY"),
    ];
    for (what, text, index) in by_index {
        let plan = plan(&store, text).await;
        assert!(plan.contains(index), "{what}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{what} is sorted: {plan}");
    }

    let following = plan(&store, sql::FOLLOWING.to_owned()).await;
    assert!(following.contains("INDEX shares_writable"), "{following}");

    // A list of replicas asks of each whether its share replicates, without reading the share.
    let replicas = plan(&store, instances(InstanceQuery { replicas_only: true, ..i() })).await;
    assert!(replicas.contains("USING COVERING INDEX shares_replicating"), "{replicas}");

    // Found by an index; the little that is found may be sorted.
    let one = Some(Uuid::nil());
    let found: &[(&str, String)] = &[
        ("a family", sql::FAMILY.to_owned()),
        ("shares by status", shares(ShareQuery { status: Some(InstanceStatus::Error), ..s() })),
        ("shares by host", shares(ShareQuery { host: Some("h".into()), ..s() })),
        ("shares by name", shares(ShareQuery { name: Some("n".into()), ..s() })),
        ("shares by export id", shares(ShareQuery { export_id: one, ..s() })),
        ("shares by export path", shares(ShareQuery { export_path: Some("/".into()), ..s() })),
        ("shares by metadata", shares(ShareQuery { metadata: [("k".into(), "v".into())].into(), ..s() })),
        ("shares by type", shares(ShareQuery { share_types: Some(vec![Uuid::nil()]), ..s() })),
        ("instances by id", instances(InstanceQuery { ids: Some(vec![instance]), ..i() })),
        ("instances of shares", instances(InstanceQuery { share_ids: Some(vec![share]), ..i() })),
        ("instances by export id", instances(InstanceQuery { export_id: one, ..i() })),
        ("operations of a share", operations(OperationQuery { share_id: Some(share), ..o() })),
        (
            "operations by status",
            operations(OperationQuery { instance: Some(instance), status: Some(OpStatus::Done), ..o() }),
        ),
        ("the newest event", sql::NEWEST_EVENT.to_owned()),
        ("what may be pruned", sql::PRUNABLE.to_owned()),
    ];
    for (what, text) in found {
        let plan = plan(&store, text).await;
        for line in plan.lines().filter(|line| line.starts_with("SCAN")) {
            // The list of ids that came with the question, and what the parts of a union found.
            let small =
                ["json_each", "CONSTANT ROW", "(subquery", "AS (SELECT"].iter().any(|s| line.contains(s));
            assert!(small, "{what} reads a whole table: {plan}");
        }
    }

    // Sorted by what the instances say: every share is looked at, its instances by index.
    let plan = plan(&store, shares(ShareQuery { sort: ShareSort::Status, ..s() })).await;
    assert!(plan.contains("r USING INDEX instances_by_share"), "{plan}");
}
