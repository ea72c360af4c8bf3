//! Load: connections that are kept open, one thread each, one request after the other. Only to loopback.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::Figures;

/// What came of it.
#[derive(Debug)]
pub struct Load {
    /// Answers a second.
    pub per_second: f64,
    /// How long each took.
    pub latency: Figures,
    /// Bytes of one answer's body.
    pub bytes: usize,
}

/// Asks for `path` over `connections` connections for so long. Every answer must be a 200.
pub fn get(endpoint: &str, path: &str, connections: usize, during: Duration) -> Load {
    let address: SocketAddr = endpoint.trim_start_matches("http://").parse().unwrap();
    assert!(address.ip().is_loopback(), "load is for loopback only");
    let start = Instant::now();
    let end = start + during;
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let path = path.to_owned();
            std::thread::spawn(move || one(address, &path, end))
        })
        .collect();
    let mut load = Load { per_second: 0.0, latency: Figures::default(), bytes: 0 };
    for thread in threads {
        let (latency, bytes) = thread.join().unwrap();
        load.latency.0.extend(latency.0);
        load.bytes = bytes;
    }
    load.per_second = load.latency.0.len() as f64 / start.elapsed().as_secs_f64();
    load
}

fn one(address: SocketAddr, path: &str, end: Instant) -> (Figures, usize) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut write = stream.try_clone().unwrap();
    let mut read = BufReader::with_capacity(64 << 10, stream);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: admin:admin\r\n\
         X-OpenStack-Manila-API-Version: 2.80\r\n\r\n"
    );
    let mut latency = Figures::default();
    let (mut line, mut body) = (String::new(), Vec::new());
    while Instant::now() < end {
        latency.time(|| {
            write.write_all(request.as_bytes()).unwrap();
            line.clear();
            read.read_line(&mut line).unwrap();
            assert!(line.starts_with("HTTP/1.1 200"), "{path}: {line}");
            let mut length = None;
            loop {
                line.clear();
                read.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').unwrap();
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse::<usize>().ok();
                }
            }
            body.resize(length.expect("an answer has a length"), 0);
            read.read_exact(&mut body).unwrap();
        });
    }
    (latency, body.len())
}
