//! The orchestrator's certificate: made at the first start, kept in the data directory, its authority published for
//! the workers in a ConfigMap.
//!
//! Workers trust this authority and nothing else, so the certificate needs no public name; they are told the name to
//! expect, the Service's.

use std::{fs, io, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

/// What the server shows and what clients trust.
pub struct Identity {
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The server's certificate, PEM.
    pub certificate: String,
    /// The server's key, PEM.
    pub key: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("make the orchestrator's certificate")]
    Make(#[source] rcgen::Error),
    /// The disk.
    #[error("keep the orchestrator's certificate in {path}")]
    Keep {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

const AUTHORITY: &str = "authority.crt";
const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";

/// Loads the identity from `directory`, or makes one for `names` and keeps it there.
///
/// The key is written last and its presence decides: a crash in between makes a new identity at the next start.
///
/// # Errors
/// The disk or the cryptography failed.
pub fn identity(directory: &Path, names: &[String]) -> Result<Identity, TlsError> {
    let keep = |source| TlsError::Keep {
        path: directory.display().to_string(),
        source,
    };
    fs::create_dir_all(directory).map_err(keep)?;
    if directory.join(KEY).exists() {
        let read = |name: &str| fs::read_to_string(directory.join(name)).map_err(keep);
        return Ok(Identity {
            authority: read(AUTHORITY)?,
            certificate: read(CERTIFICATE)?,
            key: read(KEY)?,
        });
    }
    let made = make(names).map_err(TlsError::Make)?;
    let write = |name: &str, text: &str| write_private(&directory.join(name), text).map_err(keep);
    write(AUTHORITY, &made.authority)?;
    write(CERTIFICATE, &made.certificate)?;
    write(KEY, &made.key)?;
    Ok(made)
}

fn make(names: &[String]) -> Result<Identity, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority
        .distinguished_name
        .push(DnType::CommonName, "longshore-orchestrator authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut server = CertificateParams::new(names.to_vec())?;
    server
        .distinguished_name
        .push(DnType::CommonName, "longshore-orchestrator");
    let certificate = server.signed_by(&key, &issuer)?;
    Ok(Identity {
        authority: issuer.pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["longshore-orchestrator".to_owned()];
        let first = identity(directory.path(), &names).unwrap();
        let second = identity(directory.path(), &names).unwrap();
        assert_eq!(first.certificate, second.certificate);
        assert!(first.key.contains("PRIVATE KEY"));
    }

    #[test]
    fn a_crash_before_the_key_was_written_makes_a_new_identity() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["longshore-orchestrator".to_owned()];
        let first = identity(directory.path(), &names).unwrap();
        fs::remove_file(directory.path().join(KEY)).unwrap();
        let second = identity(directory.path(), &names).unwrap();
        assert_ne!(first.certificate, second.certificate);
    }
}
