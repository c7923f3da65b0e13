//! The page engine by itself, for benches and for looking at a checkpoint: one archive into a store and out again.
//!
//! ```text
//!  page_store capture --archive A [--base B --base-manifest MB] --manifest-out M    → one line of JSON
//!  page_store restore --manifest M [--base B --base-manifest MB] [--out FILE]       → one line of JSON
//! ```
//! The store is S3 by the worker's variables (S3_ENDPOINT, S3_BUCKET, AWS_ACCESS_KEY_ID, …), or with `--local DIR` a folder,
//! which leaves the network out. The key is the bench's own and lies in the manifest file: this is no way to keep
//! checkpoints, the worker is.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use futures::{StreamExt, TryStreamExt, stream};
use pages::{
    capture::{Base, capture},
    keys::DataKey,
    rebuild::{Known, Rebuild, open_recipe},
    sealed::Sealed,
    source::{Opened, Origin, ReadAt, View},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::mpsc, task::spawn_blocking};
use worker::store::{
    Store,
    s3::{S3, S3Place},
};

const THREADS: usize = 2;
const IN_FLIGHT: usize = 16;
/// Between two looks at the memory: what a pack takes is there for longer.
const MEMORY_EVERY: Duration = Duration::from_millis(5);

#[derive(Parser)]
struct Arguments {
    /// A folder instead of S3.
    #[arg(long, global = true)]
    local: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Takes an archive apart and stores what is new in it.
    Capture {
        #[arg(long)]
        archive: PathBuf,
        #[command(flatten)]
        base: BaseArguments,
        #[arg(long)]
        manifest_out: PathBuf,
    },
    /// Fetches what is new and puts the archive together.
    Restore {
        #[arg(long)]
        manifest: PathBuf,
        #[command(flatten)]
        base: BaseArguments,
        /// Write the whole archive there, after the clock was stopped.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Where the new bytes go.
        #[arg(long, default_value = "new")]
        new: PathBuf,
    },
}

#[derive(clap::Args)]
struct BaseArguments {
    /// The archive that this one is a difference to.
    #[arg(long, requires = "base_manifest")]
    base: Option<PathBuf>,
    /// What its capture wrote.
    #[arg(long, requires = "base")]
    base_manifest: Option<PathBuf>,
}

/// What a restore must know.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: [u8; 32],
    root: [u8; 32],
    recipe: String,
    packs: Vec<String>,
}

enum Objects {
    S3(S3),
    Folder(PathBuf),
}

impl Objects {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        match self {
            Self::S3(store) => Ok(store.put(key, bytes).await?),
            Self::Folder(folder) => Ok(tokio::fs::write(folder.join(key), bytes).await?),
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        match self {
            Self::S3(store) => Ok(store.get(key).await?),
            Self::Folder(folder) => Ok(tokio::fs::read(folder.join(key)).await?.into()),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { local, verb } = Arguments::parse();
    let place = Arc::new(match local {
        Some(folder) => {
            fs::create_dir_all(&folder)?;
            Objects::Folder(folder)
        }
        None => Objects::S3(S3::new(S3Place {
            endpoint: variable("S3_ENDPOINT")?,
            region: std::env::var("S3_REGION").unwrap_or_else(|_| "us-east-1".to_owned()),
            bucket: variable("S3_BUCKET")?,
            access_key_id: variable("AWS_ACCESS_KEY_ID")?,
            secret_access_key: variable("AWS_SECRET_ACCESS_KEY")?,
        })),
    });
    let memory = Memory::watched();
    let mut told = match verb {
        Verb::Capture {
            archive,
            base,
            manifest_out,
        } => take(place, archive, base, manifest_out).await?,
        Verb::Restore {
            manifest,
            base,
            out,
            new,
        } => put_together(place, manifest, base, out, new).await?,
    };
    told["peak_anonymous_bytes"] = memory.peak().into();
    println!("{told}");
    Ok(())
}

/// The most memory of this process that was its own at once; mapped files are not.
struct Memory(Arc<AtomicU64>);

impl Memory {
    /// Watches until the process ends.
    fn watched() -> Self {
        let peak = Arc::new(AtomicU64::new(anonymous_bytes()));
        let seen = peak.clone();
        thread::spawn(move || {
            loop {
                seen.fetch_max(anonymous_bytes(), Ordering::Relaxed);
                thread::sleep(MEMORY_EVERY);
            }
        });
        Self(peak)
    }

