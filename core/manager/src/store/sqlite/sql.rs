//! Every statement. Input goes in as bound parameters only; a sort key is one of a fixed table.

use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use super::super::{InstanceQuery, OperationQuery, ShareQuery, ShareSort};

pub(super) const SHARE: &str = "SELECT version, format, doc FROM shares WHERE id = ?";
pub(super) const INSTANCE: &str = "SELECT version, format, doc FROM instances WHERE id = ?";
pub(super) const RULE: &str = "SELECT version, format, doc FROM rules WHERE id = ?";
pub(super) const RULES: &str =
    "SELECT version, format, doc FROM rules WHERE share_id = ? ORDER BY created_at, id";
pub(super) const TYPE: &str = "SELECT version, format, doc FROM share_types WHERE id = ?";
pub(super) const TYPES: &str = "SELECT version, format, doc FROM share_types ORDER BY created_at, id";
pub(super) const QUOTA: &str = "SELECT version, format, doc FROM quotas WHERE id = ?";
pub(super) const USAGE: &str = "SELECT version, format, doc FROM usages WHERE id = ?";
pub(super) const OPERATION: &str = "SELECT seq, format, doc FROM operations WHERE id = ?";
pub(super) const UNFINISHED: &str =
    "SELECT seq, format, doc FROM operations WHERE finished = 0 ORDER BY created_at, id";
pub(super) const LOG: &str = "SELECT seq, format, doc FROM events WHERE op = ? ORDER BY seq";
pub(super) const LOG_FROM: &str =
    "SELECT position, format, doc FROM events WHERE position > ? ORDER BY position LIMIT ?";

pub(super) const FAMILY: &str = "\
    SELECT kind, version, format, doc FROM (\
    SELECT 0 AS kind, version, format, doc, 0 AS at, id FROM shares WHERE id = ?1 \
    UNION ALL SELECT 1, version, format, doc, created_at, id FROM instances WHERE share_id = ?1 \
    UNION ALL SELECT 2, version, format, doc, created_at, id FROM rules WHERE share_id = ?1 \
    UNION ALL SELECT 3, version, format, doc, 0, id FROM share_types \
        WHERE id = (SELECT share_type_id FROM shares WHERE id = ?1) \
    UNION ALL SELECT 4, seq, format, doc, created_at, id FROM operations WHERE share_id = ?1 AND finished = 0\
    ) ORDER BY kind, at, id";

pub(super) const FOLLOWING: &str = "\
    SELECT share_id FROM instances INDEXED BY instances_following \
    WHERE replica_state IN ('in_sync', 'out_of_sync', 'error') \
    UNION SELECT id FROM shares INDEXED BY shares_writable WHERE json_extract(doc, '$.replication') = 'writable' \
    ORDER BY 1";

/// GiB promised on each pool, as the triggers keep them.
pub(super) const PROMISED: &str = "SELECT host, gib FROM promised WHERE gib > 0 ORDER BY host";

pub(super) const DROP_METADATA: &str = "DELETE FROM share_metadata WHERE share_id = ?";
pub(super) const ADD_METADATA: &str = "INSERT INTO share_metadata (share_id, key, value) VALUES (?, ?, ?)";
pub(super) const DROP_EXPORTS: &str = "DELETE FROM exports WHERE instance_id = ?";
pub(super) const ADD_EXPORT: &str =
    "INSERT INTO exports (instance_id, share_id, id, path) VALUES (?, ?, ?, ?)";

pub(super) const NEWEST_EVENT: &str = "SELECT COALESCE(MAX(seq), 0) FROM events WHERE op = ?";
/// Appends only what comes next: no gap, nothing twice.
pub(super) const APPEND: &str = "\
    INSERT INTO events (op, seq, at, format, doc) SELECT ?1, ?2, ?3, ?4, ?5 \
    WHERE ?2 = 1 + (SELECT COALESCE(MAX(seq), 0) FROM events WHERE op = ?1)";
pub(super) const WRITE_OPERATION: &str = "\
    INSERT INTO operations (id, seq, format, share_id, project_id, instance, kind, status, finished, created_at, \
    updated_at, doc) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
    ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, format = excluded.format, share_id = excluded.share_id, \
    project_id = excluded.project_id, instance = excluded.instance, kind = excluded.kind, \
    status = excluded.status, finished = excluded.finished, created_at = excluded.created_at, \
    updated_at = excluded.updated_at, doc = excluded.doc";

