//! The steps of a restore by image. Each may be asked twice and then finds its work done.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use proto::{
    containerd::images::Image,
    cri::{ContainerState, PodSandboxState},
    worker::{Container, Deliver, Delivered, DeliveredImage, Disarm, Pod, Span, Tidy, Withdraw},
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{RestoreError, unless};
use crate::{
    content,
    data::ProgressFn,
    gather::{Checkpoint, Named, gather, open_manifest},
    images::{ImageTree, Images},
    rebuild::{self, Built, RebuildError, Recipe},
    registry::Registry,
    rounds::{Round, Rounds},
    spans::{Traffic, now_unix_ns, span_since},
    store::{Store, remove::remove_below},
    trust::Trust,
};

/// Folder of built images below the state folder: MIGRATION/rREVISION/CONTAINER.
const LAYERS: &str = "layers";
/// A pod deleted with grace 0 is gone after some 3 s; after this the answer is "not proved".
const GONE_WAIT: Duration = Duration::from_secs(8);
/// Between two looks at what is left of a pod.
const GONE_POLL: Duration = Duration::from_millis(200);
/// A chain of differences is never longer than the rounds a user may ask for, 5, and what they lead to; twice that
/// is a chain that was not ours.
const ROUNDS_DEEP: u32 = 10;
/// Restores by image on this node.
pub struct Restorer {
    /// Where checkpoints lie.
    pub store: Arc<dyn Store>,
    /// This node's runtime.
    pub images: Images,
    /// This node's registry.
    pub registry: Arc<Registry>,
    /// The bases that are here.
    pub rounds: Rounds,
    /// Where images are built.
    pub state_dir: PathBuf,
    /// Where the keys are, see [`Trust`].
    pub keys_dir: PathBuf,
}

/// Everything about one container that is decided before its bytes are fetched.
struct Planned {
    recipe: Recipe,
    base: ImageTree,
    reference: String,
    /// Below the state folder.
    folder: PathBuf,
}

impl Restorer {
    /// Every byte here, verified, and every image in the runtime. Gives way.
    pub async fn deliver(
        &self,
        migration: &str,
        revision: u64,
        request: &Deliver,
        progress: &ProgressFn,
        give_way: &CancellationToken,
    ) -> Result<(Delivered, Vec<Span>), RestoreError> {
        let start = now_unix_ns();
        let named = Named {
            key: request.manifest_key.clone(),
            blake3: request.manifest_blake3.clone(),
        };
        let traffic = Arc::new(Traffic::default());
        let plan = async {
            let checkpoint = self.manifest(migration, &named).await?;
            let below = self.below(migration, &checkpoint, &traffic, ROUNDS_DEEP);
            let below = below.await?;
            self.plan(migration, revision, request, checkpoint, below.as_deref())
                .await
        };
        let plans = unless(give_way, plan).await?;
        let mut spans = vec![span_since("read manifest, find base images", "", start, [])];
        // One archive after the other, because they share the network and the bound on memory; the runtime pulls one
        // while the next is built.
        let building = Semaphore::new(1);
        let total = plans.iter().map(|plan| plan.recipe.archive.size()).sum();
        let done_before = plans.iter().scan(0, |sum, plan| {
            let before = *sum;
            *sum += plan.recipe.archive.size();
            Some(before)
        });
        // A part that fails lets the others give way, and they are waited for: their threads write into the layers'
        // folder, and what comes next may remove it.
        let stop = &give_way.child_token();
        let images = plans.iter().zip(done_before).map(|(plan, before)| {
            let progress = move |done: u64| progress("fetch", before + done, total);
            let one = self.deliver_one(plan, &building, traffic.clone(), progress, stop);
            ending_others(stop, one)
        });
        let bases = ending_others(stop, self.pull_bases(&plans, stop));
        let (bases, delivered) = tokio::join!(bases, join_all(images));
        let (bases, delivered) = both(bases, all(delivered))?;
        spans.extend(bases);
        spans.extend(traffic.span("fetch packs", ""));
        let mut images = Vec::new();
        for (image, own) in delivered {
            images.push(image);
            spans.extend(own);
        }
        Ok((Delivered { images }, spans))
    }

    /// Every byte of a round here, proved as it came, and kept as a base.
    pub async fn receive(
        &self,
        migration: &str,
        round: &Named,
        progress: &ProgressFn,
    ) -> Result<Vec<Span>, RestoreError> {
        let traffic = Arc::new(Traffic::default());
        let start = now_unix_ns();
        self.round(migration, round, &traffic, progress, ROUNDS_DEEP)
            .await?;
        let mut spans = vec![span_since("receive round", "", start, [])];
        spans.extend(traffic.span("fetch packs", ""));
        Ok(spans)
    }

