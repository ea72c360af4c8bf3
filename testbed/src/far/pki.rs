//! A small CA for tests, and certificates with whatever mistake is wanted.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tandem_host::remote::TlsFiles;

/// A CA with a folder of certificates.
#[derive(Debug)]
pub struct Pki {
    folder: PathBuf,
}

/// What a certificate says.
#[derive(Clone, Debug, Default)]
pub struct Paper {
    /// Another name than the file's.
    pub name: Option<String>,
    /// Whether it has expired.
    pub expired: bool,
}

impl Pki {
    /// A new CA in a new folder.
    pub fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = ca().self_signed(&key).unwrap();
        write(&folder.join("ca.crt"), &certificate.pem(), 0o644);
        write(&folder.join("ca.key"), &key.serialize_pem(), 0o600);
        Self { folder: folder.to_owned() }
    }

    /// Issues a certificate for the host `file`, or for whatever the paper says.
    pub fn issue(&self, file: &str, paper: &Paper) {
        let read = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap();
        let issuer = Issuer::new(ca(), KeyPair::from_pem(&read("ca.key")).unwrap());
        let key = KeyPair::generate().unwrap();
        let name = paper.name.clone().unwrap_or_else(|| file.to_owned());
        let mut params = CertificateParams::new(vec![name]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if paper.expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&self.folder.join(format!("{file}.crt")), &certificate.pem(), 0o644);
        write(&self.folder.join(format!("{file}.key")), &key.serialize_pem(), 0o600);
    }

    /// The files of the host `file`.
    pub fn files(&self, file: &str) -> TlsFiles {
        TlsFiles {
            certificate: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
            ca: self.folder.join("ca.crt"),
        }
    }
}

/// What every CA of the tests says of itself; their keys differ.
fn ca() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Tandem test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}
