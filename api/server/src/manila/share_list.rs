//! Lists of shares: filters, order, pages.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tandem_manager::model::{Instance, InstanceStatus, Share};
use tandem_manager::store::{InstanceQuery, ShareQuery, ShareSort};
use uuid::Uuid;

use super::denied::invalid_input;
use super::find;
use super::share_views::{Shown, detail, summary};
use super::type_views::matches;
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::page::{After, MAX_LIMIT, Page, Query};
use crate::python;

pub(super) async fn summary_list(call: Call) -> Result {
    list(&call, false).await
}

pub(super) async fn detail_list(call: Call) -> Result {
    list(&call, true).await
}

async fn list(call: &Call, in_full: bool) -> Result {
    call.authorize("share:get_all")?;
    let page = Page::of(&call.query)?;
    let store = call.app.manager.store();
    let mut wanted = query(call, &page).await?;
    if let (Some(mut search), Some(query)) = (After::of(&call.query), &mut wanted) {
        while let Some(offset) = search.next_offset() {
            let query = ShareQuery { offset, limit: Some(MAX_LIMIT), count: false, ..query.clone() };
            let found = store.shares(&query).await.map_err(find::store)?.items;
            search.saw(found.iter().map(|share| share.id.to_string()));
        }
        query.offset = search.found().unwrap_or(query.offset);
    }
    let found = match wanted {
        Some(query) => store.shares(&query).await.map_err(find::store)?,
        None => tandem_manager::store::Page { items: Vec::new(), total: Some(0) },
    };
    let count = found.items.len();
    let last = found.items.last().map(|share| share.id.to_string());
    let views: Vec<Value> = if in_full {
        in_detail(call, found.items).await?
    } else {
        found.items.iter().map(|share| summary(call, share)).collect()
    };
    let mut out = Map::new();
    out.insert("shares".into(), Value::Array(views));
    if with_count(call)? {
        out.insert("count".into(), json!(found.total.unwrap_or(count as u64)));
    }
    if let Some(last) = last {
        let links = call.next_links(&page, "shares", count, &last);
        out.extend(links.map(|links| ("shares_links".to_owned(), links)));
    }
    Reply::ok(Value::Object(out))
}

async fn in_detail(call: &Call, shares: Vec<Share>) -> Result<Vec<Value>> {
    if shares.is_empty() {
        return Ok(Vec::new());
    }
    let store = call.app.manager.store();
    let names: BTreeMap<Uuid, String> =
        store.share_types().await.map_err(find::store)?.into_iter().map(|t| (t.id, t.name)).collect();
    let ids = shares.iter().map(|s| s.id).collect();
    let query = InstanceQuery { share_ids: Some(ids), ..InstanceQuery::default() };
    let mut instances: BTreeMap<_, Vec<Instance>> = BTreeMap::new();
    for instance in store.instances(&query).await.map_err(find::store)?.items {
        instances.entry(instance.share_id).or_default().push(instance);
    }
    let view = |share: Share| {
        let instances = instances.remove(&share.id).unwrap_or_default();
        let type_name = names.get(&share.share_type_id).cloned();
        detail(call, &Shown { share, instances, type_name })
    };
    Ok(shares.into_iter().map(view).collect())
}

fn with_count(call: &Call) -> Result<bool> {
    flag(call, "with_count", 42)
}

/// A boolean parameter, which counts since a version only.
fn flag(call: &Call, name: &str, since: u32) -> Result<bool> {
    let Some(value) = call.query.get(name).filter(|_| call.since(since)) else { return Ok(false) };
    python::strict_bool(value)
        .ok_or_else(|| Fault::bad_request(format!("Invalid value {value} for {name}. Expecting a boolean.")))
}

/// What the parameters ask the store for; `None` when nothing can match.
async fn query(call: &Call, page: &Page) -> Result<Option<ShareQuery>> {
    let q = &call.query;
    let own = |name: &str| q.get(name).map(str::to_owned);
    let since = |minor: u32, name: &str| own(name).filter(|_| call.since(minor));
    let mut query = ShareQuery {
        name: own("name").or_else(|| own("display_name")),
        name_contains: since(36, "name~").or_else(|| own("display_name~")),
        description: since(36, "description").or_else(|| own("display_description")),
        description_contains: since(36, "description~").or_else(|| own("display_description~")),
        export_path: since(35, "export_location_path"),
        offset: page.offset,
        limit: Some(page.limit),
        count: with_count(call)?,
        ..ShareQuery::default()
    };
    order(q, &mut query)?;
    if !scope(call, &mut query)? {
        return Ok(None);
    }
    let mut possible = !flag(call, "is_soft_deleted", 69)?;
    if let Some(status) = q.get("status") {
        if status.contains("deferred") && !call.may("share:list_shares_in_deferred_deletion_states") {
            return Err(Fault::forbidden());
        }
        query.status = status.parse::<InstanceStatus>().ok();
        possible &= query.status.is_some();
    }
    if let Some(id) = since(35, "export_location_id") {
        query.export_id = find::uuid(&id);
        possible &= query.export_id.is_some();
    }
    if let Some(host) = own("host") {
        call.authorize("share:list_by_host")?;
        query.host = Some(host);
    }
    if q.get("share_server_id").is_some() {
        call.authorize("share:list_by_share_server_id")?;
        possible = false;
    }
    // Filters by what no share here has.
    for name in
        ["snapshot_id", "share_network_id", "share_group_id", "mount_point_name", "encryption_key_ref"]
    {
        possible &= q.filled(name).is_none();
    }
    if let Some(zone) = since(97, "availability_zone") {
        possible &= call.app.manager.zones().contains(&zone);
        query.availability_zone = Some(zone);
    }
    if let Some(text) = q.get("metadata") {
        let dict = python::literal_dict(text)
            .ok_or_else(|| invalid_input(format!("Wrong metadata filter provided: {text}")))?;
        query.metadata = dict.into_iter().map(|(key, value)| (key, python::str_of(&value))).collect();
    }
    if let Some(types) = type_filter(call).await? {
        possible &= !types.is_empty();
        query.share_types = Some(types);
    }
    Ok(possible.then_some(query))
}

