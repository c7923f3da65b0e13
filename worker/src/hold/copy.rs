//! A round: a checkpoint of a pod that runs on, as a base for the one under the hold.
//!
//! ```text
//!  mend ─► dump each (stalls it) ─► it runs again ─► store, and keep the archives ─► report
//! ```
//! The runtime pauses a container for its dump and lets it go on; nobody else does either. Should that go wrong, the pod
//! is mended here, by who began the round, or by the release that follows: a round that failed must not leave a pod
//! standing still. The containers are not dumped at one cut, which a base needs not be.

use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};

use proto::worker::{CopiedRound, Copy, Pod};
use tokio_util::sync::CancellationToken;

use super::{Attempt, HoldError, Holder, Timeline};
use crate::{
    containerd::TaskState,
    data::{Data, ProgressFn, Saved, Stores},
    journal::{Entry, HoldFacts, StepKey, Urgency},
};

impl Holder {
    /// Archives every container, stores the archives and keeps them as a base. Repeating it makes another round.
    pub async fn copy(
        &self,
        key: &StepKey,
        request: &Copy,
        data: &dyn Data,
        timeline: &mut Timeline,
        progress: &ProgressFn,
        superseded: &CancellationToken,
    ) -> Result<CopiedRound, HoldError> {
        let pod = request.pod.as_ref().ok_or(HoldError::NoPod)?;
        let known = self.journal.recall().await?.migration(&key.migration);
        if let Some(hold) = known.hold {
            return Err(HoldError::HeldBefore {
                revision: hold.revision,
            });
        }
        if let Some(since) = known.copying {
            self.mend(pod, since).await?;
        }
        let since = self.node.unix_ns();
        let entry = Entry::Copying {
            migration: key.migration.clone(),
            since_unix_ns: since,
        };
        self.journal.append(vec![entry], Urgency::Ordinary).await?;
        let mut attempt = Attempt {
            holder: self,
            migration: &key.migration,
            pod,
            facts: HoldFacts {
                revision: key.revision,
                pod_uid: pod.uid.clone(),
                paused_unix_ns: since,
                boot_id: self.boot_id.clone(),
                containers: BTreeSet::new(),
                dumping: BTreeSet::new(),
                cgroup: None,
            },
            budget: Duration::from_millis(request.budget_ms),
            wanted: TaskState::Running,
            timeline,
            superseded,
        };
        let copied = match attempt.copy(request, data, progress).await {
            Ok(saved) => saved,
            Err(error) => {
                self.mend(pod, since).await?;
                return Err(error);
            }
        };
        let entry = Entry::CopyEnded {
            migration: key.migration.clone(),
        };
        self.journal.append(vec![entry], Urgency::Ordinary).await?;
        let Saved {
            manifest_key,
            manifest_blake3,
            manifest_bytes: _,
            raw_bytes,
            stored_bytes,
            packs,
            spans,
        } = copied;
        timeline.extend(spans);
        Ok(CopiedRound {
            manifest_key,
            manifest_blake3,
            raw_bytes,
            stored_bytes,
            packs,
        })
    }

    /// What a round that ended early may have left: a dump under way, a task that nobody lets go on, archives.
    async fn mend(&self, pod: &Pod, since_unix_ns: u64) -> Result<(), HoldError> {
        self.end_dumps(pod).await?;
        self.resume_paused(pod).await?;
        let since = UNIX_EPOCH + Duration::from_nanos(since_unix_ns);
        self.remove_all(self.node.strays(pod, since)).await
    }
}

impl Attempt<'_> {
    async fn copy(
        &mut self,
        request: &Copy,
        data: &dyn Data,
        progress: &ProgressFn,
    ) -> Result<Saved, HoldError> {
        self.still(TaskState::Running, "before the round").await?;
        let mut archives = Vec::new();
        for container in &self.pod.containers {
            let archive = self.archive(container).await?;
            archives.push((archive.container.clone(), archive.path.clone()));
            let entry = Entry::Copied {
                migration: self.migration.to_owned(),
                archive,
            };
            self.holder
                .journal
                .append(vec![entry], Urgency::Ordinary)
                .await?;
        }
        let what = Stores {
            migration: self.migration,
            prefix: &request.store_prefix,
            archives: &archives,
            base: request.base.as_ref(),
        };
        tokio::select! {
            biased;
            copied = tokio::time::timeout(self.left()?, data.copy(what, progress)) => match copied {
                Ok(copied) => Ok(copied?),
                Err(_) => Err(HoldError::OverBudget { doing: "storing", budget: self.budget }),
            },
            () = self.superseded.cancelled() => Err(HoldError::Superseded),
        }
    }
}
