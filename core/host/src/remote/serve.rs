//! What `tandem-driver-host` runs: a listener for registered servers, or a child on a socket pair.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tandem_contract::CONTRACT_VERSION;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::dial::{CONNECT, tune};
use super::far::{Line, SILENCE};
use super::frame::{Frame, MOST_FIRST, Reader as _, Writer as _, unix};
use super::message::{Greeting, Hello, VERSION, Wants};
use super::station::Station;
use super::stop_at::StopAt;
use super::tls::{Identity, TlsFiles, is_for, why};
use crate::{Discovery, discover};

/// Connections that have not said yet who they are.
const STRANGERS: usize = 64;
/// Connections in all.
const CONNECTIONS: usize = 4096;
/// How long running calls get when the driver host ends.
const DRAIN: Duration = Duration::from_secs(10);

/// A driver host that listens for servers.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Its name, which its certificate says too.
    pub name: String,
    /// Names of the servers that may use it.
    pub servers: Vec<String>,
    /// Who it is.
    pub tls: TlsFiles,
}

impl Listening {
    /// Whether the certificate, the key and the CA can be used.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn check(&self) -> Result<(), String> {
        Identity::load(&self.name, &self.tls).map(drop)
    }
}

struct Door {
    settings: Listening,
    station: Arc<Station>,
    acceptor: TlsAcceptor,
    strangers: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// Serves the drivers that were found to the registered servers, until `stop`. Then running calls are cancelled and
/// awaited, for a while.
///
/// # Errors
/// A sentence, when the certificate or the key cannot be used.
pub async fn listen(
    settings: Listening,
    listener: TcpListener,
    found: Discovery,
    stop: CancellationToken,
) -> Result<(), String> {
    let identity = Identity::load(&settings.name, &settings.tls)?;
    let door = Arc::new(Door {
        settings,
        station: Station::new(found, StopAt::from_environment()?),
        acceptor: identity.acceptor(),
        strangers: Arc::new(Semaphore::new(STRANGERS)),
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
    });
    loop {
        let permit = Arc::clone(&door.strangers).acquire_owned();
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = async { (permit.await, listener.accept().await) } => accepted,
        };
        match accepted {
            (Ok(permit), Ok((socket, address))) => {
                let door = Arc::clone(&door);
                tokio::spawn(async move {
                    if let Err(sentence) = door.come_in(socket, permit).await {
                        tracing::warn!(%address, "A connection was refused: {sentence}.");
                    }
                });
            }
            (_, Err(e)) => {
                // Out of descriptors, most likely: what ends meanwhile gives some back.
                tracing::warn!("No connection can be taken: {e}.");
                sleep(Duration::from_millis(200)).await;
            }
            (Err(_), _) => break,
        }
    }
    drop(listener);
    end(&door.station).await;
    Ok(())
}

/// Cancels every call and waits for them, for a while.
async fn end(station: &Station) {
    station.stop.cancel();
    station.tasks.close();
    if timeout(DRAIN, station.tasks.wait()).await.is_err() {
        tracing::warn!("Some calls have not ended within {} s; they end with the process.", DRAIN.as_secs());
    }
}

