//! Rounds as the target sees them: bytes that are kept as a base, with everything below them that is not here.

use std::sync::Arc;

use proto::worker::Span;

use super::{super::RestoreError, Restorer};
use crate::{
    data::ProgressFn,
    gather::{Checkpoint, Named, gather, open_manifest},
    rebuild::RebuildError,
    rounds::Round,
    spans::{Traffic, now_unix_ns, span_since},
    trust::Trust,
};

/// A chain of differences is never longer than the rounds of two migrations, 5 each, and the checkpoint that the earlier
/// one has left between them: 11. A longer one is not ours.
pub(super) const ROUNDS_DEEP: u32 = 12;

impl Restorer {
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
    pub(super) async fn below(
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
        let checkpoint = self.manifest(named).await?;
        let owner = &checkpoint.migration;
        // It may be one that an earlier migration has left: whoever named it meant these very bytes. Where it lies, it is
        // its own migration's.
        if owner != migration && !named.key.starts_with(&format!("checkpoints/{owner}/")) {
            return Err(of_another(&checkpoint, &named.key, migration));
        }
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

    async fn manifest(&self, named: &Named) -> Result<Checkpoint, RestoreError> {
        let Named { key, blake3 } = named;
        let bytes = self.store.get(key).await?;
        let trust = Trust::load(&self.keys_dir)?;
        Ok(open_manifest(key, &bytes, blake3, &trust)?)
    }

    /// The manifest to restore from: of this migration and no other.
    pub(super) async fn own_manifest(
        &self,
        migration: &str,
        named: &Named,
    ) -> Result<Checkpoint, RestoreError> {
        let checkpoint = self.manifest(named).await?;
        match checkpoint.migration == migration {
            true => Ok(checkpoint),
            false => Err(of_another(&checkpoint, &named.key, migration)),
        }
    }
}

fn of_another(checkpoint: &Checkpoint, key: &str, migration: &str) -> RestoreError {
    RestoreError::NotThisOne {
        key: key.to_owned(),
        found: format!("of migration {}", checkpoint.migration),
        expected: format!("one of {migration}"),
    }
}
