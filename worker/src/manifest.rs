//! What a checkpoint consists of: the manifest, written last, so that a checkpoint whose manifest can be read is
//! complete.
//!
//! JSON, because people look into it when something went wrong. The version stands first and decides how the rest is
//! read; a version not known here is refused by its number rather than half understood. The manifest's own hash
//! travels with the command that names it, so a manifest that was exchanged is noticed.

use serde::{Deserialize, Serialize};

use crate::save::PACK_RAW_BYTES_MAX;

/// The version written.
pub const VERSION: u32 = 1;
/// Manifests above this are not read: 8 MiB packs of a 1 TiB archive need 30 MB of entries.
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
    /// One archive for each container, in the pod's order.
    pub containers: Vec<ContainerArchive>,
}

/// The archive of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerArchive {
    /// The container's name in the pod.
    pub container: String,
    /// Its bytes.
    pub archive: Packed,
}

/// A run of bytes, cut into packs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packed {
    /// Bytes in all.
    pub size: u64,
    /// Hash of them all.
    pub blake3: String,
    /// In order.
    pub packs: Vec<Pack>,
}

/// One stored object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Where it is.
    pub key: String,
    /// Bytes it stands for.
    pub raw_bytes: u64,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// Hash of the object's bytes: checked before anything is decompressed.
    pub blake3: String,
    /// Hash of the bytes it stands for, where the writer had a use for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_blake3: Option<String>,
}

/// Why a manifest is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Other bytes than were promised.
    #[error(
        "manifest {key:?}: its hash is {found}, expected {expected}: it was damaged or exchanged"
    )]
    Hash {
        /// Where it was read.
        key: String,
        /// The promise.
        expected: String,
        /// The bytes'.
        found: String,
    },
    /// From another time.
    #[error(
        "manifest {key:?} has version {found}, this worker reads version {VERSION}: use a worker that knows it"
    )]
    Version {
        /// Where it was read.
        key: String,
        /// Its version.
        found: u32,
    },
    /// Not JSON, or not of this shape.
    #[error("read manifest {key:?}")]
    Shape {
        /// Where it was read.
        key: String,
        /// The parser's reason.
        #[source]
        source: serde_json::Error,
    },
    /// Of the right shape, but it contradicts itself.
    #[error("manifest {key:?}: {reason}")]
    Nonsense {
        /// Where it was read.
        key: String,
        /// The contradiction.
        reason: String,
    },
}

impl Manifest {
    /// The bytes to store.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always serialize")
    }

    /// Reads and checks what `key` held against the hash that was promised for it.
    pub fn from_bytes(
        key: &str,
        bytes: &[u8],
        expected_blake3: &str,
    ) -> Result<Self, ManifestError> {
        let manifest: Self = read_versioned(key, bytes, expected_blake3)?;
        for ContainerArchive { container, archive } in &manifest.containers {
            archive
                .check(container)
                .map_err(|reason| ManifestError::Nonsense {
                    key: key.to_owned(),
                    reason,
                })?;
        }
        Ok(manifest)
    }
}

impl Packed {
    /// Do the packs add up to the whole, each within what a reader provides memory for?
    pub fn check(&self, whose: &str) -> Result<(), String> {
        let mut sum = 0u64;
        for pack in &self.packs {
            if pack.raw_bytes == 0 || pack.raw_bytes > PACK_RAW_BYTES_MAX as u64 {
                return Err(format!(
                    "{whose}: pack {:?} claims {} bytes",
                    pack.key, pack.raw_bytes
                ));
            }
            sum = sum
                .checked_add(pack.raw_bytes)
                .ok_or_else(|| format!("{whose}: sizes overflow"))?;
        }
        if sum == self.size {
            Ok(())
        } else {
            Err(format!(
                "{whose}: its packs hold {sum} bytes of {}",
                self.size
            ))
        }
    }
}

/// Hash first, then the version, then the rest.
pub fn read_versioned<T: for<'de> Deserialize<'de>>(
    key: &str,
    bytes: &[u8],
    expected_blake3: &str,
) -> Result<T, ManifestError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let key = || key.to_owned();
    if bytes.len() > MANIFEST_BYTES_MAX {
        let reason = format!(
            "{} bytes are more than a manifest may have ({MANIFEST_BYTES_MAX})",
            bytes.len()
        );
        return Err(ManifestError::Nonsense { key: key(), reason });
    }
    let found = blake3::hash(bytes).to_hex();
    if found.as_str() != expected_blake3 {
        return Err(ManifestError::Hash {
            key: key(),
            expected: expected_blake3.to_owned(),
            found: found.to_string(),
        });
    }
    let shape = |source| ManifestError::Shape { key: key(), source };
    let Versioned { version } = serde_json::from_slice(bytes).map_err(shape)?;
    if version != VERSION {
        return Err(ManifestError::Version {
            key: key(),
            found: version,
        });
    }
    serde_json::from_slice(bytes).map_err(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by the first version; must load for ever.
    const GOLDEN: &[u8] = include_bytes!("../testdata/manifest-v1.json");

    fn read(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        Manifest::from_bytes("m", bytes, blake3::hash(bytes).to_hex().as_str())
    }

    fn golden() -> Manifest {
        let pack = |key: &str, raw_bytes, raw_blake3: Option<&str>| Pack {
            key: format!("checkpoints/m/7/packs/{key}"),
            raw_bytes,
            stored_bytes: 1200,
            blake3: key.repeat(32),
            raw_blake3: raw_blake3.map(str::to_owned),
        };
        Manifest {
            version: 1,
            migration: "0b7ee2c5-6f02-4a2b-8f36-7b1d0f6f3a11".to_owned(),
            created_unix_ns: 1_764_000_000_123_456_789,
            containers: vec![ContainerArchive {
                container: "kuard".to_owned(),
                archive: Packed {
                    size: 8_388_608 + 512,
                    blake3: "ef".repeat(32),
                    packs: vec![pack("ab", 8_388_608, None), pack("cd", 512, Some("01"))],
                },
            }],
        }
    }

    #[test]
    fn bytes_of_the_first_version_still_load() {
        assert_eq!(read(GOLDEN).unwrap(), golden());
    }

    #[test]
    fn what_is_written_today_is_what_was_written_then() {
        assert_eq!(
            String::from_utf8_lossy(&golden().to_bytes()),
            String::from_utf8_lossy(GOLDEN).trim_end()
        );
    }

    #[test]
    fn an_unknown_version_is_refused_by_its_number() {
        let later = String::from_utf8(golden().to_bytes())
            .unwrap()
            .replace("\"version\":1", "\"version\":2");
        let error = read(later.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ManifestError::Version { found: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_manifest_other_than_the_promised_one_is_refused() {
        let promised = blake3::hash(GOLDEN).to_hex();
        let error =
            Manifest::from_bytes("m", &golden().to_bytes()[1..], promised.as_str()).unwrap_err();
        assert!(matches!(error, ManifestError::Hash { .. }), "{error}");
    }

    #[test]
    fn packs_that_do_not_add_up_are_refused() {
        let mut manifest = golden();
        manifest.containers[0].archive.size += 1;
        assert!(matches!(
            read(&manifest.to_bytes()),
            Err(ManifestError::Nonsense { .. })
        ));
        let mut manifest = golden();
        manifest.containers[0].archive.packs[0].raw_bytes = 1 << 40;
        assert!(matches!(
            read(&manifest.to_bytes()),
            Err(ManifestError::Nonsense { .. })
        ));
    }
}
