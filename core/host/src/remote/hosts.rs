//! The hosts that are registered with a server: where they are, and how they are.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tandem_contract::{Error, Result};
use tokio::time::Instant;

use super::dial::Dialer;
use super::far::Terms;
use super::message::FarDriver;
use super::tls::{Identity, TlsFiles};
use super::{Opened, open_on};
use crate::{Backend, Options};

/// First pause between two attempts to connect; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One registered driver host. Cheap to clone.
#[derive(Clone)]
pub struct DriverHost(Arc<Inside>);

struct Inside {
    /// The server's own name.
    from: String,
    name: String,
    address: String,
    tls: TlsFiles,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    drivers: Vec<FarDriver>,
    /// Failed attempts in a row, the last failure, and when the next attempt is due.
    failed: u32,
    away: Option<Error>,
    next: Option<Instant>,
}

/// How a host is, as far as the last attempt to reach it tells.
#[derive(Clone, Debug, Default)]
pub struct HostReport {
    /// What its folder of drivers held, when it was last reached.
    pub drivers: Vec<FarDriver>,
    /// Why it is away, one sentence; `None` when the last attempt succeeded or none was made.
    pub away: Option<String>,
}

impl DriverHost {
    /// A host that is registered as `name` at `address`, with a server that is called `from` and proves it by `tls`.
    pub fn new(from: &str, name: &str, address: &str, tls: TlsFiles) -> Self {
        let (from, name, address) = (from.to_owned(), name.to_owned(), address.to_owned());
        Self(Arc::new(Inside { from, name, address, tls, state: Mutex::default() }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is.
    pub fn report(&self) -> HostReport {
        let state = self.state();
        HostReport {
            drivers: state.drivers.clone(),
            away: state.away.as_ref().map(|error| error.message.clone()),
        }
    }

    /// The files that say who the server is, and their CA.
    pub fn tls(&self) -> [&PathBuf; 3] {
        [&self.0.tls.certificate, &self.0.tls.key, &self.0.tls.ca]
    }

    /// Connects and opens a back end there.
    ///
    /// # Errors
    /// As [`Library::open`](crate::Library::open); and `Unavailable` when the host is away. After a failure the next
    /// attempts fail at once for a while, which grows.
    pub async fn open(
        &self,
        backend: &str,
        driver: &str,
        settings: &Value,
        options: Options,
    ) -> Result<Backend> {
        let opened = self.connect().await?;
        open_on(opened, backend, driver, settings, options).await
    }

    /// Connects; nothing is opened yet.
    pub(crate) async fn connect(&self) -> Result<Opened> {
        {
            let state = self.state();
            if let (Some(away), Some(next)) = (&state.away, state.next)
                && Instant::now() < next
            {
                return Err(away.clone());
            }
        }
        let connected = self.try_connect().await;
        let mut state = self.state();
        match &connected {
            Ok(opened) => {
                state.drivers.clone_from(&opened.welcomed.welcome.drivers);
                state.failed = 0;
                state.away = None;
                state.next = None;
            }
            Err(error) => {
                state.next = Some(Instant::now() + pause(state.failed, &self.0.name));
                state.failed = state.failed.saturating_add(1);
                state.away = Some(error.clone());
            }
        }
        connected
    }

    async fn try_connect(&self) -> Result<Opened> {
        let inside = &self.0;
        // Read anew for each connection, so that renewed certificates need no restart.
        let identity = Identity::load(&inside.from, &inside.tls);
        let dialer =
            identity.and_then(|identity| Dialer::new(identity, &inside.from, &inside.name, &inside.address));
        let dialer = dialer.map_err(|e| {
            Error::unavailable(format!("host `{}` cannot be reached from here: {e}", inside.name))
        })?;
        let welcomed = dialer.dial().await?;
        let terms = Terms { place: dialer.place(), dialer: Some(dialer), epitaph: None };
        Ok(Opened { welcomed, terms, kill: None, guard: None })
    }
}

/// The pause after `failed + 1` failures: doubling, and spread by a quarter, so that many back ends of a host that
/// comes back do not knock at once.
fn pause(failed: u32, name: &str) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << failed.min(10)).min(LONGEST_PAUSE);
    let spread = uuid::Uuid::new_v4().as_bytes()[0] ^ name.len().to_le_bytes()[0];
    pause.mul_f64(0.75 + f64::from(spread) / 255.0 / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_are_spread() {
        for (failed, least, most) in
            [(0, 375, 625), (1, 750, 1250), (5, 11_250, 18_750), (u32::MAX, 11_250, 18_750)]
        {
            let ms = pause(failed, "x").as_millis();
            assert!((least..=most).contains(&ms), "{failed}: {ms}");
        }
    }
}
