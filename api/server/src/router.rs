//! The way of a request, in Manila's order: request id, size limit, authentication, route, microversion, body,
//! project of the path, version window, handler.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use std::sync::{Arc, OnceLock};

use crate::app::{Answer, App};
use crate::auth::Refusal;
use crate::call::{Call, Handler, Result};
use crate::discovery;
use crate::fault::{Fault, bytes_response, default_message, json_response, plain};
use crate::manila;
use crate::microversion::{EXPERIMENTAL_HEADER, Microversion, Refused, VERSION_HEADER, negotiate};
use crate::page::Query;
use crate::policy::credentials;
use crate::routes::{Found, Params, Routes, Target, pick};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");
const COMPUTE_REQUEST_ID: HeaderName = HeaderName::from_static("x-compute-request-id");

/// Serves `/`, `/healthcheck` and `/v2`; everything else is not found. Tandem's own `/v1` is
/// [`native::router`](crate::native::router), merged into it by the program.
pub fn router(app: Arc<App>) -> Router {
    let server = Arc::new(Server { app, routes: manila::routes() });
    Router::new().fallback(serve).with_state(server)
}

struct Server {
    app: Arc<App>,
    routes: Routes,
}

async fn serve(State(server): State<Arc<Server>>, request: Request) -> Answer {
    if request.uri().path() == "/healthcheck" {
        return json_response(200, &serde_json::json!({"detailed": false, "reasons": ["OK"]}));
    }
    let id = format!("req-{}", uuid::Uuid::new_v4());
    let path = request.uri().path();
    let below_v2 =
        path.strip_prefix("/v2").filter(|rest| rest.is_empty() || rest.starts_with('/')).map(str::to_owned);
    let mut response = match below_v2 {
        Some(rest) => server.v2(&id, &rest, request).await,
        None if path == "/" => discovery::root(&server.app.base(request.headers())),
        None => plain(404, default_message(404)),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

impl Server {
    async fn v2(&self, request_id: &str, rest: &str, request: Request) -> Answer {
        let (parts, body) = request.into_parts();
        let max_body = self.app.settings.max_body;
        let announced =
            parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > max_body as u64) {
            return plain(413, default_message(413));
        }
        let (who, rules) = match self.app.identify(&parts.headers).await {
            Ok(known) => known,
            Err(refusal) => return self.unknown(&refusal, &parts),
        };
        let base = self.app.base(&parts.headers);
        if rest.is_empty() {
            return redirect(&format!("{base}/v2/"));
        }
        let Some(segments) = segments(rest) else {
            return Fault::bad_request("Malformed request url").response();
        };
        let discovery = segments.is_empty();
        let found = self.routes.find(&parts.method, &segments, &who.project_id);
        if found.is_none() && !discovery {
            return plain(404, default_message(404));
        }
        let version = match negotiate(&parts.headers) {
            Ok(version) => version,
            Err(refused) => return refuse(request_id, &refused),
        };
        let Some(found) = found else {
            return finish(request_id, &version, discovery::version(&base));
        };
        let bytes = match read(body, max_body).await {
            Ok(bytes) => bytes,
            Err(response) => return response,
        };
        // Manila looks at a body only when it is called JSON.
        let bytes = if is_json(&parts.headers) { bytes } else { Vec::new() };
        let project_in_path = found.project.is_some();
        let outcome = match self.choose(&parts.method, found, &bytes, &version, &who.project_id) {
            Err(fault) => Err(fault),
            Ok((run, params, body)) => {
                let (credentials, own) = credentials(&who);
                let call = Call {
                    app: self.app.clone(),
                    who,
                    version: version.clone(),
                    query: Query::parse(parts.uri.query()),
                    request_id: request_id.to_owned(),
                    credentials,
                    own,
                    rules,
                    params,
                    body,
                    base,
                    project_in_path,
                    host_admin: OnceLock::new(),
                };
                detached(run, call).await
            }
        };
        let response = outcome.map_or_else(|fault| fault.response(), |reply| reply.response());
        finish(request_id, &version, response)
    }

    /// From a route and a body to the handler, its parameters and its body.
    fn choose(
        &self,
        method: &Method,
        found: Found<'_>,
        bytes: &[u8],
        version: &Microversion,
        own: &str,
    ) -> Result<(Handler, Params, Option<Value>)> {
        let action = match found.target {
            Target::Absent => return Err(Fault::not_found()),
            Target::Call(_) => None,
            Target::Actions(actions) => {
                let name = peek(bytes)?;
                let known = actions.iter().filter(|a| a.name == name).collect::<Vec<_>>();
                if known.is_empty() {
                    return Err(Fault::bad_request(format!("There is no such action: {name}")));
                }
                Some(known)
            }
        };
        let body: Option<Value> = match bytes {
            [] => None,
            bytes => Some(serde_json::from_slice(bytes).map_err(|_| Fault::malformed_body())?),
        };
        if found.project.as_deref().is_some_and(|project| project != own) {
            return Err(Fault::bad_request("Malformed request url"));
        }
        let run = match (found.target, action) {
            (_, Some(actions)) => actions.into_iter().find(|a| a.window.admits(version)).map(|a| &a.handler),
            (Target::Call(calls), None) => pick(calls, version),
            _ => None,
        };
        let run = run.ok_or_else(Fault::not_found)?;
        if body.is_some() && matches!(*method, Method::GET | Method::DELETE) {
            return Err(Fault::malformed());
        }
        Ok((run.clone(), found.params, body))
    }

    fn unknown(&self, refusal: &Refusal, parts: &axum::http::request::Parts) -> Answer {
        match refusal {
            Refusal::Unauthorized => {
                let body = serde_json::json!({"error": {
                    "code": 401,
                    "title": "Unauthorized",
                    "message": "The request you have made requires authentication.",
                }});
                let mut response = json_response(401, &body);
                if let Ok(challenge) = HeaderValue::from_str(&self.app.auth.challenge()) {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                }
                response
            }
            Refusal::Unavailable { why } => Fault::new(503, why).response(),
            Refusal::Introduce { token } => {
                let url = format!("{}{}", self.app.base(&parts.headers), parts.uri);
                let mut response = bytes_response(204, "text/plain; charset=UTF-8", Vec::new());
                let named = [
                    ("x-auth-token", token.as_str()),
                    ("x-server-management-url", url.trim_end_matches('/')),
                ];
                for (name, value) in named {
                    if let Ok(value) = HeaderValue::from_str(value) {
                        response.headers_mut().insert(HeaderName::from_static(name), value);
                    }
                }
                response
            }
        }
    }
}

/// Runs a handler on a task of its own: a client that hangs up must not cut a handler short between the
/// commit of a request and what follows from it.
async fn detached(run: Handler, call: Call) -> Result {
    match tokio::spawn(run(call)).await {
        Ok(outcome) => outcome,
        Err(error) => {
            tracing::error!(%error, "A handler broke off; this is a bug.");
            Err(Fault::bare(500))
        }
    }
}

/// The parts of a path, decoded. One slash at the end does not count. `None` when it is not UTF-8.
fn segments(rest: &str) -> Option<Vec<String>> {
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let decode = |s: &str| percent_encoding::percent_decode_str(s).decode_utf8().ok().map(|s| s.into_owned());
    rest.split('/').map(decode).collect()
}

fn is_json(headers: &axum::http::HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

async fn read(body: Body, max: usize) -> std::result::Result<Vec<u8>, Answer> {
    match Limited::new(body, max).collect().await {
        Ok(body) => Ok(body.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(plain(413, default_message(413))),
        // The client broke off; nobody reads the answer.
        Err(_) => Err(Fault::malformed_body().response()),
    }
}

/// The name of the action that a body asks for: its only key.
fn peek(bytes: &[u8]) -> Result<String> {
    if bytes.is_empty() {
        return Err(Fault::bad_request("There is no such action: None"));
    }
    let body: Value = serde_json::from_slice(bytes).map_err(|_| Fault::malformed_body())?;
    match body {
        Value::Object(map) if map.len() == 1 => {
            map.into_iter().next().map(|(k, _)| k).ok_or_else(Fault::not_found)
        }
        Value::Object(_) => Err(Fault::malformed_body()),
        Value::Array(items) if items.len() != 1 => Err(Fault::malformed_body()),
        Value::String(text) if text.chars().count() != 1 => Err(Fault::malformed_body()),
        // Python finds no keys in these and Manila takes that for an unknown method.
        _ => Err(Fault::not_found()),
    }
}

fn refuse(request_id: &str, refused: &Refused) -> Answer {
    let response = refused.fault().response();
    match refused {
        Refused::Malformed(_) => with_ids(request_id, response),
        Refused::OutOfRange { asked, experimental } => {
            versioned(with_ids(request_id, response), asked, *experimental)
        }
    }
}

fn finish(request_id: &str, version: &Microversion, response: Answer) -> Answer {
    versioned(with_ids(request_id, response), &version.to_string(), version.experimental)
}

fn with_ids(request_id: &str, mut response: Answer) -> Answer {
    if let Ok(value) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(COMPUTE_REQUEST_ID, value);
    }
    response
}

fn versioned(mut response: Answer, version: &str, experimental: bool) -> Answer {
    let headers = response.headers_mut();
    let version_header = HeaderName::from_bytes(VERSION_HEADER.as_bytes());
    if let (Ok(name), Ok(value)) = (version_header, HeaderValue::from_str(version)) {
        headers.insert(name, value);
    }
    if let Some(name) = HeaderName::from_bytes(EXPERIMENTAL_HEADER.as_bytes()).ok().filter(|_| experimental) {
        headers.insert(name, HeaderValue::from_static("True"));
    }
    headers.insert(header::VARY, HeaderValue::from_static(VERSION_HEADER));
    response
}

fn redirect(location: &str) -> Answer {
    let mut response = bytes_response(302, "text/html; charset=utf8", Vec::new());
    if let Ok(value) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}
