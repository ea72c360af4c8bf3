//! From rows to what stores index them by: the one place that knows which columns repeat which field.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Gone, Result, Row, StoreError};
use crate::model::{AccessRule, Instance, Operation, Quota, Share, ShareType, Usage};
use crate::oplog::Logged;

/// The form of the JSON documents. Raised when an older Tandem could no longer read what is written; optional new
/// fields do not raise it.
pub(super) const FORMAT: i64 = 1;

/// GiB as they are sorted and summed: up to a zebibyte, so that no sum of them overflows.
pub(super) fn size_key(size_gb: u64) -> i64 {
    const MOST: i64 = 1 << 40;
    i64::try_from(size_gb).map_or(MOST, |size| size.min(MOST))
}

/// A kind of row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    /// [`Share`]
    Shares,
    /// [`Instance`]
    Instances,
    /// [`AccessRule`]
    Rules,
    /// [`ShareType`]
    Types,
    /// [`Quota`]
    Quotas,
    /// [`Usage`]
    Usages,
}

impl Table {
    /// What a person calls a row of it.
    pub(super) fn describe(self, id: &str) -> String {
        match self {
            Self::Shares => format!("share {id}"),
            Self::Instances => format!("instance {id}"),
            Self::Rules => format!("access rule {id}"),
            Self::Types => format!("share type {id}"),
            Self::Quotas => format!("the quota of project {id}"),
            Self::Usages => format!("the usage of project {id}"),
        }
    }

    /// Its name in SQL.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Shares => "shares",
            Self::Instances => "instances",
            Self::Rules => "rules",
            Self::Types => "share_types",
            Self::Quotas => "quotas",
            Self::Usages => "usages",
        }
    }

    /// The columns beside `id`, `version`, `format` and `doc`, in the order of [`RowKeys::columns`].
    pub(super) const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Shares => &[
                "project_id",
                "name",
                "description",
                "size_gb",
                "protocol",
                "share_type_id",
                "is_public",
                "replicates",
                "created_at",
                "updated_at",
            ],
            Self::Instances => &[
                "share_id",
                "project_id",
                "host",
                "backend",
                "availability_zone",
                "status",
                "replica_state",
                "created_at",
            ],
            Self::Rules => &["share_id", "created_at"],
            Self::Types => &["name", "created_at"],
            Self::Quotas | Self::Usages => &[],
        }
    }
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A text, or nothing.
    Text(Option<String>),
    /// A number, or nothing.
    Int(Option<i64>),
}

impl Key {
    fn text(value: impl ToString) -> Self {
        Self::Text(Some(value.to_string()))
    }

    fn maybe(value: Option<impl ToString>) -> Self {
        Self::Text(value.map(|v| v.to_string()))
    }

    const fn int(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

/// What hangs on a row in tables of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Nothing.
    None,
    /// A share's metadata.
    Metadata(Vec<(String, String)>),
    /// An instance's exports: share, then id and path of each.
    Exports(String, Vec<(String, String)>),
}

/// A row, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RowKeys {
    /// Where.
    pub(super) table: Table,
    /// Its key.
    pub(super) id: String,
    /// The version that it was read at.
    pub(super) version: i64,
    /// In the order of [`Table::columns`].
    pub(super) columns: Vec<Key>,
    /// The row as JSON.
    pub(super) doc: String,
    /// What goes to other tables.
    pub(super) side: Side,
    /// Its unique name, where it has one.
    pub(super) unique: Option<String>,
}

impl RowKeys {
    /// Of a row.
    pub(super) fn of(row: &Row) -> Result<Self> {
        Ok(match row {
            Row::Share(share) => Self::share(share, document(share)?),
            Row::Instance(instance) => Self::instance(instance, document(instance)?),
            Row::Rule(rule) => Self::plain(
                Table::Rules,
                rule.id.to_string(),
                rule.version,
                document(rule)?,
                vec![Key::text(rule.share_id), Key::int(rule.created_at.0)],
            ),
            Row::Type(share_type) => {
                let columns = vec![Key::text(&share_type.name), Key::int(share_type.created_at.0)];
                let id = share_type.id.to_string();
                let mut keys =
                    Self::plain(Table::Types, id, share_type.version, document(share_type)?, columns);
                keys.unique = Some(format!("share type `{}`", share_type.name));
                keys
            }
            Row::Quota(quota) => Self::plain(
                Table::Quotas,
                quota.project_id.clone(),
                quota.version,
                document(quota)?,
                Vec::new(),
            ),
            Row::Usage(usage) => Self::plain(
                Table::Usages,
                usage.project_id.clone(),
                usage.version,
                document(usage)?,
                Vec::new(),
            ),
        })
    }