    /// What a checkpoint is a difference to.
    async fn below(
        &self,
        migration: &str,
        checkpoint: &Checkpoint,
        traffic: &Arc<Traffic>,
        deep: u32,
    ) -> Result<Option<Arc<Round>>, RestoreError> {
        match &checkpoint.base {
            None => Ok(None),
            // In a box: it may need what is below it in turn.
            Some(base) => Box::pin(self.round(migration, base, traffic, &|_, _, _| (), deep))
                .await
                .map(Some),
        }
    }

    /// A round that is here, or that the store has, with everything below it.
    async fn round(
        &self,
        migration: &str,
        named: &Named,
        traffic: &Arc<Traffic>,
        progress: &ProgressFn,
        deep: u32,
    ) -> Result<Arc<Round>, RestoreError> {
        if let Some(here) = self.rounds.get(migration, &named.blake3) {
            return Ok(here);
        }
        let checkpoint = self.manifest(migration, named).await?;
        let deep = deep
            .checked_sub(1)
            .ok_or_else(|| RestoreError::NotThisOne {
                key: named.key.clone(),
                found: "a difference to too many others".to_owned(),
                expected: format!("one of at most {ROUNDS_DEEP}"),
            })?;
        let below = self.below(migration, &checkpoint, traffic, deep).await?;
        let folder = self.rounds.folder(migration, &named.blake3);
        let folder = folder.map_err(|source| RebuildError::Disk {
            doing: "make the folder of a base in",
            path: self.state_dir.clone(),
            source,
        })?;
        let total: u64 = checkpoint.archives.iter().map(|(_, a)| a.size()).sum();
        let mut before = 0;
        let (mut archives, mut lineage) = (Vec::new(), None);
        for (container, archive) in &checkpoint.archives {
            let base = below.as_ref().and_then(|below| below.archive(container));
            let kept = gather(
                self.store.clone(),
                archive,
                base,
                &folder.join(format!("{container}.new")),
                Arc::clone(traffic),
                &|done| progress("receive", before + done, total),
            )
            .await?;
            before += archive.size();
            archives.push((container.clone(), kept));
            lineage = lineage.or(archive.key().cloned());
        }
        let key = lineage.ok_or_else(|| RestoreError::NotThisOne {
            key: named.key.clone(),
            found: "of version 1, or of no container".to_owned(),
            expected: "one that can be a base".to_owned(),
        })?;
        Ok(self.rounds.keep(Round {
            migration: migration.to_owned(),
            manifest_blake3: named.blake3.clone(),
            manifest_key: named.key.clone(),
            manifest_bytes: checkpoint.manifest_bytes,
            key,
            archives,
        }))
    }

    async fn manifest(&self, migration: &str, named: &Named) -> Result<Checkpoint, RestoreError> {
        let Named { key, blake3 } = named;
        let bytes = self.store.get(key).await?;
        let trust = Trust::load(&self.keys_dir)?;
        let checkpoint = open_manifest(key, &bytes, blake3, &trust)?;
        if checkpoint.migration != migration {
            let (found, expected) = (
                format!("of migration {}", checkpoint.migration),
                format!("one of {migration}"),
            );
            return Err(RestoreError::NotThisOne {
                key: key.clone(),
                found,
                expected,
            });
        }
        Ok(checkpoint)
    }

    /// Pairs containers with archives and base images; refuses before the first byte is fetched.
    async fn plan(
        &self,
        migration: &str,
        revision: u64,
        request: &Deliver,
        checkpoint: Checkpoint,
        below: Option<&Round>,
    ) -> Result<Vec<Planned>, RestoreError> {
        let containers = request
            .pod
            .as_ref()
            .map(|pod| pod.containers.as_slice())
            .unwrap_or_default();
        let wanted: Vec<&str> = containers
            .iter()
            .map(|container| container.name.as_str())
            .collect();
        let found: Vec<&str> = checkpoint
            .archives
            .iter()
            .map(|(container, _)| container.as_str())
            .collect();
        let same = BTreeSet::from_iter(&wanted) == BTreeSet::from_iter(&found)
            && wanted.len() == found.len();
        if !same || wanted.is_empty() {
            return Err(RestoreError::NotThisOne {
                key: request.manifest_key.clone(),
                found: format!("one of containers {}", found.join(", ")),
                expected: format!("one of {}", wanted.join(", ")),
            });
        }
        let mut plans = Vec::new();
        for container in containers {
            let base = base_image(&self.images, container).await?;
            self.registry.enter_base(&base).await?;
            let archives = checkpoint
                .archives
                .iter()
                .filter(|(name, _)| *name == container.name);
            for (name, archive) in archives {
                plans.push(Planned {
                    recipe: Recipe {
                        migration: migration.to_owned(),
                        revision,
                        container: name.clone(),
                        archive: archive.clone(),
                        base: below.and_then(|below| below.archive(name)).cloned(),
                        base_reference: self
                            .registry
                            .base_reference(&container.image, &base.digest),
                        base_digest: base.digest.clone(),
                        base_image_id: base.image_id.clone(),
                    },
                    base: base.clone(),
                    reference: self
                        .registry
                        .checkpoint_reference(migration, name, revision),
                    folder: folder_of(migration).join(format!("r{revision}")).join(name),
                });
            }
        }
        Ok(plans)
    }

