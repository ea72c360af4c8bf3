//! Who asks. Each way of telling is an [`Authenticator`]: [`NoAuth`], [`Tokens`], [`Keystone`].

mod keystone;
mod noauth;
mod tokens;

use async_trait::async_trait;
use axum::http::HeaderMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;

pub use keystone::{Hidden, Keystone, KeystoneSettings, PASSWORD_VARIABLE, Password, Secret};
pub use noauth::NoAuth;
pub use tokens::{Tokens, TokensError};

/// The header that carries a token.
pub const TOKEN_HEADER: &str = "X-Auth-Token";

/// A caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user_id: String,
    /// The project that the user works in; empty unless `scope` is a project.
    pub project_id: String,
    /// The roles that the user has there, in lower case.
    pub roles: Vec<String>,
    /// Whether the rule `context_is_admin` holds (or the authenticator says so); set once per request.
    pub is_admin: bool,
    /// What the caller's roles are for.
    pub scope: Scope,
    /// What else policy rules may ask for: `user_domain_id`, `project_domain_id`, `domain_id`.
    pub facts: BTreeMap<String, String>,
}

/// What a caller's roles are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One project.
    Project,
    /// The whole system: administration beside the projects.
    System,
    /// One domain.
    Domain,
    /// Nothing: the caller has a name and no roles.
    Nothing,
}

/// Why a request has no caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No token, or none that is known.
    Unauthorized,
    /// No token where none is needed: Manila's `noauth` answers with the token to use, `user:project`.
    Introduce {
        /// The token to use.
        token: String,
    },
    /// Whoever knows callers cannot be asked now.
    Unavailable {
        /// A sentence for the caller.
        why: String,
    },
}

/// Tells who asks.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// The caller of a request with these headers.
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, Refusal>;

    /// Why this way of telling may not be served on an address; `None` when it may.
    fn unfit_for(&self, address: SocketAddr) -> Option<String> {
        let _ = address;
        None
    }

    /// What is wrong now (an unreadable file, say) while the last good state is used.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Where a caller gets a token, for the `WWW-Authenticate` header of a 401.
    fn challenge(&self) -> String {
        "Tandem".into()
    }
}

/// A header's value, if it is text.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}