    fn peak(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// As proc(5) tells; 0 when it doesn't.
fn anonymous_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("read the variable {name}"))
}

fn kept(path: &PathBuf) -> Result<Kept> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

async fn take(
    place: Arc<Objects>,
    archive: PathBuf,
    base: BaseArguments,
    manifest_out: PathBuf,
) -> Result<serde_json::Value> {
    let start = Instant::now();
    let base = match (base.base, base.base_manifest) {
        (Some(archive), Some(manifest)) => {
            Some((Opened::new(File::open(archive)?)?, kept(&manifest)?))
        }
        _ => None,
    };
    let key_bytes = base.as_ref().map_or([7; 32], |(_, kept)| kept.key);
    let source = Opened::new(File::open(archive)?)?;
    let (sender, made) = mpsc::channel::<Sealed>(1);
    let engine = spawn_blocking(move || {
        let base = base.as_ref().map(|(source, kept)| Base {
            source,
            root: kept.root,
        });
        let key = DataKey::from_bytes(key_bytes);
        let captured = capture(&source, base, &key, THREADS, |pack, _| {
            sender.blocking_send(pack).is_ok()
        });
        drop(sender);
        (captured, start.elapsed())
    });
    let sent = Mutex::new((Vec::new(), 0));
    let packs = stream::unfold(
        made,
        |mut made| async move { Some((made.recv().await?, made)) },
    );
    packs
        .map(|pack| {
            let mut sent = sent.lock().expect("nobody panics with it");
            sent.0.push(pack.name.clone());
            sent.1 += pack.bytes.len();
            let place = place.clone();
            tokio::spawn(async move { place.put(&pack.name, pack.bytes.into()).await })
        })
        .buffer_unordered(IN_FLIGHT)
        .map(|put| put?)
        .try_collect::<()>()
        .await?;
    let (captured, encoded) = engine.await?;
    let captured = captured?;
    let recipe = captured.sealed_recipe;
    let (packs, bytes) = sent.into_inner().expect("nobody panics with it");
    let stored = bytes + recipe.bytes.len();
    place.put(&recipe.name, recipe.bytes.into()).await?;
    let total = start.elapsed();
    let kept = Kept {
        key: key_bytes,
        root: captured.root,
        recipe: recipe.name,
        packs,
    };
    fs::write(manifest_out, serde_json::to_vec(&kept)?)?;
    Ok(json!({
        "seconds": {
            "total": total.as_secs_f64(),
            "compare_encode": encoded.as_secs_f64(),
            "put": (total - encoded).as_secs_f64(),
        },
        "raw_bytes": captured.size,
        "stored_bytes": stored,
        "recipe_bytes": captured.recipe.len(),
        "packs": kept.packs.len(),
        "pages": captured.pages,
        "changed_pages": captured.changed_pages,
    }))
}

async fn put_together(
    place: Arc<Objects>,
    manifest: PathBuf,
    base: BaseArguments,
    out: Option<PathBuf>,
    new: PathBuf,
) -> Result<serde_json::Value> {
    let start = Instant::now();
    let manifest = kept(&manifest)?;
    let key = DataKey::from_bytes(manifest.key);
    let base = match (base.base, base.base_manifest) {
        (Some(archive), Some(of)) => Some(known(archive, kept(&of)?.root)?),
        _ => None,
    };
    let recipe = open_recipe(&key, &manifest.recipe, &place.get(&manifest.recipe).await?)?;
    let rebuild = Arc::new(Rebuild::new(&recipe, base)?);
    let file = Arc::new(File::create(&new)?);
    let decoding = Arc::new(Mutex::new(0.0));
    stream::iter(manifest.packs.into_iter().enumerate())
        .map(|(number, name)| {
            let place = place.clone();
            tokio::spawn(async move { anyhow::Ok((number, place.get(&name).await?, name)) })
        })
        .buffer_unordered(IN_FLIGHT)
        .map(|got| {
            let (rebuild, file, key) = (rebuild.clone(), file.clone(), key.clone());
            let decoding = decoding.clone();
            async move {
                let (number, stored, name) = got??;
                spawn_blocking(move || {
                    let start = Instant::now();
                    rebuild.pack(&key, number, &name, &stored, file.as_ref())?;
                    *decoding.lock().expect("nobody panics with it") +=
                        start.elapsed().as_secs_f64();
                    anyhow::Ok(())
                })
                .await?
            }
        })
        .buffer_unordered(THREADS)
        .try_collect::<()>()
        .await?;
    let view = rebuild.view(Arc::new(Opened::new(File::open(&new)?)?))?;
    let total = start.elapsed().as_secs_f64();
    if let Some(out) = out {
        write_out(&view, &out)?;
    }
    let decoding = *decoding.lock().expect("nobody panics with it");
    Ok(json!({
        "seconds": {
            "total": total,
            // Of all threads together; the rest of the total is waiting for the store.
            "decode_verify_write": decoding,
        },
        "new_bytes": rebuild.new_bytes(),
        "raw_bytes": view.size(),
    }))
}

fn known(archive: PathBuf, root: [u8; 32]) -> Result<Known> {
    let source = Opened::new(File::open(archive)?)?;
    let mut view = View::default();
    let (len, source, offset) = (source.size(), Arc::new(source), 0);
    view.push(len, Origin::Source { source, offset });
    Ok(Known {
        view: Arc::new(view),
        root,
    })
}

fn write_out(view: &View, out: &PathBuf) -> Result<()> {
    use std::io::Write;
    let mut file = File::create(out)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < view.size() {
        let len = (view.size() - at).min(1 << 20) as usize;
        view.read_exact_at(&mut buffer[..len], at)?;
        file.write_all(&buffer[..len])?;
        at += len as u64;
    }
    Ok(())
}
