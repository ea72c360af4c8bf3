//! Asks the arbiter: `POST /v1/replicas/{id}/claim`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::note::Note;

/// So long one question takes at most. A server at hand needs some hundredths of a second; one that went down is asked again soon.
const PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const LARGEST: u64 = 64 << 10;
/// Where distributions keep the certificates of the authorities that they trust.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// What the arbiter decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Won,
    /// Why, in its words.
    Lost(String),
}

#[derive(Deserialize)]
struct Body {
    claim: Claim,
}

#[derive(Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
enum Claim {
    Won {},
    Lost { why: String },
}

/// Asks once.
///
/// # Errors
/// Why nothing was decided, as a sentence without secrets: to be asked again.
pub(crate) fn ask(note: &Note) -> Result<Verdict, String> {
    let secret = secret(&note.secret_file)?;
    let builder = ureq::Agent::config_builder()
        .http_status_as_error(false)
        // A redirected question would carry the secret elsewhere.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .user_agent(concat!("tandem-fence-peer/", env!("CARGO_PKG_VERSION")));
    let builder = match note.url.starts_with("https:") {
        true => builder.tls_config(tls(note.ca_file.as_deref())?),
        false => builder,
    };
    let agent = ureq::Agent::from(builder.build());
    let base = note.url.trim_end_matches('/');
    let address = format!("{base}/v1/replicas/{}/claim?epoch={}", note.instance, note.epoch);
    let away = |error: ureq::Error| format!("the arbiter at {base} does not answer: {error}");
    let asked = agent.post(&address).header("X-Tandem-Secret", secret.as_str()).send_empty();
    let mut answer = asked.map_err(away)?;
    let text = answer.body_mut().with_config().limit(LARGEST).read_to_vec().map_err(away)?;
    judge(answer.status().as_u16(), &text).map_err(|why| format!("the arbiter at {base} {why}"))
}

fn judge(status: u16, body: &[u8]) -> Result<Verdict, String> {
    match status {
        200 => match serde_json::from_slice::<Body>(body) {
            Ok(Body { claim: Claim::Won {} }) => Ok(Verdict::Won),
            Ok(Body { claim: Claim::Lost { why } }) => Ok(Verdict::Lost(why)),
            Err(error) => Err(format!("answers what makes no sense ({error})")),
        },
        401 => Err("refuses the secret: `drbd.writable.arbiter.secret_file` here and `claim_secret_file` there must hold the \
                    same, or it knows no such replica"
            .to_owned()),
        other => Err(format!("answers {other}")),
    }
}

/// The secret in a file that nobody else can read.
fn secret(file: &Path) -> Result<String, String> {
    let shown = file.display();
    let failed = |error: std::io::Error| format!("the secret in {shown} cannot be read: {error}");
    if fs::metadata(file).map_err(failed)?.permissions().mode() & 0o077 != 0 {
        return Err(format!(
            "others can read or write the secret in {shown}; take that away with chmod go-rwx"
        ));
    }
    let text = fs::read_to_string(file).map_err(failed)?.trim().to_owned();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{shown} holds no secret; `openssl rand -hex 32` makes one"));
    }
    Ok(text)
}

