//! Under the hold: the source's worker makes the checkpoint durable, the target's worker gets every byte of it.

use orchestrator_core::{
    migration::{Checkpoint, Done, Outcome},
    refusal::Finding,
};
use proto::worker::{self as wire, answer, question, step_report, step_request};

use super::{Act, Ended, LONG_STEP_WITHIN, copy::base, core_images};

impl Act<'_> {
    pub(super) async fn hold(&mut self) -> Result<Outcome, Ended> {
        let store_prefix = format!("checkpoints/{}/{}/", self.due.id, self.due.revision);
        let hold = wire::Hold {
            pod: Some(self.source_pod()),
            store_prefix: store_prefix.clone(),
            budget_ms: self
                .plan
                .freeze_budget_ms
                .saturating_sub(crate::driver::RESTORE_RESERVE_MS),
            keep_archives: false,
            base: self.migration.rounds.last().map(base),
        };
        let source = self.plan.source.clone();
        let report = self
            .must(
                &source,
                step_request::Kind::Hold(hold),
                LONG_STEP_WITHIN,
                "HoldFailed",
            )
            .await?;
        let Some(step_report::Result::Held(held)) = report.result else {
            return Err(Ended::unknown(
                "WorkerConfused",
                "the pod was held without a checkpoint",
            ));
        };
        Ok(Outcome::Done(Done::Held(Checkpoint {
            store_prefix,
            manifest_key: held.manifest_key,
            manifest_blake3: held.manifest_blake3,
            // Too long a freeze is undone too early, which is better than too late.
            paused_unix_ns: self.in_this_phase(
                self.world.nodes.clock(&source).correct(held.paused_unix_ns),
                |entered, _| entered,
            ),
            raw_bytes: held.raw_bytes,
            stored_bytes: held.stored_bytes,
            packs: held.packs,
            boot_id: held.boot_id,
        })))
    }

    pub(super) async fn deliver(&mut self) -> Result<Outcome, Ended> {
        let target = self.plan.target.clone();
        let images = self.deliver_to(&target).await?;
        Ok(Outcome::Done(Done::Delivered(images)))
    }

    pub(super) async fn deliver_to(
        &mut self,
        node: &orchestrator_core::id::NodeName,
    ) -> Result<Vec<orchestrator_core::migration::Image>, Ended> {
        let Some(checkpoint) = &self.migration.checkpoint else {
            return Err(Ended::unknown(
                "NoCheckpoint",
                "there is nothing to deliver",
            ));
        };
        let deliver = wire::Deliver {
            pod: Some(self.source_pod()),
            manifest_key: checkpoint.manifest_key.clone(),
            manifest_blake3: checkpoint.manifest_blake3.clone(),
        };
        let report = self
            .must(
                node,
                step_request::Kind::Deliver(deliver),
                LONG_STEP_WITHIN,
                "DeliverFailed",
            )
            .await?;
        match report.result {
            Some(step_report::Result::Delivered(delivered)) => Ok(core_images(&delivered.images)),
            Some(
                step_report::Result::Held(_)
                | step_report::Result::Released(_)
                | step_report::Result::Exported(_)
                | step_report::Result::Barred(_)
                | step_report::Result::Copied(_),
            )
            | None => Err(Ended::unknown(
                "WorkerConfused",
                "a checkpoint was delivered without images",
            )),
        }
    }

    /// Is the source held, now, and in the boot it was held in? `Err` when that can't be told.
    pub(super) async fn hold_confirmed(&self) -> Result<Result<(), Finding>, Ended> {
        let Some(checkpoint) = &self.migration.checkpoint else {
            return Err(Ended::unknown(
                "NoCheckpoint",
                "there is no hold to confirm",
            ));
        };
        let confirm = wire::ConfirmHold {
            pod: Some(self.source_pod()),
            boot_id: checkpoint.boot_id.clone(),
        };
        match self
            .ask(&self.plan.source, question::Kind::ConfirmHold(confirm))
            .await?
        {
            answer::Kind::HoldState(state) if state.held && state.boot_id == checkpoint.boot_id => {
                Ok(Ok(()))
            }
            answer::Kind::HoldState(state) => Ok(Err(Finding::new(
                "HoldLost",
                format!(
                    "the source is not held any more, its checkpoint is stale: {}",
                    state.detail
                ),
                "",
            ))),
            answer::Kind::Inspection(_)
            | answer::Kind::Images(_)
            | answer::Kind::Verified(_)
            | answer::Kind::StoreListing(_)
            | answer::Kind::StoreChecked(_)
            | answer::Kind::StoreCleared(_) => Err(Ended::unknown(
                "WorkerConfused",
                "the answer to ConfirmHold was something else",
            )),
        }
    }
}