    fn plain(table: Table, id: String, version: i64, doc: String, columns: Vec<Key>) -> Self {
        Self { table, id, version, columns, doc, side: Side::None, unique: None }
    }

    fn share(share: &Share, doc: String) -> Self {
        let columns = vec![
            Key::text(&share.project_id),
            Key::maybe(share.name.as_ref()),
            Key::maybe(share.description.as_ref()),
            Key::int(size_key(share.size_gb)),
            Key::text(&share.protocol),
            Key::text(share.share_type_id),
            Key::int(share.is_public.into()),
            Key::int(share.replication.is_some().into()),
            Key::int(share.created_at.0),
            Key::Int(share.updated_at.map(|at| at.0)),
        ];
        let mut keys = Self::plain(Table::Shares, share.id.to_string(), share.version, doc, columns);
        keys.side = Side::Metadata(share.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect());
        keys
    }

    fn instance(instance: &Instance, doc: String) -> Self {
        let columns = vec![
            Key::text(instance.share_id),
            Key::text(&instance.project_id),
            Key::maybe(instance.pool.as_ref()),
            Key::maybe(instance.backend()),
            Key::maybe(instance.availability_zone.as_ref()),
            Key::text(instance.status),
            Key::maybe(instance.replica_state.map(|s| s.as_str())),
            Key::int(instance.created_at.0),
        ];
        let mut keys = Self::plain(Table::Instances, instance.id.to_string(), instance.version, doc, columns);
        let exports = instance.exports.iter().map(|e| (e.id.to_string(), e.path.clone())).collect();
        keys.side = Side::Exports(instance.share_id.to_string(), exports);
        keys
    }
}

impl Row {
    /// Its table, key and the version that it was read at.
    pub(super) fn key(&self) -> (Table, String, i64) {
        match self {
            Self::Share(share) => (Table::Shares, share.id.to_string(), share.version),
            Self::Instance(instance) => (Table::Instances, instance.id.to_string(), instance.version),
            Self::Rule(rule) => (Table::Rules, rule.id.to_string(), rule.version),
            Self::Type(share_type) => (Table::Types, share_type.id.to_string(), share_type.version),
            Self::Quota(quota) => (Table::Quotas, quota.project_id.clone(), quota.version),
            Self::Usage(usage) => (Table::Usages, usage.project_id.clone(), usage.version),
        }
    }
}

impl Gone {
    /// Its table, key and the version that it was read at.
    pub(super) fn key(&self) -> (Table, String, i64) {
        match self {
            Self::Share(id, version) => (Table::Shares, id.to_string(), *version),
            Self::Instance(id, version) => (Table::Instances, id.to_string(), *version),
            Self::Rule(id, version) => (Table::Rules, id.to_string(), *version),
            Self::Type(id, version) => (Table::Types, id.to_string(), *version),
            Self::Quota(project, version) => (Table::Quotas, project.clone(), *version),
        }
    }
}

/// A row with a compare-and-set version beside its document.
pub(super) trait Stored: Serialize + DeserializeOwned {
    /// Puts the version in.
    fn set_version(&mut self, version: i64);
}

macro_rules! stored {
    ($($row:ty),*) => {$(
        impl Stored for $row {
            fn set_version(&mut self, version: i64) {
                self.version = version;
            }
        }
    )*};
}

stored!(Share, Instance, AccessRule, ShareType, Quota, Usage);

// The number of an operation is part of its document.
impl Stored for Operation {
    fn set_version(&mut self, _: i64) {}
}

impl Stored for Logged {
    fn set_version(&mut self, _: i64) {}
}

/// A row as JSON.
pub(super) fn document(row: &impl Serialize) -> Result<String> {
    serde_json::to_string(row)
        .map_err(|error| StoreError::Failed(format!("a row cannot be written as JSON: {error}")))
}

/// A row from JSON.
pub(super) fn parse<T: Stored>(version: i64, format: i64, doc: &str) -> Result<T> {
    if format > FORMAT {
        return Err(StoreError::Failed(format!(
            "a row has the form {format}, written by a newer Tandem; this one reads up to {FORMAT}: start the newer one"
        )));
    }
    let mut row: T = serde_json::from_str(doc)
        .map_err(|error| StoreError::Failed(format!("a row cannot be read: {error}; restore a backup")))?;
    row.set_version(version);
    Ok(row)
}

/// What a batch that names an operation without the right event is told: a defect of the caller.
pub(super) fn eventless(op: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(format!("operation {op} was to be written without its newest event; this is a defect"))
}
