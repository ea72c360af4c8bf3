//! What a server serves from: the manager, who may ask, and a few settings.

use axum::http::{HeaderMap, Response};
use std::sync::Arc;
use tandem_manager::Manager;

use crate::auth::{Authenticator, Identity, Refusal};
use crate::policy::{Policy, Rules, credentials};

/// Everything that handlers need. One per server.
pub struct App {
    /// The manager.
    pub manager: Arc<Manager>,
    /// Who asks.
    pub auth: Arc<dyn Authenticator>,
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// Settings of the API.
    pub settings: Settings,
}

/// Settings of the API.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address that links in answers start with (`https://storage.example`); that of the request when absent.
    pub public_url: Option<String>,
    /// Name of the share type that a share gets when none is asked for.
    pub default_share_type: Option<String>,
    /// Share protocols that may be asked for, in upper case.
    pub protocols: Vec<String>,
    /// The largest body taken, in bytes.
    pub max_body: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            public_url: None,
            default_share_type: Some("default".into()),
            protocols: vec!["NFS".into(), "CIFS".into()],
            max_body: 114_688,
        }
    }
}

impl App {
    /// The caller of a request, with the rules that hold for this request. Whether the caller is an
    /// administrator is decided here, by the rule `context_is_admin`.
    pub async fn identify(&self, headers: &HeaderMap) -> Result<(Identity, Arc<Rules>), Refusal> {
        let mut who = self.auth.authenticate(headers).await?;
        let rules = self.policy.current();
        if !who.is_admin {
            let (caller, own) = credentials(&who);
            who.is_admin = rules.allow("context_is_admin", &caller, &own);
        }
        Ok((who, rules))
    }

    /// The address that links start with, without a slash at its end.
    pub(crate) fn base(&self, headers: &HeaderMap) -> String {
        if let Some(url) = &self.settings.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let host = headers.get("host").and_then(|h| h.to_str().ok()).unwrap_or_default();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        if host.is_empty() || !host.bytes().all(plain) {
            "http://localhost".into()
        } else {
            format!("http://{host}")
        }
    }
}

/// The body of an answer.
pub(crate) type Answer = Response<axum::body::Body>;
