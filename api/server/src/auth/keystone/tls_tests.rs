//! Over TLS: only a Keystone whose certificate comes from the authority that the settings name is told anything.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::json;

use super::*;

/// Starts something on loopback that has a certificate for `localhost` and calls every token good. Its address, and its
/// certificate (PEM).
fn start() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/v3", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            // A client that does not trust us breaks off.
            let _ = answer(socket.unwrap(), config.clone());
        }
    });
    (url, made.cert.pem())
}

fn answer(socket: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    let mut request = Vec::new();
    let mut piece = [0; 4096];
    let head = loop {
        let read = stream.read(&mut piece)?;
        request.extend_from_slice(&piece[..read]);
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if read == 0 {
            return Ok(());
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
    let length = text.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    while request.len() < head + length {
        let read = stream.read(&mut piece)?;
        request.extend_from_slice(&piece[..read]);
    }
    let end = (time::OffsetDateTime::now_utc() + time::Duration::hours(1))
        .format(&time::format_description::well_known::Rfc3339)
        .map_err(std::io::Error::other)?;
    let token =
        json!({"token": {"user": {"id": "ada"}, "project": {"id": "demo"}, "expires_at": end}}).to_string();
    let status = if text.starts_with("post") { "201 Created" } else { "200 OK" };
    let length = token.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nX-Subject-Token: own\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{token}"
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

async fn ask(url: &str, ca_file: PathBuf) -> (Result<Identity, Refusal>, Option<String>) {
    let settings =
        KeystoneSettings { url: url.into(), ca_file: Some(ca_file), ..KeystoneSettings::default() };
    let keystone = Keystone::new(&settings, Password::Given(Secret::new("s3cret"))).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(TOKEN_HEADER, "t".parse().unwrap());
    (keystone.authenticate(&headers).await, keystone.trouble())
}

#[tokio::test]
async fn only_the_right_certificate_is_trusted() {
    let (url, pem) = start();
    let folder = tempfile::tempdir().unwrap();
    let (own, another) = (folder.path().join("own.pem"), folder.path().join("another.pem"));
    std::fs::write(&own, pem).unwrap();
    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&another, stranger.cert.pem()).unwrap();

    let (who, trouble) = ask(&url, own.clone()).await;
    assert_eq!((who.unwrap().project_id.as_str(), trouble), ("demo", None));
    let (who, trouble) = ask(&url, another).await;
    assert!(matches!(who, Err(Refusal::Unavailable { .. })));
    assert!(trouble.unwrap().contains("certificate"));
    // The certificate is for a name.
    let (who, trouble) = ask(&url.replace("localhost", "127.0.0.1"), own).await;
    assert!(matches!(who, Err(Refusal::Unavailable { .. })));
    assert!(trouble.unwrap().contains("certificate"));
}

#[test]
fn certificates_that_are_none_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("empty.pem");
    std::fs::write(&file, "").unwrap();
    for (ca_file, sentence) in
        [(file, "there is no certificate in"), (folder.path().join("none"), "cannot be read")]
    {
        let settings = KeystoneSettings {
            url: "https://k".into(),
            ca_file: Some(ca_file),
            ..KeystoneSettings::default()
        };
        let refused = Keystone::new(&settings, Password::Given(Secret::new("s3cret"))).unwrap_err();
        assert!(refused.contains(sentence), "{refused}");
    }
}
