//! Tokens of a Keystone: OpenStack's identity service tells who holds them.
//!
//! ```text
//!              fresh ------------------------------------> the caller
//! token -> cache: stale   -> Keystone: 200 -> cache -----> the caller
//!                 nothing              404 -> cache -----> 401
//!                                      away: stale ------> the caller, and Keystone rests for a moment
//!                                            nothing ----> 503
//!              refused ----------------------------------> 401
//! ```
//!
//! A token is asked about again every `check_seconds`, so that a revocation is noticed. While Keystone is away, tokens
//! that were good go on until their end. The way to Keystone has a few lanes; a token always takes the same one, so that
//! many requests with one token ask once, and many tokens never ask more at a time than there are lanes.

mod cache;
mod client;
mod secret;
mod settings;
mod token;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

use async_trait::async_trait;
use axum::http::HeaderMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use secret::{Password, Secret};
pub use settings::{Hidden, KeystoneSettings, PASSWORD_VARIABLE};

use super::{Authenticator, Identity, Refusal, TOKEN_HEADER, text};
use cache::{Cache, Key, Known, Now};
use client::Client;
use token::Valid;

/// How many requests to Keystone run at a time.
const LANES: usize = 16;

/// How long a Keystone that was away is not asked about tokens that go on without it.
const REST: Duration = Duration::from_secs(5);

/// The longest token that is asked about, in bytes. Keystone's own have a few hundred.
const LONGEST_TOKEN: usize = 8192;

/// What a caller is told while Keystone is away.
const AWAY: &str = "The identity service (Keystone) cannot be asked at the moment, so this token cannot be checked. \
                    Tokens that were used lately go on; try again later.";

/// Knows callers by tokens of a Keystone.
pub struct Keystone(Arc<Inner>);

struct Inner {
    client: Client,
    cache: Mutex<Cache>,
    lanes: [tokio::sync::Mutex<()>; LANES],
    /// How long to wait for a lane.
    patience: Duration,
    state: Mutex<State>,
    challenge: String,
}

/// How Keystone is.
#[derive(Default)]
struct State {
    /// Why it could not be asked the last time.
    trouble: Option<String>,
    /// When that was.
    since: Option<Instant>,
}

impl std::fmt::Debug for Keystone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keystone").field("challenge", &self.0.challenge).finish_non_exhaustive()
    }
}

impl Keystone {
    /// Prepares; Keystone need not be there yet.
    ///
    /// # Errors
    /// A sentence, when the settings make no sense or certificates cannot be read.
    pub fn new(settings: &KeystoneSettings, password: Password) -> Result<Self, String> {
        settings.check()?;
        if settings.is_in_the_clear() {
            tracing::warn!(
                url = settings.url,
                "Keystone is asked without TLS: passwords and tokens can be read on the way."
            );
        }
        let client = Client::new(settings, password)?;
        let uri = settings.public_url.as_ref().unwrap_or(&settings.url);
        Ok(Self(Arc::new(Inner {
            client,
            cache: Mutex::new(Cache::new(
                settings.cached_tokens,
                Duration::from_secs(settings.check_seconds),
            )),
            lanes: std::array::from_fn(|_| tokio::sync::Mutex::new(())),
            patience: Duration::from_secs(settings.timeout_seconds),
            state: Mutex::default(),
            challenge: format!("Keystone uri=\"{uri}\""),
        })))
    }

    /// Logs the service user in, so that a wrong password is in the log before the first caller comes.
    pub async fn prepare(&self) {
        let inner = self.0.clone();
        let outcome = tokio::task::spawn_blocking(move || inner.client.prepare()).await;
        if let Ok(outcome) = outcome {
            self.0.note(outcome.err());
        }
    }
}

impl Inner {
    /// The caller with a token that is not fresh in the cache.
    async fn ask(self: Arc<Self>, key: Key, token: String) -> Result<Identity, Refusal> {
        let lane = tokio::time::timeout(self.patience, self.lanes[key.lane(LANES)].lock()).await;
        let stale = match (lane.is_ok(), lock(&self.cache).look(&key, Now::read())) {
            (_, Known::Fresh(valid)) => return Ok(valid.identity.clone()),
            (_, Known::Refused) => return Err(Refusal::Unauthorized),
            // Others wait for an answer about other tokens; this one need not wait with them.
            (true, Known::Stale(valid)) if self.rests() => return Ok(valid.identity.clone()),
            (false, Known::Stale(valid)) => return Ok(valid.identity.clone()),
            (false, Known::Nothing) => return Err(unavailable()),
            (true, Known::Stale(valid)) => Some(valid),
            (true, Known::Nothing) => None,
        };
        let asked = Now::read();
        let inner = self.clone();
        let outcome = tokio::task::spawn_blocking(move || inner.client.check(&token)).await;
        let outcome =
            outcome.unwrap_or_else(|error| Err(format!("Asking Keystone broke off, a bug: {error}")));
        match outcome {
            Ok(Some(valid)) => {
                self.note(None);
                let valid: Arc<Valid> = Arc::new(valid);
                lock(&self.cache).accept(key, valid.clone(), asked);
                Ok(valid.identity.clone())
            }
            Ok(None) => {
                self.note(None);
                lock(&self.cache).refuse(key, asked);
                Err(Refusal::Unauthorized)
            }
            Err(why) => {
                self.note(Some(why));
                stale.map(|valid| valid.identity.clone()).ok_or_else(unavailable)
            }
        }
    }

    /// Whether Keystone was away a moment ago.
    fn rests(&self) -> bool {
        lock(&self.state).since.is_some_and(|since| since.elapsed() < REST)
    }

    /// Remembers how Keystone is, and says it when it changed.
    fn note(&self, trouble: Option<String>) {
        let mut state = lock(&self.state);
        state.since = trouble.is_some().then(Instant::now);
        match (&trouble, &state.trouble) {
            (Some(why), before) if before.as_ref() != Some(why) => {
                tracing::error!(
                    "{why}. New tokens are answered with 503; those that were used lately go on."
                );
            }
            (None, Some(_)) => tracing::info!("Keystone can be asked again."),
            _ => {}
        }
        state.trouble = trouble;
    }
}

#[async_trait]
impl Authenticator for Keystone {
    async fn authenticate(&self, headers: &HeaderMap) -> Result<Identity, Refusal> {
        let sent = |token: &&str| !token.is_empty() && token.len() <= LONGEST_TOKEN;
        let token = text(headers, TOKEN_HEADER).filter(sent).ok_or(Refusal::Unauthorized)?;
        let key = Key::of(token);
        match lock(&self.0.cache).look(&key, Now::read()) {
            Known::Fresh(valid) => return Ok(valid.identity.clone()),
            Known::Refused => return Err(Refusal::Unauthorized),
            Known::Stale(_) | Known::Nothing => {}
        }
        // On a task of its own: a client that hangs up must not free its lane while Keystone is still asked.
        match tokio::spawn(self.0.clone().ask(key, token.to_owned())).await {
            Ok(outcome) => outcome,
            Err(error) => {
                tracing::error!(%error, "Checking a token broke off; this is a bug.");
                Err(unavailable())
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        lock(&self.0.state).trouble.clone()
    }

    fn challenge(&self) -> String {
        self.0.challenge.clone()
    }
}

fn unavailable() -> Refusal {
    Refusal::Unavailable { why: AWAY.into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
