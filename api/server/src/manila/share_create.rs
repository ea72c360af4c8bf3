//! Making a share.

use serde_json::{Map, Value, json};
use tandem_manager::model::{ShareType, default_limits};
use tandem_manager::{Denied, NewShare};

use super::denied::invalid_input;
use super::share_views::{Shown, detail};
use super::{denied, find, read};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::python;

/// Manila keeps sizes in 31 bits; more is no size of a share.
const MAX_SIZE: i64 = i32::MAX as i64;

pub(super) async fn create(call: Call) -> Result {
    call.authorize("share:create")?;
    if call.who.project_id.is_empty() {
        return Err(Fault::bad_request("A share belongs to a project, and this token is for none."));
    }
    let wanted = call.entity("share")?.ok_or_else(|| Fault::bare(422))?;
    let is_public = read::is_public(&call, wanted, "share:create_public_share")?.unwrap_or(false);
    let either = |short: &'static str, long: &'static str| match read::filled(wanted, short)? {
        Some(_) => read::display(wanted, short, short),
        None => read::display(wanted, long, long),
    };
    let name = either("name", "display_name")?;
    let description = either("description", "display_description")?;
    let zone = zone(&call, wanted)?;
    refuse_what_is_not_there(&call, wanted).await?;
    let share_type = chosen_type(&call, wanted).await?;
    check_type(&call, wanted, &share_type, zone.as_deref())?;
    let only_host = only_host(&call, wanted).await?;
    let metadata = read::metadata(wanted.get("metadata"))?;
    let size_gb = size(wanted)?;
    check_size(&share_type, size_gb, "create")?;
    let protocol = protocol(&call, wanted)?;
    check_limit(&call, size_gb).await?;
    let new = NewShare {
        name,
        description,
        size_gb,
        protocol,
        share_type_id: share_type.id,
        availability_zone: zone,
        is_public,
        metadata,
        only_host,
    };
    let made = call.app.manager.create_share(&call.caller(), new).await.map_err(|d| match d {
        Denied::OverQuota { what, limit, .. } => {
            denied::over_quota(what, limit, "Failed while creating a share with replication support. ")
        }
        other => denied::fault(other),
    })?;
    let shown = Shown { share: made, instances: Vec::new(), type_name: Some(share_type.name) };
    Reply::ok(json!({"share": detail(&call, &shown)}))
}

fn zone(call: &Call, wanted: &Map<String, Value>) -> Result<Option<String>> {
    let Some(zone) = read::filled(wanted, "availability_zone")? else { return Ok(None) };
    if call.app.manager.zones().iter().any(|z| z == zone) {
        Ok(Some(zone.to_owned()))
    } else {
        Err(Fault::new(404, format!("Availability zone {zone} could not be found.")))
    }
}

/// Things of Manila's that a share can be made of, and of which none exist here yet.
async fn refuse_what_is_not_there(call: &Call, wanted: &Map<String, Value>) -> Result<()> {
    if let Some(id) = read::filled(wanted, "share_group_id")?.filter(|_| call.since(31)) {
        return Err(Fault::new(404, format!("Share group {id} could not be found.")));
    }
    if let Some(id) = read::filled(wanted, "snapshot_id")? {
        return Err(Fault::new(404, format!("ShareSnapshotNotFound: Snapshot {id} could not be found.")));
    }
    if let Some(id) = read::filled(wanted, "share_network_id")? {
        return Err(Fault::new(404, format!("Share network {id} could not be found.")));
    }
    if call.since(90) && read::filled(wanted, "encryption_key_ref")?.is_some() {
        return Err(Fault::bad_request(
            "No share can be encrypted here: no back end offers 'encryption_support'.",
        ));
    }
    Ok(())
}

async fn chosen_type(call: &Call, wanted: &Map<String, Value>) -> Result<ShareType> {
    if wanted.contains_key("share_type") && wanted.contains_key("volume_type") {
        return Err(Fault::bad_request("Cannot specify both share_type and volume_type"));
    }
    let key = if wanted.contains_key("share_type") { "share_type" } else { "volume_type" };
    let found = match read::filled(wanted, key)? {
        None => find::default_type(call).await?,
        Some(name) if find::uuid_like(name) => find::share_type(call, name).await?,
        Some(name) => find::types(call).await?.into_iter().find(|t| t.name == name),
    };
    found.ok_or_else(|| Fault::new(404, "Share type not found."))
}

