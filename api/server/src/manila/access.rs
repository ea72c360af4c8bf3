//! Access rules: the actions of shares, and `/share-access-rules`.

use serde_json::{Value, json};
use std::sync::Arc;
use tandem_contract::AccessLevel;
use tandem_manager::model::{AccessRule, AccessRulesStatus, Instance};
use tandem_manager::{Denied, MetadataChange, NewRule};

use super::share_create::need_for_action;
use super::view::{Field, maybe_time, render, time};
use super::{address, denied, find, read};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::python;
use crate::routes::Routes;

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/share-access-rules", Window::since(45), index);
    routes.get("/share-access-rules/{id}", Window::since(45), show);
    routes.put("/share-access-rules/{id}", Window::since(88), update);
    routes.put("/share-access-rules/{id}/metadata", Window::since(45), set_metadata);
    routes.delete("/share-access-rules/{id}/metadata/{key}", Window::since(45), remove_metadata);
}

/// A rule to be shown, with the instances of its share.
struct Shown {
    rule: AccessRule,
    instances: Arc<[Instance]>,
    /// With the share's id, which lists leave out.
    alone: bool,
}

type F = Field<Shown>;

const HEAD: &[F] =
    &[F::new("id", |r, _| json!(r.rule.id.to_string())), F::new("share_id", |r, _| json!(r.rule.share_id))];

const FIELDS: &[F] = &[
    F::new("access_level", |r, _| json!(level_word(r.rule.access_level))),
    F::new("access_to", |r, _| json!(r.rule.access_to)),
    F::new("access_type", |r, _| json!(r.rule.access_type)),
    F::new("state", |r, _| old_state(&r.instances)).until(27),
    F::new("state", |r, _| json!(r.rule.state().as_str())).since(28),
    F::new("access_key", |_, _| Value::Null).since(21),
    F::new("created_at", |r, _| time(r.rule.created_at)).since(33),
    F::new("updated_at", |r, _| maybe_time(r.rule.updated_at)).since(33),
    F::new("metadata", |r, _| json!(r.rule.metadata)).since(45),
];

/// Before 2.28 rules had no state of their own; the share's was shown.
fn old_state(instances: &[Instance]) -> Value {
    let any = |status| instances.iter().any(|i| i.access_rules_status == status);
    json!(if any(AccessRulesStatus::Error) {
        "error"
    } else if any(AccessRulesStatus::Syncing) {
        "new"
    } else {
        "active"
    })
}

fn level_word(level: AccessLevel) -> &'static str {
    match level {
        AccessLevel::Rw => "rw",
        AccessLevel::Ro => "ro",
    }
}

impl Shown {
    fn view(&self, call: &Call) -> Value {
        let mut view = render(HEAD, self, call);
        if let Value::Object(map) = &mut view {
            if !self.alone {
                map.shift_remove("share_id");
            }
            if let Value::Object(rest) = render(FIELDS, self, call) {
                map.extend(rest);
            }
        }
        view
    }
}

fn one(call: &Call, rule: AccessRule, instances: Vec<Instance>) -> Result {
    Reply::ok(json!({"access": Shown { rule, instances: instances.into(), alone: true }.view(call)}))
}

fn all(call: &Call, rules: Vec<AccessRule>, instances: Vec<Instance>) -> Result {
    let instances: Arc<[Instance]> = instances.into();
    let views: Vec<Value> = rules
        .into_iter()
        .map(|rule| Shown { rule, instances: instances.clone(), alone: false }.view(call))
        .collect();
    Reply::ok(json!({"access_list": views}))
}

fn level(word: &str) -> Option<AccessLevel> {
    match word {
        "rw" => Some(AccessLevel::Rw),
        "ro" => Some(AccessLevel::Ro),
        _ => None,
    }
}