/// Whose shares: the caller's, those that are public too, or, where policy lets, everybody's.
fn scope(call: &Call, query: &mut ShareQuery) -> Result<bool> {
    let q = &call.query;
    let public = match q.get("is_public") {
        None => false,
        Some(word) => {
            python::strict_bool(word).ok_or_else(|| Fault::bad_request(python::not_a_bool(word)))?
        }
    };
    let everybody = match q.get("all_tenants") {
        None => false,
        Some("") => true,
        Some(word) => python::strict_bool(word).ok_or_else(|| invalid_input(python::not_a_bool(word)))?,
    };
    if everybody && call.may("share:list_all_projects") {
        query.project_id = q.filled("project_id").map(str::to_owned);
    } else {
        if q.filled("project_id").is_some_and(|p| call.who.is_admin && p != call.who.project_id) {
            return Ok(false);
        }
        query.project_id = Some(call.who.project_id.clone());
        query.or_public = public;
    }
    Ok(true)
}

/// The share types that the parameters `share_type_id` and `extra_specs` leave, when either is given.
async fn type_filter(call: &Call) -> Result<Option<Vec<Uuid>>> {
    let id = call.query.get("share_type_id").map(find::uuid);
    let Some(text) = call.query.get("extra_specs") else { return Ok(id.map(|id| id.into_iter().collect())) };
    call.authorize("share_types_extra_spec:index")?;
    let dict = python::literal_dict(text)
        .ok_or_else(|| invalid_input(format!("Wrong extra specs filter provided: {text}")))?;
    let wanted = dict.into_iter().map(|(key, value)| (key, python::str_of(&value))).collect();
    let types = call.app.manager.store().share_types().await.map_err(find::store)?;
    let fits = types.into_iter().filter(|t| matches(t, &wanted)).map(|t| t.id);
    Ok(Some(fits.filter(|t| id.is_none_or(|id| id == Some(*t))).collect()))
}

fn order(q: &Query, query: &mut ShareQuery) -> Result<()> {
    let key = q.get("sort_key").unwrap_or("created_at");
    let direction = q.get("sort_dir").unwrap_or("desc");
    for (name, value) in [("sort_key", key), ("sort_dir", direction)] {
        if value.is_empty() {
            return Err(invalid_input(format!("Wrong {name} filter provided: '{value}'")));
        }
    }
    query.sort = match key {
        "created_at" => ShareSort::CreatedAt,
        "updated_at" => ShareSort::UpdatedAt,
        "id" => ShareSort::Id,
        "name" | "display_name" => ShareSort::Name,
        "size" => ShareSort::Size,
        "share_proto" => ShareSort::Protocol,
        "project_id" => ShareSort::ProjectId,
        "share_type" | "share_type_id" => ShareSort::ShareType,
        "status" => ShareSort::Status,
        "host" => ShareSort::Host,
        "availability_zone" | "availability_zone_id" => ShareSort::AvailabilityZone,
        // Columns of Manila's that tell no two shares apart here: any order is sorted by them.
        "user_id"
        | "snapshot_id"
        | "share_network_id"
        | "share_group_id"
        | "share_server_id"
        | "is_public"
        | "display_description"
        | "task_state"
        | "replication_type"
        | "launched_at"
        | "scheduled_at"
        | "terminated_at" => ShareSort::CreatedAt,
        other => return Err(invalid_input(format!("Wrong sorting key provided - '{other}'"))),
    };
    query.ascending = match direction.to_ascii_lowercase().as_str() {
        "asc" => true,
        "desc" => false,
        _ => {
            return Err(invalid_input(format!(
                "Wrong sorting data provided: sort key is '{key}' and sort direction is '{direction}'"
            )));
        }
    };
    Ok(())
}
