//! The group's authority, and the certificate that each peer issues itself from it.
//!
//! One authority signs every peer; workers trust it, peers trust it in both directions, and nobody else is asked.
//! A certificate carries the name of its peer ([`peer_name`]) and those under which workers and operators dial, so it
//! needs no public name. It is kept beside the log and made anew when the authority or the names are others.

use std::{fs, io, path::Path, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use serde::{Deserialize, Serialize};
use tonic::transport::{Certificate, ClientTlsConfig, ServerTlsConfig};
use uuid::Uuid;

/// What signs peers. Whoever has it is a peer.
#[derive(Clone)]
pub struct Authority {
    /// Its certificate, PEM: public.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
}

/// What a peer shows and what it trusts.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    version: u32,
    /// What the certificate says.
    names: Vec<String>,
    /// The authority's certificate, PEM.
    pub authority: String,
    /// The peer's certificate, PEM.
    pub certificate: String,
    /// The peer's key, PEM.
    pub key: String,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate could not be made.
    #[error("make a certificate")]
    Make(#[from] rcgen::Error),
    /// The disk.
    #[error("keep this peer's certificate in {path}")]
    Keep {
        /// Where.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What was kept, or what Kubernetes keeps, is no certificate.
    #[error("use the certificate of {whose}: {why}")]
    Unusable {
        /// Whose.
        whose: &'static str,
        /// Why not.
        why: String,
    },
}

const FILE: &str = "identity.json";
const VERSION: u32 = 1;

/// The name of a peer in its certificate: no other peer has it, nor does one of another group.
#[must_use]
pub fn peer_name(group: Uuid, peer: u64) -> String {
    format!("peer-{peer}.{group}.longshore")
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// The cryptography failed.
    pub fn make() -> Result<Self, TlsError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "longshore-orchestrator authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate,
            key: key.serialize_pem(),
        })
    }

    /// A certificate that says these names, for both ends of a connection.
    ///
    /// # Errors
    /// The authority is none, or the cryptography failed.
    pub fn issue(&self, names: &[String]) -> Result<Identity, TlsError> {
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?;
        let mut params = CertificateParams::new(names.to_vec())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "longshore-orchestrator");
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?.pem();
        Ok(Identity {
            version: VERSION,
            names: names.to_vec(),
            authority: self.certificate.clone(),
            certificate,
            key: key.serialize_pem(),
        })
    }
}

impl Identity {
    /// What was kept in this directory. What another version wrote is as good as nothing: it is made anew.
    ///
    /// # Errors
    /// The disk.
    pub fn kept(directory: &Path) -> Result<Option<Self>, TlsError> {
        match fs::read(directory.join(FILE)) {
            Ok(bytes) => {
                let kept: Option<Self> = serde_json::from_slice(&bytes).ok();
                Ok(kept.filter(|kept| kept.version == VERSION))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(TlsError::Keep {
                path: directory.display().to_string(),
                source,
            }),
        }
    }

    /// The kept one if it is of this authority and says these names, else a new one, which is kept.
    ///
    /// # Errors
    /// The disk or the cryptography failed.
    pub fn of(directory: &Path, authority: &Authority, names: &[String]) -> Result<Self, TlsError> {
        if let Some(kept) = Self::kept(directory)?
            && kept.authority == authority.certificate
            && kept.names == names
        {
            return Ok(kept);
        }
        let issued = authority.issue(names)?;
        let keep = |source| TlsError::Keep {
            path: directory.display().to_string(),
            source,
        };
        fs::create_dir_all(directory).map_err(keep)?;
        let bytes = serde_json::to_vec(&issued)
            .map_err(io::Error::from)
            .map_err(keep)?;
        write_private(directory, &bytes).map_err(keep)?;
        Ok(issued)
    }

    /// It says this name.
    #[must_use]
    pub fn says(&self, name: &str) -> bool {
        self.names.iter().any(|said| said == name)
    }

    /// For the server that workers dial.
    #[must_use]
    pub fn for_workers(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.pair())
    }

    /// For the server that peers and operators dial: without a certificate of the authority there is no connection.
    ///
    /// # Errors
    /// The certificates are none.
    pub fn for_peers(&self) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let unusable = |why: &dyn std::fmt::Display| TlsError::Unusable {
            whose: "this peer",
            why: why.to_string(),
        };
        let certificate = |pem: &str| {
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|why| unusable(&why))
        };
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate(&self.authority)?)
            .map_err(|why| unusable(&why))?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .map_err(|why: VerifierBuilderError| unusable(&why))?;
        let key =
            PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|why| unusable(&why))?;
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate(&self.certificate)?], key)
            .map_err(|why| unusable(&why))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// For dialling whoever has this name.
    #[must_use]
    pub fn towards(&self, name: &str) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authority))
            .identity(self.pair())
            .domain_name(name)
    }

    fn pair(&self) -> tonic::transport::Identity {
        tonic::transport::Identity::from_pem(&self.certificate, &self.key)
    }
}

/// Whole or not at all: a crash leaves the one before.
fn write_private(directory: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let fresh = directory.join(format!("{FILE}.new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(fresh, directory.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_a_restart_and_not_another_authority_or_name() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["longshore-orchestrator".to_owned()];
        let authority = Authority::make().unwrap();
        let of = |authority: &Authority, names: &[String]| {
            Identity::of(directory.path(), authority, names)
                .unwrap()
                .certificate
        };
        let first = of(&authority, &names);
        assert_eq!(first, of(&authority, &names));
        let renamed = of(&authority, &["localhost".to_owned()]);
        assert_ne!(first, renamed);
        let other = Authority::make().unwrap();
        assert_ne!(of(&other, &["localhost".to_owned()]), renamed);
    }
}
