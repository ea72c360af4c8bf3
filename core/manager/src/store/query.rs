//! What can be asked of the store.

use std::collections::BTreeMap;

use tandem_contract::{InstanceId, ReplicaState, ResourceId};
use uuid::Uuid;

use crate::model::{InstanceStatus, OpStatus};

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page<T> {
    /// The part.
    pub items: Vec<T>,
    /// How many there are in all, when it was asked for.
    pub total: Option<u64>,
}

/// By what shares are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShareSort {
    /// When they were accepted.
    #[default]
    CreatedAt,
    /// When they last changed.
    UpdatedAt,
    /// Id.
    Id,
    /// Name.
    Name,
    /// Size.
    Size,
    /// Protocol.
    Protocol,
    /// Project.
    ProjectId,
    /// Share type.
    ShareType,
    /// Status of the instance that speaks for it.
    Status,
    /// Host of that instance.
    Host,
    /// Zone of that instance.
    AvailabilityZone,
}

/// Which shares, in what order. An absent filter lets everything through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ShareQuery {
    /// Only of this project (and public ones, with `or_public`).
    pub project_id: Option<String>,
    /// With `project_id`: public shares of other projects too.
    pub or_public: bool,
    /// Exact name.
    pub name: Option<String>,
    /// Name contains; ASCII letters of any case.
    pub name_contains: Option<String>,
    /// Exact description.
    pub description: Option<String>,
    /// Description contains; ASCII letters of any case.
    pub description_contains: Option<String>,
    /// Status of the instance that speaks for it (an active replica, or the only instance).
    pub status: Option<InstanceStatus>,
    /// `host@backend#pool` of any of its instances.
    pub host: Option<String>,
    /// Zone of the instance that speaks for it.
    pub availability_zone: Option<String>,
    /// Any of these share types.
    pub share_types: Option<Vec<Uuid>>,
    /// Protocol, any case.
    pub protocol: Option<String>,
    /// Public or not.
    pub is_public: Option<bool>,
    /// All of this metadata.
    pub metadata: BTreeMap<String, String>,
    /// Id of an export location of any of its instances.
    pub export_id: Option<Uuid>,
    /// Path of an export location of any of its instances.
    pub export_path: Option<String>,
    /// Sort key.
    pub sort: ShareSort,
    /// Ascending; descending by default.
    pub ascending: bool,
    /// Skip so many.
    pub offset: u64,
    /// At most so many.
    pub limit: Option<u64>,
    /// Count all that match.
    pub count: bool,
}

/// Which instances.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceQuery {
    /// Of this share.
    pub share_id: Option<ResourceId>,
    /// Of any of these shares.
    pub share_ids: Option<Vec<ResourceId>>,
    /// Of this project.
    pub project_id: Option<String>,
    /// Only these.
    pub ids: Option<Vec<InstanceId>>,
    /// Only instances of shares that replicate.
    pub replicas_only: bool,
    /// Only those that were active and have not been fenced since another was promoted by force.
    pub unfenced: bool,
    /// With this status.
    pub status: Option<InstanceStatus>,
    /// With this state.
    pub replica_state: Option<ReplicaState>,
    /// Placed on this back end.
    pub backend: Option<String>,
    /// With an export location of this id.
    pub export_id: Option<Uuid>,
    /// With an export location of this path.
    pub export_path: Option<String>,
    /// Skip so many.
    pub offset: u64,
    /// At most so many.
    pub limit: Option<u64>,
    /// Count all that match.
    pub count: bool,
}

/// Which operations; newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OperationQuery {
    /// Of this share.
    pub share_id: Option<ResourceId>,
    /// Of this project.
    pub project_id: Option<String>,
    /// That concern this instance.
    pub instance: Option<InstanceId>,
    /// Of this kind ([`Intent::kind`](crate::model::Intent::kind)).
    pub kind: Option<String>,
    /// With this status.
    pub status: Option<OpStatus>,
    /// Only unfinished ones.
    pub unfinished: bool,
    /// Skip so many.
    pub offset: u64,
    /// At most so many.
    pub limit: Option<u64>,
}
