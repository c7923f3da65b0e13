//! The data path as the agent sees it: bytes out of archives into the store, and back into the runtime.

use std::{collections::HashMap, error::Error, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use proto::worker::{
    Container, Deliver, Delivered, DeliveredImage, Disarm, ExportImages, ExportedImages, HasImages,
    ImportImages, Span, Tidy, Verified, Verify, Withdraw,
};

use pages::{
    keys::DataKey,
    manifest::{Manifest, VERSION, wrap},
};

use tokio_util::sync::CancellationToken;

use crate::{
    capture::capture,
    content,
    images::Images,
    registry::Registry,
    restore::{image::Restorer, unless, verify},
    spans::{now_unix_ns, span_since},
    store::Store,
    trust::Trust,
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
    /// Brings every byte into this node's runtime. Ends early, and soon, once `give_way` is cancelled: a newer step of
    /// the migration waits. So do [`Data::export_images`] and [`Data::import_images`].
    async fn deliver(
        &self,
        migration: &str,
        revision: u64,
        request: &Deliver,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<(Delivered, Vec<Span>), DataError>;
    /// Were the containers restored from the checkpoint?
    async fn verify(&self, request: &Verify) -> Result<Verified, DataError>;
    /// From now on a restart starts the ordinary image.
    async fn disarm(&self, request: &Disarm) -> Result<(), DataError>;
    /// No restore of this migration can begin here any more; one that has begun goes on.
    async fn silence(&self, migration: &str, images: &[DeliveredImage]) -> Result<(), DataError>;
    /// Nothing of this migration can run here any more.
    async fn withdraw(&self, migration: &str, request: &Withdraw) -> Result<(), DataError>;
    /// Removes what this migration left on the node, and in the store when asked.
    async fn tidy(&self, migration: &str, request: &Tidy) -> Result<(), DataError>;
    /// Names of the containers whose image is not complete on this node.
    async fn has_images(&self, request: &HasImages) -> Result<Vec<String>, DataError>;
    /// By container: the digest of the image it runs from.
    async fn running_digests(
        &self,
        containers: &[Container],
    ) -> Result<HashMap<String, String>, DataError>;
    /// Stores the images of these containers.
    async fn export_images(
        &self,
        migration: &str,
        request: &ExportImages,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<ExportedImages, DataError>;
    /// Brings stored images into this node's runtime.
    async fn import_images(
        &self,
        migration: &str,
        request: &ImportImages,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<(), DataError>;
}

impl DataError {
    /// An error with all its causes, in one line for the user.
    fn of(error: impl Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        Self(text)
    }
}

/// The data path of a node: archives to the store, and from the store into the runtime.
pub struct DataPath {
    store: Arc<dyn Store>,
    images: Images,
    registry: Arc<Registry>,
    restorer: Restorer,
    keys_dir: PathBuf,
}

impl DataPath {
    /// Puts the parts together; the caller serves `registry` besides. `keys_dir` is what [`Trust`] reads.
    pub fn new(
        store: Arc<dyn Store>,
        images: Images,
        registry: Arc<Registry>,
        state_dir: PathBuf,
        keys_dir: PathBuf,
    ) -> Self {
        let (images_too, registry_too) = (images.clone(), registry.clone());
        let restorer = Restorer {
            store: store.clone(),
            images: images_too,
            registry: registry_too,
            state_dir,
            keys_dir: keys_dir.clone(),
        };
        Self {
            store,
            images,
            registry,
            restorer,
            keys_dir,
        }
    }

    /// Removes names that were kept for pods which are gone: the worker calls this every minute or so.
    pub async fn sweep(&self) -> Result<(), DataError> {
        self.restorer.sweep().await.map_err(DataError::of)
    }
}

#[async_trait]
impl Data for DataPath {
    async fn save(
        &self,
        migration: &str,
        prefix: &str,
        archives: &[(String, PathBuf)],
        progress: &ProgressFn,
    ) -> Result<Saved, DataError> {
        // Before the first byte is read: who has no keys for the checkpoint must not make it.
        let trust = Trust::load(&self.keys_dir).map_err(DataError::of)?;
        let key = DataKey::random().map_err(DataError::of)?;
        let wrapped_key = wrap(&key, &trust.recipients).map_err(DataError::of)?;
        let mut containers = Vec::new();
        let mut saved = Saved::default();
        let sizes = archives.iter().map(|(container, path)| {
            let size = std::fs::metadata(path).map(|facts| facts.len());
            size.map_err(|error| {
                DataError(format!(
                    "read the archive of container {container}: {error}"
                ))
            })
        });
        let total: u64 = sizes.sum::<Result<u64, DataError>>()?;
        for (container, path) in archives {
            let before = saved.raw_bytes;
            let progress = |done: u64| progress("save", before + done, total);
            let sent = capture(
                &self.store,
                prefix,
                container,
                path.clone(),
                &key,
                &progress,
            )
            .await
            .map_err(DataError::of)?;
            saved.raw_bytes += sent.container.size;
            saved.stored_bytes += sent.stored_bytes;
            saved.packs += u32::try_from(sent.container.packs.len()).unwrap_or(u32::MAX);
            saved.spans.extend(sent.spans);
            containers.push(sent.container);
        }
        let manifest = Manifest {
            version: VERSION,
            migration: migration.to_owned(),
            created_unix_ns: now_unix_ns(),
            wrapped_key,
            containers,
        };
        // The manifest is last: while it is missing there is no checkpoint, however many packs there are.
        let start = now_unix_ns();
        let bytes = manifest.to_bytes(&key);
        saved.manifest_blake3 = blake3::hash(&bytes).to_hex().to_string();
        saved.manifest_key = format!("{prefix}manifest");
        saved.stored_bytes += bytes.len() as u64;
        self.store
            .put(&saved.manifest_key, bytes.into())
            .await
            .map_err(DataError::of)?;
        saved.spans.push(span_since("put manifest", "", start, []));
        Ok(saved)
    }

    async fn deliver(
        &self,
        migration: &str,
        revision: u64,
        request: &Deliver,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<(Delivered, Vec<Span>), DataError> {
        self.restorer
            .deliver(migration, revision, request, progress, give_way)
            .await
            .map_err(DataError::of)
    }

    async fn verify(&self, request: &Verify) -> Result<Verified, DataError> {
        let prefix = self.registry.checkpoint_prefix(&request.migration_id);
        verify::verify(&self.images, &prefix, request)
            .await
            .map_err(DataError::of)
    }

    async fn disarm(&self, request: &Disarm) -> Result<(), DataError> {
        self.restorer.disarm(request).await.map_err(DataError::of)
    }

    async fn silence(&self, migration: &str, images: &[DeliveredImage]) -> Result<(), DataError> {
        self.restorer
            .silence(migration, images)
            .await
            .map_err(DataError::of)
    }

    async fn withdraw(&self, migration: &str, request: &Withdraw) -> Result<(), DataError> {
        self.restorer
            .withdraw(migration, request)
            .await
            .map_err(DataError::of)
    }

    async fn tidy(&self, migration: &str, request: &Tidy) -> Result<(), DataError> {
        self.restorer
            .tidy(migration, request)
            .await
            .map_err(DataError::of)
    }

    async fn has_images(&self, request: &HasImages) -> Result<Vec<String>, DataError> {
        content::missing_images(&self.images, &request.containers)
            .await
            .map_err(DataError::of)
    }

    async fn running_digests(
        &self,
        containers: &[Container],
    ) -> Result<HashMap<String, String>, DataError> {
        content::running_digests(&self.images, containers)
            .await
            .map_err(DataError::of)
    }

    async fn export_images(
        &self,
        migration: &str,
        request: &ExportImages,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<ExportedImages, DataError> {
        let export = content::export(&self.store, &self.images, migration, request, progress);
        unless(give_way, export).await.map_err(DataError::of)
    }

    async fn import_images(
        &self,
        migration: &str,
        request: &ImportImages,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<(), DataError> {
        content::import(
            &self.store,
            &self.images,
            &self.registry,
            migration,
            request,
            progress,
            give_way,
        )
        .await
        .map_err(DataError::of)
    }
}
