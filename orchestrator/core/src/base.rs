//! Checkpoints that outlive their migration, as bases for the pod's next one.
//!
//! ```text
//!  migration 1 ── whole ──► kept ◄── base ── migration 2 ── difference ──► kept
//!                             ▲                                             (never a base itself)
//!                             └────── base ── migration 3 ── difference ──► …
//! ```
//! A difference is worth nothing without its base, so the log has the last word: a base is let go of only when nothing
//! that must stay in the store stands on it, and a plan made on one that was let go of meanwhile goes without.
//! Whoever collects looks at the log afterwards. A pod's migrations stand on one and the same base until that is old: so a
//! chain is never longer than one migration's rounds and another's.

use crate::{
    id::{MigrationId, PodRef, UnixMs},
    migration::Migration,
    plan::KeptCheckpoint,
    state::State,
    store::Owner,
};

impl State {
    /// Its checkpoint is kept.
    #[must_use]
    pub fn is_kept(&self, id: &MigrationId) -> bool {
        self.migrations.get(id).is_some_and(|known| known.kept)
    }

    /// Something whose checkpoint must stay in the store is a difference to it: one that is under way, kept, or all that is
    /// left of its pod.
    #[must_use]
    pub fn is_base(&self, id: &MigrationId) -> bool {
        self.migrations.values().any(|migration| {
            let needed = !Owner::known(migration).is_garbage(true);
            needed && base(migration).is_some_and(|base| base.migration == *id)
        })
    }

    /// What the next migration of this pod can stand on, which says that this one restored it: anybody may write that, so
    /// it must be of the same name. An old base is not built upon, so that it comes to its end.
    #[must_use]
    pub fn base_after(
        &self,
        pod: &PodRef,
        restored_by: &MigrationId,
        now_ms: UnixMs,
    ) -> Option<KeptCheckpoint> {
        let last = self.migrations.get(restored_by)?;
        let last = Some(last).filter(|last| last.kept && last.request.pod == *pod)?;
        let id = base(last).map_or(&last.id, |base| &base.migration);
        let stood_on = self.migrations.get(id)?;
        let usable = stood_on.kept && !is_old(stood_on, now_ms);
        let checkpoint = stood_on.checkpoint.as_ref().filter(|_| usable)?;
        Some(KeptCheckpoint {
            migration: id.clone(),
            manifest_key: checkpoint.manifest_key.clone(),
            manifest_blake3: checkpoint.manifest_blake3.clone(),
        })
    }

    /// Kept, needed by nobody, and either old or followed by another one of the same pod.
    #[must_use]
    pub fn needless(&self, now_ms: UnixMs) -> Vec<MigrationId> {
        let kept = self.migrations.values().filter(|m| m.kept);
        let needless =
            kept.filter(|m| (is_old(m, now_ms) || self.is_followed(m)) && !self.is_base(&m.id));
        needless.map(|migration| migration.id.clone()).collect()
    }

    fn is_followed(&self, earlier: &Migration) -> bool {
        self.migrations.values().any(|later| {
            later.kept
                && later.submitted > earlier.submitted
                && later.request.pod == earlier.request.pod
        })
    }
}

fn base(migration: &Migration) -> Option<&KeptCheckpoint> {
    migration.plan.as_ref()?.base.as_ref()
}

/// By the clock of whoever asks. A wrong one costs bytes: what is let go of too early is sent whole once more.
fn is_old(migration: &Migration, now_ms: UnixMs) -> bool {
    let ended_ms = migration.entered.last().map_or(0, |(_, at_ms)| *at_ms);
    let keep_ms = migration.request.keep_checkpoint_ms.unwrap_or(0);
    now_ms.saturating_sub(ended_ms) >= keep_ms
}
