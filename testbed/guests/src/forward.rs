//! A port of a guest, on loopback outside: how a scenario speaks HTTP to a server in a guest.
//!
//! Each connection is a command in the guest (`dial`), whose input and output are the connection's. It works across power
//! cuts: while the guest is off, connections are closed at once.

use crate::Result;
use crate::guest::Guest;
use crate::host::{Command, Event, Host, Running};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// This very program, wherever it lies outside.
pub const PROGRAM: &str = "/proc/1/exe";

/// The forwarded port, until dropped.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Forward {
    /// Forwards to that port on the guest's own loopback.
    pub fn open(guest: &Arc<Guest>, port: u16) -> Result<Self> {
        let said = |error: std::io::Error| format!("forwarding a port: {error}.");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(said)?;
        let address = listener.local_addr().map_err(said)?;
        let over = Arc::new(AtomicBool::new(false));
        let (guest, end) = (guest.clone(), over.clone());
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let dial = Command::new(&[PROGRAM, "dial", &port.to_string()]).input();
                if let Ok(running) = guest.spawn(&dial) {
                    let _ = carry(connection, running);
                }
            }
        });
        Ok(Self { address, over })
    }

    /// Where it is outside.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the one who waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(mut connection: TcpStream, running: Running) -> std::io::Result<()> {
    let mut outgoing = connection.try_clone()?;
    let typed = running.typist();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = connection.read(&mut buffer) {
            if typed(&buffer[..length]).is_err() {
                return;
            }
        }
        let _ = typed(&[]);
    });
    std::thread::spawn(move || {
        while let Ok(event) = running.next(Duration::from_secs(600)) {
            match event {
                Some(Event::Output(bytes)) if outgoing.write_all(&bytes).is_ok() => {}
                Some(Event::Error(_)) => {}
                _ => break,
            }
        }
        let _ = outgoing.shutdown(Shutdown::Both);
        let _ = running.kill();
    });
    Ok(())
}

/// In the guest: standard input and output become a connection to a port of its loopback.
pub(crate) fn dial(port: &str) -> Result<()> {
    let said = |error: std::io::Error| format!("connecting to port {port}: {error}.");
    let port: u16 = port.parse().map_err(|_| format!("{port} is no port."))?;
    let mut incoming = TcpStream::connect(("127.0.0.1", port)).map_err(said)?;
    let mut outgoing = incoming.try_clone().map_err(said)?;
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut outgoing);
        let _ = outgoing.shutdown(Shutdown::Write);
    });
    let mut stdout = std::io::stdout();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match incoming.read(&mut buffer).map_err(said)? {
            0 => return Ok(()),
            length => stdout.write_all(&buffer[..length]).and_then(|()| stdout.flush()).map_err(said)?,
        }
    }
}
