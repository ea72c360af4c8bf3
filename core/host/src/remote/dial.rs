//! Connections to another host, for control and for streams.

use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tandem_contract::{Error, Result};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::far::{Line, Welcomed, greet};
use super::frame::{Frame, MOST};
use super::message::{Greeting, Hello, VERSION, Wants};
use super::tls::{Identity, why};

/// How long connecting, and proving who is who, may take.
pub(crate) const CONNECT: Duration = Duration::from_secs(10);

/// Opens connections to one host. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dialer(Arc<Inside>);

struct Inside {
    identity: Identity,
    /// Our name.
    from: String,
    /// Its name.
    to: String,
    address: String,
    server: ServerName<'static>,
}

impl Dialer {
    pub(crate) fn new(identity: Identity, from: &str, to: &str, address: &str) -> Result<Self, String> {
        let server = super::tls::server_name(to)?;
        Ok(Self(Arc::new(Inside {
            identity,
            from: from.into(),
            to: to.into(),
            address: address.into(),
            server,
        })))
    }

    /// For sentences.
    pub(crate) fn place(&self) -> String {
        format!("host `{}` ({})", self.0.to, self.0.address)
    }

    /// Connects for a back end.
    pub(crate) async fn dial(&self) -> Result<Welcomed> {
        let net = self.connect().await?;
        let (reader, writer) = tokio::io::split(net);
        let line: Line = (Box::new(reader), Box::new(writer));
        greet(line, &self.place(), (&self.0.from, &self.0.to), Wants::Backend, Vec::new()).await
    }

    /// Connects for a stream.
    pub(crate) async fn dial_stream(&self, wants: Wants) -> Result<TlsStream<TcpStream>> {
        let mut net = self.connect().await?;
        let hello = Hello {
            version: VERSION,
            contract: tandem_contract::CONTRACT_VERSION,
            from: self.0.from.clone(),
            to: self.0.to.clone(),
            wants,
        };
        let greeting = async {
            // Whole frames, one each way: nothing of the stream itself is read ahead.
            let (mut reader, mut writer) = tokio::io::split(&mut net);
            super::frame::Writer::write(&mut writer, Frame::of(&hello)?).await?;
            let frame = super::frame::Reader::read(&mut reader, MOST).await?;
            frame.ok_or(std::io::ErrorKind::UnexpectedEof)?.parse::<Greeting>()
        };
        let lost = |e: String| Error::unavailable(format!("no stream with {}: {e}", self.place()));
        match timeout(CONNECT, greeting).await.map_err(|_| lost("it does not answer".into()))? {
            Ok(Greeting::Welcome(_)) => Ok(net),
            Ok(Greeting::Refused(reason)) => Err(lost(reason)),
            Err(e) => Err(lost(why(&e, &self.0.to))),
        }
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let away = |e: String| Error::unavailable(format!("{} is away: {e}", self.place()));
        let late = |_| away(format!("no connection within {} s", CONNECT.as_secs()));
        let socket = timeout(CONNECT, TcpStream::connect(&self.0.address)).await.map_err(late)?;
        let socket = socket.map_err(|e| away(e.to_string()))?;
        tune(&socket);
        let connecting = self.0.identity.connector().connect(self.0.server.clone(), socket);
        let secured = timeout(CONNECT, connecting).await.map_err(late)?;
        secured.map_err(|e| away(why(&e, &self.0.to)))
    }
}

/// Small messages go at once, and a cut link is noticed though nobody speaks.
pub(crate) fn tune(socket: &TcpStream) {
    let tuned = (|| {
        sockopt::set_tcp_nodelay(socket, true)?;
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, Duration::from_secs(5))?;
        sockopt::set_tcp_keepintvl(socket, Duration::from_secs(3))?;
        sockopt::set_tcp_keepcnt(socket, 3)?;
        sockopt::set_tcp_user_timeout(socket, 15_000)
    })();
    if let Err(e) = tuned {
        tracing::debug!("A connection keeps the system's patience: {e}.");
    }
}
