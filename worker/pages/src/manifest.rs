//! What a checkpoint consists of: the manifest, written last, so that a checkpoint whose manifest can be read is
//! complete.
//!
//! ```text
//!  {"version":2,"migration":…,"wrapped_key":…,"containers":[…]}    one line of JSON, for people who look into it
//!  5d1c…                                                           its seal: blake3 keyed with a key of the lineage
//! ```
//! The seal proves that whoever wrote it had the lineage's data key; the names in it prove recipe and packs; the
//! recipe proves every frame. Nothing of a manifest is believed before its seal is. Version 1 is the worker's
//! (`worker/src/manifest.rs`): without encryption, read for checkpoints made before an upgrade.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};

use crate::keys::{DataKey, Identity, KeyError, Recipient};

/// The version written.
pub const VERSION: u32 = 2;
/// Manifests above this are not read: packs of 4 MiB of a 1 TiB archive need 40 MB of names.
pub const MANIFEST_BYTES_MAX: usize = 64 << 20;

/// A checkpoint of a pod at one cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// UID of the migration that made it.
    pub migration: String,
    /// When it was written, by the source's clock.
    pub created_unix_ns: u64,
    /// The lineage's data key as an age file, in base64.
    pub wrapped_key: String,
    /// The checkpoint that this one is a difference to; none: it stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Object>,
    /// One archive for each container, in the pod's order.
    pub containers: Vec<Container>,
}

/// The archive of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Its name in the pod.
    pub name: String,
    /// Bytes of the archive.
    pub size: u64,
    /// What differences to it call it, in hex.
    pub root: String,
    /// Root of the archive it is a difference to; none: it stands alone.
    pub base: Option<String>,
    /// How it is put together.
    pub recipe: Object,
    /// What is new in it, in the recipe's order.
    pub packs: Vec<Object>,
}

/// A stored object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Where it is.
    pub key: String,
    /// blake3 of its bytes.
    pub blake3: String,
    /// How many.
    pub bytes: u64,
}

/// Why a manifest is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Too long to be read.
    #[error("{bytes} bytes are more than a manifest may have ({MANIFEST_BYTES_MAX})")]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// Another version.
    #[error(
        "it has version {found}, this worker reads version {VERSION}: use a worker that knows it"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// Not a line of JSON and a seal.
    #[error("it is no manifest: {reason}")]
    Shape {
        /// What is missing.
        reason: String,
    },
    /// Somebody wrote or altered it who does not have the lineage's key.
    #[error("its seal is broken: it was damaged or exchanged")]
    Seal,
    /// The key in it.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Manifest {
    /// The bytes to store.
    pub fn to_bytes(&self, key: &DataKey) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("strings and numbers always serialize");
        let seal = blake3::keyed_hash(key.manifests(), &bytes).to_hex();
        bytes.push(b'\n');
        bytes.extend_from_slice(seal.as_bytes());
        bytes.push(b'\n');
        bytes
    }

    /// Reads, unwraps the key and proves the seal, in this order; gives both.
    pub fn open(bytes: &[u8], identities: &[Identity]) -> Result<(Self, DataKey), ManifestError> {
        let (line, seal) = Self::parts(bytes)?;
        let shape = |reason: String| ManifestError::Shape { reason };
        let manifest: Self =
            serde_json::from_slice(line).map_err(|error| shape(error.to_string()))?;
        let key = manifest.unwrap(identities)?;
        let seal: blake3::Hash = std::str::from_utf8(seal)
            .ok()
            .and_then(|seal| blake3::Hash::from_hex(seal).ok())
            .ok_or_else(|| shape("its second line is no seal".to_owned()))?;
        // Compared in constant time: `blake3::Hash` does.
        if blake3::keyed_hash(key.manifests(), line) == seal {
            Ok((manifest, key))
        } else {
            Err(ManifestError::Seal)
        }
    }

    /// Reads without a key, for those who only count and look for what is missing. Nothing of it is proved.
    pub fn peek(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (line, _) = Self::parts(bytes)?;
        serde_json::from_slice(line).map_err(|error| ManifestError::Shape {
            reason: error.to_string(),
        })
    }

    fn parts(bytes: &[u8]) -> Result<(&[u8], &[u8]), ManifestError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong { bytes: bytes.len() });
        }
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let line = lines.next().unwrap_or_default();
        let shape = |reason: String| ManifestError::Shape { reason };
        let Versioned { version } =
            serde_json::from_slice(line).map_err(|error| shape(error.to_string()))?;
        if version != VERSION {
            return Err(ManifestError::Version { found: version });
        }
        match (lines.next(), lines.next(), lines.next()) {
            (Some(seal), Some([]), None) => Ok((line, seal)),
            _ => Err(shape("it has not two lines".to_owned())),
        }
    }

    fn unwrap(&self, identities: &[Identity]) -> Result<DataKey, ManifestError> {
        let wrapped =
            BASE64_STANDARD
                .decode(&self.wrapped_key)
                .map_err(|error| ManifestError::Shape {
                    reason: format!("its key is not in base64: {error}"),
                })?;
        Ok(DataKey::unwrap(&wrapped, identities)?)
    }
}

/// A data key for a manifest.
pub fn wrap(key: &DataKey, recipients: &[Recipient]) -> Result<String, KeyError> {
    Ok(BASE64_STANDARD.encode(key.wrap(recipients)?))
}
