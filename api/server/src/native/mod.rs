//! Tandem's own API under `/v1`: what Tandem knows beyond the OpenStack APIs.
//!
//! `openapi.json` is the one source: it is what `/v1/openapi.json` serves, what parameters are checked against, and
//! what the tests hold the routes and their answers to. Fields may join; none goes or changes its meaning.

mod backends;
mod claims;
mod document;
mod migration;
mod operations;
mod server;
mod shares;
mod view;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::{Path, RawQuery, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Json, Router};
use serde_json::{Value, json};
use tandem_manager::clock::Timestamp;
use tandem_manager::{Denied, Manager};

use crate::app::App;
use crate::auth::{Refusal, TOKEN_HEADER};
use crate::policy::credentials;
pub use claims::Secrets;
use document::Params;

/// A file of a folder of drivers, here or on another host; or a host that is away.
#[derive(Clone, Debug, PartialEq)]
pub struct DriverFile {
    /// The host; `None` for this one.
    pub host: Option<String>,
    /// The file's name; empty where the host is away.
    pub file: String,
    /// What it says of itself, or the sentence why it was refused or is away.
    pub driver: Result<tandem_contract::Manifest, String>,
}

/// What `/v1` serves from.
pub struct Native {
    /// The manager, who may ask, and what they may do.
    pub app: Arc<App>,
    /// What the folders of drivers hold: this server's when it started, those of other hosts when last reached.
    pub drivers: Arc<dyn Fn() -> Vec<DriverFile> + Send + Sync>,
    /// When the server started.
    pub started_at: Timestamp,
    /// Whose hosts may claim.
    pub secrets: Secrets,
}

/// What a caller must be allowed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Nothing: anybody may ask.
    Nothing,
    /// The secret of a back end; the call itself knows whose.
    Secret,
    /// The policy rule for looking.
    Read,
    /// The policy rule for steering.
    Operate,
}

/// A refusal, as `{"error": {"code", "message"}}`.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    message: String,
}

type Answer = Result<(StatusCode, Value), Refused>;

/// One call: what a handler gets.
struct Call {
    native: Arc<Native>,
    path: Vec<(String, String)>,
    params: Params,
    /// The hash of the secret that came along.
    secret: Option<blake3::Hash>,
}

/// One line of the table of calls.
struct Route {
    method: MethodFilter,
    verb: &'static str,
    path: &'static str,
    needs: Needs,
    run: fn(Call) -> std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>,
}

macro_rules! route {
    ($method:ident $path:literal $needs:ident $handler:path) => {
        Route {
            method: MethodFilter::$method,
            verb: stringify!($method),
            path: $path,
            needs: Needs::$needs,
            run: |call| Box::pin($handler(call)),
        }
    };
}

/// Every call there is; a test holds it against the document.
const ROUTES: &[Route] = &[
    route!(GET "/v1" Nothing server::root),
    route!(GET "/v1/openapi.json" Nothing server::openapi),
    route!(GET "/v1/health" Nothing server::health),
    route!(GET "/v1/ready" Nothing server::ready),
    route!(GET "/v1/status" Read server::status),
    route!(GET "/v1/doctor" Read server::doctor),
    route!(GET "/v1/operations" Read operations::list),
    route!(GET "/v1/operations/{id}" Read operations::show),
    route!(POST "/v1/operations/{id}/cancel" Operate operations::cancel),
    route!(GET "/v1/backends" Read backends::list),
    route!(GET "/v1/backends/{name}" Read backends::show),
    route!(GET "/v1/drivers" Read backends::drivers),
    route!(GET "/v1/shares" Read shares::list),
    route!(GET "/v1/shares/{id}" Read shares::show),
    route!(GET "/v1/shares/{id}/migration-check" Read migration::check),
    route!(GET "/v1/replicas" Read shares::replicas),
    route!(GET "/v1/replicas/{id}" Read shares::replica),
    route!(POST "/v1/replicas/{id}/verify" Operate shares::verify),
    route!(POST "/v1/replicas/{id}/claim" Secret claims::claim),
    route!(GET "/v1/access-rules" Read shares::rules),
];