/// `allow_access`.
pub(super) async fn allow(call: Call) -> Result {
    call.authorize("share:allow_access")?;
    let key = if call.since(7) { "allow_access" } else { "os-allow_access" };
    let wanted = call.entity(key)?.ok_or_else(Fault::malformed)?;
    let found = need_for_action(&call, "share:allow_access").await?;
    let rules_failed = found.instances.iter().any(|i| i.access_rules_status == AccessRulesStatus::Error);
    if rules_failed && !call.since(28) {
        return Err(Fault::bad_request(
            "Access rules cannot be added while the share or any of its replicas or migration copies has its \
             access_rules_status set to error. Deny any rules in error state and try again.",
        ));
    }
    if call.since(82) {
        for lock in ["lock_visibility", "lock_deletion"] {
            if python::truthy(wanted.get(lock)) {
                return Err(Fault::bad_request(format!(
                    "'{lock}' is not supported: there are no resource locks."
                )));
            }
        }
        if python::truthy(wanted.get("lock_reason")) {
            return Err(Fault::bad_request(
                "Lock reason can only be specified when locking the visibility or the deletion of an access rule.",
            ));
        }
    }
    let access_type = read::text(wanted, "access_type")?.ok_or_else(Fault::malformed)?;
    let access_to = read::text(wanted, "access_to")?.ok_or_else(Fault::malformed)?;
    address::check(access_type, access_to, call.since(13), call.since(38))?;
    let access_level = match wanted.get("access_level") {
        None | Some(Value::Null) => AccessLevel::Rw,
        Some(value) => value.as_str().and_then(level).ok_or_else(|| {
            Fault::bad_request(format!(
                "Invalid access rule: Invalid share access level: {}.",
                python::str_of(value)
            ))
        })?,
    };
    let metadata = if call.since(45) { read::metadata(wanted.get("metadata"))? } else { Default::default() };
    let new = NewRule {
        access_type: access_type.to_owned(),
        access_to: access_to.to_owned(),
        access_level,
        metadata,
    };
    let made = call
        .app
        .manager
        .allow_access(&call.caller(), found.share.id, new)
        .await
        .map_err(not_ready("applied"))?;
    // What was admitted: every instance has the rule to apply.
    let instances: Vec<Instance> = found
        .instances
        .into_iter()
        .map(|i| Instance { access_rules_status: AccessRulesStatus::Syncing, ..i })
        .collect();
    one(&call, made, instances)
}

/// Rules change only on a share that serves.
fn not_ready(what: &'static str) -> impl Fn(Denied) -> Fault {
    move |denied| match denied {
        Denied::ShareStatus { .. } | Denied::RulesBusy(_) if what == "applied" => Fault::bad_request(
            "New access rules cannot be applied while the share or any of its replicas or migration copies lacks a \
             valid host or is in an invalid state.",
        ),
        Denied::ShareStatus { .. } | Denied::RulesBusy(_) => Fault::bad_request(format!(
            "Access rules cannot be {what} while the share, any of its replicas or migration copies lacks a valid \
             host or is in an invalid state."
        )),
        other => denied::fault(other),
    }
}

/// `deny_access`.
pub(super) async fn deny(call: Call) -> Result {
    call.authorize("share:deny_access")?;
    let key = if call.since(7) { "deny_access" } else { "os-deny_access" };
    let wanted = call.entity(key)?.ok_or_else(Fault::malformed)?;
    let id = read::text(wanted, "access_id")?.ok_or_else(Fault::malformed)?;
    let found = need_for_action(&call, "share:deny_access").await?;
    let missing = || Fault::new(404, "Resource could not be found.");
    let id = find::uuid(id).ok_or_else(missing)?;
    let denied = call.app.manager.deny_access(&call.caller(), found.share.id, id).await;
    denied.map_err(not_ready("denied"))?;
    Reply::accepted()
}

/// `access_list`, until 2.44.
pub(super) async fn list_by_action(call: Call) -> Result {
    call.authorize("share:access_get_all")?;
    let id = call.param("id");
    let missing = || Fault::new(404, format!("ShareNotFound: Share {id} could not be found."));
    let found = find::need_share(&call, id, missing).await?;
    let rules = call.app.manager.store().rules(found.share.id).await.map_err(find::store)?;
    all(&call, rules, found.instances)
}

async fn index(call: Call) -> Result {
    call.authorize("share_access_rule:index")?;
    let share = call.query.get("share_id");
    let share = share.ok_or_else(|| Fault::bad_request("The field 'share_id' has to be specified."))?;
    let wanted_metadata = match call.query.get("metadata") {
        None => Default::default(),
        Some(text) => python::literal_dict(text).ok_or_else(Fault::malformed)?,
    };
    if call.since(82) {
        check_filters(&call)?;
    }
    let missing = || Fault::bad_request(format!("Share {share} not found."));
    let found = find::need_share(&call, share, missing).await?;
    call.authorize("share:access_get_all")?;
    let mut rules = call.app.manager.store().rules(found.share.id).await.map_err(find::store)?;
    rules.retain(|rule| {
        wanted_metadata.iter().all(|(key, value)| rule.metadata.get(key) == Some(&python::str_of(value)))
    });
    if call.since(82) {
        let fits = |name: &str, value: &str| call.query.get(name).is_none_or(|wanted| wanted == value);
        rules.retain(|rule| {
            fits("access_type", &rule.access_type)
                && fits("access_to", &rule.access_to)
                && fits("access_level", level_word(rule.access_level))
        });
    }
    all(&call, rules, found.instances)
}

