//! Bytes to the store: each source is read once, cut into packs, compressed and hashed while later ones are read and
//! earlier ones sent.
//!
//! ```text
//!  read 8 MiB ─► hash of the whole ─► compress + hash (2 threads) ─► put (16 in flight) ─► list of packs
//! ```
//! Packs are named by the hash of what is stored, so a repetition writes the same objects again and two equal packs
//! (memory full of zeros) are one. The caller writes the manifest after this returned: a crash before that leaves
//! packs that nothing names, and the prefix they lie under is removed with the migration.
//!
//! Memory: at most one piece being read, [`COMPRESSORS`] being compressed and [`PUTS_IN_FLIGHT`] being sent, each at
//! most a pack that did not compress: (1 + 2 + 16) x 8 MiB = 152 MiB, whatever the archive's size.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use proto::worker::Span;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    data::ProgressFn,
    manifest::{Pack, Packed},
    spans::{Traffic, now_unix_ns, span_since},
    store::{Store, StoreError},
};

/// Bytes a pack stands for: large enough that a request's latency (some ms) does not show beside its transfer, small
/// enough that 16 in flight fit in memory.
pub const PACK_RAW_BYTES_MAX: usize = 8 << 20;
/// Threads that compress: zstd level 1 gives 750 MB/s each, two are more than an ordinary network takes.
const COMPRESSORS: usize = 2;
/// Requests under way: S3 servers give 50-100 MB/s to one connection, so that 16 fill 10 Gbit/s.
const PUTS_IN_FLIGHT: usize = 16;
/// Memory compresses threefold at this level; higher ones take three times the time for 4 %.
const ZSTD_LEVEL: i32 = 1;

/// Pieces of at most [`PACK_RAW_BYTES_MAX`], in order.
pub type Pieces = BoxStream<'static, Result<Bytes, SaveError>>;

/// What was stored of a list of sources.
pub struct Stored {
    /// One for each source, in order.
    pub sources: Vec<Packed>,
    /// Bytes of the packs as sent, equal ones once.
    pub stored_bytes: u64,
    /// Where the time went.
    pub spans: Vec<Span>,
}

/// Why bytes were not stored.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The source can't be read.
    #[error("read {what} to store it")]
    Read {
        /// A path or digest.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A pack can't be compressed.
    #[error("compress a pack of {bytes} bytes")]
    Compress {
        /// The piece's size.
        bytes: usize,
        /// zstd's reason.
        #[source]
        source: io::Error,
    },
    /// The worker is shutting down.
    #[error("a thread of the worker ended early, it is shutting down")]
    Stopped,
    /// The store would not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Stores every source under `prefix`. Repeating this writes the same objects.
pub async fn save(
    store: &Arc<dyn Store>,
    prefix: &str,
    sources: Vec<Pieces>,
    total_bytes: u64,
    progress: &ProgressFn,
) -> Result<Stored, SaveError> {
    let start = now_unix_ns();
    let (compressing, putting) = (Arc::new(Traffic::default()), Arc::new(Traffic::default()));
    let mut sent = HashSet::new();
    let mut wholes: Vec<Packed> = Vec::new();
    let (mut done, mut stored_bytes) = (0, 0);
    let mut events = cut(sources)
        .map(|event| async {
            match event? {
                Cut::Piece(raw) => compress(prefix, raw, compressing.clone())
                    .await
                    .map(Step::Put),
                Cut::End { size, blake3 } => Ok(Step::End { size, blake3 }),
            }
        })
        .buffered(COMPRESSORS)
        .map(|step: Result<Step, SaveError>| {
            let step = step.map(|step| match step {
                // An equal pack that was sent before needs no second request: all of them are awaited before the
                // manifest is written.
                Step::Put((pack, bytes)) => {
                    let first = sent.insert(pack.key.clone());
                    Step::Put((pack, if first { bytes } else { Bytes::new() }))
                }
                end @ Step::End { .. } => end,
            });
            // A task each, so that bodies go out side by side; given up with the save, so that none arrives later.
            AbortOnDropHandle::new(tokio::spawn(put(store.clone(), step, putting.clone())))
        })
        .buffered(PUTS_IN_FLIGHT)
        .map(|sent| sent.map_err(|_| SaveError::Stopped)?)
        .boxed();
    let mut packs = Vec::new();
    while let Some(sent) = events.try_next().await? {
        match sent {
            Sent::Pack { pack, bytes } => {
                done += pack.raw_bytes;
                stored_bytes += bytes;
                packs.push(pack);
                progress("save", done, total_bytes);
            }
            Sent::End { size, blake3 } => wholes.push(Packed {
                size,
                blake3,
                packs: std::mem::take(&mut packs),
            }),
        }
    }
    drop(events);
    let mut spans = vec![span_since(
        "save packs",
        "",
        start,
        [("raw_bytes", done.to_string())],
    )];
    spans.extend(compressing.span("read and compress", "save packs"));
    spans.extend(putting.span("put packs", "save packs"));
    Ok(Stored {
        sources: wholes,
        stored_bytes,
        spans,
    })
}

/// The pieces of a file, read by threads that may block.
pub fn pieces_of_file(path: PathBuf) -> Pieces {
    let start = Reading::Closed(path);
    stream::try_unfold(start, |reading| async move {
        tokio::task::spawn_blocking(move || reading.next())
            .await
            .map_err(|_| SaveError::Stopped)?
    })
    .boxed()
}

enum Reading {
    Closed(PathBuf),
    Open(PathBuf, File),
}

impl Reading {
    fn next(self) -> Result<Option<(Bytes, Self)>, SaveError> {
        let failed = |path: &Path, source| SaveError::Read {
            what: path.display().to_string(),
            source,
        };
        let (path, mut file) = match self {
            Self::Closed(path) => {
                let file = File::open(&path).map_err(|source| failed(&path, source))?;
                (path, file)
            }
            Self::Open(path, file) => (path, file),
        };
        let mut piece = Vec::with_capacity(PACK_RAW_BYTES_MAX);
        let limit = PACK_RAW_BYTES_MAX as u64;
        (&mut file)
            .take(limit)
            .read_to_end(&mut piece)
            .map_err(|source| failed(&path, source))?;
        if piece.is_empty() {
            Ok(None)
        } else {
            Ok(Some((piece.into(), Self::Open(path, file))))
        }
    }
}

enum Cut {
    Piece(Bytes),
    End { size: u64, blake3: String },
}

enum Step {
    Put((Pack, Bytes)),
    End { size: u64, blake3: String },
}

enum Sent {
    Pack { pack: Pack, bytes: u64 },
    End { size: u64, blake3: String },
}

/// All pieces of all sources in order, an end after each source that says what it was.
fn cut(sources: Vec<Pieces>) -> BoxStream<'static, Result<Cut, SaveError>> {
    stream::iter(sources).flat_map(cut_one).boxed()
}

