//! Objects as they lie in the store: encrypted, authenticated, named by what they hold.
//!
//! AES-256-GCM. The nonce is a keyed hash of the bytes, so the same bytes under the same data key are the same object
//! (a repeated capture writes nothing new, and deduplication works within a lineage), and two different ones share a
//! nonce with a probability of 2^-96 each. What an object is for is authenticated beside it: a recipe is never taken
//! for a pack. The name is the blake3 of the stored bytes: whoever checks a store needs no key.
//!
//! ```text
//!  version 1   nonce: 12 bytes   encrypted bytes   tag: 16 bytes
//! ```

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::keys::DataKey;

/// Encoded bytes in a pack: large enough that a request's latency does not show beside its transfer, small enough that
/// ten in flight fit in 40 MiB.
pub const PACK_BYTES: usize = 4 << 20;
/// A pack is full when its next frame might go beyond [`PACK_BYTES`]: no pack is larger than this.
pub const PACK_BYTES_MAX: usize = PACK_BYTES + crate::frame::FRESH_BYTES_MAX;
/// Recipes above this are refused: three bytes an op, 100 GiB of memory with every second page changed.
pub const RECIPE_BYTES_MAX: usize = 128 << 20;
/// Version, nonce and tag.
pub const OVERHEAD: usize = 1 + NONCE_LEN + 16;
const VERSION: u8 = 1;

/// What an object is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Frames, one behind the other.
    Pack,
    /// A recipe, compressed.
    Recipe,
}

/// An object for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// blake3 of `bytes` in hex.
    pub name: String,
    /// What is stored.
    pub bytes: Vec<u8>,
}

/// Why an object is refused.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Other bytes than were stored.
    #[error("its hash is {found}, expected {expected}")]
    Name {
        /// Of the bytes.
        found: String,
        /// The promise.
        expected: String,
    },
    /// Of another time, or none of ours.
    #[error("it is no object of this format, or of a version that this worker does not read")]
    Version,
    /// Under another key, for another purpose, or made by somebody who has no key.
    #[error("its seal is broken: it was made under another key, for another purpose, or altered")]
    Seal,
    /// The library would not.
    #[error("it can't be encrypted")]
    Encrypt,
}

/// Encrypts.
pub fn seal(key: &DataKey, purpose: Purpose, mut bytes: Vec<u8>) -> Result<Sealed, SealError> {
    let hash = blake3::keyed_hash(key.nonces(), &bytes);
    let (nonce, _) = hash
        .as_bytes()
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(SealError::Encrypt)?;
    cipher(key)?
        .seal_in_place_append_tag(Nonce::from(nonce), aad(purpose), &mut bytes)
        .map_err(|_| SealError::Encrypt)?;
    let mut stored = Vec::with_capacity(bytes.len() + OVERHEAD);
    stored.push(VERSION);
    stored.extend_from_slice(nonce);
    stored.append(&mut bytes);
    Ok(Sealed {
        name: blake3::hash(&stored).to_hex().to_string(),
        bytes: stored,
    })
}

/// Proves that `stored` is the object of that name, then decrypts it.
pub fn open(
    key: &DataKey,
    purpose: Purpose,
    name: &str,
    stored: &[u8],
) -> Result<Vec<u8>, SealError> {
    let found = blake3::hash(stored).to_hex();
    if found.as_str() != name {
        return Err(SealError::Name {
            found: found.to_string(),
            expected: name.to_owned(),
        });
    }
    let rest = stored.strip_prefix(&[VERSION]).ok_or(SealError::Version)?;
    let (nonce, rest) = rest
        .split_first_chunk::<NONCE_LEN>()
        .ok_or(SealError::Version)?;
    let mut bytes = rest.to_vec();
    let length = cipher(key)?
        .open_in_place(Nonce::from(nonce), aad(purpose), &mut bytes)
        .map_err(|_| SealError::Seal)?
        .len();
    bytes.truncate(length);
    Ok(bytes)
}

fn cipher(key: &DataKey) -> Result<LessSafeKey, SealError> {
    let key = UnboundKey::new(&AES_256_GCM, key.encryption()).map_err(|_| SealError::Encrypt)?;
    Ok(LessSafeKey::new(key))
}

fn aad(purpose: Purpose) -> Aad<&'static [u8]> {
    Aad::from(match purpose {
        Purpose::Pack => b"longshore pack".as_slice(),
        Purpose::Recipe => b"longshore recipe".as_slice(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> DataKey {
        DataKey::from_bytes([byte; 32])
    }

    #[test]
    fn what_is_sealed_opens_and_is_the_same_object_again() {
        let sealed = seal(&key(1), Purpose::Pack, b"memory".to_vec()).unwrap();
        assert_eq!(
            open(&key(1), Purpose::Pack, &sealed.name, &sealed.bytes).unwrap(),
            b"memory"
        );
        assert_eq!(
            seal(&key(1), Purpose::Pack, b"memory".to_vec()).unwrap(),
            sealed
        );
        assert_ne!(
            seal(&key(2), Purpose::Pack, b"memory".to_vec())
                .unwrap()
                .name,
            sealed.name
        );
    }

    #[test]
    fn the_bytes_can_not_be_seen() {
        let sealed = seal(&key(1), Purpose::Pack, vec![b'A'; 4096]).unwrap();
        assert!(!sealed.bytes.windows(8).any(|window| window == b"AAAAAAAA"));
    }

    #[test]
    fn another_key_and_another_purpose_are_refused() {
        let sealed = seal(&key(1), Purpose::Pack, b"memory".to_vec()).unwrap();
        for (key, purpose) in [(key(2), Purpose::Pack), (key(1), Purpose::Recipe)] {
            let error = open(&key, purpose, &sealed.name, &sealed.bytes).unwrap_err();
            assert!(matches!(error, SealError::Seal), "{error}");
        }
    }

    #[test]
    fn every_bit_counts_even_for_one_who_renames_the_object() {
        let sealed = seal(&key(1), Purpose::Pack, b"memory".to_vec()).unwrap();
        for bit in 0..sealed.bytes.len() * 8 {
            let mut altered = sealed.bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key(1), Purpose::Pack, &sealed.name, &altered).is_err());
            let renamed = blake3::hash(&altered).to_hex();
            assert!(open(&key(1), Purpose::Pack, renamed.as_str(), &altered).is_err());
        }
        for length in 0..sealed.bytes.len() {
            let short = &sealed.bytes[..length];
            let renamed = blake3::hash(short).to_hex();
            assert!(open(&key(1), Purpose::Pack, renamed.as_str(), short).is_err());
        }
    }
}
