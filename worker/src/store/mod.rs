//! Where bytes wait between two nodes: an object store, seen through five verbs.
//!
//! ```text
//!  save ──put──► packs, manifest last ──get──► fetch
//!                      │
//!                  tidy: list, delete
//! ```
//! A put is whole and may be repeated; a delete of nothing is done. No step relies on conditional writes, on the
//! order of two puts, or on what an ETag means: stores differ there. Whether an object is the right one is decided
//! by the reader, by its hash.
//!
//! [`S3`](s3::S3) is the store of a cluster, [`Memory`](memory::Memory) its twin for tests.

use async_trait::async_trait;
use bytes::Bytes;

pub mod memory;
pub mod remove;
pub mod s3;

/// The verbs of an object store.
#[async_trait]
pub trait Store: Send + Sync {
    /// Stores an object, whole; repeating this replaces it.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError>;
    /// The whole object.
    async fn get(&self, key: &str) -> Result<Bytes, StoreError>;
    /// Removes an object; one that is not there is removed already.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
    /// The keys that begin with `prefix`, in order.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError>;
    /// The same, with what the store says of each.
    async fn survey(&self, prefix: &str) -> Result<Vec<Stored>, StoreError>;
    /// Is there such an object?
    async fn exists(&self, key: &str) -> Result<bool, StoreError>;
}

/// An object as a store lists it. Nothing of it is proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub bytes: u64,
    /// When it was stored, seconds since 1970 by the store's clock; 0: not known.
    pub unix_s: u64,
}

/// What was being done, where, and what stood in the way.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {key:?} in bucket {bucket:?} at {endpoint}: {fault}")]
pub struct StoreError {
    /// "put", "get", …
    pub verb: &'static str,
    /// The object or prefix.
    pub key: String,
    /// The bucket.
    pub bucket: String,
    /// The server.
    pub endpoint: String,
    /// Why.
    pub fault: Fault,
}

/// Why a store did not do it, and what a person can do about it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is no such object.
    #[error(
        "there is no such object; was it tidied up, or is this another bucket than the one written to?"
    )]
    Missing,
    /// Nobody answers.
    #[error("the store can't be reached ({detail}); check S3_ENDPOINT and that the server runs")]
    Unreachable {
        /// The connection's error.
        detail: String,
    },
    /// An answer, but no.
    #[error(
        "access denied ({detail}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    )]
    Forbidden {
        /// The store's code.
        detail: String,
    },
    /// The bucket is not there.
    #[error("there is no such bucket; create it or correct S3_BUCKET")]
    NoBucket,
    /// An answer that can't be true.
    #[error(
        "the store's answer can't be true ({detail}); is something between us and it that alters answers?"
    )]
    Untrue {
        /// What it said.
        detail: String,
    },
    /// The store is overloaded or starting: all attempts were used up.
    #[error(
        "the store is busy or failing ({detail}), also after {attempts} attempts; try again later"
    )]
    Busy {
        /// The store's code.
        detail: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// Anything else, in the store's words.
    #[error("{detail}")]
    Other {
        /// The store's words.
        detail: String,
    },
}
