//! Keys: one data key for each lineage of a pod, wrapped for everybody who may restore it.
//!
//! A data key is 32 random bytes, made with the first checkpoint of a pod and kept by its successors, so that they can
//! be differences to one another. It travels wrapped in each manifest, as an ordinary age file (age-encryption.org/v1):
//! recipients are X25519 keys, the cluster's own and any that were configured beside it, such as one whose identity
//! lies in a safe. From it come three keys for three uses.
//!
//! Keys are never printed: their `Debug` says what they are and not which.

use std::{fmt, str::FromStr};

use age::x25519;
use aws_lc_rs::rand;

const ENCRYPTION: &str = "longshore 2026-11 object encryption v1";
const NONCES: &str = "longshore 2026-11 object nonces v1";
const MANIFESTS: &str = "longshore 2026-11 manifest authentication v1";

/// The key of a lineage and those that come from it.
#[derive(Clone)]
pub struct DataKey {
    bytes: [u8; 32],
    encryption: [u8; 32],
    nonces: [u8; 32],
    manifests: [u8; 32],
}

/// Somebody who may unwrap: an `age1…` string.
#[derive(Clone)]
pub struct Recipient(x25519::Recipient);

/// Who unwraps: an `AGE-SECRET-KEY-1…` string.
#[derive(Clone)]
pub struct Identity(x25519::Identity);

/// Why a key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not an age key. The text is not repeated: it may be the wrong secret.
    #[error("{what} is no X25519 key of age: {reason}")]
    Malformed {
        /// "recipient", "identity".
        what: &'static str,
        /// age's reason.
        reason: &'static str,
    },
    /// Nobody to wrap for.
    #[error("there is no recipient to wrap the data key for")]
    NoRecipient,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// age would not.
    #[error("wrap the data key: {reason}")]
    Wrap {
        /// age's words.
        reason: String,
    },
    /// None of the identities fits.
    #[error(
        "unwrap the data key: {reason}; the checkpoint was made for other recipients than this worker has identities of"
    )]
    Unwrap {
        /// age's words.
        reason: String,
    },
}

impl DataKey {
    /// A new one.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| KeyError::Random)?;
        Ok(Self::from_bytes(bytes))
    }

    /// From bytes that were a key before.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self {
            encryption: blake3::derive_key(ENCRYPTION, &bytes),
            nonces: blake3::derive_key(NONCES, &bytes),
            manifests: blake3::derive_key(MANIFESTS, &bytes),
            bytes,
        }
    }

    /// Wraps it for all of them: each can unwrap alone.
    pub fn wrap(&self, recipients: &[Recipient]) -> Result<Vec<u8>, KeyError> {
        if recipients.is_empty() {
            return Err(KeyError::NoRecipient);
        }
        let failed = |reason: &dyn fmt::Display| KeyError::Wrap {
            reason: reason.to_string(),
        };
        let them = recipients
            .iter()
            .map(|Recipient(one)| one as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(them).map_err(|error| failed(&error))?;
        let mut wrapped = Vec::new();
        let mut writer = encryptor
            .wrap_output(&mut wrapped)
            .map_err(|error| failed(&error))?;
        std::io::Write::write_all(&mut writer, &self.bytes).map_err(|error| failed(&error))?;
        writer.finish().map_err(|error| failed(&error))?;
        Ok(wrapped)
    }

    /// Unwraps with whichever identity fits.
    pub fn unwrap(wrapped: &[u8], identities: &[Identity]) -> Result<Self, KeyError> {
        let failed = |reason: &dyn fmt::Display| KeyError::Unwrap {
            reason: reason.to_string(),
        };
        let decryptor = age::Decryptor::new(wrapped).map_err(|error| failed(&error))?;
        let us = identities
            .iter()
            .map(|Identity(one)| one as &dyn age::Identity);
        let reader = decryptor.decrypt(us).map_err(|error| failed(&error))?;
        let mut bytes = Vec::with_capacity(33);
        let mut bounded = std::io::Read::take(reader, 33);
        std::io::Read::read_to_end(&mut bounded, &mut bytes).map_err(|error| failed(&error))?;
        let bytes: [u8; 32] = bytes
            .try_into()
            .map_err(|_| failed(&"it does not have 32 bytes"))?;
        Ok(Self::from_bytes(bytes))
    }

    pub(crate) fn encryption(&self) -> &[u8; 32] {
        &self.encryption
    }

    pub(crate) fn nonces(&self) -> &[u8; 32] {
        &self.nonces
    }

    pub(crate) fn manifests(&self) -> &[u8; 32] {
        &self.manifests
    }
}

impl Identity {
    /// A new one.
    pub fn generate() -> Self {
        Self(x25519::Identity::generate())
    }

    /// Those in a file of age's form: one a line, `#` begins a comment.
    pub fn read_all(text: &str) -> Result<Vec<Self>, KeyError> {
        let lines = text.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| {
                let malformed = |reason| KeyError::Malformed {
                    what: "identity",
                    reason,
                };
                x25519::Identity::from_str(line)
                    .map(Self)
                    .map_err(malformed)
            })
            .collect()
    }

    /// Who can be given to others.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The text to keep secret.
    pub fn reveal(&self) -> String {
        age::secrecy::ExposeSecret::expose_secret(&self.0.to_string()).to_owned()
    }
}

impl FromStr for Recipient {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let malformed = |reason| KeyError::Malformed {
            what: "recipient",
            reason,
        };
        x25519::Recipient::from_str(text.trim())
            .map(Self)
            .map_err(malformed)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DataKey")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Identity")
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Recipient({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_recipient_unwraps_alone_and_nobody_else() {
        let (cluster, safe, stranger) = (
            Identity::generate(),
            Identity::generate(),
            Identity::generate(),
        );
        let key = DataKey::random().unwrap();
        let wrapped = key.wrap(&[cluster.recipient(), safe.recipient()]).unwrap();
        for identity in [cluster, safe] {
            let again = DataKey::unwrap(&wrapped, &[stranger.clone(), identity]).unwrap();
            assert_eq!(again.bytes, key.bytes);
        }
        assert!(matches!(
            DataKey::unwrap(&wrapped, &[stranger]),
            Err(KeyError::Unwrap { .. })
        ));
        assert!(matches!(key.wrap(&[]), Err(KeyError::NoRecipient)));
    }

    #[test]
    fn identities_are_read_as_age_keygen_writes_them() {
        let identity = Identity::generate();
        let text = format!(
            "# created: today\n# public key: {}\n{}\n",
            identity.recipient(),
            identity.reveal()
        );
        let read = Identity::read_all(&text).unwrap();
        assert_eq!(
            read[0].recipient().to_string(),
            identity.recipient().to_string()
        );
        assert!(Identity::read_all("AGE-SECRET-KEY-1NOT").is_err());
    }

    #[test]
    fn no_debug_output_and_no_error_shows_a_key() {
        let identity = Identity::generate();
        let key = DataKey::random().unwrap();
        assert_eq!(format!("{key:?} {identity:?}"), "DataKey Identity");
        let error = Identity::read_all("secret-in-the-wrong-place").unwrap_err();
        assert!(!error.to_string().contains("secret-in-the-wrong-place"));
    }
}
