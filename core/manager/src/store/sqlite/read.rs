//! Reading: rows are decoded from their documents; the columns beside them only find and order.

use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{QueryBuilder, Row as _, Sqlite, SqlitePool};
use tandem_contract::ResourceId;

use super::super::keys::{Stored, parse};
use super::super::{Family, Page, Result};
use super::{failed, sql};
use crate::oplog::Logged;

/// Decodes a row whose columns from `at` on are version, format, document.
fn decode<T: Stored>(row: &SqliteRow, at: usize) -> Result<T> {
    let version = row.try_get(at).map_err(failed)?;
    let format = row.try_get(at + 1).map_err(failed)?;
    parse(version, format, row.try_get(at + 2).map_err(failed)?)
}

/// The row that a statement of one key finds.
pub(super) async fn one<T: Stored>(pool: &SqlitePool, text: &'static str, id: String) -> Result<Option<T>> {
    let row = sqlx::query(text).bind(id).fetch_optional(pool).await.map_err(failed)?;
    row.map(|row| decode(&row, 0)).transpose()
}

/// The rows that a statement finds.
pub(super) async fn many<T: Stored>(
    pool: &SqlitePool,
    query: Query<'_, Sqlite, SqliteArguments>,
) -> Result<Vec<T>> {
    let rows = query.fetch_all(pool).await.map_err(failed)?;
    rows.iter().map(|row| decode(row, 0)).collect()
}

/// A page, and how many rows there are in all when that is asked for, both of one moment.
pub(super) async fn page<T: Stored>(
    pool: &SqlitePool,
    mut query: QueryBuilder<Sqlite>,
    count: Option<QueryBuilder<Sqlite>>,
) -> Result<Page<T>> {
    let Some(mut count) = count else {
        return Ok(Page { items: many(pool, query.build()).await?, total: None });
    };
    let mut moment = pool.begin().await.map_err(failed)?;
    let total: i64 = count.build_query_scalar().fetch_one(&mut *moment).await.map_err(failed)?;
    let rows = query.build().fetch_all(&mut *moment).await.map_err(failed)?;
    moment.commit().await.map_err(failed)?;
    let items = rows.iter().map(|row| decode(row, 0)).collect::<Result<_>>()?;
    Ok(Page { items, total: Some(u64::try_from(total).unwrap_or(0)) })
}

/// A share with everything that belongs to it: one statement, hence one moment.
pub(super) async fn family(pool: &SqlitePool, share: ResourceId) -> Result<Family> {
    let rows = sqlx::query(sql::FAMILY).bind(share.to_string()).fetch_all(pool).await.map_err(failed)?;
    let mut family = Family::default();
    for row in &rows {
        let kind: i64 = row.try_get(0).map_err(failed)?;
        match kind {
            0 => family.share = Some(decode(row, 1)?),
            1 => family.instances.push(decode(row, 1)?),
            2 => family.rules.push(decode(row, 1)?),
            3 => family.share_type = Some(decode(row, 1)?),
            _ => family.operations.push(decode(row, 1)?),
        }
    }
    Ok(family)
}

/// Events with their positions.
pub(super) async fn positioned(
    pool: &SqlitePool,
    query: Query<'_, Sqlite, SqliteArguments>,
) -> Result<Vec<(i64, Logged)>> {
    let rows = query.fetch_all(pool).await.map_err(failed)?;
    // The position stands where rows have their version.
    rows.iter().map(|row| Ok((row.try_get(0).map_err(failed)?, decode(row, 0)?))).collect()
}

/// Bytes promised on each pool.
pub(super) async fn promised(pool: &SqlitePool) -> Result<Vec<(String, u64)>> {
    const GIB: u64 = 1 << 30;
    let rows: Vec<(String, i64)> = sqlx::query_as(sql::PROMISED).fetch_all(pool).await.map_err(failed)?;
    Ok(rows
        .into_iter()
        .map(|(host, gib)| (host, u64::try_from(gib).unwrap_or(0).saturating_mul(GIB)))
        .collect())
}
