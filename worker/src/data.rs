//! The data path as the agent sees it: bytes out of archives into the store, and back into the runtime.

use std::{collections::HashMap, error::Error, fs::File, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use proto::worker::{
    Base, Container, Deliver, Delivered, DeliveredImage, Disarm, ExportImages, ExportedImages,
    HasImages, ImportImages, Receive, Span, StoreChecked, StoreListing, Tidy, Verified, Verify,
    Withdraw,
};

use pages::{
    keys::DataKey,
    manifest::{Manifest, Object, VERSION, wrap},
    source::Opened,
};

use tokio_util::sync::CancellationToken;

use crate::{
    audit,
    capture::capture,
    content,
    gather::Named,
    images::Images,
    registry::Registry,
    restore::{image::Restorer, unless, verify},
    rounds::{Kept, Round, Rounds},
    spans::{now_unix_ns, span_since},
    store::Store,
    trust::Trust,
};

/// Told how far a transfer is: what, bytes done, bytes in all (0: not known).
pub type ProgressFn = dyn Fn(&str, u64, u64) + Send + Sync;

/// What is to be stored.
#[derive(Clone, Copy)]
pub struct Stores<'a> {
    /// UID of the migration.
    pub migration: &'a str,
    /// Under which keys.
    pub prefix: &'a str,
    /// By container, in the pod's order.
    pub archives: &'a [(String, PathBuf)],
    /// As a difference to this one, if this node has kept it; else whole.
    pub base: Option<&'a Base>,
}

/// What was stored.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// Key of the manifest, which was written last.
    pub manifest_key: String,
    /// Hash of its bytes.
    pub manifest_blake3: String,
    /// Its bytes.
    pub manifest_bytes: u64,
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
    /// Stores the archives of a migration, manifest last.
    async fn save(&self, what: Stores<'_>, progress: &ProgressFn) -> Result<Saved, DataError>;
    /// The same, and keeps the archives' bytes as a base.
    async fn copy(&self, what: Stores<'_>, progress: &ProgressFn) -> Result<Saved, DataError>;
    /// Brings every byte of a round to this node and keeps it as a base.
    async fn receive(
        &self,
        migration: &str,
        request: &Receive,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<Vec<Span>, DataError>;
    /// Brings every byte into this node's runtime. Ends early, and soon, once `give_way` is cancelled: a newer step of
    /// the migration waits. So do [`Data::receive`], [`Data::export_images`] and [`Data::import_images`].
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
    /// What lies in the store, by migration. A data path without a store has none to tell of.
    async fn list_store(&self) -> Result<StoreListing, DataError> {
        Err(DataError("this node has no store".to_owned()))
    }
    /// Is every checkpoint of this migration whole?
    async fn check_store(&self, _migration: &str) -> Result<StoreChecked, DataError> {
        Err(DataError("this node has no store".to_owned()))
    }
    /// Removes everything of a migration from the store.
    async fn clear_store(&self, _migration: &str) -> Result<(), DataError> {
        Err(DataError("this node has no store".to_owned()))
    }
}

impl DataError {
    /// An error with all its causes, in one line for the user.
    pub(crate) fn of(error: impl Error) -> Self {
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
    rounds: Rounds,
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
    ) -> std::io::Result<Self> {
        let (images_too, registry_too) = (images.clone(), registry.clone());
        let rounds = Rounds::open(&state_dir)?;
        let restorer = Restorer {
            store: store.clone(),
            images: images_too,
            registry: registry_too,
            rounds: rounds.clone(),
            state_dir,
            keys_dir: keys_dir.clone(),
        };
        Ok(Self {
            store,
            images,
            registry,
            restorer,
            rounds,
            keys_dir,
        })
    }

    /// Removes names that were kept for pods which are gone: the worker calls this every minute or so.
    pub async fn sweep(&self) -> Result<(), DataError> {
        self.rounds.sweep().map_err(DataError::of)?;
        self.restorer.sweep().await.map_err(DataError::of)
    }

    /// Stores archives; gives besides what a base of them needs: the lineage's key and the roots.
    async fn store(
        &self,
        what: Stores<'_>,
        progress: &ProgressFn,
    ) -> Result<(Saved, DataKey, Vec<[u8; 32]>), DataError> {
        let Stores {
            migration,
            prefix,
            archives,
            base,
        } = what;
        // Before the first byte is read: who has no keys for the checkpoint must not make it.
        let trust = Trust::load(&self.keys_dir).map_err(DataError::of)?;
        let base = base.and_then(|base| self.rounds.get(migration, &base.manifest_blake3));
        // A difference and its base are of one lineage, under one key.
        let key = match &base {
            Some(base) => base.key.clone(),
            None => DataKey::random().map_err(DataError::of)?,
        };
        let wrapped_key = wrap(&key, &trust.recipients).map_err(DataError::of)?;
        let mut containers = Vec::new();
        let mut roots = Vec::new();
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
                base.as_ref().and_then(|base| base.archive(container)),
                &key,
                &progress,
            )
            .await
            .map_err(DataError::of)?;
            saved.raw_bytes += sent.container.size;
            saved.stored_bytes += sent.stored_bytes;
            saved.packs += u32::try_from(sent.container.packs.len()).unwrap_or(u32::MAX);
            saved.spans.extend(sent.spans);
            roots.push(sent.captured.root);
            containers.push(sent.container);
        }
        let manifest = Manifest {
            version: VERSION,
            migration: migration.to_owned(),
            created_unix_ns: now_unix_ns(),
            wrapped_key,
            base: base.map(|base| Object {
                key: base.manifest_key.clone(),
                blake3: base.manifest_blake3.clone(),
                bytes: base.manifest_bytes,
            }),
            containers,
        };
        self.conclude(prefix, &manifest, &key, &mut saved).await?;
        Ok((saved, key, roots))
    }

    /// The manifest is last: while it is missing there is no checkpoint, however many packs there are.
    async fn conclude(
        &self,
        prefix: &str,
        manifest: &Manifest,
        key: &DataKey,
        saved: &mut Saved,
    ) -> Result<(), DataError> {
        let start = now_unix_ns();
        let bytes = manifest.to_bytes(key);
        saved.manifest_blake3 = blake3::hash(&bytes).to_hex().to_string();
        saved.manifest_key = format!("{prefix}manifest");
        saved.manifest_bytes = bytes.len() as u64;
        saved.stored_bytes += bytes.len() as u64;
        self.store
            .put(&saved.manifest_key, bytes.into())
            .await
            .map_err(DataError::of)?;
        saved.spans.push(span_since("put manifest", "", start, []));
        Ok(())
    }
}

