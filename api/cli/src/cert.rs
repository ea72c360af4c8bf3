//! `tandem cert`: a small CA for the impatient, and certificates that say who is who between hosts.
//!
//! It asks no server. Whoever has a CA already needs none of it: a host's certificate must hold its name as a DNS name,
//! and be good for both sides of a connection.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::{Failure, say};

/// What the CA calls itself; it is told from others by its key.
const CA_NAME: &str = "Tandem CA";
/// For how long a CA is good.
const CA_DAYS: i64 = 3650;
/// A clock may be wrong by this much.
const SKEW: Duration = Duration::hours(24);

#[derive(Debug, Subcommand)]
pub(crate) enum Cert {
    /// Makes a CA: `ca.crt` for every host, and `ca.key`, which stays where it was made.
    Ca {
        /// The folder of the CA; made when it is not there.
        #[arg(long, value_name = "FOLDER", default_value = "tandem-ca")]
        folder: PathBuf,
    },
    /// Issues a host's certificate and key: `NAME.crt` and `NAME.key`.
    Host {
        /// The host's name, as the settings say it, such as `storage2`.
        name: String,
        /// The folder of the CA.
        #[arg(long, value_name = "FOLDER", default_value = "tandem-ca")]
        folder: PathBuf,
        /// For how many days it is good.
        #[arg(long, value_name = "DAYS", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
}

pub(crate) fn run(cert: &Cert) -> Result<(), Failure> {
    match cert {
        Cert::Ca { folder } => ca(folder),
        Cert::Host { name, folder, days } => host(name, folder, *days),
    }
}

fn ca(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|e| Failure::Refused(format!("The folder {} cannot be made: {e}.", folder.display())))?;
    let key = KeyPair::generate().map_err(crypto)?;
    let certificate = ca_params().self_signed(&key).map_err(crypto)?;
    let (crt, secret) = (folder.join("ca.crt"), folder.join("ca.key"));
    put(&secret, &key.serialize_pem(), 0o600)?;
    put(&crt, &certificate.pem(), 0o644)?;
    say(&format!(
        "Made {} and {}. Every host needs a copy of {0}; {1} stays here, for its owner only.\n",
        crt.display(),
        secret.display()
    ))
}

fn host(name: &str, folder: &Path, days: u32) -> Result<(), Failure> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if name.is_empty() || name == "ca" || name.starts_with(['-', '.']) || !name.chars().all(plain) {
        return Err(Failure::Usage(format!(
            "{name:?} cannot be the name of a host; use lower-case letters, digits, '-' and '.'."
        )));
    }
    let file = folder.join("ca.key");
    let secret = std::fs::read_to_string(&file).map_err(|e| {
        Failure::Refused(format!(
            "{} cannot be read: {e}. `tandem cert ca` makes a CA first.",
            file.display()
        ))
    })?;
    let ca_key = KeyPair::from_pem(&secret)
        .map_err(|e| Failure::Refused(format!("{} holds no private key: {e}.", file.display())))?;
    let issuer = Issuer::new(ca_params(), ca_key);
    let key = KeyPair::generate().map_err(crypto)?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(crypto)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Servers connect to driver hosts today; tomorrow a host may do both.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(i64::from(days));
    let certificate = params.signed_by(&key, &issuer).map_err(crypto)?;
    let (crt, secret) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    put(&secret, &key.serialize_pem(), 0o600)?;
    put(&crt, &certificate.pem(), 0o644)?;
    say(&format!(
        "Made {} and {}, good for {days} days. Bring both and ca.crt to `{name}`, over a way that nobody reads, and \
         name them in [tls] of its settings.\n",
        crt.display(),
        secret.display()
    ))
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SKEW;
    params.not_after = now + Duration::days(CA_DAYS);
    params
}

fn crypto(error: rcgen::Error) -> Failure {
    Failure::Refused(format!("The certificate cannot be made: {error}."))
}

/// Writes a new file; one that is there is kept, since something may rely on it.
fn put(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::Refused(format!("{} is there already; move it away to make another.", path.display()))
        }
        _ => Failure::Refused(format!("{} cannot be written: {e}.", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn keys_are_their_owners_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("ca");
        assert!(host("storage2", &own, 1).is_err(), "there is no CA yet");
        ca(&own).unwrap();
        host("storage2", &own, 1).unwrap();
        for key in ["ca.key", "storage2.key"] {
            let mode = std::fs::metadata(own.join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        assert!(matches!(ca(&own), Err(Failure::Refused(why)) if why.contains("is there already")));
        for name in ["", "ca", "a/b", "..", "A", "a b"] {
            assert!(matches!(host(name, &own, 1), Err(Failure::Usage(_))), "{name:?}");
        }
    }
}