/// Serves `/v1`.
pub fn router(native: Arc<Native>) -> Router {
    let nothing = || async {
        Refused::new(
            StatusCode::NOT_FOUND,
            "There is nothing at this path; /v1/openapi.json lists what there is.",
        )
    };
    let mut router = Router::new()
        .route("/v1/", axum::routing::any(nothing))
        .route("/v1/{*rest}", axum::routing::any(nothing));
    for route in ROUTES {
        let native = native.clone();
        let handler =
            move |path: Path<Vec<(String, String)>>, RawQuery(query): RawQuery, request: Request| {
                serve(native.clone(), route, path.0, query, request.into_parts().0.headers)
            };
        router = router.route(route.path, on(route.method, handler).fallback(wrong_method));
    }
    router
}

async fn wrong_method() -> Refused {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "This path does not know that method; see /v1/openapi.json.")
}

async fn serve(
    native: Arc<Native>,
    route: &'static Route,
    path: Vec<(String, String)>,
    query: Option<String>,
    headers: HeaderMap,
) -> Response {
    let admitted = async {
        native.admit(&headers, route.needs).await?;
        let params = Params::read(route.path, route.verb, query.as_deref()).map_err(Refused::bad_request)?;
        let secret = headers.get(claims::SECRET_HEADER).map(|given| blake3::hash(given.as_bytes()));
        Ok(Call { native: native.clone(), path, params, secret })
    };
    let outcome = match admitted.await {
        Err(refused) => Err(refused),
        // On a task of its own: a caller that hangs up must not cut a handler short.
        Ok(call) => tokio::spawn((route.run)(call)).await.unwrap_or_else(|error| {
            tracing::error!(%error, path = route.path, "A handler broke off; this is a bug.");
            Err(Refused::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "The call broke off; the server's log says where.",
            ))
        }),
    };
    match outcome {
        Ok((status, body)) => (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response(),
        Err(refused) => refused.into_response(),
    }
}

impl Native {
    /// Whether the caller may. Where nobody needs a token, no token is fine.
    async fn admit(&self, headers: &HeaderMap, needs: Needs) -> Result<(), Refused> {
        let rule = match needs {
            Needs::Nothing | Needs::Secret => return Ok(()),
            Needs::Read => "tandem:read",
            Needs::Operate => "tandem:operate",
        };
        let identified = match self.app.identify(headers).await {
            Err(Refusal::Introduce { token }) => {
                let mut introduced = headers.clone();
                if let Ok(token) = token.parse() {
                    introduced.insert(TOKEN_HEADER, token);
                }
                self.app.identify(&introduced).await
            }
            other => other,
        };
        let (who, rules) = identified.map_err(|refusal| match refusal {
            Refusal::Unavailable { why } => Refused::new(StatusCode::SERVICE_UNAVAILABLE, why),
            Refusal::Unauthorized | Refusal::Introduce { .. } => Refused::new(
                StatusCode::UNAUTHORIZED,
                format!("This call needs a valid token in {TOKEN_HEADER}."),
            ),
        })?;
        let (credentials, own) = credentials(&who);
        if rules.allow(rule, &credentials, &own) {
            return Ok(());
        }
        Err(Refused::new(StatusCode::FORBIDDEN, format!("The policy rule {rule} does not let you do this.")))
    }
}

impl Call {
    fn manager(&self) -> &Manager {
        &self.native.app.manager
    }

    /// A part of the path, decoded.
    fn path(&self, name: &str) -> &str {
        self.path.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.as_str())
    }

    /// The id in the path; what is no id names nothing.
    fn id<T: std::str::FromStr>(&self) -> Result<T, Refused> {
        let text = self.path("id");
        text.parse().map_err(|_| Refused::not_found(format!("There is no {text:?}: it is not an id.")))
    }
}

impl Refused {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        let status = match &denied {
            Denied::NoShare(_)
            | Denied::NoInstance(_)
            | Denied::NoRule(_)
            | Denied::NoType(_)
            | Denied::NoOperation(_) => StatusCode::NOT_FOUND,
            Denied::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            Denied::Invalid(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::CONFLICT,
        };
        let mut message = denied.to_string();
        if let Some(first) = message.get(..1) {
            message.replace_range(..1, &first.to_uppercase());
        }
        Self::new(status, message + ".")
    }
}

impl From<tandem_manager::store::StoreError> for Refused {
    fn from(error: tandem_manager::store::StoreError) -> Self {
        Denied::from(error).into()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let body = json!({"error": {"code": self.status.as_u16(), "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}

/// An answer of status 200 with one thing under its name.
fn answer(name: &str, value: impl Into<Value>) -> Answer {
    Ok((StatusCode::OK, json!({ name: value.into() })))
}
