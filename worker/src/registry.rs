//! The node's own registry: read-only, on localhost, for the runtime of this node.
//!
//! ```text
//!  longshore/checkpoint/MIGRATION/CONTAINER:rREVISION   armed:    the checkpoint image on this node's disk
//!                                                       disarmed: the base image; a restart starts it
//!                                                       silenced: nobody, until it is disarmed or withdrawn
//!                                                       withdrawn: nobody
//!  longshore/base/NAME@DIGEST                           the base image, out of containerd's content store
//! ```
//! The runtime pulls through it like through any registry, so that unpacking, snapshotters and pull policies stay its
//! own business. What a reference stands for is kept in a small file, replaced and synced before anybody is told;
//! restarts of the worker and of the node change nothing. Only digests that were entered are answered for: a local
//! registry must not become a way to read every image of the node.
//!
//! A disarmed name has to be answered as long as its pod lives: kubelets from 1.35 on pull a known image again when
//! they meet it under a name they did not pull. These entries stay until their migration's pod is gone, a few hundred
//! bytes each.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};

use crate::{
    images::{ImageTree, Images},
    rebuild::{self, Built, RebuildError},
};

mod http;

const FILE: &str = "registry.json";
/// 2: a checkpoint may stand for nobody. Version 1 is read, too.
const VERSION: u32 = 2;
const CHECKPOINTS: &str = "longshore/checkpoint/";
const BASES: &str = "longshore/base/";

/// What the registry answers, and the only writer of it.
pub struct Registry {
    state_dir: PathBuf,
    port: u16,
    images: Images,
    answers: watch::Sender<Arc<Answers>>,
    /// Held while the file is replaced, so that changes follow one another.
    file: Arc<Mutex<()>>,
}

