//! The steps of a restore by image. Each may be asked twice and then finds its work done.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::join_all;
use proto::worker::{Container, Deliver, Delivered, DeliveredImage, Span};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{RestoreError, unless};
use crate::{
    content,
    data::ProgressFn,
    gather::{Checkpoint, Named},
    images::{ImageTree, Images},
    rebuild::{self, RebuildError, Recipe},
    registry::Registry,
    rounds::{Round, Rounds},
    spans::{Traffic, now_unix_ns, span_since},
    store::Store,
};

mod end;
mod round;

use round::ROUNDS_DEEP;

/// Folder of built images below the state folder: MIGRATION/rREVISION/CONTAINER.
const LAYERS: &str = "layers";
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
            let checkpoint = self.own_manifest(migration, &named).await?;
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

#[cfg(test)]
mod tests;
