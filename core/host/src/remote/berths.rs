//! Where the streams of one connection arrive: each is named by its call and used once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_contract::{Error, Result};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use uuid::Uuid;

/// How long a call waits for its stream.
const WITHIN: Duration = Duration::from_secs(20);
/// Streams that may be here before their call.
const MOST: usize = 256;

/// A stream that has arrived.
pub(crate) type Net = TlsStream<TcpStream>;

/// Where the streams of one connection arrive.
#[derive(Default)]
pub(crate) struct Berths(Mutex<HashMap<Uuid, Berth>>);

enum Berth {
    /// The call is here.
    Awaited(oneshot::Sender<Box<Net>>),
    /// The stream is here.
    Taken(Box<Net>),
}

impl Berths {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Berth>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stream of that name, once it is here.
    pub(crate) async fn wait(&self, stream: Uuid) -> Result<Box<Net>> {
        let (say, arrived) = oneshot::channel();
        let came = {
            let mut berths = self.lock();
            match berths.remove(&stream) {
                Some(Berth::Taken(net)) => Some(net),
                _ => {
                    berths.insert(stream, Berth::Awaited(say));
                    None
                }
            }
        };
        if let Some(net) = came {
            return Ok(net);
        }
        let _tidy = Tidy { berths: self, stream };
        let late =
            || Error::unavailable(format!("the call's stream has not come within {} s", WITHIN.as_secs()));
        timeout(WITHIN, arrived).await.map_err(|_| late())?.map_err(|_| late())
    }

    /// Takes a stream in; gives it back when there is no room, or one of that name is here.
    pub(crate) fn arrive(&self, stream: Uuid, net: Box<Net>) -> Result<(), Box<Net>> {
        let mut berths = self.lock();
        match berths.remove(&stream) {
            Some(Berth::Awaited(say)) => say.send(net),
            Some(here @ Berth::Taken(_)) => {
                berths.insert(stream, here);
                Err(net)
            }
            None if berths.len() >= MOST => Err(net),
            None => {
                berths.insert(stream, Berth::Taken(net));
                Ok(())
            }
        }
    }
}

/// Forgets a berth whose call waits no more.
struct Tidy<'a> {
    berths: &'a Berths,
    stream: Uuid,
}

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        self.berths.lock().remove(&self.stream);
    }
}