pub(super) const PRUNABLE: &str = "\
    SELECT o.id FROM operations o WHERE o.kind IN ('sync', 'verify') AND o.finished = 1 AND o.updated_at < ? AND EXISTS (\
    SELECT 1 FROM operations n WHERE n.instance = o.instance AND n.kind = o.kind AND n.finished = 1 \
    AND (n.created_at, n.id) > (o.created_at, o.id)) LIMIT ?";
pub(super) const DROP_LOG: &str = "DELETE FROM events WHERE op = ?";
pub(super) const DROP_OPERATION: &str = "DELETE FROM operations WHERE id = ?";

/// A column of the instance that speaks for share `s`: the order of `Share::representative`. The share is joined again
/// because SQLite lets no ORDER BY see the statement around it.
macro_rules! representative {
    ($column:literal) => {
        concat!(
            "(SELECT r.",
            $column,
            " FROM shares t JOIN instances r ON r.share_id = t.id WHERE t.id = s.id \
             ORDER BY (t.replicates AND r.replica_state IS NOT 'active'), CASE r.status WHEN 'replication_change' THEN 0 WHEN 'migrating' THEN 1 WHEN 'available' THEN 2 \
             WHEN 'error' THEN 3 ELSE 4 END, r.created_at, r.id LIMIT 1)"
        )
    };
}

const fn sort_key(sort: ShareSort) -> &'static str {
    match sort {
        ShareSort::CreatedAt => "s.created_at",
        ShareSort::UpdatedAt => "s.updated_at",
        ShareSort::Id => "s.id",
        ShareSort::Name => "s.name",
        ShareSort::Size => "s.size_gb",
        ShareSort::Protocol => "s.protocol",
        ShareSort::ProjectId => "s.project_id",
        ShareSort::ShareType => "s.share_type_id",
        ShareSort::Status => representative!("status"),
        ShareSort::Host => representative!("host"),
        ShareSort::AvailabilityZone => representative!("availability_zone"),
    }
}

/// A statement that grows by conditions.
struct Select(QueryBuilder<Sqlite>);

impl Select {
    fn new(text: &'static str) -> Self {
        Self(QueryBuilder::new(text))
    }

    fn text(&mut self, condition: &'static str, value: impl Into<String>, rest: &'static str) {
        self.0.push(condition).push_bind(value.into()).push(rest);
    }

    fn opt(&mut self, condition: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.text(condition, value.to_string(), "");
        }
    }

    fn page(mut self, offset: u64, limit: Option<u64>) -> QueryBuilder<Sqlite> {
        if limit.is_some() || offset > 0 {
            // SQLite's -1 is no limit.
            let limit = limit.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX));
            self.0.push(" LIMIT ").push_bind(limit);
            self.0.push(" OFFSET ").push_bind(i64::try_from(offset).unwrap_or(i64::MAX));
        }
        self.0
    }
}

/// A list of ids as one parameter, so that the statement stays the same however many there are.
fn list(ids: impl Iterator<Item = Uuid>) -> String {
    let quoted: Vec<String> = ids.map(|id| format!("\"{id}\"")).collect();
    format!("[{}]", quoted.join(","))
}

fn filter_shares(select: &mut Select, query: &ShareQuery) {
    if let Some(project) = &query.project_id {
        let rest = if query.or_public { " OR s.is_public = 1)" } else { ")" };
        select.text(" AND (s.project_id = ", project, rest);
    }
    select.opt(" AND s.name = ", query.name.as_ref());
    select.opt(" AND s.description = ", query.description.as_ref());
    if let Some(part) = &query.name_contains {
        select.text(" AND instr(lower(s.name), lower(", part, ")) > 0");
    }
    if let Some(part) = &query.description_contains {
        select.text(" AND instr(lower(s.description), lower(", part, ")) > 0");
    }
    if let Some(status) = query.status {
        // The first condition is implied by the second; it lets the index find the candidates.
        select.text(
            " AND s.id IN (SELECT i.share_id FROM instances i WHERE i.status = ",
            status.as_str(),
            ")",
        );
        select.text(concat!(" AND ", representative!("status"), " = "), status.as_str(), "");
    }
    if let Some(host) = &query.host {
        select.text(" AND s.id IN (SELECT i.share_id FROM instances i WHERE i.host = ", host, ")");
    }
    if let Some(zone) = &query.availability_zone {
        select.text(concat!(" AND ", representative!("availability_zone"), " = "), zone, "");
    }
    if let Some(types) = &query.share_types {
        let types = list(types.iter().copied());
        select.text(" AND s.share_type_id IN (SELECT value FROM json_each(", types, "))");
    }
    if let Some(protocol) = &query.protocol {
        select.text(" AND s.protocol = ", protocol, " COLLATE NOCASE");
    }
    if let Some(public) = query.is_public {
        select.0.push(" AND s.is_public = ").push_bind(public);
    }
    for (key, value) in &query.metadata {
        select.text(" AND s.id IN (SELECT m.share_id FROM share_metadata m WHERE m.key = ", key, "");
        select.text(" AND m.value = ", value, ")");
    }
    if let Some(id) = query.export_id {
        select.text(" AND s.id IN (SELECT e.share_id FROM exports e WHERE e.id = ", id, ")");
    }
    if let Some(path) = &query.export_path {
        select.text(" AND s.id IN (SELECT e.share_id FROM exports e WHERE e.path = ", path, ")");
    }
}