fn check_filters(call: &Call) -> Result<()> {
    let filled = |name: &str| call.query.filled(name);
    let access_type = filled("access_type");
    if let Some(kind) = access_type.filter(|kind| !["ip", "user", "cert", "cephx"].contains(kind)) {
        return Err(Fault::bad_request(format!("Invalid or unsupported share access type: {kind}.")));
    }
    match (access_type, filled("access_to")) {
        (None, Some(_)) => {
            return Err(denied::invalid_input(
                "'access_type' parameter must be provided when specifying 'access_to'",
            ));
        }
        (Some(kind), Some(to)) => address::check(kind, to, true, true)?,
        _ => {}
    }
    match filled("access_level").filter(|word| level(word).is_none()) {
        Some(word) => Err(Fault::bad_request(format!("Invalid or unsupported share access level: {word}."))),
        None => Ok(()),
    }
}

/// A rule of a share that the caller may see, with the share.
async fn rule(call: &Call) -> Result<Option<(AccessRule, find::ShareFamily)>> {
    let Some(id) = find::uuid(call.param("id")) else { return Ok(None) };
    let Some(rule) = call.app.manager.store().rule(id).await.map_err(find::store)? else { return Ok(None) };
    let family = find::share(call, &rule.share_id.to_string()).await?;
    Ok(family.map(|family| (rule, family)))
}

async fn need_rule(call: &Call) -> Result<(AccessRule, find::ShareFamily)> {
    let id = call.param("id");
    rule(call).await?.ok_or_else(|| Fault::new(404, format!("Share access rule {id} not found.")))
}

async fn show(call: Call) -> Result {
    call.authorize("share_access_rule:get")?;
    let (rule, family) = need_rule(&call).await?;
    one(&call, rule, family.instances)
}

async fn update(call: Call) -> Result {
    call.authorize("share_access_rule:update")?;
    let wanted = call.entity("update_access")?.ok_or_else(Fault::malformed)?;
    let wanted = wanted.get("access_level").filter(|level| python::truthy(Some(level)));
    let missing = || Fault::bad_request("Invalid input. Missing 'access_level' in update request.");
    let wanted = wanted.ok_or_else(missing)?;
    let level = wanted.as_str().and_then(level).ok_or_else(|| {
        let word = python::str_of(wanted);
        Fault::bad_request(format!("Invalid or unsupported share access level: {word}."))
    })?;
    let (rule, family) = need_rule(&call).await?;
    find::may_change(&call, "share_access_rule:update", &family.share)?;
    if rule.access_level == level {
        return one(&call, rule, family.instances);
    }
    let changed = call.app.manager.set_access_level(&call.caller(), family.share.id, rule.id, level).await;
    let changed = changed.map_err(not_ready("updated"))?;
    // The first answer shows the new level and the states as they were, as Manila's does.
    let shown = AccessRule { states: rule.states, ..changed };
    one(&call, shown, family.instances)
}

async fn set_metadata(call: Call) -> Result {
    call.authorize("share_access_metadata:update")?;
    let wanted = call.entity("metadata")?.ok_or_else(Fault::malformed)?;
    let missing = || Fault::new(404, "Resource could not be found.");
    let (rule, family) = rule(&call).await?.ok_or_else(missing)?;
    find::may_change(&call, "share_access_metadata:update", &family.share)?;
    let metadata = read::metadata(Some(&Value::Object(wanted.clone())))?;
    let change = MetadataChange::Merge(metadata);
    let all =
        call.app.manager.set_rule_metadata(family.share.id, rule.id, change).await.map_err(denied::fault)?;
    Reply::ok(json!({"metadata": all}))
}

async fn remove_metadata(call: Call) -> Result {
    call.authorize("share_access_metadata:delete")?;
    let missing = || Fault::new(404, "Resource could not be found.");
    let (rule, family) = rule(&call).await?.ok_or_else(missing)?;
    find::may_change(&call, "share_access_metadata:delete", &family.share)?;
    let key = call.param("key");
    if !rule.metadata.contains_key(key) {
        return Err(Fault::new(404, "Share access rule metadata does not exist."));
    }
    let change = MetadataChange::Remove(key.to_owned());
    call.app.manager.set_rule_metadata(family.share.id, rule.id, change).await.map_err(denied::fault)?;
    Ok(Reply::EmptyJson(200))
}
