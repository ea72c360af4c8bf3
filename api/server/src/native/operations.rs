//! `/v1/operations`: the durable records of accepted requests.

use axum::http::StatusCode;
use serde_json::{Value, json};
use tandem_manager::model::{OpStatus, Operation};
use tandem_manager::oplog::{Logged, OpState};
use tandem_manager::store::OperationQuery;

use super::{Answer, Call, Refused, answer, view};

/// `GET /v1/operations`
pub(super) async fn list(call: Call) -> Answer {
    let params = &call.params;
    let query = OperationQuery {
        share_id: params.parsed("share_id"),
        instance: params.parsed("instance_id"),
        kind: params.get("kind").map(str::to_owned),
        status: params.get("status").and_then(status),
        unfinished: params.get("unfinished") == Some("true"),
        offset: params.parsed("offset").unwrap_or(0),
        limit: params.parsed("limit"),
        ..OperationQuery::default()
    };
    let mut operations = Vec::new();
    for operation in call.manager().store().operations(&query).await? {
        operations.push(in_list(&call, &operation).await?);
    }
    answer("operations", operations)
}

/// `GET /v1/operations/{id}`
pub(super) async fn show(call: Call) -> Answer {
    let id: tandem_contract::OpId = call.id()?;
    let operation = call.manager().store().operation(id).await?;
    let operation = operation.ok_or_else(|| Refused::not_found(format!("There is no operation {id}.")))?;
    let log = call.manager().store().log(id).await?;
    let state = fold(&log)?;
    let progress = call.manager().progress(id);
    let mut shown = view::operation(&operation, Some(&state), progress.as_ref());
    shown["steps"] = view::steps(&state, &log).into();
    shown["events"] = log.iter().map(view::event).collect::<Vec<Value>>().into();
    answer("operation", shown)
}

/// `POST /v1/operations/{id}/cancel`
pub(super) async fn cancel(call: Call) -> Answer {
    let operation = call.manager().cancel(call.id()?).await?;
    Ok((StatusCode::ACCEPTED, json!({"operation": in_list(&call, &operation).await?})))
}

/// The step it is at is read from the log of those that run, which are few.
pub(super) async fn in_list(call: &Call, operation: &Operation) -> Result<Value, Refused> {
    if operation.status.is_finished() {
        return Ok(view::operation(operation, None, None));
    }
    let state = fold(&call.manager().store().log(operation.id).await?)?;
    Ok(view::operation(operation, Some(&state), call.manager().progress(operation.id).as_ref()))
}

fn fold(log: &[Logged]) -> Result<OpState, Refused> {
    OpState::fold(log).map_err(|illegal| {
        Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("The log of this operation makes no sense: {illegal}."),
        )
    })
}

fn status(word: &str) -> Option<OpStatus> {
    serde_json::from_value(word.into()).ok()
}
