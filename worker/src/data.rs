//! The data path as the agent sees it: bytes out of archives into the store, and back into the runtime.

use std::path::PathBuf;

use async_trait::async_trait;
use proto::worker::{
    Deliver, Delivered, Disarm, ExportImages, ExportedImages, HasImages, ImportImages, Span, Tidy, Verified, Verify,
    Withdraw,
};

/// Told how far a transfer is: what, bytes done, bytes in all (0: not known).
pub type ProgressFn = dyn Fn(&str, u64, u64) + Send + Sync;

/// What was stored.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// Key of the manifest, which was written last.
    pub manifest_key: String,
    /// Hash of its bytes.
    pub manifest_blake3: String,
    /// Bytes of the archives.
    pub raw_bytes: u64,
    /// Bytes of packs and manifest as sent.
    pub stored_bytes: u64,
    /// Number of packs.
    pub packs: u32,
    /// Where the time went.
    pub spans: Vec<Span>,
}

/// Why bytes did not get where they should; says what was being done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DataError(pub String);

/// Moves bytes. A failed call leaves nothing behind that could run a pod.
#[async_trait]
pub trait Data: Send + Sync {
    /// Stores the archives of a migration under a prefix, manifest last.
    async fn save(
        &self,
        migration: &str,
        prefix: &str,
        archives: &[(String, PathBuf)],
        progress: &ProgressFn,
    ) -> Result<Saved, DataError>;
    /// Brings every byte into this node's runtime.
    async fn deliver(
        &self,
        migration: &str,
        revision: u64,
        request: &Deliver,
        progress: &ProgressFn,
    ) -> Result<(Delivered, Vec<Span>), DataError>;
    /// Were the containers restored from the checkpoint?
    async fn verify(&self, request: &Verify) -> Result<Verified, DataError>;
    /// From now on a restart starts the ordinary image.
    async fn disarm(&self, request: &Disarm) -> Result<(), DataError>;
    /// Nothing of this migration can run here any more.
    async fn withdraw(&self, migration: &str, request: &Withdraw) -> Result<(), DataError>;
    /// Removes what this migration left on the node, and in the store when asked.
    async fn tidy(&self, migration: &str, request: &Tidy) -> Result<(), DataError>;
    /// Names of the containers whose image is not complete on this node.
    async fn has_images(&self, request: &HasImages) -> Result<Vec<String>, DataError>;
    /// Stores the images of these containers.
    async fn export_images(
        &self,
        migration: &str,
        request: &ExportImages,
        progress: &ProgressFn,
    ) -> Result<ExportedImages, DataError>;
    /// Brings stored images into this node's runtime.
    async fn import_images(
        &self,
        migration: &str,
        request: &ImportImages,
        progress: &ProgressFn,
    ) -> Result<(), DataError>;
}
