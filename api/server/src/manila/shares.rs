//! Shares: show, change, remove. Making, listing and actions have files of their own.

use serde_json::json;
use tandem_manager::{Denied, ShareChange};

use super::find::ShareFamily;
use super::share_views::{Shown, detail};
use super::{denied, find, metadata, read, share_actions, share_create, share_list};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::routes::Routes;

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/shares", Window::ALWAYS, share_list::summary_list);
    routes.get("/shares/detail", Window::ALWAYS, share_list::detail_list);
    routes.post("/shares", Window::ALWAYS, share_create::create);
    routes.get("/shares/{id}", Window::ALWAYS, show);
    routes.put("/shares/{id}", Window::ALWAYS, update);
    routes.delete("/shares/{id}", Window::ALWAYS, delete);
    metadata::share_routes(routes);
    share_actions::routes(routes);
}

/// The answer that shows one share in full.
pub(super) fn one(call: &Call, family: ShareFamily) -> Result {
    let type_name = family.share_type.map(|t| t.name);
    let shown = Shown { share: family.share, instances: family.instances, type_name };
    Reply::ok(json!({"share": detail(call, &shown)}))
}

async fn show(call: Call) -> Result {
    call.authorize("share:get")?;
    let found = find::need_share(&call, call.param("id"), Fault::not_found).await?;
    one(&call, found)
}

async fn update(call: Call) -> Result {
    call.authorize("share:update")?;
    let body = call.body()?;
    let wanted = match body.get("share") {
        None => return Err(Fault::bare(422)),
        Some(share) => share.as_object().ok_or_else(Fault::malformed)?,
    };
    let given = |key: &str| -> Result<Option<Option<String>>> {
        wanted.contains_key(key).then(|| read::display(wanted, key, key)).transpose()
    };
    let (name, description) = (given("display_name")?, given("display_description")?);
    let mut found = find::need_share(&call, call.param("id"), Fault::not_found).await?;
    let is_public = read::is_public(&call, wanted, "share:set_public_share")?;
    find::may_change(&call, "share:update", &found.share)?;
    let change = ShareChange { name, description, is_public };
    found.share = call.app.manager.update_share(found.share.id, change).await.map_err(denied::fault)?;
    one(&call, found)
}

async fn delete(call: Call) -> Result {
    call.authorize("share:delete")?;
    let found = find::need_share(&call, call.param("id"), Fault::not_found).await?;
    find::may_change(&call, "share:delete", &found.share)?;
    let removed = call.app.manager.delete_share(&call.caller(), found.share.id, false).await;
    removed.map_err(|d| match d {
        Denied::ShareStatus { .. } => {
            Fault::new(403, "Invalid share: Share status must be one of ('available', 'error', 'inactive').")
        }
        other => denied::fault(other),
    })?;
    Reply::accepted()
}
