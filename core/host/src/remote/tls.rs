//! Who is who between hosts: certificates from files, TLS 1.3 only, each side proves its name to the other.
//!
//! A certificate is issued by the installation's own CA to a host's name (a DNS name in it; no DNS is asked). Both sides
//! refuse whatever that CA has not issued, whatever has expired, and whoever shows a certificate for another name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, ServerConfig};
use serde::Deserialize;

/// What both sides must agree upon before anything else; a browser that strays here is told no.
const ALPN: &[u8] = b"tandem/1";

/// Files that say who this host is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// This host's certificate (PEM), with those between it and the CA's, if any.
    pub certificate: PathBuf,
    /// Its private key (PEM); readable by its owner only.
    pub key: PathBuf,
    /// The CA's certificates (PEM): who may say who is who.
    pub ca: PathBuf,
}

impl TlsFiles {
    /// The same with relative paths starting at `folder`.
    pub fn within(&mut self, folder: &Path) {
        for path in [&mut self.certificate, &mut self.key, &mut self.ca] {
            *path = folder.join(&*path);
        }
    }
}

/// This host, as it proves itself to others.
pub(crate) struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Identity {
    /// Reads and checks the files of the host `name`.
    ///
    /// # Errors
    /// One sentence that names the file.
    pub(crate) fn load(name: &str, files: &TlsFiles) -> Result<Self, String> {
        let chain = certificates(&files.certificate)?;
        let roots = roots(&files.ca)?;
        check_key(&files.key)?;
        let key = PrivateKeyDer::from_pem_file(&files.key)
            .map_err(|e| format!("{} holds no private key in PEM: {e}", files.key.display()))?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        check_own(name, files, &chain, &roots, &provider)?;
        let fits = |e: rustls::Error| {
            format!("{} and {} do not fit together: {e}", files.certificate.display(), files.key.display())
        };
        let versions = |e: rustls::Error| format!("TLS cannot be set up: {e}");

        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(versions)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(fits)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();

        let callers = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|e| format!("{} cannot be used: {e}", files.ca.display()))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(versions)?
            .with_client_cert_verifier(callers)
            .with_single_cert(chain, key)
            .map_err(fits)?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// For connecting to others.
    pub(crate) fn connector(&self) -> tokio_rustls::TlsConnector {
        Arc::clone(&self.client).into()
    }

    /// For others that connect.
    pub(crate) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        Arc::clone(&self.server).into()
    }
}

/// A host's name as it stands in certificates.
///
/// # Errors
/// One sentence when no certificate could say it.
pub fn host_name(name: &str) -> Result<(), String> {
    server_name(name).map(drop)
}

/// The name to ask for when connecting.
pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    let wrong = || {
        format!(
            "{name:?} cannot stand in a certificate as the name of a host; use letters, digits, '-' and '.', such as \
             \"storage2\""
        )
    };
    match ServerName::try_from(name.to_owned()) {
        Ok(name @ ServerName::DnsName(_)) => Ok(name),
        _ => Err(wrong()),
    }
}

/// Whether a certificate that was verified already is the host's of that name.
pub(crate) fn is_for(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(certificate), server_name(name)) else {
        return false;
    };
    verify_server_name(&parsed, &name).is_ok()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let cannot =
        |e: &dyn std::fmt::Display| format!("the certificate {} cannot be read: {e}", path.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| cannot(&e))?.collect();
    let chain = chain.map_err(|e| cannot(&e))?;
    if chain.is_empty() {
        return Err(format!("{} holds no certificate in PEM", path.display()));
    }
    Ok(chain)
}

fn roots(path: &Path) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| format!("{} is no certificate of a CA: {e}", path.display()))?;
    }
    Ok(Arc::new(roots))
}

/// A key that others can read proves nothing.
fn check_key(path: &Path) -> Result<(), String> {
    let facts =
        fs::metadata(path).map_err(|e| format!("the private key {} cannot be read: {e}", path.display()))?;
    let me = rustix::process::geteuid().as_raw();
    if facts.uid() != 0 && facts.uid() != me {
        return Err(format!(
            "the private key {} belongs to user {}, neither root nor the user of this process ({me}); it is not trusted",
            path.display(),
            facts.uid()
        ));
    }
    if facts.mode() & 0o077 != 0 {
        return Err(format!(
            "the private key {} can be read by its group or by others (mode {:04o}); it is not used until `chmod 600` is \
             run on it",
            path.display(),
            facts.mode() & 0o7777
        ));
    }
    Ok(())
}

/// Finds what is wrong with our own certificate before others do.
fn check_own(
    name: &str,
    files: &TlsFiles,
    chain: &[CertificateDer<'static>],
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<(), String> {
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|e| format!("{} cannot be used: {e}", files.ca.display()))?;
    let Some((own, between)) = chain.split_first() else { return Ok(()) };
    match verifier.verify_server_cert(own, between, &server_name(name)?, &[], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(e) => Err(format!(
            "the certificate {} cannot be used: {}",
            files.certificate.display(),
            reason(&e, name).unwrap_or_else(|| e.to_string())
        )),
    }
}

/// Why TLS with the host `name` failed, as a sentence's second half.
pub(crate) fn why(error: &io::Error, name: &str) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "it hung up".to_owned();
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    inner.and_then(|inner| reason(inner, name)).unwrap_or_else(|| error.to_string())
}

fn reason(error: &rustls::Error, name: &str) -> Option<String> {
    use CertificateError as C;
    Some(match error {
        rustls::Error::InvalidCertificate(why) => match why {
            // A CA of the same name with another key signs badly.
            C::UnknownIssuer | C::BadSignature => {
                "its certificate was not issued by the CA that is trusted here".to_owned()
            }
            C::Expired | C::ExpiredContext { .. } => "its certificate has expired".to_owned(),
            C::NotValidYet | C::NotValidYetContext { .. } => {
                "its certificate is not valid yet; is a clock wrong?".to_owned()
            }
            C::NotValidForName | C::NotValidForNameContext { .. } => {
                format!("its certificate is not for the name `{name}`")
            }
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
                "its certificate was issued for another purpose".to_owned()
            }
            other => format!("its certificate is not accepted: {other}"),
        },
        rustls::Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA => {
                "it does not know the CA that issued the certificate shown to it".to_owned()
            }
            AlertDescription::CertificateExpired => {
                "it says that the certificate shown to it has expired".to_owned()
            }
            other => format!("it refuses the certificate or the connection ({other:?})"),
        },
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        _ => return None,
    })
}
