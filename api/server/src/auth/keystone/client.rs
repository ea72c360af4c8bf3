//! Asks Keystone, as a service user whose own token is renewed before it ends. Blocking: called on threads for that.

use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use super::secret::{Password, Secret};
use super::settings::KeystoneSettings;
use super::token::{self, Valid};

/// The largest answer that is taken, in bytes. A token without its catalogue has a few hundred.
const LARGEST: u64 = 1 << 20;

/// Where distributions keep the certificates of the authorities that they trust.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// A connection to one Keystone.
pub(super) struct Client {
    agent: ureq::Agent,
    /// `…/v3/auth/tokens?nocatalog`: the list of services is long, and nobody here needs it.
    tokens: String,
    /// Its address, for sentences.
    address: String,
    user: Value,
    scope: Value,
    username: String,
    password: Password,
    own: Mutex<Own>,
}

/// How long nobody tries to log in after that failed: Keystone may lock a user out who tries too often.
const PAUSE: Duration = Duration::from_secs(5);

/// What the service user has.
#[derive(Default)]
struct Own {
    token: Option<OwnToken>,
    /// Why the last login failed, and when.
    failed: Option<(String, Instant)>,
}

/// The service user's token. Times are seconds since 1970.
struct OwnToken {
    token: Secret,
    renew: i64,
    ends: i64,
}

type Answer = (StatusCode, Response<Vec<u8>>);