    /// The runtime pulls the base images under the names that restores will ask for: containerd 2.1 looks such a name
    /// up at once after its own pull, and only a pull through CRI is known to CRI when it returns.
    async fn pull_bases(
        &self,
        plans: &[Planned],
        give_way: &CancellationToken,
    ) -> Result<Vec<Span>, RestoreError> {
        let mut spans = Vec::new();
        let mut pulled = BTreeSet::new();
        for Planned { recipe, base, .. } in plans {
            if pulled.insert(&recipe.base_reference) {
                let start = now_unix_ns();
                let pull = self.pull(&recipe.base_reference, &base.image_id);
                unless(give_way, pull).await?;
                spans.push(span_since(
                    "pull base image",
                    "",
                    start,
                    [("image", recipe.base_reference.clone())],
                ));
            }
        }
        Ok(spans)
    }

    async fn deliver_one(
        &self,
        plan: &Planned,
        building: &Semaphore,
        traffic: Arc<Traffic>,
        progress: impl Fn(u64) + Send + Sync,
        give_way: &CancellationToken,
    ) -> Result<(DeliveredImage, Vec<Span>), RestoreError> {
        let Planned {
            recipe,
            base,
            reference,
            folder,
        } = plan;
        let turn = async { building.acquire().await.map_err(|_| RebuildError::Stopped) };
        let turn = unless(give_way, turn).await?;
        let start = now_unix_ns();
        let target = self.state_dir.join(folder);
        let built = rebuild::build(
            self.store.clone(),
            recipe.clone(),
            target,
            traffic,
            &progress,
            give_way,
        )
        .await?;
        drop(turn);
        let size = built.layer_size.to_string();
        let built_span = span_since(
            &format!("rebuild {}", recipe.container),
            "",
            start,
            [("bytes", size)],
        );
        let start = now_unix_ns();
        let image_id = rebuild::sha256(built.config.as_bytes());
        let into_runtime = async {
            let (migration, container) = (&recipe.migration, &recipe.container);
            self.registry
                .arm(migration, container, recipe.revision, &base.digest, folder)
                .await?;
            self.pull(reference, &image_id).await?;
            // Nothing uses the image yet, and the kubelet collects unused images when the disk runs short.
            self.images.pin(reference, true).await?;
            Ok::<_, RestoreError>(())
        };
        unless(give_way, into_runtime).await?;
        let pulled_span = span_since(&format!("pull {}", recipe.container), "", start, []);
        let image = DeliveredImage {
            container: recipe.container.clone(),
            reference: reference.clone(),
            image_id,
        };
        Ok((image, vec![built_span, pulled_span]))
    }

    async fn pull(&self, reference: &str, expected: &str) -> Result<(), RestoreError> {
        let found = self.images.pull(reference).await?;
        if found != expected {
            let (reference, expected) = (reference.to_owned(), expected.to_owned());
            return Err(RestoreError::OtherImage {
                reference,
                found,
                expected,
            });
        }
        Ok(())
    }

    /// The names of the checkpoint stand for the base image from now on, in the registry and in the runtime.
    ///
    /// Registry first: a pull between the two may then only bring the base image. Then the runtime pulls the name, so
    /// that its own books follow; then what still leads to the checkpoint is removed.
    pub async fn disarm(&self, request: &Disarm) -> Result<(), RestoreError> {
        let pod_uid = request
            .pod
            .as_ref()
            .map(|pod| pod.uid.as_str())
            .unwrap_or_default();
        for DeliveredImage {
            container: _,
            reference,
            image_id,
        } in &request.images
        {
            self.registry.disarm(reference, pod_uid).await?;
            let now = self.images.pull(reference).await?;
            if now == *image_id {
                let expected = "its base image".to_owned();
                return Err(RestoreError::OtherImage {
                    reference: reference.clone(),
                    found: now,
                    expected,
                });
            }
            self.images.pin(reference, false).await?;
            let target = self
                .images
                .record(reference)
                .await?
                .and_then(|record| record.target);
            let digest = target.map(|target| target.digest).unwrap_or_default();
            let repository = reference
                .rsplit_once(':')
                .map_or(reference.as_str(), |(repository, _)| repository);
            for name in self.images.names(&format!("{repository}@")).await? {
                if !name.ends_with(&digest) {
                    self.images.forget(&name).await?;
                }
            }
            self.images.forget(image_id).await?;
        }
        Ok(())
    }