fn tls(ca_file: Option<&Path>) -> Result<TlsConfig, String> {
    let bundles = || BUNDLES.iter().map(PathBuf::from).find(|bundle| bundle.exists());
    let file = ca_file.map(Path::to_owned).or_else(bundles).ok_or(
        "no certificates of authorities are installed (the package ca-certificates); name the arbiter's in \
         `drbd.writable.arbiter.ca_file`",
    )?;
    let shown = file.display();
    let pem = fs::read(&file).map_err(|error| format!("the certificates {shown} cannot be read: {error}"))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn only_a_plain_yes_is_one() {
        let won = br#"{"claim": {"outcome": "won", "epoch": 2}}"#;
        let lost = br#"{"claim": {"outcome": "lost", "why": "another one goes on"}}"#;
        assert_eq!(judge(200, won), Ok(Verdict::Won));
        assert_eq!(judge(200, lost), Ok(Verdict::Lost("another one goes on".into())));
        for (status, body) in [
            (202, &won[..]),
            (302, won),
            (401, won),
            (503, won),
            (200, b"{}"),
            (200, b""),
            (200, br#"{"claim": {"outcome": "lost"}}"#),
            (200, br#"{"claim": {"outcome": "perhaps"}}"#),
            (200, br#"{"outcome": "won"}"#),
        ] {
            assert!(judge(status, body).is_err(), "{status} {}", String::from_utf8_lossy(body));
        }
    }

    /// Hears one question and answers it; what was asked, nothing where who asks does not trust the certificate.
    fn answer(mut stream: impl Read + Write, answer: &str) -> String {
        let mut asked = Vec::new();
        let mut piece = [0; 1024];
        while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
            match stream.read(&mut piece) {
                Ok(read @ 1..) => asked.extend_from_slice(&piece[..read]),
                _ => return String::new(),
            }
        }
        stream.write_all(answer.as_bytes()).unwrap();
        stream.flush().unwrap();
        String::from_utf8(asked).unwrap()
    }

    /// A server that gives one answer and tells what it was asked.
    fn once(said: String) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        (url, std::thread::spawn(move || answer(listener.accept().unwrap().0, &said)))
    }

    /// The same over TLS; its certificate is put into a file.
    fn once_by_tls(said: String, ca_file: &Path) -> (String, std::thread::JoinHandle<String>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let paper = params.self_signed(&key).unwrap();
        fs::write(ca_file, paper.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![paper.der().clone()], key)
                .unwrap();
            let connection = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            answer(rustls::StreamOwned::new(connection, listener.accept().unwrap().0), &said)
        });
        (url, served)
    }

    fn yes() -> String {
        let body = r#"{"claim": {"outcome": "won", "epoch": 8}}"#;
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    fn secret_file(name: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("tandem-{name}-{}", std::process::id()));
        fs::write(&file, "0123456789abcdef\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        file
    }

    fn note(url: &str, secret_file: &Path) -> Note {
        let instance = "6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1".into();
        Note { instance, epoch: 7, minor: 1, url: url.into(), secret_file: secret_file.into(), ca_file: None }
    }

    #[test]
    fn the_question_bears_the_secret_and_goes_nowhere_else() {
        let file = secret_file("secret");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(ask(&note("http://127.0.0.1:9", &file)).unwrap_err().contains("chmod"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();

        let (url, served) = once(yes());
        assert_eq!(ask(&note(&url, &file)), Ok(Verdict::Won));
        let asked = served.join().unwrap().to_ascii_lowercase();
        assert!(
            asked.starts_with("post /v1/replicas/6dbf1d2c-95a4-4be5-a0cc-96f8b6e3b4a1/claim?epoch=7 "),
            "{asked}"
        );
        assert!(asked.contains("x-tandem-secret: 0123456789abcdef\r\n"), "{asked}");

        let moved = "HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (url, served) = once(moved.to_owned());
        assert!(ask(&note(&url, &file)).unwrap_err().contains("307"));
        served.join().unwrap();

        fs::write(&file, "\n").unwrap();
        assert!(ask(&note(&url, &file)).unwrap_err().contains("no secret"));
        fs::remove_file(&file).unwrap();
        let error = ask(&note(&url, &file)).unwrap_err();
        assert!(error.contains("cannot be read") && !error.contains("0123456789abcdef"), "{error}");
    }

    #[test]
    fn over_tls_nobody_is_told_the_secret_who_is_not_known() {
        let file = secret_file("secret-tls");
        let ca_file = std::env::temp_dir().join(format!("tandem-ca-{}", std::process::id()));
        let other = ca_file.with_extension("other");
        let (url, served) = once_by_tls(yes(), &ca_file);
        let known = Note { ca_file: Some(ca_file.clone()), ..note(&url, &file) };
        assert_eq!(ask(&known), Ok(Verdict::Won));
        assert!(served.join().unwrap().to_ascii_lowercase().contains("x-tandem-secret: 0123456789abcdef"));

        let (stranger, served) = once_by_tls(yes(), &other);
        assert!(ask(&Note { url: stranger, ..known }).unwrap_err().contains("does not answer"));
        assert_eq!(served.join().unwrap(), "");
        for file in [&file, &ca_file, &other] {
            fs::remove_file(file).unwrap();
        }
    }
}
