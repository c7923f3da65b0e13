//! Bytes from the store, in order, each pack verified before anything looks at what is in it.
//!
//! ```text
//!  get (16 in flight) ─► size, blake3 of the object ─► decompress (2 threads) ─► raw size ─► in order to the reader
//! ```
//! Verified before decompression, because a decompressor is the first program a forged object would attack. The hash
//! of the whole is the reader's to compare: only it sees the whole.
//!
//! Memory: [`GETS_IN_FLIGHT`] objects of at most 8 MiB that wait for their turn, [`DECOMPRESSORS`] raw packs:
//! (16 + 2) x 8 MiB = 144 MiB, whatever the archive's size.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    manifest::{Pack, Packed},
    spans::{Traffic, now_unix_ns},
    store::{Store, StoreError},
};

/// As many as are put at once, for the same reason.
const GETS_IN_FLIGHT: usize = 16;
/// zstd decompresses 1.7 GB/s and more: two threads outrun disk and network.
const DECOMPRESSORS: usize = 2;

/// Why bytes did not come, or are not the ones that were stored.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The store would not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Other bytes than were stored.
    #[error("pack {key:?}: {reason}: it was damaged or exchanged in the store")]
    Damaged {
        /// The object.
        key: String,
        /// What does not fit.
        reason: String,
    },
    /// The worker is shutting down.
    #[error("a thread of the worker ended early, it is shutting down")]
    Stopped,
}

/// The raw bytes of a whole, pack by pack in order. Ends at the first error.
pub fn packs(
    store: Arc<dyn Store>,
    packed: &Packed,
    traffic: Arc<Traffic>,
) -> impl Stream<Item = Result<Bytes, FetchError>> + Send + use<> {
    stream::iter(packed.packs.clone())
        // A task each: bodies go on arriving while the reader is busy with what it has.
        .map(move |pack| {
            AbortOnDropHandle::new(tokio::spawn(get(store.clone(), pack, traffic.clone())))
        })
        .buffered(GETS_IN_FLIGHT)
        .map(|got| async move {
            let (pack, stored) = got.map_err(|_| FetchError::Stopped)??;
            tokio::task::spawn_blocking(move || open(&pack, &stored))
                .await
                .map_err(|_| FetchError::Stopped)?
        })
        .buffered(DECOMPRESSORS)
}

async fn get(
    store: Arc<dyn Store>,
    pack: Pack,
    traffic: Arc<Traffic>,
) -> Result<(Pack, Bytes), FetchError> {
    let stored = object(store.as_ref(), &pack.key, &traffic).await?;
    Ok((pack, stored))
}

/// A stored object, whatever it holds.
pub async fn object(store: &dyn Store, key: &str, traffic: &Traffic) -> Result<Bytes, StoreError> {
    let start = now_unix_ns();
    let stored = store.get(key).await?;
    traffic.count(start, stored.len() as u64);
    Ok(stored)
}

/// The raw bytes of a stored object, or why it is not the object that was stored.
fn open(pack: &Pack, stored: &[u8]) -> Result<Bytes, FetchError> {
    let damaged = |reason: String| FetchError::Damaged {
        key: pack.key.clone(),
        reason,
    };
    if stored.len() as u64 != pack.stored_bytes {
        return Err(damaged(format!(
            "it has {} bytes, expected {}",
            stored.len(),
            pack.stored_bytes
        )));
    }
    let found = blake3::hash(stored).to_hex();
    if found.as_str() != pack.blake3 {
        return Err(damaged(format!(
            "its hash is {found}, expected {}",
            pack.blake3
        )));
    }
    // The manifest was checked: a pack never claims more than a reader provides for.
    let size = usize::try_from(pack.raw_bytes)
        .map_err(|_| damaged("it claims an impossible size".to_owned()))?;
    let raw = zstd::bulk::decompress(stored, size)
        .map_err(|error| damaged(format!("it does not decompress: {error}")))?;
    if raw.len() != size {
        return Err(damaged(format!(
            "it holds {} bytes, expected {size}",
            raw.len()
        )));
    }
    if let Some(expected) = &pack.raw_blake3 {
        let found = blake3::hash(&raw).to_hex();
        if found.as_str() != expected {
            return Err(damaged(format!(
                "the hash of its content is {found}, expected {expected}"
            )));
        }
    }
    Ok(raw.into())
}