    /// No restore of this migration can begin here any more, also after a reboot. One that has begun goes on.
    pub async fn silence(
        &self,
        migration: &str,
        images: &[DeliveredImage],
    ) -> Result<(), RestoreError> {
        self.registry.silence(migration).await?;
        self.forget_images(migration, images).await
    }

    /// Nothing of this migration can be restored here any more, and nothing of the pod is left.
    ///
    /// Registry, then records, then the look: in another order the kubelet could make a container between the look and
    /// the removal. A container being made while the records go still needs a ready sandbox to start.
    pub async fn withdraw(&self, migration: &str, request: &Withdraw) -> Result<(), RestoreError> {
        self.registry.withdraw(migration).await?;
        self.forget_images(migration, &request.images).await?;
        self.forget_rounds(migration)?;
        if let Some(pod) = request.pod.as_ref().filter(|pod| !pod.uid.is_empty()) {
            self.wait_until_gone(pod).await?;
        }
        self.remove_layers(migration).await
    }

    async fn wait_until_gone(&self, pod: &Pod) -> Result<(), RestoreError> {
        let end = Instant::now() + GONE_WAIT;
        loop {
            let containers = self.images.containers_of(&pod.uid).await?;
            let alive = containers
                .iter()
                .filter(|seen| seen.state() != ContainerState::ContainerExited)
                .count();
            let sandboxes = self.images.sandboxes_of(&pod.uid).await?;
            let ready = sandboxes
                .iter()
                .filter(|state| **state == PodSandboxState::SandboxReady)
                .count();
            if alive == 0 && ready == 0 {
                return Ok(());
            }
            if Instant::now() >= end {
                let what = format!(
                    "{alive} containers that have not ended, {ready} sandboxes that are ready"
                );
                return Err(RestoreError::StillThere {
                    uid: pod.uid.clone(),
                    what,
                });
            }
            tokio::time::sleep(GONE_POLL).await;
        }
    }

    /// What this migration left on the node, and in the store when a prefix is given.
    pub async fn tidy(&self, migration: &str, request: &Tidy) -> Result<(), RestoreError> {
        // A checkpoint still armed now would never be disarmed: without it a restart fails visibly instead of going
        // back in time silently.
        self.registry.withdraw_armed(migration).await?;
        self.forget_rounds(migration)?;
        self.forget_layers_images(migration).await?;
        self.remove_layers(migration).await?;
        self.sweep().await?;
        self.remove_stored(migration, &request.store_prefix).await
    }

    /// Names that were kept for pods, of which the runtime knows nothing any more. To be done now and then: a pod's
    /// sandbox outlives it by up to a minute, and other pods' containers may have been made under such a name.
    pub async fn sweep(&self) -> Result<(), RestoreError> {
        for (uid, kept) in self.registry.disarmed_pods() {
            if !self.images.sandboxes_of(&uid).await?.is_empty() {
                continue;
            }
            let mut used = false;
            for prefix in kept {
                used |= self.images.forget_unused(&prefix).await?;
            }
            if !used {
                self.registry.forget_pod(&uid).await?;
            }
        }
        self.forget_strays().await
    }