impl Client {
    /// Prepares; nothing is asked yet.
    ///
    /// # Errors
    /// A sentence, when certificates cannot be read.
    pub(super) fn new(settings: &KeystoneSettings, password: Password) -> Result<Self, String> {
        let base = settings.base();
        let builder = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A redirected request would carry the secrets elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(settings.timeout_seconds)))
            .user_agent(concat!("tandemd/", env!("CARGO_PKG_VERSION")));
        let builder = if base.starts_with("https:") { builder.tls_config(tls(settings)?) } else { builder };
        let domain = |name: &str| json!({"name": name});
        Ok(Self {
            agent: builder.build().into(),
            tokens: format!("{base}/auth/tokens?nocatalog"),
            address: base,
            user: json!({"name": settings.username, "domain": domain(&settings.user_domain)}),
            scope: json!({"project": {"name": settings.project, "domain": domain(&settings.project_domain)}}),
            username: settings.username.clone(),
            password,
            own: Mutex::default(),
        })
    }

    /// What Keystone says of a token; `None` when it is not good, or not any more.
    ///
    /// # Errors
    /// Why it cannot be asked: a sentence for the operator, without secrets.
    pub(super) fn check(&self, subject: &str) -> Result<Option<Valid>, String> {
        let (status, answer) = match self.ask(subject)? {
            // Our own token was revoked, or Keystone's keys changed; with a new one this is settled.
            (StatusCode::UNAUTHORIZED, _) => {
                self.forget();
                self.ask(subject)?
            }
            first => first,
        };
        let address = &self.address;
        match status {
            StatusCode::OK => {
                token::parse(answer.body()).map(Some).map_err(|why| format!("Keystone at {address}: {why}"))
            }
            // What stands before Keystone may say 404 too, when there is no Keystone behind it.
            StatusCode::NOT_FOUND if says(answer.body(), 404) => Ok(None),
            StatusCode::UNAUTHORIZED => {
                self.forget();
                Err(format!(
                    "Keystone at {address} gives a token to the user '{}' and refuses it",
                    self.username
                ))
            }
            StatusCode::FORBIDDEN => {
                // Perhaps it has the role by now.
                self.forget();
                Err(format!(
                    "Keystone at {address} does not let the user '{0}' validate tokens; type: openstack role add --user \
                     {0} --project {1} service",
                    self.username,
                    self.scope["project"]["name"].as_str().unwrap_or_default()
                ))
            }
            other => Err(format!("Keystone at {address} answers {other}")),
        }
    }

    /// Logs in, if that has not been done.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(super) fn prepare(&self) -> Result<(), String> {
        self.own().map(|_| ())
    }

    fn ask(&self, subject: &str) -> Result<Answer, String> {
        let own = self.own()?;
        let request = self.agent.get(&self.tokens).header("Accept", "application/json");
        self.answer(request.header("X-Auth-Token", own.expose()).header("X-Subject-Token", subject).call())
    }

    /// The service user's token. Only one login runs at a time; the others need what it brings.
    fn own(&self) -> Result<Secret, String> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let usable = own.token.as_ref().filter(|own| now < own.ends).map(|own| own.token.clone());
        if let Some(token) = own.token.as_ref().filter(|own| now < own.renew).and(usable.clone()) {
            return Ok(token);
        }
        let outcome = match &own.failed {
            Some((why, when)) if when.elapsed() < PAUSE => Err(why.clone()),
            _ => self.login().inspect_err(|why| {
                own.failed = Some((why.clone(), Instant::now()));
                if usable.is_some() {
                    tracing::warn!("{why}. The service user's token before it goes on until its end.");
                }
            }),
        };
        match (outcome, usable) {
            (Ok(new), _) => {
                let token = new.token.clone();
                *own = Own { token: Some(new), failed: None };
                Ok(token)
            }
            (Err(_), Some(token)) => Ok(token),
            (Err(why), None) => Err(why),
        }
    }

    fn forget(&self) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).token = None;
    }

    fn login(&self) -> Result<OwnToken, String> {
        let (address, name) = (&self.address, &self.username);
        let mut user = self.user.clone();
        user["password"] = self.password.read()?.expose().into();
        let identity = json!({"methods": ["password"], "password": {"user": user}});
        let body = json!({"auth": {"identity": identity, "scope": self.scope}}).to_string();
        let request = self.agent.post(&self.tokens).header("Accept", "application/json");
        let (status, answer) = self.answer(request.content_type("application/json").send(body))?;
        match status {
            StatusCode::CREATED => {}
            StatusCode::UNAUTHORIZED => {
                return Err(format!(
                    "Keystone at {address} refuses the user '{name}': the password is wrong, or the user, its domain or \
                     its project is another, or it has no role there"
                ));
            }
            other => return Err(format!("Keystone at {address} answers {other} to the login of '{name}'")),
        }
        let unusable = |why: String| format!("Keystone at {address}: {why}");
        let token = answer.headers().get("X-Subject-Token").and_then(|value| value.to_str().ok());
        let token = token.ok_or_else(|| unusable("its answer to a login has no token".into()))?;
        let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let ends = body.pointer("/token/expires_at").and_then(Value::as_str).unwrap_or_default();
        let ends = token::expiry(ends).map_err(unusable)?;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        tracing::debug!(user = name, "Keystone let the service user in.");
        Ok(OwnToken { token: Secret::new(token), renew: now + (ends - now) / 5 * 4, ends })
    }

    fn answer(&self, outcome: Result<Response<ureq::Body>, ureq::Error>) -> Result<Answer, String> {
        let away = |error: ureq::Error| format!("Keystone at {} does not answer: {error}", self.address);
        let (parts, mut body) = outcome.map_err(away)?.into_parts();
        let bytes = body.with_config().limit(LARGEST).read_to_vec().map_err(away)?;
        Ok((parts.status, Response::from_parts(parts, bytes)))
    }
}

/// Whether a body is Keystone's form of an error with this code.
fn says(body: &[u8], code: u64) -> bool {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body.pointer("/error/code").and_then(Value::as_u64) == Some(code)
}

fn tls(settings: &KeystoneSettings) -> Result<TlsConfig, String> {
    let file = match &settings.ca_file {
        Some(file) => file.clone(),
        None => BUNDLES.iter().map(Into::into).find(|bundle: &std::path::PathBuf| bundle.exists()).ok_or(
            "no certificates of authorities are installed (the package ca-certificates); install them, or name the \
             authority of Keystone's certificate in auth.keystone.ca_file",
        )?,
    };
    let shown = file.display();
    let pem =
        std::fs::read(&file).map_err(|error| format!("the certificates {shown} cannot be read: {error}"))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(format!("there is no certificate in {shown}"));
    }
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .build())
}
