//! What comes after a restore, or instead of it: checkpoints lose their names, and what they leave is removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    containerd::images::Image,
    cri::{ContainerState, PodSandboxState},
    worker::{DeliveredImage, Disarm, Pod, Tidy, Withdraw},
};
use tokio::time::Instant;

use super::{super::RestoreError, Restorer, folder_of};
use crate::{
    content,
    rebuild::{self, Built, RebuildError},
    store::remove::remove_below,
};

/// A pod deleted with grace 0 is gone after some 3 s; after this the answer is "not proved".
const GONE_WAIT: Duration = Duration::from_secs(8);
/// Between two looks at what is left of a pod.
const GONE_POLL: Duration = Duration::from_millis(200);

impl Restorer {
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
