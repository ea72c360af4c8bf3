//! The manager's refusals in Manila's codes and words.
//!
//! Most refusals mean the same in every call; where a call words one differently, it says so itself before it
//! falls back to this.

use tandem_manager::Denied;
use tandem_manager::model::Counted;

use crate::fault::Fault;

/// The answer for a refusal.
pub(super) fn fault(denied: Denied) -> Fault {
    match denied {
        Denied::NoShare(_) | Denied::NoInstance(_) | Denied::NoOperation(_) => Fault::not_found(),
        Denied::NoRule(_) => Fault::new(404, "Resource could not be found."),
        Denied::NoType(_) => Fault::new(404, "Share type not found."),
        Denied::NoZone(zone) => Fault::new(404, format!("Availability zone {zone} could not be found.")),
        Denied::TypeExists(name) => Fault::new(409, format!("Share Type {name} already exists.")),
        Denied::TypeInUse(_) => Fault::bad_request("Target share type is still in use."),
        Denied::Busy { share, task_state } => Fault::bad_request(format!(
            "Share is busy with an active task: Share {share} is busy as part of an active task: {task_state}."
        )),
        Denied::HasReplicas(share) => Fault::new(
            409,
            format!("Share {share} has replicas. Remove the replicas before deleting the share."),
        ),
        Denied::NotReplicated(share) => {
            Fault::bad_request(format!("Replication not supported for share {share}."))
        }
        Denied::NoActiveReplica(share) => {
            replication(format!("Share {share} does not have any active replica in available state"))
        }
        Denied::LastActiveReplica(_) => replication("Cannot delete last active replica"),
        Denied::InstanceStatus { instance, needed, .. } => {
            replication(format!("Replica {instance} must be in {needed} state to be promoted"))
        }
        Denied::PromoteNeedsAdmin { .. } => Fault::new(403, "User does not have admin privileges."),
        Denied::ResetActive(_) => Fault::bad_request("Cannot reset replica_state of an active replica"),
        Denied::NoHost(_) => Fault::bad_request("Invalid host: Share replica does not have a valid host."),
        Denied::RuleExists { access_type, access_to } => {
            Fault::bad_request(format!("Share access {access_type}:{access_to} exists."))
        }
        Denied::RulesBusy(_) => Fault::bad_request(
            "New access rules cannot be applied while the share or any of its replicas or migration copies \
             lacks a valid host or is in an invalid state.",
        ),
        Denied::Size { size_gb, asked_gb, verb: "extend", .. } => invalid_input(format!(
            "New size for extend must be greater than current size. (current: {size_gb}, extended: {asked_gb})"
        )),
        Denied::Size { size_gb, asked_gb, .. } => invalid_input(format!(
            "New size for shrink must be less than current size and greater than 0 (current: {size_gb}, new: \
             {asked_gb})"
        )),
        Denied::OverQuota { what, limit, .. } => over_quota(what, limit, ""),
        Denied::Store(error) => {
            tracing::error!(%error, "A request was refused because the store failed.");
            Fault::bare(503)
        }
        Denied::Ended(_) => Fault::new(409, denied.to_string()),
        Denied::ShareStatus { .. } | Denied::Invalid(_) => Fault::bad_request(denied.to_string()),
        // The face may grow; a refusal without words of Manila's is a sentence all the same.
        other => Fault::bad_request(other.to_string()),
    }
}

/// Manila's `InvalidInput`.
pub(super) fn invalid_input(reason: impl AsRef<str>) -> Fault {
    Fault::bad_request(format!("Invalid input received: {}.", reason.as_ref()))
}

/// Manila's `ReplicationException`.
pub(super) fn replication(reason: impl AsRef<str>) -> Fault {
    Fault::bad_request(format!("Unable to perform a replication action: {}.", reason.as_ref()))
}

/// A quota that does not suffice. `creating` is what Manila puts before the sentence when the replica is the
/// first one, of a new share.
pub(super) fn over_quota(what: Counted, limit: i64, creating: &str) -> Fault {
    let message = match what {
        Counted::Shares => format!(
            "ShareLimitExceeded: Maximum number of shares allowed ({limit}) either per project/user or share type \
             quota is exceeded."
        ),
        Counted::Gigabytes => {
            "ShareSizeExceedsAvailableQuota: Requested share exceeds allowed project/user or \
                               share type gigabytes quota."
                .to_owned()
        }
        Counted::ShareReplicas => format!(
            "ShareReplicasLimitExceeded: {creating}Maximum number of allowed share-replicas is exceeded."
        ),
        Counted::ReplicaGigabytes => format!(
            "ShareReplicaSizeExceedsAvailableQuota: {creating}Requested share replica exceeds allowed project/user \
             or share type gigabytes quota."
        ),
    };
    Fault::new(413, message)
}
