//! Before the freeze: rounds. The running source is checkpointed and stored, and the target keeps it as a base, so that
//! only what changes afterwards is left for the freeze.
//!
//! Nothing depends on a round: one that failed, was lost or never came makes the freeze longer and nothing else. So a
//! failure ends the copying and not the migration.
//!
//! The first is a difference to a checkpoint that an earlier migration of the pod has left in the store, where there is
//! one: the source fetches that, and the target what the round says it stands on.

use orchestrator_core::{
    id::NodeName,
    migration::{Done, Outcome, Round},
    planner::another_round,
};
use proto::worker::{self as wire, step_report, step_request};

use super::{Act, Ended, LONG_STEP_WITHIN};

/// A round that takes longer than this is not worth waiting for: what it would carry is old by then. 64 GiB at 250 MB/s.
const ROUND_MS: u64 = 256_000;

impl Act<'_> {
    pub(super) async fn copy(&mut self) -> Result<Outcome, Ended> {
        let copied = self.copy_now().await;
        self.patience(copied)
    }

    async fn copy_now(&mut self) -> Result<Outcome, Ended> {
        let base = match self.migration.rounds.last() {
            Some(round) => Some(base(round)),
            None => self.fetch_kept().await,
        };
        let copy = wire::Copy {
            pod: Some(self.source_pod()),
            store_prefix: format!("checkpoints/{}/{}/", self.due.id, self.due.revision),
            base,
            budget_ms: ROUND_MS,
        };
        let (source, target) = (self.plan.source.clone(), self.plan.target.clone());
        let report = self
            .must(
                &source,
                step_request::Kind::Copy(copy),
                LONG_STEP_WITHIN,
                "CopyFailed",
            )
            .await?;
        let Some(step_report::Result::Copied(copied)) = report.result else {
            return Err(Ended::unknown(
                "WorkerConfused",
                "a round was made without a manifest",
            ));
        };
        let wire::CopiedRound {
            manifest_key,
            manifest_blake3,
            raw_bytes,
            stored_bytes,
            packs: _,
        } = copied;
        let round = wire::Base {
            manifest_key: manifest_key.clone(),
            manifest_blake3: manifest_blake3.clone(),
        };
        self.receive(&target, round).await?;
        let now_ms = self.world.clock.unix_ms();
        let round = Round {
            manifest_key,
            manifest_blake3,
            raw_bytes,
            stored_bytes,
            took_ms: now_ms.saturating_sub(self.migration.attempted_ms),
        };
        let made = self.migration.rounds.len() + 1;
        let again = another_round(self.plan, &self.migration.request, made, round.took_ms);
        Ok(Outcome::Done(Done::Copied { round, again }))
    }

    /// The planned base, if the source has it now; without, the round is sent whole.
    async fn fetch_kept(&mut self) -> Option<wire::Base> {
        let kept = self.plan.base.as_ref()?;
        let base = wire::Base {
            manifest_key: kept.manifest_key.clone(),
            manifest_blake3: kept.manifest_blake3.clone(),
        };
        let source = self.plan.source.clone();
        match self.receive(&source, base.clone()).await {
            Ok(()) => Some(base),
            Err(Ended(outcome)) => {
                let why = outcome.words();
                tracing::info!(migration = %self.due.id, why, "the round is sent whole");
                None
            }
        }
    }

    async fn receive(&mut self, node: &NodeName, round: wire::Base) -> Result<(), Ended> {
        let receive = step_request::Kind::Receive(wire::Receive { round: Some(round) });
        self.must(node, receive, LONG_STEP_WITHIN, "ReceiveFailed")
            .await
            .map(drop)
    }
}

/// As workers know it.
pub(super) fn base(round: &Round) -> wire::Base {
    wire::Base {
        manifest_key: round.manifest_key.clone(),
        manifest_blake3: round.manifest_blake3.clone(),
    }
}
