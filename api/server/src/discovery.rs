//! Discovery: which versions are served, and where.

use serde_json::{Value, json};

use crate::app::Answer;
use crate::fault::json_response;
use crate::microversion::MAX_MINOR;

/// `GET /`: without a token, and with the status that says "choose one".
pub(crate) fn root(base: &str) -> Answer {
    json_response(300, &versions(base))
}

/// `GET /v2/`.
pub(crate) fn version(base: &str) -> Answer {
    json_response(200, &versions(base))
}

fn versions(base: &str) -> Value {
    json!({"versions": [{
        "id": "v2.0",
        "status": "CURRENT",
        "version": format!("2.{MAX_MINOR}"),
        "min_version": "2.0",
        "updated": "2015-08-27T11:33:21Z",
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"},
            {"rel": "self", "href": format!("{base}/v2/")},
        ],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.share+json;version=1"}],
    }]})
}
