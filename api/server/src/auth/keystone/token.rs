//! What Keystone says of a token, read into who asks.

use serde::Deserialize;
use std::collections::BTreeMap;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::auth::{Identity, Scope};

/// A token that Keystone called good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Valid {
    /// Who holds it.
    pub(super) identity: Identity,
    /// Its end, in seconds since 1970.
    pub(super) expires: i64,
}

#[derive(Deserialize)]
struct Body {
    token: Token,
}

/// The parts of a v3 token that matter here; a token has one of project, system and domain, or none.
#[derive(Deserialize)]
struct Token {
    user: Named,
    project: Option<Named>,
    domain: Option<Domain>,
    system: Option<System>,
    #[serde(default)]
    roles: Vec<Role>,
    expires_at: String,
}

#[derive(Deserialize)]
struct Named {
    id: String,
    domain: Option<Domain>,
}

#[derive(Deserialize)]
struct Domain {
    id: String,
}

#[derive(Deserialize)]
struct System {
    #[serde(default)]
    all: bool,
}

#[derive(Deserialize)]
struct Role {
    name: String,
}

/// Reads the body of `GET /v3/auth/tokens`.
///
/// # Errors
/// What is wrong with it, without quoting it.
pub(super) fn parse(body: &[u8]) -> Result<Valid, String> {
    let Body { token } = serde_json::from_slice(body).map_err(|error| {
        // The error's own text may quote the body.
        format!("its answer is no token (line {}, column {})", error.line(), error.column())
    })?;
    let expires = expiry(&token.expires_at)?;
    let mut facts = BTreeMap::new();
    let mut note = |name: &str, domain: Option<Domain>| {
        if let Some(domain) = domain {
            facts.insert(name.to_owned(), domain.id);
        }
    };
    note("user_domain_id", token.user.domain);
    let mut project_id = String::new();
    let scope = if let Some(project) = token.project {
        note("project_domain_id", project.domain);
        project_id = named("project", project.id)?;
        Scope::Project
    } else if token.system.is_some_and(|system| system.all) {
        Scope::System
    } else if let Some(domain) = token.domain {
        note("domain_id", Some(domain));
        Scope::Domain
    } else {
        Scope::Nothing
    };
    let identity = Identity {
        user_id: named("user", token.user.id)?,
        project_id,
        roles: token.roles.into_iter().map(|role| role.name.to_lowercase()).collect(),
        is_admin: false,
        scope,
        facts,
    };
    Ok(Valid { identity, expires })
}

fn named(what: &str, id: String) -> Result<String, String> {
    if id.is_empty() { Err(format!("its answer is a token of a {what} without an id")) } else { Ok(id) }
}

/// A time as Keystone writes it (`2026-11-21T08:09:53.000000Z`), in seconds since 1970.
pub(super) fn expiry(text: &str) -> Result<i64, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map(OffsetDateTime::unix_timestamp)
        .map_err(|_| "its answer is a token without a readable end".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn read(token: Value) -> Result<Valid, String> {
        parse(json!({ "token": token }).to_string().as_bytes())
    }

    fn with(part: Value) -> Value {
        let mut token = json!({
            "methods": ["password"], "audit_ids": ["x"], "is_domain": false,
            "user": {"id": "u", "name": "Ada", "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "1", "name": "Member"}, {"id": "2", "name": "reader"}],
            "expires_at": "2026-11-21T08:09:53.000000Z",
        });
        token.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        token
    }

    #[test]
    fn a_token_of_a_project() {
        let project = json!({"project": {"id": "p", "name": "demo", "domain": {"id": "d", "name": "D"}}});
        let valid = read(with(project)).unwrap();
        assert_eq!(valid.expires, 1_795_248_593);
        let who = valid.identity;
        assert_eq!((who.user_id.as_str(), who.project_id.as_str(), who.scope), ("u", "p", Scope::Project));
        assert_eq!(who.roles, ["member", "reader"]);
        assert!(!who.is_admin);
        assert_eq!(who.facts["user_domain_id"], "default");
        assert_eq!(who.facts["project_domain_id"], "d");
    }

    #[test]
    fn the_other_scopes_have_no_project() {
        for (part, scope) in [
            (json!({"system": {"all": true}}), Scope::System),
            (json!({"system": {"all": false}}), Scope::Nothing),
            (json!({"domain": {"id": "d", "name": "D"}}), Scope::Domain),
            (json!({}), Scope::Nothing),
        ] {
            let who = read(with(part)).unwrap().identity;
            assert_eq!((who.scope, who.project_id.as_str()), (scope, ""));
        }
        let of_domain = read(with(json!({"domain": {"id": "d"}}))).unwrap().identity;
        assert_eq!(of_domain.facts["domain_id"], "d");
    }

    #[test]
    fn what_is_no_token_is_refused_and_not_quoted() {
        for part in [
            json!({"user": {"id": ""}}),
            json!({"user": {"id": 7}}),
            json!({"user": null}),
            json!({"project": {"id": ""}}),
            json!({"expires_at": null}),
            json!({"expires_at": "soon s3cret"}),
            json!({"roles": ["s3cret"]}),
        ] {
            let why = read(with(part.clone())).unwrap_err();
            assert!(why.starts_with("its answer is") && !why.contains("s3cret"), "{part}: {why}");
        }
        assert!(parse(b"").is_err() && parse(b"{}").is_err() && parse(b"<html>").is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
            Just(json!("2026-11-21T08:09:53.000000Z")),
        ];
        let key = prop_oneof![
            prop::sample::select(vec!["token", "user", "project", "domain", "system", "roles", "id", "name"]),
            Just("expires_at"),
        ];
        leaf.prop_recursive(5, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..8).prop_map(|members| {
                    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_is_a_token_or_an_error(body in any_json()) {
            if let Ok(valid) = parse(body.to_string().as_bytes()) {
                let who = valid.identity;
                prop_assert!(!who.user_id.is_empty());
                prop_assert_eq!(who.scope == Scope::Project, !who.project_id.is_empty());
            }
        }

        #[test]
        fn a_token_with_one_odd_part_is_a_token_or_an_error(
            name in prop::sample::select(vec!["user", "project", "domain", "system", "roles", "expires_at"]),
            value in any_json(),
        ) {
            let mut part = serde_json::Map::new();
            part.insert(name.into(), value);
            if let Ok(valid) = read(with(Value::Object(part))) {
                prop_assert_eq!(valid.identity.scope == Scope::Project, !valid.identity.project_id.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_a_token_or_an_error(body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&body);
        }
    }
}