    /// Checkpoints that the registry knows nothing of. A delivery that gave way has taken back its pull, but the runtime
    /// may have been at the end of it, behind the withdrawal. The registry knows a name before anybody pulls it.
    async fn forget_strays(&self) -> Result<(), RestoreError> {
        let records = self.images.all_records().await?;
        let prefix = self.registry.checkpoints_prefix();
        let digest = |record: &Image| record.target.as_ref().map(|target| target.digest.clone());
        let (strays, others): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| {
            record.name.starts_with(&prefix) && !self.registry.knows(&record.name)
        });
        for stray in &strays {
            let repository = content::repository(&stray.name);
            if self.images.forget_unused(repository).await? {
                continue;
            }
            // The runtime's own name for it, unless it is that of an image that others know, too.
            let same: Vec<_> = others
                .iter()
                .filter(|r| digest(r) == digest(stray))
                .collect();
            if same.iter().all(|record| record.name.starts_with("sha256:")) {
                for record in same {
                    self.images.forget(&record.name).await?;
                }
            }
        }
        Ok(())
    }

    /// Objects under the prefix. A prefix that does not name the migration is not believed: the wrong one here would
    /// remove other checkpoints.
    async fn remove_stored(&self, migration: &str, prefix: &str) -> Result<(), RestoreError> {
        if prefix.is_empty() {
            return Ok(());
        }
        if migration.is_empty() || !prefix.split('/').any(|part| part == migration) {
            let (key, found) = (
                prefix.to_owned(),
                "a prefix that does not name the migration".to_owned(),
            );
            return Err(RestoreError::NotThisOne {
                key,
                found,
                expected: format!("one of {migration}"),
            });
        }
        Ok(remove_below(self.store.as_ref(), prefix).await?)
    }

    /// Removes every name under which the runtime knows images of this migration.
    async fn forget_images(
        &self,
        migration: &str,
        images: &[DeliveredImage],
    ) -> Result<(), RestoreError> {
        for name in self
            .images
            .names(&self.registry.checkpoint_prefix(migration))
            .await?
        {
            self.images.forget(&name).await?;
        }
        for image in images
            .iter()
            .filter(|image| image.image_id.starts_with("sha256:"))
        {
            self.images.forget(&image.image_id).await?;
        }
        self.forget_layers_images(migration).await
    }

    /// The ids of the images that were built here, also those whose delivery was never reported.
    async fn forget_layers_images(&self, migration: &str) -> Result<(), RestoreError> {
        for built in built_images(&self.state_dir.join(folder_of(migration))) {
            self.images
                .forget(&rebuild::sha256(built.config.as_bytes()))
                .await?;
        }
        Ok(())
    }

    fn forget_rounds(&self, migration: &str) -> Result<(), RestoreError> {
        let forgotten = self.rounds.forget(migration);
        forgotten.map_err(|source| {
            let (doing, path) = ("remove the bases below", self.state_dir.clone());
            RebuildError::Disk {
                doing,
                path,
                source,
            }
            .into()
        })
    }

    async fn remove_layers(&self, migration: &str) -> Result<(), RestoreError> {
        let path = self.state_dir.join(folder_of(migration));
        match tokio::fs::remove_dir_all(&path).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RebuildError::Disk {
                doing: "remove",
                path,
                source,
            }
            .into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// The image a container runs from, complete on this node, or why not.
pub async fn base_image(images: &Images, container: &Container) -> Result<ImageTree, RestoreError> {
    let lacks = |missing: String| RestoreError::NoBaseImage {
        container: container.name.clone(),
        image: container.image.clone(),
        missing,
    };
    let digest = content::digest_of(images, container).await?;
    let digest = digest.ok_or_else(|| lacks("there is no image of this name".to_owned()))?;
    let tree = images.tree(&digest).await?;
    if tree.missing.is_empty() {
        Ok(tree)
    } else {
        Err(lacks(format!("no {}", tree.missing.join(", no "))))
    }
}

/// One of several parts, whose failure is everybody's.
async fn ending_others<T>(
    others: &CancellationToken,
    part: impl Future<Output = Result<T, RestoreError>>,
) -> Result<T, RestoreError> {
    part.await.inspect_err(|_| others.cancel())
}

/// Both, or why not: not because one gave way to the other's failure.
fn both<A, B>(
    one: Result<A, RestoreError>,
    other: Result<B, RestoreError>,
) -> Result<(A, B), RestoreError> {
    match (one, other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Err(error), Err(other)) if error.gave_way() => Err(other),
        (Err(error), Ok(_) | Err(_)) | (Ok(_), Err(error)) => Err(error),
    }
}

/// The same for any number.
fn all<T>(parts: Vec<Result<T, RestoreError>>) -> Result<Vec<T>, RestoreError> {
    let none = Ok(Vec::new());
    parts.into_iter().fold(none, |before, part| {
        both(before, part).map(|(mut before, part)| {
            before.push(part);
            before
        })
    })
}

fn folder_of(migration: &str) -> PathBuf {
    Path::new(LAYERS).join(migration)
}

/// Descriptions of what was built below `folder`; unreadable ones are rubbish of a crash.
fn built_images(folder: &Path) -> Vec<Built> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    };
    let folders = below(folder)
        .into_iter()
        .flat_map(|revision| below(&revision));
    let read =
        |folder: PathBuf| serde_json::from_slice(&fs::read(folder.join("image.json")).ok()?).ok();
    folders.filter_map(read).collect()
}

#[cfg(test)]
mod tests;