fn cut_one(pieces: Pieces) -> BoxStream<'static, Result<Cut, SaveError>> {
    let start = Some((pieces, Box::new(blake3::Hasher::new()), 0u64));
    stream::try_unfold(start, |state| async move {
        let Some((mut pieces, hasher, size)) = state else {
            return Ok(None);
        };
        let Some(piece) = pieces.try_next().await? else {
            let end = Cut::End {
                size,
                blake3: hasher.finalize().to_hex().to_string(),
            };
            return Ok(Some((end, None)));
        };
        // The hash of the whole has to see the pieces in order; it is ten times faster than the compression.
        let (hasher, piece) = tokio::task::spawn_blocking(move || {
            let mut hasher = hasher;
            hasher.update(&piece);
            (hasher, piece)
        })
        .await
        .map_err(|_| SaveError::Stopped)?;
        let size = size + piece.len() as u64;
        Ok(Some((Cut::Piece(piece), Some((pieces, hasher, size)))))
    })
    .boxed()
}

async fn compress(
    prefix: &str,
    raw: Bytes,
    traffic: Arc<Traffic>,
) -> Result<(Pack, Bytes), SaveError> {
    let prefix = prefix.to_owned();
    let work = move || {
        let start = now_unix_ns();
        let stored =
            zstd::bulk::compress(&raw, ZSTD_LEVEL).map_err(|source| SaveError::Compress {
                bytes: raw.len(),
                source,
            })?;
        let blake3 = blake3::hash(&stored).to_hex().to_string();
        traffic.count(start, raw.len() as u64);
        let pack = Pack {
            key: format!("{prefix}packs/{blake3}"),
            raw_bytes: raw.len() as u64,
            stored_bytes: stored.len() as u64,
            blake3,
            raw_blake3: None,
        };
        Ok((pack, Bytes::from(stored)))
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| SaveError::Stopped)?
}

async fn put(
    store: Arc<dyn Store>,
    step: Result<Step, SaveError>,
    traffic: Arc<Traffic>,
) -> Result<Sent, SaveError> {
    match step? {
        Step::End { size, blake3 } => Ok(Sent::End { size, blake3 }),
        Step::Put((pack, bytes)) if bytes.is_empty() => Ok(Sent::Pack { pack, bytes: 0 }),
        Step::Put((pack, bytes)) => {
            let start = now_unix_ns();
            let size = bytes.len() as u64;
            store.put(&pack.key, bytes).await?;
            traffic.count(start, size);
            Ok(Sent::Pack { pack, bytes: size })
        }
    }
}
