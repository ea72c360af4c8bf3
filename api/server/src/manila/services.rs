//! Services and availability zones: Manila's picture of the back ends.

use serde_json::{Value, json};
use tandem_manager::BackendState;
use tandem_manager::clock::Timestamp;

use super::view::{Field, render, time};
use crate::call::{Call, Reply, Result};
use crate::microversion::Window;
use crate::python;
use crate::routes::Routes;

pub(super) fn routes(routes: &mut Routes) {
    const OLD: Window = Window::between(0, 6);
    const NEW: Window = Window::since(7);
    routes.get("/services", NEW, services);
    routes.get("/os-services", OLD, services);
    routes.get("/availability-zones", NEW, zones);
    routes.get("/os-availability-zone", OLD, zones);
}

/// A service: the scheduler, or the one of a back end.
struct Service {
    id: usize,
    binary: &'static str,
    host: String,
    zone: String,
    up: bool,
    updated_at: Timestamp,
}

type F = Field<Service>;

const FIELDS: &[F] = &[
    F::new("id", |s, _| json!(s.id)),
    F::new("binary", |s, _| json!(s.binary)),
    F::new("host", |s, _| json!(s.host)),
    F::new("zone", |s, _| json!(s.zone)),
    F::new("status", |_, _| json!("enabled")),
    F::new("state", |s, _| json!(state(s))),
    F::new("updated_at", |s, _| time(s.updated_at)),
    F::new("disabled_reason", |_, _| Value::Null).since(83),
    F::new("ensuring", |_, _| json!(false)).since(86),
];

fn state(service: &Service) -> &'static str {
    if service.up { "up" } else { "down" }
}

fn all(call: &Call) -> Vec<Service> {
    let manager = &call.app.manager;
    let scheduler = Service {
        id: 1,
        binary: "manila-scheduler",
        host: manager.host().to_owned(),
        zone: manager.zones().into_iter().next().unwrap_or_default(),
        up: true,
        updated_at: manager.now(),
    };
    let shares = manager.backends().into_iter().enumerate().map(|(n, backend)| Service {
        id: n + 2,
        binary: "manila-share",
        host: format!("{}@{}", backend.host, backend.name),
        zone: backend.availability_zone,
        up: backend.state == BackendState::Up,
        updated_at: backend.pools_at.unwrap_or(backend.since),
    });
    std::iter::once(scheduler).chain(shares).collect()
}

async fn services(call: Call) -> Result {
    call.authorize("service:index")?;
    let q = &call.query;
    let fits = |name: &str, value: &str| q.filled(name).is_none_or(|wanted| wanted == value);
    // As in Manila, a filter that makes no sense matches nothing and is no error.
    let ensuring = q.get("ensuring").filter(|_| call.since(93)).map(python::strict_bool);
    let possible = fits("status", "enabled") && ensuring.is_none_or(|wanted| wanted == Some(false));
    let views: Vec<Value> = all(&call)
        .iter()
        .filter(|s| {
            possible
                && fits("binary", s.binary)
                && fits("host", &s.host)
                && fits("zone", &s.zone)
                && fits("state", state(s))
        })
        .map(|service| render(FIELDS, service, &call))
        .collect();
    Reply::ok(json!({"services": views}))
}

async fn zones(call: Call) -> Result {
    call.authorize("availability_zone:index")?;
    let backends = call.app.manager.backends();
    let views: Vec<Value> = call
        .app
        .manager
        .zones()
        .iter()
        .map(|zone| {
            let since = backends.iter().filter(|b| b.availability_zone == *zone).map(|b| b.since).min();
            json!({
                "id": zone_id(zone),
                "name": zone,
                "created_at": since.map(|at| at.iso()),
                "updated_at": null,
            })
        })
        .collect();
    Reply::ok(json!({"availability_zones": views}))
}

/// Zones are words of the settings; clients expect an id that stays, so it is made of the word.
fn zone_id(zone: &str) -> String {
    let hash = blake3::derive_key("tandem availability zone 2026", zone.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}
