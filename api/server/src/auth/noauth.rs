//! No authentication, in Manila's convention: the token is `user:project`, and everyone is an administrator.
//!
//! A client started with `--os-auth-type none` sends some token of its own, without a colon; then user and
//! project are both that word.

use async_trait::async_trait;
use axum::http::HeaderMap;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Authenticator, Identity, Refusal, Scope, TOKEN_HEADER, text};

/// Believes every caller. Fit for loopback only, unless the operator insists.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoAuth {
    /// Serve it on other addresses all the same.
    pub anywhere: bool,
}

#[async_trait]
impl Authenticator for NoAuth {
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        if !headers.contains_key(TOKEN_HEADER) {
            let user = text(headers, "X-Auth-User").unwrap_or("admin");
            let project = text(headers, "X-Auth-Project-Id").unwrap_or("admin");
            return Err(Refusal::Introduce { token: format!("{user}:{project}") });
        }
        let token = text(headers, TOKEN_HEADER).ok_or(Refusal::Unauthorized)?;
        let (user, project) = token.split_once(':').unwrap_or((token, ""));
        let project = if project.is_empty() { user } else { project };
        Ok(Identity {
            user_id: user.to_owned(),
            project_id: project.to_owned(),
            roles: vec!["admin".into()],
            is_admin: true,
            scope: Scope::Project,
            facts: BTreeMap::new(),
        })
    }

    fn unfit_for(&self, address: SocketAddr) -> Option<String> {
        let reachable = !self.anywhere && !address.ip().is_loopback();
        reachable.then(|| {
            format!(
                "authentication is off (noauth) and {address} can be reached from other machines, where everyone \
                 would be an administrator: listen on 127.0.0.1, or use a tokens file, or force it"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn with(token: &str) -> Identity {
        let mut headers = HeaderMap::new();
        headers.insert(TOKEN_HEADER, token.parse().unwrap());
        NoAuth::default().authenticate(&headers).await.unwrap()
    }

    #[tokio::test]
    async fn the_token_names_user_and_project() {
        let named = with("alice:demo").await;
        assert_eq!(
            (named.user_id.as_str(), named.project_id.as_str(), named.is_admin),
            ("alice", "demo", true)
        );
        let client = with("notused").await;
        assert_eq!((client.user_id.as_str(), client.project_id.as_str()), ("notused", "notused"));
    }

    #[tokio::test]
    async fn without_a_token_one_is_offered() {
        let refusal = NoAuth::default().authenticate(&HeaderMap::new()).await.unwrap_err();
        assert_eq!(refusal, Refusal::Introduce { token: "admin:admin".into() });
    }

    #[test]
    fn other_machines_must_be_wanted() {
        let open: SocketAddr = "0.0.0.0:8786".parse().unwrap();
        let local: SocketAddr = "[::1]:8786".parse().unwrap();
        assert!(NoAuth::default().unfit_for(open).is_some());
        assert!(NoAuth { anywhere: true }.unfit_for(open).is_none());
        assert!(NoAuth::default().unfit_for(local).is_none());
    }
}