#[async_trait]
impl Data for DataPath {
    async fn save(&self, what: Stores<'_>, progress: &ProgressFn) -> Result<Saved, DataError> {
        let (saved, ..) = self.store(what, progress).await?;
        Ok(saved)
    }

    async fn copy(&self, what: Stores<'_>, progress: &ProgressFn) -> Result<Saved, DataError> {
        let (saved, key, roots) = self.store(what, progress).await?;
        let mut archives = Vec::new();
        for ((container, path), root) in what.archives.iter().zip(roots) {
            let opened = File::open(path).and_then(Opened::new);
            let opened = opened.map_err(|error| {
                DataError(format!(
                    "keep the archive of container {container}: {error}"
                ))
            })?;
            archives.push((container.clone(), Kept::of_file(opened, path.clone(), root)));
        }
        self.rounds.keep(Round {
            migration: what.migration.to_owned(),
            manifest_blake3: saved.manifest_blake3.clone(),
            manifest_key: saved.manifest_key.clone(),
            manifest_bytes: saved.manifest_bytes,
            key,
            archives,
        });
        Ok(saved)
    }

    async fn receive(
        &self,
        migration: &str,
        request: &Receive,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<Vec<Span>, DataError> {
        let Base {
            manifest_key,
            manifest_blake3,
        } = request.round.clone().unwrap_or_default();
        let round = Named {
            key: manifest_key,
            blake3: manifest_blake3,
        };
        let receive = self.restorer.receive(migration, &round, progress);
        unless(give_way, receive).await.map_err(DataError::of)
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

    async fn list_store(&self) -> Result<StoreListing, DataError> {
        audit::list(self.store.as_ref())
            .await
            .map_err(DataError::of)
    }

    async fn check_store(&self, migration: &str) -> Result<StoreChecked, DataError> {
        let trust = Trust::load(&self.keys_dir).map_err(DataError::of)?;
        audit::check(&self.store, &trust, migration)
            .await
            .map_err(DataError::of)
    }

    async fn clear_store(&self, migration: &str) -> Result<(), DataError> {
        // A prefix of nothing would be everybody's.
        if migration.is_empty() || migration.contains('/') {
            return Err(DataError(format!("{migration:?} is no migration")));
        }
        audit::clear(self.store.as_ref(), migration)
            .await
            .map_err(DataError::of)
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

#[cfg(test)]
mod tests;
