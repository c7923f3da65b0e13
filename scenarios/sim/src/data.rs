//! The data path of a simulated node: archives become packs and a manifest, a manifest becomes an image that the
//! registry answers for. The order of effects is the production data path's; the bytes are not there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use proto::{
    cri,
    worker::{
        Base, Container, Deliver, Delivered, DeliveredImage, Disarm, ExportImages, ExportedImages,
        HasImages, ImportImages, Receive, Span, Tidy, Verified, Verify, Withdraw,
    },
};
use tokio_util::sync::CancellationToken;
use worker::{
    containerd::TaskState,
    data::{Data, DataError, ProgressFn, Saved, Stores},
    restore::verify::judge_pod,
};

use crate::{
    machine::Hands,
    mistakes::Mistake,
    store::Manifest,
    truth::{self, Content, Entry},
};

/// A pod deleted with grace 0 is gone after some 3 s; after this the answer is "not proved", as in production.
const GONE_POLLS: u32 = 40;
const GONE_POLL: Duration = Duration::from_millis(200);

/// What the registry answers for begins like this.
#[must_use]
pub fn prefix(migration: &str) -> String {
    format!("localhost:5717/longshore/checkpoint/{migration}/")
}

#[async_trait]
impl Data for Hands {
    async fn save(&self, what: Stores<'_>, _progress: &ProgressFn) -> Result<Saved, DataError> {
        let Stores {
            migration,
            prefix,
            archives,
            base,
        } = what;
        // Sent whole where this process has not the base.
        let base = base.filter(|base| self.has_base(migration, &base.manifest_blake3));
        let base = base.map(|base| (base.manifest_key.clone(), base.manifest_blake3.clone()));
        let mut memories = BTreeMap::new();
        let mut packs = Vec::new();
        let mut pod = String::new();
        for (container, path) in archives {
            let archive = self.look(|machine| machine.archives.get(path).cloned());
            let archive =
                archive.ok_or_else(|| DataError(format!("the archive of {container} is gone")))?;
            memories.insert(container.clone(), archive.memory);
            pod = archive.pod;
            packs.push(format!("{prefix}packs/{container}"));
        }
        let manifest_blake3 = format!("{memories:?} on {base:?}");
        let manifest_key = format!("{prefix}manifest.json");
        let saved = Saved {
            manifest_key: manifest_key.clone(),
            manifest_blake3: manifest_blake3.clone(),
            packs: 1,
            ..Saved::default()
        };
        let manifest = Manifest {
            migration: migration.to_owned(),
            pod,
            memories,
            packs: packs.clone(),
            base,
            blake3: manifest_blake3,
        };
        if self.sim.makes(Mistake::CommitBeforeTheManifest) {
            let (store, key) = (self.store.clone(), manifest_key.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(3)).await;
                store.put_manifest(&key, manifest).await
            });
            return Ok(saved);
        }
        for pack in &packs {
            self.store.put_pack(pack).await.map_err(DataError)?;
        }
        let put = self.store.put_manifest(&manifest_key, manifest).await;
        put.map_err(DataError)?;
        Ok(saved)
    }

    async fn copy(&self, what: Stores<'_>, progress: &ProgressFn) -> Result<Saved, DataError> {
        let saved = self.save(what, progress).await?;
        self.keep_base(what.migration, &saved.manifest_blake3);
        let own = format!("checkpoints/{}/", what.migration);
        let others = what
            .base
            .filter(|base| !base.manifest_key.starts_with(&own));
        if let Some(base) = others.filter(|_| self.sim.makes(Mistake::BaseCollected)) {
            let removed = self.store.remove(&base.manifest_key).await;
            removed.map_err(DataError)?;
        }
        Ok(saved)
    }

    async fn receive(
        &self,
        migration: &str,
        request: &Receive,
        _progress: &ProgressFn,
        _give_way: &CancellationToken,
    ) -> Result<Vec<Span>, DataError> {
        let Base {
            manifest_key,
            manifest_blake3,
        } = request.round.clone().unwrap_or_default();
        let fetched = self.base(migration, &manifest_key, &manifest_blake3).await;
        fetched.map_err(DataError)?;
        Ok(Vec::new())
    }

    async fn deliver(
        &self,
        migration: &str,
        revision: u64,
        request: &Deliver,
        _progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<(Delivered, Vec<Span>), DataError> {
        let gave_way = || DataError("given up for a newer step".to_owned());
        let fetch = self.fetch(migration, request);
        let fetched = give_way.run_until_cancelled(fetch).await;
        let manifest = fetched.ok_or_else(gave_way)?.map_err(DataError)?;
        let mut images = Vec::new();
        for (container, memory) in manifest.memories {
            let reference = format!("{}{container}:r{revision}", prefix(migration));
            let content = Content::Checkpoint(memory);
            self.touch("arm the registry", |inner, node| {
                let entry = Entry {
                    migration: migration.to_owned(),
                    content,
                    silent: false,
                };
                let registry = &mut inner.truth.machine(node).registry;
                registry.insert(reference.clone(), entry);
            })
            .await;
            let pull = self.touch("pull the checkpoint", |inner, node| {
                let images = &mut inner.truth.machine(node).images;
                images.insert(reference.clone(), content);
            });
            let pulled = give_way.run_until_cancelled(pull).await;
            pulled.ok_or_else(gave_way)?;
            images.push(DeliveredImage {
                container,
                image_id: format!("sha256:{reference}"),
                reference,
            });
        }
        Ok((Delivered { images }, Vec::new()))
    }

    async fn verify(&self, request: &Verify) -> Result<Verified, DataError> {
        self.life.edge("verify").await;
        let Some(pod) = &request.pod else {
            return Ok(Verified::default());
        };
        let prefix = prefix(&request.migration_id);
        let blind = self.sim.makes(Mistake::FreshTakenForRestored);
        let containers = self.look(|machine| {
            let local = machine.pods.get(&pod.uid);
            let judged = pod.containers.iter().map(|wanted| {
                let all = local.into_iter().flat_map(|local| &local.containers);
                let attempts = all.filter(|c| c.name == wanted.name);
                let claim = blind.then_some(&prefix);
                let statuses: Vec<_> = attempts.map(|c| status(c, claim)).collect();
                (wanted.name.clone(), statuses)
            });
            judge_pod(&prefix, &judged.collect::<Vec<_>>())
        });
        Ok(Verified { containers })
    }

    async fn disarm(&self, request: &Disarm) -> Result<(), DataError> {
        for DeliveredImage { reference, .. } in &request.images {
            self.touch("disarm the registry", |inner, node| {
                let entry = inner.truth.machine(node).registry.get_mut(reference);
                if let Some(entry) = entry {
                    entry.content = Content::Base;
                    entry.silent = false;
                }
            })
            .await;
            self.touch("pull the base image", |inner, node| {
                let images = &mut inner.truth.machine(node).images;
                images.insert(reference.clone(), Content::Base);
            })
            .await;
        }
        Ok(())
    }

    async fn silence(&self, migration: &str, _: &[DeliveredImage]) -> Result<(), DataError> {
        self.touch("silence the registry", |inner, node| {
            let entries = inner.truth.machine(node).registry.values_mut();
            for entry in entries.filter(|entry| entry.migration == migration) {
                entry.silent |= entry.content != Content::Base;
            }
        })
        .await;
        self.forget_images(migration).await;
        Ok(())
    }

    async fn withdraw(&self, migration: &str, request: &Withdraw) -> Result<(), DataError> {
        self.touch("withdraw from the registry", |inner, node| {
            let registry = &mut inner.truth.machine(node).registry;
            registry.retain(|_, entry| entry.migration != migration);
        })
        .await;
        self.forget_images(migration).await;
        self.forget_bases(migration);
        let uid = request.pod.as_ref().map_or("", |pod| pod.uid.as_str());
        if uid.is_empty() {
            return Ok(());
        }
        for _ in 0..GONE_POLLS {
            self.life.edge("look for the pod").await;
            if self.look(|machine| !machine.pods.contains_key(uid)) {
                return Ok(());
            }
            tokio::time::sleep(GONE_POLL).await;
        }
        Err(DataError(format!("pod {uid} is not gone from this node")))
    }

    async fn tidy(&self, migration: &str, request: &Tidy) -> Result<(), DataError> {
        self.touch("withdraw what is armed", |inner, node| {
            let registry = &mut inner.truth.machine(node).registry;
            registry.retain(|_, e| {
                e.migration != migration || !matches!(e.content, Content::Checkpoint(_))
            });
        })
        .await;
        self.forget_images(migration).await;
        self.forget_bases(migration);
        let prefix = match self.sim.makes(Mistake::KeptNotKept) {
            true => format!("checkpoints/{migration}/"),
            false => request.store_prefix.clone(),
        };
        if prefix.is_empty() {
            return Ok(());
        }
        let removed = self.store.remove(&prefix).await;
        removed.map_err(DataError)
    }

    async fn clear_store(&self, migration: &str) -> Result<(), DataError> {
        let below = format!("checkpoints/{migration}/");
        self.store.remove(&below).await.map_err(DataError)
    }

    async fn has_images(&self, _request: &HasImages) -> Result<Vec<String>, DataError> {
        self.life.edge("look for images").await;
        Ok(Vec::new())
    }

    async fn running_digests(
        &self,
        _containers: &[Container],
    ) -> Result<HashMap<String, String>, DataError> {
        Ok(HashMap::new())
    }

    async fn export_images(
        &self,
        _: &str,
        _: &ExportImages,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<ExportedImages, DataError> {
        Err(DataError("base images are everywhere".to_owned()))
    }

    async fn import_images(
        &self,
        _: &str,
        _: &ImportImages,
        _: &ProgressFn,
        _: &CancellationToken,
    ) -> Result<(), DataError> {
        Err(DataError("base images are everywhere".to_owned()))
    }
}

impl Hands {
    async fn fetch(&self, migration: &str, request: &Deliver) -> Result<Manifest, String> {
        let Deliver {
            pod: _,
            manifest_key,
            manifest_blake3,
        } = request;
        let manifest = self.store.manifest(manifest_key, manifest_blake3).await?;
        if manifest.migration != migration {
            return Err("it is another migration's".to_owned());
        }
        self.bytes_of(migration, &manifest).await?;
        Ok(manifest)
    }

    /// Everything that it is put together from.
    async fn bytes_of(&self, migration: &str, manifest: &Manifest) -> Result<(), String> {
        if let Some((key, blake3)) = &manifest.base {
            // In a box: it may need what is below it in turn.
            Box::pin(self.base(migration, key, blake3)).await?;
        }
        for pack in &manifest.packs {
            self.store.pack(pack).await?;
        }
        Ok(())
    }

    async fn base(&self, migration: &str, key: &str, blake3: &str) -> Result<(), String> {
        if self.has_base(migration, blake3) {
            return Ok(());
        }
        let manifest = self.store.manifest(key, blake3).await?;
        self.bytes_of(migration, &manifest).await?;
        self.keep_base(migration, blake3);
        Ok(())
    }

    fn bases(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_base(&self, migration: &str, blake3: &str) -> bool {
        let name = (migration.to_owned(), blake3.to_owned());
        self.bases().contains(&name)
    }

    fn keep_base(&self, migration: &str, blake3: &str) {
        let name = (migration.to_owned(), blake3.to_owned());
        self.bases().insert(name);
    }

    fn forget_bases(&self, migration: &str) {
        self.bases().retain(|(of, _)| of != migration);
    }

    async fn forget_images(&self, migration: &str) {
        let ours = prefix(migration);
        self.touch("forget images", |inner, node| {
            let images = &mut inner.truth.machine(node).images;
            images.retain(|name, content| !name.starts_with(&ours) || *content == Content::Base);
        })
        .await;
    }
}

/// The runtime's record of a container. `claim`: it says that it was restored, whatever is true.
fn status(container: &truth::Container, claim: Option<&String>) -> cri::ContainerStatus {
    let ns = |ms: u64| i64::try_from(ms * 1_000_000).unwrap_or(i64::MAX);
    let state = match container.state {
        TaskState::Created => cri::ContainerState::ContainerCreated,
        TaskState::Running | TaskState::Paused | TaskState::Pausing => {
            cri::ContainerState::ContainerRunning
        }
        TaskState::Stopped => cri::ContainerState::ContainerExited,
        TaskState::Unknown => cri::ContainerState::ContainerUnknown,
    };
    let from = container.restored_from.as_ref().or(claim);
    let annotations = from.map(|reference| {
        HashMap::from([
            ("restored".to_owned(), "true".to_owned()),
            ("checkpointImage".to_owned(), reference.clone()),
        ])
    });
    cri::ContainerStatus {
        id: container.id.clone(),
        metadata: Some(cri::ContainerMetadata {
            name: container.name.clone(),
            attempt: container.attempt,
        }),
        state: state.into(),
        created_at: ns(container.started_ms),
        started_at: ns(container.started_ms),
        finished_at: ns(container.ended_ms),
        annotations: annotations.unwrap_or_default(),
        ..cri::ContainerStatus::default()
    }
}
