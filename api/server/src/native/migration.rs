//! What a migration would do, without doing it.

use serde_json::json;
use tandem_contract::{ResourceId, ResourceKind};
use tandem_manager::model::{MigrationRequest, Needs};

use super::{Answer, Call, Refused, answer};

/// `GET /v1/shares/{id}/migration-check`
pub(super) async fn check(call: Call) -> Answer {
    let id: ResourceId = call.id()?;
    let host = call.params.get("host").ok_or_else(|| Refused::bad_request("host is missing."))?;
    let flag = |name: &str| call.params.get(name) == Some("true");
    let request = MigrationRequest {
        kind: ResourceKind::Share,
        host: host.to_owned(),
        host_assisted: flag("host_assisted"),
        needs: Needs {
            writable: flag("writable"),
            nondisruptive: flag("nondisruptive"),
            preserve_metadata: flag("preserve_metadata"),
            preserve_snapshots: flag("preserve_snapshots"),
        },
        new_type: call.params.parsed("share_type_id"),
        replicates: false,
        at_once: false,
    };
    let check = call.manager().check_migration(id, request).await?;
    answer(
        "migration_check",
        json!({
            "possible": check.refused.is_empty(),
            "refused": check.refused,
            "host": check.host,
            "approach": check.approach,
            "writable": check.writable,
            "nondisruptive": check.nondisruptive,
            "interruption": check.interruption,
            "lost": check.lost,
            "bytes": check.bytes,
            "seconds": check.seconds,
            "interruption_seconds": check.interruption_seconds,
        }),
    )
}
