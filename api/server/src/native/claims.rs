//! Claims: a side of a `writable` share that is cut off from the other one asks whether it goes on.
//!
//! It is no person who asks, but a kernel: each back end has a secret of its own instead of a token, which lets its host claim
//! for what lies there, and do nothing else.

use std::collections::BTreeMap;

use serde_json::json;
use tandem_contract::{Epoch, InstanceId};

use super::{Answer, Call, Refused, answer};
use axum::http::StatusCode;

/// Where a claim's secret stands.
pub(super) const SECRET_HEADER: &str = "x-tandem-secret";

/// The secrets of back ends whose hosts may claim: kept as hashes, which compare in constant time.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, blake3::Hash>);

impl Secrets {
    /// Lets who has this secret claim for what lies on the back end.
    pub fn add(&mut self, backend: &str, secret: &str) {
        self.0.insert(backend.to_owned(), blake3::hash(secret.as_bytes()));
    }

    fn admits(&self, backend: &str, given: &blake3::Hash) -> bool {
        self.0.get(backend).is_some_and(|known| known == given)
    }
}

/// `POST /v1/replicas/{id}/claim`
pub(super) async fn claim(call: Call) -> Answer {
    // Who has no secret is not told what is there, and costs nothing.
    let row = match (&call.secret, call.path("id").parse::<InstanceId>()) {
        (Some(_), Ok(id)) => call.manager().store().instance(id).await?,
        _ => None,
    };
    let row = row.filter(|row| {
        let secrets = &call.native.secrets;
        row.backend().zip(call.secret.as_ref()).is_some_and(|(name, given)| secrets.admits(name, given))
    });
    let Some(row) = row else {
        return Err(Refused::new(
            StatusCode::UNAUTHORIZED,
            "This call needs the secret of the replica's back end in X-Tandem-Secret.",
        ));
    };
    let epoch: u64 =
        call.params.parsed("epoch").ok_or_else(|| Refused::bad_request("epoch is no number."))?;
    let verdict = call.manager().claim(row.share_id, row.id, Epoch(epoch)).await?;
    answer("claim", json!(verdict))
}