fn check_type(
    call: &Call,
    wanted: &Map<String, Value>,
    share_type: &ShareType,
    zone: Option<&str>,
) -> Result<()> {
    if share_type.flag("driver_handles_share_servers") {
        return Err(Fault::bad_request(
            "Share network must be set when the driver_handles_share_servers is true.",
        ));
    }
    let zones = share_type.extra_specs.get("availability_zones").filter(|_| call.since(48));
    match (zone, zones) {
        (Some(zone), Some(zones)) if !zones.split(',').any(|z| z == zone) => {
            let asked = wanted.get("share_type").or_else(|| wanted.get("volume_type"));
            let name = asked.and_then(Value::as_str).unwrap_or(&share_type.name);
            Err(Fault::bad_request(format!(
                "Share type {name} is not supported within the availability zone chosen {zone}."
            )))
        }
        _ => Ok(()),
    }
}

/// `scheduler_hints`, since 2.65. Only `only_host` (since 2.67) is known to the scheduler here; a hint that
/// would be ignored is refused instead.
async fn only_host(call: &Call, wanted: &Map<String, Value>) -> Result<Option<String>> {
    let hints = match wanted.get("scheduler_hints").filter(|_| call.since(65)) {
        hints if !python::truthy(hints) => return Ok(None),
        Some(Value::Object(hints)) => hints,
        _ => return Err(Fault::malformed()),
    };
    if let Some(key) = hints.keys().find(|key| *key != "only_host") {
        return Err(Fault::bad_request(format!("The scheduler hint '{key}' is not supported.")));
    }
    let host = if call.since(67) { read::filled(hints, "only_host")? } else { None };
    Ok(host.map(str::to_owned))
}

fn size(wanted: &Map<String, Value>) -> Result<u64> {
    let size = wanted.get("size").unwrap_or(&Value::Null);
    match python::int_like(size).filter(|n| (1..=MAX_SIZE).contains(n)).and_then(|n| u64::try_from(n).ok()) {
        Some(size) => Ok(size),
        None => {
            let shown = python::str_of(size);
            Err(invalid_input(format!("Share size '{shown}' must be an integer and greater than 0")))
        }
    }
}

fn protocol(call: &Call, wanted: &Map<String, Value>) -> Result<String> {
    let asked = read::text(wanted, "share_proto")?;
    let protocol = asked.map(str::to_uppercase);
    let known = &call.app.settings.protocols;
    match protocol {
        Some(protocol) if known.contains(&protocol) => Ok(protocol),
        other => Err(invalid_input(format!(
            "Invalid share protocol provided: {}. It is either disabled or unsupported. Available protocols: {}",
            other.as_deref().unwrap_or("None"),
            python::repr(&json!(known)),
        ))),
    }
}

/// The bounds that a share type sets on sizes. `operation` is `create`, `extend`, `admin-extend` or `shrink`.
pub(super) fn check_size(share_type: &ShareType, size: u64, operation: &str) -> Result<()> {
    let bound = |key: &str| share_type.extra_specs.get(key).and_then(|text| text.parse::<u64>().ok());
    let name = &share_type.name;
    let (least, most, kind) = match operation {
        "create" => (bound("provisioning:min_share_size"), bound("provisioning:max_share_size"), "size"),
        "extend" => (None, bound("provisioning:max_share_size"), "size"),
        "admin-extend" => (None, bound("provisioning:max_share_extend_size"), "extend size"),
        _ => (bound("provisioning:min_share_size"), None, "size"),
    };
    if let Some(least) = least.filter(|least| size < *least) {
        return Err(invalid_input(format!(
            "Specified share size of '{size}' is less than the minimum required size of '{least}' for share type \
             '{name}'"
        )));
    }
    if let Some(most) = most.filter(|most| size > *most) {
        return Err(invalid_input(format!(
            "Specified share size of '{size}' is greater than the maximum allowable {kind} of '{most}' for share \
             type '{name}'"
        )));
    }
    Ok(())
}

/// The quota on the size of one share.
pub(super) async fn check_limit(call: &Call, size: u64) -> Result<()> {
    let own = call.app.manager.store().quota(&call.who.project_id).await.map_err(find::store)?;
    let own = own.and_then(|q| q.limits.get("per_share_gigabytes").copied());
    let limit = own.or_else(|| default_limits().get("per_share_gigabytes").copied()).unwrap_or(-1);
    match u64::try_from(limit) {
        Ok(limit) if size > limit => Err(Fault::new(
            413,
            format!(
                "ShareSizeExceedsLimit: Requested share size {size} is larger than maximum allowed limit {limit}."
            ),
        )),
        _ => Ok(()),
    }
}

/// The share of an action's path.
pub(super) async fn need_for_action(call: &Call, rule: &str) -> Result<find::ShareFamily> {
    call.authorize(rule)?;
    let id = call.param("id");
    let missing = || Fault::new(404, format!("ShareNotFound: Share {id} could not be found."));
    let found = find::need_share(call, id, missing).await?;
    find::may_change(call, rule, &found.share)?;
    Ok(found)
}
