//! An archive out of the store: what is new in it is fetched, proved and written to one file; the archive is a view of
//! that file.
//!
//! ```text
//!  manifest ─► recipe ─► packs, 16 gets in flight, any order ─► seal, frames, hashes (2 threads) ─► file of new bytes
//! ```
//! Manifests of version 1, written before archives were sealed, are read too: their packs hold the archive one behind the
//! other, and a hash of the whole proves it.
//!
//! Memory: [`GETS_IN_FLIGHT`] objects of at most 5 MiB, [`DECODERS`] of them decrypted and a frame of each decoded.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, TryStreamExt, stream};
use pages::{
    keys::DataKey,
    manifest::{self, Container, Object},
    rebuild::{Known, Rebuild, RebuildError as EngineError, open_recipe},
    source::{Opened, Origin, View},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    fetch::{self, FetchError},
    manifest::{ContainerArchive, Manifest, ManifestError, Packed},
    rounds::{Kept, KeptFile},
    spans::Traffic,
    store::{Store, StoreError},
    trust::Trust,
};

/// First bytes of S3 come after some 40 ms: 16 at once hide them.
const GETS_IN_FLIGHT: usize = 16;
/// Threads that decrypt, decode and write.
const DECODERS: usize = 2;

/// A checkpoint as its manifest describes it, of whichever version.
#[derive(Debug)]
pub struct Checkpoint {
    /// UID of the migration that made it.
    pub migration: String,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// The checkpoint that its archives are differences to.
    pub base: Option<Named>,
    /// By container, in the pod's order.
    pub archives: Vec<(String, Archive)>,
}

/// A stored checkpoint by its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where the manifest is.
    pub key: String,
    /// blake3 of its bytes, hex.
    pub blake3: String,
}

/// An archive in the store.
#[derive(Clone, Debug)]
pub enum Archive {
    /// Version 1: compressed, in order.
    Plain(Packed),
    /// Version 2: taken apart and sealed.
    Paged {
        /// What the manifest says.
        container: Box<Container>,
        /// The lineage's key.
        key: DataKey,
    },
}

/// Why an archive can't be had.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The manifest of version 1.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest.
    #[error("manifest {key:?}")]
    Sealed {
        /// Where it was read.
        key: String,
        /// What does not fit.
        #[source]
        source: manifest::ManifestError,
    },
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
    /// The store would not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pack of version 1.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// An object is not what was stored, or does not fit the others.
    #[error("checkpoint of container {container:?}, object {key:?}")]
    Object {
        /// Whose.
        container: String,
        /// Which; empty when it is the whole.
        key: String,
        /// What does not fit.
        #[source]
        source: EngineError,
    },
    /// All packs were sound, and yet it is not the archive that was captured.
    #[error("{reason}: it is not what was captured and is not used")]
    NotTheArchive {
        /// What differs.
        reason: String,
    },
    /// The file of new bytes.
    #[error("{doing} {path}", path = path.display())]
    Disk {
        /// A verb.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The worker is shutting down.
    #[error("a thread of the worker ended early, it is shutting down")]
    Stopped,
}

impl Archive {
    /// Bytes of the archive.
    pub fn size(&self) -> u64 {
        match self {
            Self::Plain(packed) => packed.size,
            Self::Paged { container, .. } => container.size,
        }
    }

    /// The lineage's key; none in version 1.
    pub fn key(&self) -> Option<&DataKey> {
        match self {
            Self::Plain(_) => None,
            Self::Paged { key, .. } => Some(key),
        }
    }

    /// What no other archive is called.
    pub fn identity(&self) -> &str {
        match self {
            Self::Plain(packed) => &packed.blake3,
            Self::Paged { container, .. } => &container.root,
        }
    }
}

/// Reads a manifest of any version, proves it against the hash that was promised, and with it its seal.
pub fn open_manifest(
    key: &str,
    bytes: &[u8],
    expected_blake3: &str,
    trust: &Trust,
) -> Result<Checkpoint, GatherError> {
    let found = blake3::hash(bytes).to_hex();
    if found.as_str() != expected_blake3 {
        return Err(GatherError::Hash {
            key: key.to_owned(),
            expected: expected_blake3.to_owned(),
            found: found.to_string(),
        });
    }
    let manifest_bytes = bytes.len() as u64;
    match manifest::Manifest::open(bytes, &trust.identities) {
        Ok((manifest, key)) => Ok(Checkpoint {
            migration: manifest.migration,
            manifest_bytes,
            base: manifest.base.map(|base| Named {
                key: base.key,
                blake3: base.blake3,
            }),
            archives: manifest
                .containers
                .into_iter()
                .map(|container| {
                    let name = container.name.clone();
                    let (container, key) = (Box::new(container), key.clone());
                    (name, Archive::Paged { container, key })
                })
                .collect(),
        }),
        Err(manifest::ManifestError::Version { found: 1 }) => {
            let manifest = Manifest::from_bytes(key, bytes, expected_blake3)?;
            let archives = manifest.containers.into_iter();
            Ok(Checkpoint {
                migration: manifest.migration,
                manifest_bytes,
                base: None,
                archives: archives
                    .map(|ContainerArchive { container, archive }| {
                        (container, Archive::Plain(archive))
                    })
                    .collect(),
            })
        }
        Err(source) => Err(GatherError::Sealed {
            key: key.to_owned(),
            source,
        }),
    }
}