/// What each reference stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    version: u32,
    /// By `MIGRATION/CONTAINER`.
    checkpoints: BTreeMap<String, Checkpoint>,
    /// By digest of the topmost blob.
    bases: BTreeMap<String, Base>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checkpoint {
    tag: String,
    /// Digest of the base image, for the day it is disarmed.
    base: String,
    stands_for: StandsFor,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StandsFor {
    /// The image in this folder, below the state folder.
    Checkpoint { folder: PathBuf },
    /// The base image, as long as this pod is known to the runtime.
    Base { pod_uid: String },
    /// Nothing: its restore is about to be given up.
    Nobody,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    /// Media types by digest: of everything the image needs on this architecture.
    blobs: BTreeMap<String, String>,
}

/// Why the registry can't keep what it is told.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file is not readable as what it should be.
    #[error(
        "read the registry's state {path}: {reason}; move it away to start with an empty registry"
    )]
    State {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file can't be replaced.
    #[error("keep the registry's state")]
    Keep(#[source] RebuildError),
    /// No such reference.
    #[error("{reference} is not a reference of this node's registry")]
    NotOurs {
        /// What was asked.
        reference: String,
    },
    /// The port is taken.
    #[error("listen on 127.0.0.1:{port} for the registry")]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Registry {
    /// Loads what was kept.
    pub fn open(state_dir: &Path, port: u16, images: Images) -> Result<Arc<Self>, RegistryError> {
        let path = state_dir.join(FILE);
        let state = |reason: String| RegistryError::State {
            path: path.clone(),
            reason,
        };
        let answers = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|error| state(error.to_string()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Answers {
                version: VERSION,
                ..Answers::default()
            },
            Err(error) => return Err(state(error.to_string())),
        };
        if !(1..=VERSION).contains(&answers.version) {
            return Err(state(format!(
                "version {}, this worker knows {VERSION}",
                answers.version
            )));
        }
        let (answers, _) = watch::channel(Arc::new(answers));
        Ok(Arc::new(Self {
            state_dir: state_dir.to_owned(),
            port,
            images,
            answers,
            file: Arc::default(),
        }))
    }

    /// Answers on localhost until the task is dropped.
    pub async fn serve(self: Arc<Self>) -> Result<(), RegistryError> {
        let port = self.port;
        let listen = |source| RegistryError::Listen { port, source };
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .await
            .map_err(listen)?;
        self.serve_on(listener).await.map_err(listen)
    }

    /// The same on a listener of the caller's.
    pub async fn serve_on(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        axum::serve(listener, http::routes(self)).await
    }

    /// What a pod's spec names.
    pub fn checkpoint_reference(&self, migration: &str, container: &str, revision: u64) -> String {
        format!(
            "localhost:{}/{CHECKPOINTS}{migration}/{container}:r{revision}",
            self.port
        )
    }

    /// What names of a migration begin with, in the runtime's records.
    pub fn checkpoint_prefix(&self, migration: &str) -> String {
        format!("{}{migration}/", self.checkpoints_prefix())
    }

    /// What names of any migration begin with, in the runtime's records.
    pub fn checkpoints_prefix(&self) -> String {
        format!("localhost:{}/{CHECKPOINTS}", self.port)
    }

    /// It has an answer for this name of the runtime's, or keeps one from answering.
    pub fn knows(&self, name: &str) -> bool {
        let prefix = self.checkpoints_prefix();
        let key = name.strip_prefix(&prefix).and_then(|rest| {
            let end = rest.find([':', '@'])?;
            Some(&rest[..end])
        });
        key.is_some_and(|key| self.answers.borrow().checkpoints.contains_key(key))
    }

    /// A base image as this registry serves it: by digest, under a name that people recognise.
    pub fn base_reference(&self, image: &str, digest: &str) -> String {
        let plain = image.split('@').next().unwrap_or_default();
        let last = plain
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .split(':')
            .next()
            .unwrap_or_default();
        let name: String = last
            .chars()
            .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
            .collect();
        let name = name.trim_matches('-');
        let name = if name.is_empty() { "image" } else { name };
        format!("localhost:{}/{BASES}{name}@{digest}", self.port)
    }

    /// From now on the base image is served. Repeating this changes nothing.
    pub async fn enter_base(&self, tree: &ImageTree) -> Result<(), RegistryError> {
        let blobs = tree
            .blobs
            .iter()
            .map(|blob| (blob.digest.clone(), blob.media_type.clone()))
            .collect();
        self.change(|answers| {
            answers.bases.insert(tree.digest.clone(), Base { blobs });
        })
        .await
    }

    /// From now on the checkpoint image in `folder` (below the state folder) is served.
    pub async fn arm(
        &self,
        migration: &str,
        container: &str,
        revision: u64,
        base: &str,
        folder: &Path,
    ) -> Result<(), RegistryError> {
        let checkpoint = Checkpoint {
            tag: format!("r{revision}"),
            base: base.to_owned(),
            stands_for: StandsFor::Checkpoint {
                folder: folder.to_owned(),
            },
        };
        self.change(|answers| {
            answers
                .checkpoints
                .insert(format!("{migration}/{container}"), checkpoint);
        })
        .await
    }

    /// From now on the checkpoint's name stands for the base image. Repeating this changes nothing.
    pub async fn disarm(&self, reference: &str, pod_uid: &str) -> Result<(), RegistryError> {
        let not_ours = || RegistryError::NotOurs {
            reference: reference.to_owned(),
        };
        let (key, tag) = self.key_of(reference).ok_or_else(not_ours)?;
        let known = self
            .answers
            .borrow()
            .checkpoints
            .get(key)
            .is_some_and(|checkpoint| checkpoint.tag == tag);
        if !known {
            return Err(not_ours());
        }
        self.change(|answers| {
            if let Some(checkpoint) = answers.checkpoints.get_mut(key) {
                checkpoint.stands_for = StandsFor::Base {
                    pod_uid: pod_uid.to_owned(),
                };
            }
        })
        .await
    }

    /// From now on no checkpoint of this migration is answered; a disarming is still possible.
    pub async fn silence(&self, migration: &str) -> Result<(), RegistryError> {
        let prefix = format!("{migration}/");
        self.change(|answers| {
            let ours = answers.checkpoints.iter_mut();
            for (_, checkpoint) in ours.filter(|(key, _)| key.starts_with(&prefix)) {
                if matches!(checkpoint.stands_for, StandsFor::Checkpoint { .. }) {
                    checkpoint.stands_for = StandsFor::Nobody;
                }
            }
        })
        .await
    }

    /// From now on nothing of this migration is answered. Repeating this changes nothing.
    pub async fn withdraw(&self, migration: &str) -> Result<(), RegistryError> {
        let prefix = format!("{migration}/");
        self.change(|answers| {
            answers
                .checkpoints
                .retain(|key, _| !key.starts_with(&prefix))
        })
        .await
    }

    /// Checkpoints of this migration are answered no more; disarmed names are. Repeating this changes nothing.
    pub async fn withdraw_armed(&self, migration: &str) -> Result<(), RegistryError> {
        let prefix = format!("{migration}/");
        let armed = |checkpoint: &Checkpoint| match checkpoint.stands_for {
            StandsFor::Checkpoint { .. } | StandsFor::Nobody => true,
            StandsFor::Base { .. } => false,
        };
        self.change(|answers| {
            answers
                .checkpoints
                .retain(|key, value| !(key.starts_with(&prefix) && armed(value)))
        })
        .await
    }

    /// The pods for which disarmed names are still answered, with what those names begin with in the runtime's records.
    pub fn disarmed_pods(&self) -> BTreeMap<String, Vec<String>> {
        let mut pods: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, checkpoint) in &self.answers.borrow().checkpoints {
            if let StandsFor::Base { pod_uid } = &checkpoint.stands_for {
                let name = format!("localhost:{}/{CHECKPOINTS}{key}", self.port);
                pods.entry(pod_uid.clone()).or_default().push(name);
            }
        }
        pods
    }

    /// Disarmed names of this pod are answered no more: the pod is gone.
    pub async fn forget_pod(&self, uid: &str) -> Result<(), RegistryError> {
        let of_pod = |value: &Checkpoint| matches!(&value.stands_for, StandsFor::Base { pod_uid } if pod_uid == uid);
        self.change(|answers| answers.checkpoints.retain(|_, value| !of_pod(value)))
            .await
    }

    /// `MIGRATION/CONTAINER` and the tag of a reference of ours.
    fn key_of<'a>(&self, reference: &'a str) -> Option<(&'a str, &'a str)> {
        reference
            .strip_prefix(&format!("localhost:{}/{CHECKPOINTS}", self.port))?
            .rsplit_once(':')
    }

    /// The file first, the answers after it: what was once answered is answered after a crash, too. Both in one thread,
    /// which also lets the next change begin: whoever stops waiting for this one leaves nothing half done.
    async fn change(&self, change: impl FnOnce(&mut Answers)) -> Result<(), RegistryError> {
        let guard = self.file.clone().lock_owned().await;
        let mut answers = Answers::clone(&self.answers.borrow());
        answers.version = VERSION;
        change(&mut answers);
        if answers == **self.answers.borrow() {
            return Ok(());
        }
        let path = self.state_dir.join(FILE);
        let bytes = serde_json::to_vec_pretty(&answers).expect("strings always serialize");
        let answered = self.answers.clone();
        let replace = move || {
            rebuild::replace_file(&path, &bytes)?;
            answered.send_replace(Arc::new(answers));
            drop(guard);
            Ok(())
        };
        tokio::task::spawn_blocking(replace)
            .await
            .unwrap_or(Err(RebuildError::Stopped))
            .map_err(RegistryError::Keep)
    }

    /// The image a folder holds, if it holds one.
    fn built(&self, folder: &Path) -> Option<Built> {
        serde_json::from_slice(&fs::read(self.state_dir.join(folder).join("image.json")).ok()?).ok()
    }
}

#[cfg(test)]
mod tests;