/// Shares, by a query.
pub(super) fn shares(query: &ShareQuery) -> QueryBuilder<Sqlite> {
    let mut select = Select::new("SELECT s.version, s.format, s.doc FROM shares s WHERE TRUE");
    filter_shares(&mut select, query);
    let direction = if query.ascending { " ASC" } else { " DESC" };
    select.0.push(" ORDER BY ").push(sort_key(query.sort)).push(direction);
    if query.sort != ShareSort::Id {
        select.0.push(", s.id").push(direction);
    }
    select.page(query.offset, query.limit)
}

/// How many shares a query finds in all.
pub(super) fn count_shares(query: &ShareQuery) -> QueryBuilder<Sqlite> {
    let mut select = Select::new("SELECT COUNT(*) FROM shares s WHERE TRUE");
    filter_shares(&mut select, query);
    select.0
}

fn filter_instances(select: &mut Select, query: &InstanceQuery) {
    select.opt(" AND i.share_id = ", query.share_id);
    if let Some(shares) = &query.share_ids {
        let shares = list(shares.iter().map(|id| id.0));
        select.text(" AND i.share_id IN (SELECT value FROM json_each(", shares, "))");
    }
    select.opt(" AND i.project_id = ", query.project_id.as_ref());
    if let Some(ids) = &query.ids {
        let ids = list(ids.iter().map(|id| id.0));
        select.text(" AND i.id IN (SELECT value FROM json_each(", ids, "))");
    }
    if query.replicas_only {
        select.0.push(
            " AND EXISTS (SELECT 1 FROM shares s INDEXED BY shares_replicating \
             WHERE s.id = i.share_id AND s.replicates = 1)",
        );
    }
    if query.unfenced {
        select.0.push(" AND json_extract(i.doc, '$.unfenced') = 1");
    }
    select.opt(" AND i.status = ", query.status);
    select.opt(" AND i.replica_state = ", query.replica_state.map(|state| state.as_str()));
    select.opt(" AND i.backend = ", query.backend.as_ref());
    if let Some(id) = query.export_id {
        select.text(" AND i.id IN (SELECT e.instance_id FROM exports e WHERE e.id = ", id, ")");
    }
    if let Some(path) = &query.export_path {
        select.text(" AND i.id IN (SELECT e.instance_id FROM exports e WHERE e.path = ", path, ")");
    }
}

/// Instances, by a query.
pub(super) fn instances(query: &InstanceQuery) -> QueryBuilder<Sqlite> {
    let mut select = Select::new("SELECT i.version, i.format, i.doc FROM instances i WHERE TRUE");
    filter_instances(&mut select, query);
    select.0.push(" ORDER BY i.created_at, i.id");
    select.page(query.offset, query.limit)
}

/// How many instances a query finds in all.
pub(super) fn count_instances(query: &InstanceQuery) -> QueryBuilder<Sqlite> {
    let mut select = Select::new("SELECT COUNT(*) FROM instances i WHERE TRUE");
    filter_instances(&mut select, query);
    select.0
}

/// Operations, by a query.
pub(super) fn operations(query: &OperationQuery) -> QueryBuilder<Sqlite> {
    let mut select = Select::new("SELECT o.seq, o.format, o.doc FROM operations o WHERE TRUE");
    select.opt(" AND o.share_id = ", query.share_id);
    select.opt(" AND o.project_id = ", query.project_id.as_ref());
    select.opt(" AND o.instance = ", query.instance);
    select.opt(" AND o.kind = ", query.kind.as_ref());
    select.opt(" AND o.status = ", query.status.map(|status| status.as_str()));
    if query.unfinished {
        select.0.push(" AND o.finished = 0");
    }
    select.0.push(" ORDER BY o.created_at DESC, o.id DESC");
    select.page(query.offset, query.limit)
}
