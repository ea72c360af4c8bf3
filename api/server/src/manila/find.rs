//! Finds what a request names, as far as the caller may see it.

use tandem_contract::{InstanceId, ResourceId};
use tandem_manager::model::{Instance, Share, ShareType};
use tandem_manager::store::StoreError;
use uuid::Uuid;

use super::denied;
use crate::call::{Call, Result};
use crate::fault::Fault;

/// An id as it is written on the wire; other spellings of the same number are other texts, as in Manila.
pub(super) fn uuid(text: &str) -> Option<Uuid> {
    Uuid::parse_str(text).ok().filter(|id| id.to_string() == text)
}

/// Whether text is an UUID in some spelling (`oslo_utils.uuidutils.is_uuid_like`).
pub(super) fn uuid_like(text: &str) -> bool {
    Uuid::parse_str(text).is_ok()
}

/// The answer when the store fails.
pub(super) fn store(error: StoreError) -> Fault {
    denied::fault(error.into())
}

/// A share with its instances.
pub(super) struct ShareFamily {
    pub(super) share: Share,
    pub(super) instances: Vec<Instance>,
    pub(super) share_type: Option<ShareType>,
}

/// The share of an id, if the caller may see it (its own, a public one, or whatever policy says).
pub(super) async fn share(call: &Call, id: &str) -> Result<Option<ShareFamily>> {
    let Some(id) = uuid(id) else { return Ok(None) };
    let family = call.app.manager.store().family(ResourceId(id)).await.map_err(store)?;
    let Some(share) = family.share else { return Ok(None) };
    let seen = share.is_public || call.may_on("share:get", &share.project_id, &share.user_id);
    Ok(seen.then_some(ShareFamily { share, instances: family.instances, share_type: family.share_type }))
}

/// As [`share`], or the error given.
pub(super) async fn need_share(
    call: &Call,
    id: &str,
    missing: impl FnOnce() -> Fault,
) -> Result<ShareFamily> {
    share(call, id).await?.ok_or_else(missing)
}

/// Refuses to change a share that the caller sees only because it is public.
pub(super) fn may_change(call: &Call, action: &str, share: &Share) -> Result<()> {
    if call.may_on(action, &share.project_id, &share.user_id) { Ok(()) } else { Err(Fault::forbidden()) }
}

/// The instance of an id, whatever share it belongs to.
pub(super) async fn instance(call: &Call, id: &str) -> Result<Option<Instance>> {
    let Some(id) = uuid(id) else { return Ok(None) };
    call.app.manager.store().instance(InstanceId(id)).await.map_err(store)
}

/// The replica of an id, if the caller may see it: an instance of a share that replicates, of its own project.
pub(super) async fn replica(call: &Call, id: &str) -> Result<Option<Instance>> {
    let found = instance(call, id).await?;
    Ok(found
        .filter(|i| i.replica_state.is_some() && (call.who.is_admin || i.project_id == call.who.project_id)))
}

/// Every share type that the caller may use, by name.
pub(super) async fn types(call: &Call) -> Result<Vec<ShareType>> {
    let mut types = call.app.manager.store().share_types().await.map_err(store)?;
    types.retain(|t| t.is_public || call.who.is_admin);
    types.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(types)
}

/// The share type of an id.
pub(super) async fn share_type(call: &Call, id: &str) -> Result<Option<ShareType>> {
    let Some(id) = uuid(id) else { return Ok(None) };
    let found = call.app.manager.store().share_type(id).await.map_err(store)?;
    Ok(found.filter(|t| t.is_public || call.who.is_admin))
}

/// The share type of an id or, failing that, of a name.
pub(super) async fn share_type_by(call: &Call, name_or_id: &str) -> Result<Option<ShareType>> {
    match share_type(call, name_or_id).await? {
        Some(found) => Ok(Some(found)),
        None => Ok(types(call).await?.into_iter().find(|t| t.name == name_or_id)),
    }
}

/// The share type that a share gets when none is asked for.
pub(super) async fn default_type(call: &Call) -> Result<Option<ShareType>> {
    let Some(name) = &call.app.settings.default_share_type else { return Ok(None) };
    Ok(types(call).await?.into_iter().find(|t| t.name == *name))
}
