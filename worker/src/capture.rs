//! An archive into the store: taken apart by [`pages::capture`], its packs sent while later ones are made.
//!
//! ```text
//!  archive ─► compare, encode, seal (2 threads) ─► put (16 in flight, within a budget) ─► recipe ─► what the manifest says
//! ```
//! The caller writes the manifest after this returned: a crash before that leaves objects that nothing names, under the
//! migration's prefix, with which they are removed. Memory: the engine's (see there) and [`BYTES_IN_FLIGHT`].

use std::{collections::HashSet, fs::File, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use pages::{
    capture::{Base, Captured, capture as take_apart},
    keys::DataKey,
    manifest::{Container, Object},
    sealed::Sealed,
    source::{Opened, ReadAt},
};
use proto::worker::Span;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    rounds::Kept,
    spans::{Traffic, now_unix_ns, span_since},
    store::{Store, StoreError},
};

/// Threads that compare and encode: two outrun an ordinary network, and leave the node to its pods.
const THREADS: usize = 2;
/// Packs sent at once: S3 servers give 50-100 MB/s to one connection.
const PUTS_IN_FLIGHT: usize = 16;
/// Bytes of packs that are sent and not yet acknowledged: 16 of 4 MiB, and what a pack may have beyond that.
const BYTES_IN_FLIGHT: usize = 72 << 20;

/// What was stored.
pub struct Sent {
    /// For the manifest.
    pub container: Container,
    /// What became of the archive.
    pub captured: Captured,
    /// Bytes of the objects, equal ones once.
    pub stored_bytes: u64,
    /// Where the time went.
    pub spans: Vec<Span>,
}

/// Why an archive was not stored.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It can't be opened.
    #[error("open the archive {path}", path = path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can't be taken apart.
    #[error(transparent)]
    Engine(#[from] pages::capture::CaptureError),
    /// The store would not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The worker is shutting down.
    #[error("a thread of the worker ended early, it is shutting down")]
    Stopped,
}

/// Stores the archive of a container under `prefix`, as a difference to `base` if there is one. Repeating this writes the same objects. `progress` is
/// told how many bytes of the archive are done.
pub async fn capture(
    store: &Arc<dyn Store>,
    prefix: &str,
    name: &str,
    archive: PathBuf,
    base: Option<&Kept>,
    key: &DataKey,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<Sent, CaptureError> {
    let start = now_unix_ns();
    let opened = File::open(&archive).and_then(Opened::new);
    let source = opened.map_err(|source| CaptureError::Open {
        path: archive,
        source,
    })?;
    let total = source.size();
    let (sender, mut made) = mpsc::channel::<(Sealed, u64)>(1);
    let secret = key.clone();
    let base = base.and_then(|base| Some((Arc::clone(&base.view), base.root?)));
    let base_root = base.as_ref().map(|(_, root)| hex(*root));
    let engine = tokio::task::spawn_blocking(move || {
        let base = base.as_ref().map(|(view, root)| Base {
            source: view.as_ref(),
            root: *root,
        });
        take_apart(&source, base, &secret, THREADS, |pack, done| {
            sender.blocking_send((pack, done)).is_ok()
        })
    });
    let mut sending = Sending::new(store.clone(), prefix);
    while let Some((pack, done)) = made.recv().await {
        sending.send(pack).await?;
        progress(done);
    }
    let captured = engine.await.map_err(|_| CaptureError::Stopped)??;
    let encoded = span_since(
        &format!("compare and encode {name}"),
        "",
        start,
        [
            ("raw_bytes", total.to_string()),
            ("pages", captured.pages.to_string()),
            ("changed_pages", captured.changed_pages.to_string()),
            ("base", base_root.clone().unwrap_or_default()),
        ],
    );
    sending.send(captured.sealed_recipe.clone()).await?;
    let Stored {
        mut objects,
        bytes,
        traffic,
    } = sending.finish().await?;
    let recipe = objects.pop().ok_or(CaptureError::Stopped)?;
    let mut spans = vec![encoded];
    spans.extend(traffic.span(&format!("put packs {name}"), ""));
    Ok(Sent {
        container: Container {
            name: name.to_owned(),
            size: total,
            root: hex(captured.root),
            base: base_root,
            recipe,
            packs: objects,
        },
        captured,
        stored_bytes: bytes,
        spans,
    })
}

fn hex(root: [u8; 32]) -> String {
    blake3::Hash::from_bytes(root).to_hex().to_string()
}

/// Objects on their way.
struct Sending {
    store: Arc<dyn Store>,
    prefix: String,
    names: HashSet<String>,
    objects: Vec<Object>,
    bytes: u64,
    requests: Arc<Semaphore>,
    budget: Arc<Semaphore>,
    puts: Vec<AbortOnDropHandle<Result<(), StoreError>>>,
    traffic: Arc<Traffic>,
}

struct Stored {
    objects: Vec<Object>,
    bytes: u64,
    traffic: Arc<Traffic>,
}

impl Sending {
    fn new(store: Arc<dyn Store>, prefix: &str) -> Self {
        Self {
            store,
            prefix: prefix.to_owned(),
            names: HashSet::new(),
            objects: Vec::new(),
            bytes: 0,
            requests: Arc::new(Semaphore::new(PUTS_IN_FLIGHT)),
            budget: Arc::new(Semaphore::new(BYTES_IN_FLIGHT)),
            puts: Vec::new(),
            traffic: Arc::default(),
        }
    }

    /// Begins to send an object, waiting for room first; fails when an earlier one has failed.
    async fn send(&mut self, sealed: Sealed) -> Result<(), CaptureError> {
        let size = sealed.bytes.len();
        let object = Object {
            key: format!("{}packs/{}", self.prefix, sealed.name),
            blake3: sealed.name,
            bytes: size as u64,
        };
        self.objects.push(object.clone());
        if !self.names.insert(object.blake3) {
            return Ok(());
        }
        self.bytes += size as u64;
        // A recipe may be larger than the budget: it goes alone then.
        let room = size.min(BYTES_IN_FLIGHT) as u32;
        let closed = |_| CaptureError::Stopped;
        let turn = self
            .requests
            .clone()
            .acquire_owned()
            .await
            .map_err(closed)?;
        let room = self
            .budget
            .clone()
            .acquire_many_owned(room)
            .await
            .map_err(closed)?;
        let (store, traffic) = (self.store.clone(), self.traffic.clone());
        self.puts
            .push(AbortOnDropHandle::new(tokio::spawn(async move {
                let start = now_unix_ns();
                let put = store.put(&object.key, Bytes::from(sealed.bytes)).await;
                traffic.count(start, size as u64);
                drop((turn, room));
                put
            })));
        self.check_finished().await
    }

    /// Errors of what has ended by now; the rest goes on.
    async fn check_finished(&mut self) -> Result<(), CaptureError> {
        let (done, going): (Vec<_>, Vec<_>) = std::mem::take(&mut self.puts)
            .into_iter()
            .partition(|put| put.is_finished());
        self.puts = going;
        for put in done {
            put.await.map_err(|_| CaptureError::Stopped)??;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Stored, CaptureError> {
        for put in self.puts.drain(..) {
            put.await.map_err(|_| CaptureError::Stopped)??;
        }
        Ok(Stored {
            objects: self.objects,
            bytes: self.bytes,
            traffic: self.traffic,
        })
    }
}