/// Fetches what is new in an archive into the file `new` and gives the archive as a view of it and of its base. `new` is
/// written from its beginning; after an error it is worth nothing.
pub async fn gather(
    store: Arc<dyn Store>,
    archive: &Archive,
    base: Option<&Kept>,
    new: &Path,
    traffic: Arc<Traffic>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Kept, GatherError> {
    let disk = |doing| {
        let path = new.to_owned();
        move |source| GatherError::Disk {
            doing,
            path,
            source,
        }
    };
    let file = File::create(new).map_err(disk("create"))?;
    let opened = || -> Result<KeptFile, GatherError> {
        let opened = File::open(new)
            .and_then(Opened::new)
            .map_err(disk("open"))?;
        Ok(KeptFile {
            source: Arc::new(opened),
            path: new.to_owned(),
        })
    };
    match archive {
        Archive::Plain(packed) => {
            plain(store, packed, file, new, traffic, progress).await?;
            let mut view = View::default();
            let (opened, offset) = (opened()?, 0);
            let source = Arc::clone(&opened.source);
            view.push(packed.size, Origin::Source { source, offset });
            Ok(Kept {
                view: Arc::new(view),
                root: None,
                files: vec![opened],
            })
        }
        Archive::Paged { container, key } => {
            // A base at hand is used only where the archive is a difference to something.
            let base = base.filter(|_| container.base.is_some());
            let known = base.and_then(|base| {
                let view = Arc::clone(&base.view);
                base.root.map(|root| Known { view, root })
            });
            let rebuild = paged(store, container, key, known, file, traffic, progress).await?;
            let opened = opened()?;
            let view = rebuild.view(Arc::clone(&opened.source));
            let view = view.map_err(|source| of(&container.name, "", source))?;
            let mut files = vec![opened];
            files.extend(base.into_iter().flat_map(|base| base.files.clone()));
            Ok(Kept {
                view: Arc::new(view),
                root: Some(rebuild.root()),
                files,
            })
        }
    }
}

async fn plain(
    store: Arc<dyn Store>,
    packed: &Packed,
    file: File,
    new: &Path,
    traffic: Arc<Traffic>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), GatherError> {
    let mut packs = std::pin::pin!(fetch::packs(store, packed, traffic));
    let mut state = (file, blake3::Hasher::new());
    let mut size = 0;
    while let Some(pack) = packs.try_next().await? {
        size += pack.len() as u64;
        let path = new.to_owned();
        let write = move || {
            let (file, hasher) = &mut state;
            hasher.update(&pack);
            match file.write_all(&pack) {
                Ok(()) => Ok(state),
                Err(source) => Err(GatherError::Disk {
                    doing: "write",
                    path,
                    source,
                }),
            }
        };
        state = tokio::task::spawn_blocking(write)
            .await
            .map_err(|_| GatherError::Stopped)??;
        progress(size);
    }
    let found = state.1.finalize().to_hex();
    if size != packed.size || found.as_str() != packed.blake3 {
        let reason = format!(
            "it has {size} bytes and hash {found}, expected {} and {}",
            packed.size, packed.blake3
        );
        return Err(GatherError::NotTheArchive { reason });
    }
    Ok(())
}

async fn paged(
    store: Arc<dyn Store>,
    container: &Container,
    key: &DataKey,
    base: Option<Known>,
    file: File,
    traffic: Arc<Traffic>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Arc<Rebuild>, GatherError> {
    let Object {
        key: at, blake3, ..
    } = &container.recipe;
    let stored = fetch::object(store.as_ref(), at, &traffic).await?;
    let recipe =
        open_recipe(key, blake3, &stored).map_err(|source| of(&container.name, at, source))?;
    let rebuild = Rebuild::new(&recipe, base).map_err(|source| of(&container.name, at, source))?;
    // The manifest is sealed, and yet: two parts of one checkpoint that contradict each other are not followed.
    let root = blake3::Hash::from_bytes(rebuild.root()).to_hex();
    let fits = rebuild.packs() == container.packs.len()
        && rebuild.size() == container.size
        && root.as_str() == container.root;
    if !fits {
        let reason = "manifest and recipe name different archives".to_owned();
        return Err(GatherError::NotTheArchive { reason });
    }
    let rebuild = Arc::new(rebuild);
    let file = Arc::new(file);
    let count = container.packs.len().max(1) as u64;
    let packs = container.packs.clone().into_iter().enumerate();
    let mut done = 0;
    let mut written = stream::iter(packs)
        // A task each: bodies go on arriving while others are decoded.
        .map(|(number, object)| {
            let (store, traffic) = (store.clone(), traffic.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                let stored = fetch::object(store.as_ref(), &object.key, &traffic).await;
                stored.map(|stored| (number, object, stored))
            }))
        })
        .buffer_unordered(GETS_IN_FLIGHT)
        .map(|got| {
            let (rebuild, file, key) = (rebuild.clone(), file.clone(), key.clone());
            let name = container.name.clone();
            async move {
                let (number, object, stored) = got.map_err(|_| GatherError::Stopped)??;
                let write = move || {
                    let written =
                        rebuild.pack(&key, number, &object.blake3, &stored, file.as_ref());
                    written.map_err(|source| of(&name, &object.key, source))
                };
                tokio::task::spawn_blocking(write)
                    .await
                    .map_err(|_| GatherError::Stopped)?
            }
        })
        .buffer_unordered(DECODERS);
    while written.try_next().await?.is_some() {
        done += 1;
        progress(container.size / count * done);
    }
    drop(written);
    progress(container.size);
    Ok(rebuild)
}

fn of(container: &str, key: &str, source: EngineError) -> GatherError {
    GatherError::Object {
        container: container.to_owned(),
        key: key.to_owned(),
        source,
    }
}