impl Door {
    async fn come_in(&self, socket: TcpStream, permit: OwnedSemaphorePermit) -> Result<(), String> {
        tune(&socket);
        let secured = timeout(CONNECT, self.acceptor.accept(socket));
        let secured = secured.await.map_err(|_| "it has not proven who it is in time".to_owned())?;
        let net = secured.map_err(|e| why(&e, "").replace("its certificate", "the certificate it shows"))?;
        let Ok(place) = Arc::clone(&self.connections).try_acquire_owned() else {
            return Err(format!("there are {CONNECTIONS} connections already"));
        };
        let certificate = net.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        let (mut reader, mut writer) = tokio::io::split(net);
        let hello = timeout(CONNECT, reader.read(MOST_FIRST));
        let hello = hello.await.map_err(|_| "it has not said what it wants in time".to_owned())?;
        let hello = hello.map_err(|e| why(&e, ""))?.ok_or("it hung up")?;
        let hello: Hello = hello.parse().map_err(|e| e.to_string())?;
        let named = certificate.is_some_and(|certificate| is_for(&certificate, &hello.from));
        let refusal = self.refusal(&hello, named);
        if let Some(sentence) = refusal {
            let frame = Frame::of(&Greeting::Refused(sentence.clone())).map_err(|e| e.to_string())?;
            // What matters is that it stays out.
            let _ = timeout(CONNECT, writer.write(frame)).await;
            return Err(sentence);
        }
        drop(permit);
        let session = Uuid::new_v4();
        let welcome = Greeting::Welcome(self.station.welcome(session));
        match hello.wants {
            Wants::Backend => {
                writer
                    .write(Frame::of(&welcome).map_err(|e| e.to_string())?)
                    .await
                    .map_err(|e| e.to_string())?;
                tracing::info!(server = hello.from, "A server has connected.");
                let line: Line = (Box::new(reader), Box::new(writer));
                self.station.serve(&hello.from, session, line).await;
            }
            Wants::Stream { session: of, stream } => {
                let berths = self
                    .station
                    .berths(&hello.from, of)
                    .ok_or("its stream belongs to no connection of it")?;
                let welcome = super::message::Welcome { drivers: Vec::new(), ..self.station.welcome(of) };
                let greeting = Frame::of(&Greeting::Welcome(welcome)).map_err(|e| e.to_string())?;
                writer.write(greeting).await.map_err(|e| e.to_string())?;
                let net: Box<TlsStream<TcpStream>> = Box::new(reader.unsplit(writer));
                berths.arrive(stream, net).map_err(|_| "its stream is not expected, or came twice")?;
            }
        }
        drop(place);
        Ok(())
    }

    /// Why a caller is not served, as one sentence.
    fn refusal(&self, hello: &Hello, named: bool) -> Option<String> {
        let me = &self.settings.name;
        if !named {
            return Some(format!(
                "it calls itself `{}`, but its certificate is not for that name",
                hello.from
            ));
        }
        if !self.settings.servers.contains(&hello.from) {
            return Some(format!("`{}` is not among the servers that may use host `{me}`", hello.from));
        }
        if hello.to != *me {
            return Some(format!("this is host `{me}`, not `{}`", hello.to));
        }
        versions(hello)
    }
}

/// Why a caller's versions do not fit.
fn versions(hello: &Hello) -> Option<String> {
    let (theirs, ours) = (hello.contract, CONTRACT_VERSION);
    if hello.version != VERSION || theirs.0 != ours.0 {
        return Some(format!(
            "the server speaks version {} and contract {}.{}, the driver host version {VERSION} and contract {}.{}; \
             install the same release on both",
            hello.version, theirs.0, theirs.1, ours.0, ours.1
        ));
    }
    None
}

/// Serves one server on `socket` with the drivers of a folder, as its child: returns once the server has gone and
/// running calls have ended, or had their time.
///
/// # Errors
/// A sentence, when the socket does not work.
pub async fn serve_child(socket: std::os::unix::net::UnixStream, plugins: &Path) -> Result<(), String> {
    let broken = |e: io::Error| format!("the connection to the server does not work: {e}");
    socket.set_nonblocking(true).map_err(broken)?;
    let (mut reader, mut writer) = unix(UnixStream::from_std(socket).map_err(broken)?);
    let first = timeout(SILENCE, reader.read(MOST_FIRST)).await.map_err(|_| "the server says nothing")?;
    let first = first.map_err(broken)?.ok_or("the server is gone")?;
    let hello: Hello = first.parse().map_err(broken)?;
    // A lock of the server's, which lasts as long as this process.
    let _locks: Vec<OwnedFd> = first.fds;
    let station = Station::new(discover(plugins), None);
    let session = Uuid::new_v4();
    let greeting = match versions(&hello) {
        Some(sentence) => Greeting::Refused(sentence),
        None => Greeting::Welcome(station.welcome(session)),
    };
    writer.write(Frame::of(&greeting).map_err(broken)?).await.map_err(broken)?;
    station.serve(&hello.from, session, (Box::new(reader), Box::new(writer))).await;
    end(&station).await;
    Ok(())
}
