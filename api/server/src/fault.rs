//! Errors on the wire: Manila's fault bodies.
//!
//! Two forms exist. A call that was found answers with a named fault
//! (`{"itemNotFound": {"code": 404, "message": …}}`); what stands before the calls (unknown paths, bodies too
//! large) answers in the plain form of the web framework that Manila is built on.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::python;

/// A refusal that the caller sees: status and sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) status: u16,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The status with the sentence that the web framework has for it.
    pub(crate) fn bare(status: u16) -> Self {
        Self::new(status, default_message(status))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, message)
    }

    /// A body (or its absence) that does not fit the call.
    pub(crate) fn malformed() -> Self {
        Self::bare(400)
    }

    /// A body that is no JSON, or not the JSON that is asked for.
    pub(crate) fn malformed_body() -> Self {
        Self::bad_request("Malformed request body")
    }

    pub(crate) fn forbidden() -> Self {
        Self::bare(403)
    }

    pub(crate) fn not_found() -> Self {
        Self::bare(404)
    }

    /// The response, without the headers that every answer of a call carries.
    pub(crate) fn response(&self) -> Response<Body> {
        let mut fault = json!({"code": self.status, "message": self.message});
        let over_limit = self.status == 413;
        if over_limit {
            fault["retryAfter"] = json!("0");
        }
        let mut response = json_response(self.status, &json!({ name(self.status): fault }));
        if over_limit {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("0"));
        }
        response
    }
}

/// The plain form.
pub(crate) fn plain(status: u16, message: &str) -> Response<Body> {
    let title = match status {
        // The framework's name for it is the older one.
        413 => "Request Entity Too Large",
        _ => StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Error"),
    };
    // The tags are what the framework's text filter leaves of its HTML page; clients compare it.
    json_response(
        status,
        &json!({
            "message": format!("{message}<br /><br />\n\n\n"),
            "code": format!("{status} {title}"),
            "title": title,
        }),
    )
}

/// An answer with a JSON body.
pub(crate) fn json_response(status: u16, body: &Value) -> Response<Body> {
    bytes_response(status, "application/json", python::dumps(body))
}

/// An answer with any body.
pub(crate) fn bytes_response(
    status: u16,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn name(status: u16) -> &'static str {
    match status {
        400 => "badRequest",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "itemNotFound",
        405 => "badMethod",
        409 => "conflictingRequest",
        413 => "overLimit",
        415 => "badMediaType",
        501 => "notImplemented",
        503 => "serviceUnavailable",
        _ => "computeFault",
    }
}

/// The sentence of a status without one of its own.
pub(crate) fn default_message(status: u16) -> &'static str {
    match status {
        400 => {
            "The server could not comply with the request since it is either malformed or otherwise incorrect."
        }
        403 => "Access was denied to this resource.",
        404 => "The resource could not be found.",
        409 => "There was a conflict when trying to complete your request.",
        413 => "Request is too large.",
        422 => "Unable to process the contained instructions",
        503 => "The server is currently unavailable. Please try again at a later time.",
        _ => "The server has either erred or is incapable of performing the requested operation.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn body(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn bodies_are_the_recorded_ones_to_the_byte() {
        let not_found = body(Fault::not_found().response()).await;
        assert_eq!(not_found.len(), 78, "{not_found}");
        let malformed = body(Fault::malformed_body().response()).await;
        assert_eq!(malformed.len(), 66, "{malformed}");
        let bare = body(Fault::malformed().response()).await;
        assert_eq!(bare.len(), 141, "{bare}");
        let unknown = body(plain(404, default_message(404))).await;
        assert_eq!(unknown.len(), 112, "{unknown}");
    }

    #[tokio::test]
    async fn quota_refusals_say_when_to_come_back() {
        let response = Fault::new(413, "ShareLimitExceeded: x").response();
        assert_eq!(response.headers()["retry-after"], "0");
        assert!(body(response).await.contains("\"overLimit\": {\"code\": 413"));
    }
}
