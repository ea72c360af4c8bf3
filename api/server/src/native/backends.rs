//! `/v1/backends` and `/v1/drivers`: what is configured, and what it is configured from.

use serde_json::Value;

use super::{Answer, Call, Refused, answer, view};

/// `GET /v1/backends`
pub(super) async fn list(call: Call) -> Answer {
    answer("backends", call.manager().backends().iter().map(view::backend).collect::<Vec<Value>>())
}

/// `GET /v1/backends/{name}`
pub(super) async fn show(call: Call) -> Answer {
    let name = call.path("name");
    let backends = call.manager().backends();
    let backend = backends.iter().find(|backend| backend.name == name);
    let backend = backend.ok_or_else(|| Refused::not_found(format!("There is no back end {name:?}.")))?;
    answer("backend", view::backend(backend))
}

/// `GET /v1/drivers`
pub(super) async fn drivers(call: Call) -> Answer {
    let backends = call.manager().backends();
    let drivers = (call.native.drivers)();
    answer("drivers", drivers.iter().map(|d| view::driver(d, &backends)).collect::<Vec<Value>>())
}
