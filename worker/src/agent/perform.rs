//! Performing one step: *about to* into the journal, the effect, *done* into the journal, the report.

use std::sync::Arc;

use prost::Message;
use proto::worker::{
    Answer, Bar, Disarm, ImagesState, Inspection, Pod, Question, StepReport, StepRequest,
    StoreCleared, Tidy, Verified, VerifiedContainer, Verify, Withdraw, answer, question,
    step_report::{Outcome, Result as StepResult},
    step_request,
    verified_container::Origin,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    data::{Data, DataError, ProgressFn},
    hold::{HoldError, Holder, Timeline},
    inspect::Inspect,
    journal::{Entry, Journal, StepKey, StepKind, Urgency},
    metrics::Metrics,
};

/// Performs steps and answers questions.
pub struct Performer {
    /// Memory.
    pub journal: Journal,
    /// Pods of this node.
    pub holder: Holder,
    /// Bytes.
    pub data: Arc<dyn Data>,
    /// Looks into running pods.
    pub inspector: Arc<dyn Inspect>,
    /// Counts.
    pub metrics: Metrics,
}

/// How a step ended.
enum Ended {
    Done(Option<StepResult>),
    Failed(String),
    Unknown(String),
}

/// Under which key a request is done at most once; nothing for a step that we don't know.
pub(super) fn key(request: &StepRequest) -> Option<StepKey> {
    let kind = match request.kind.as_ref()? {
        step_request::Kind::Hold(_) => StepKind::Hold,
        step_request::Kind::Deliver(_) => StepKind::Deliver,
        step_request::Kind::Disarm(_) => StepKind::Disarm,
        step_request::Kind::Destroy(_) => StepKind::Destroy,
        step_request::Kind::Release(_) => StepKind::Release,
        step_request::Kind::Withdraw(_) => StepKind::Withdraw,
        step_request::Kind::Tidy(_) => StepKind::Tidy,
        step_request::Kind::ExportImages(_) => StepKind::ExportImages,
        step_request::Kind::ImportImages(_) => StepKind::ImportImages,
        step_request::Kind::Bar(_) => StepKind::Bar,
        step_request::Kind::Copy(_) => StepKind::Copy,
        step_request::Kind::Receive(_) => StepKind::Receive,
    };
    Some(StepKey {
        migration: request.migration_id.clone(),
        revision: request.revision,
        kind,
    })
}

/// A report of something that nobody knows the end of.
pub(super) fn unknown(key: &StepKey, detail: String) -> StepReport {
    report(key, Ended::Unknown(detail), Timeline::default())
}

/// As it stands in the journal.
pub(super) fn encode(report: &StepReport) -> String {
    report
        .encode_to_vec()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// From the journal; nothing when it is not ours.
pub(super) fn decode(text: &str) -> Option<StepReport> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|value| value as u8))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    StepReport::decode(bytes.as_slice()).ok()
}

impl Performer {
    /// Does the step and reports. The report's call is the agent's to fill in.
    ///
    /// Order: *about to* before the effect, or a crash would leave an effect that nobody remembers; *done* before the
    /// report leaves, or the orchestrator would know more than we do after a crash.
    pub(super) async fn perform(
        &self,
        key: &StepKey,
        request: &StepRequest,
        progress: &ProgressFn,
        superseded: &CancellationToken,
    ) -> StepReport {
        let start = Instant::now();
        if let Err(error) = self
            .journal
            .append(vec![Entry::Begun(key.clone())], urgency(key.kind))
            .await
        {
            // Not begun, so nothing of it can run.
            return report(key, Ended::Failed(error_text(&error)), Timeline::default());
        }
        let mut timeline = Timeline::default();
        let ended = self
            .effect(key, request, progress, superseded, &mut timeline)
            .await;
        let mut done = report(key, ended, timeline);
        let failed = done.outcome() != Outcome::Done;
        let urgency = if failed {
            Urgency::EndsAHold
        } else {
            urgency(key.kind)
        };
        let entry = Entry::Finished {
            step: key.clone(),
            report: encode(&done),
        };
        if let Err(error) = self.journal.append(vec![entry], urgency).await {
            done = unknown(
                key,
                format!(
                    "done as far as can be, but it can't be remembered: {}",
                    error_text(&error)
                ),
            );
        }
        self.metrics.step(key.kind, done.outcome(), start.elapsed());
        self.after(key, request, done.outcome()).await;
        let (migration, revision, kind, outcome) =
            (&key.migration, key.revision, key.kind, done.outcome());
        tracing::info!(
            migration,
            revision,
            ?kind,
            ?outcome,
            detail = done.detail,
            "step ended"
        );
        done
    }

    async fn effect(
        &self,
        key: &StepKey,
        request: &StepRequest,
        progress: &ProgressFn,
        superseded: &CancellationToken,
        timeline: &mut Timeline,
    ) -> Ended {
        use step_request::Kind;
        let (migration, data) = (key.migration.as_str(), self.data.as_ref());
        let Some(kind) = &request.kind else {
            return Ended::Failed("the request asks for nothing".to_owned());
        };
        match kind {
            Kind::Hold(hold) => {
                let held = self
                    .holder
                    .hold(key, hold, data, timeline, progress, superseded)
                    .await;
                held.map_or_else(of_hold, |held| Ended::Done(Some(StepResult::Held(held))))
            }
            Kind::Copy(copy) => {
                let copying = self
                    .holder
                    .copy(key, copy, data, timeline, progress, superseded);
                let copied = copying.await.map(StepResult::Copied);
                copied.map_or_else(of_hold, |copied| Ended::Done(Some(copied)))
            }
            Kind::Receive(receive) => data
                .receive(migration, receive, progress, superseded)
                .await
                .map_or_else(of_data, |spans| {
                    timeline.extend(spans);
                    Ended::Done(None)
                }),
            Kind::Release(release) => {
                let released = self.holder.release(migration, release, timeline).await;
                released.map_or_else(in_doubt, |released| {
                    Ended::Done(Some(StepResult::Released(released)))
                })
            }
            Kind::Destroy(destroy) => {
                let pod = destroy.pod.clone().unwrap_or_default();
                self.holder
                    .destroy(migration, &pod, timeline)
                    .await
                    .map_or_else(in_doubt, |()| Ended::Done(None))
            }
            Kind::Deliver(deliver) => {
                let delivered = data
                    .deliver(migration, key.revision, deliver, progress, superseded)
                    .await;
                delivered.map_or_else(of_data, |(delivered, spans)| {
                    timeline.extend(spans);
                    Ended::Done(Some(StepResult::Delivered(delivered)))
                })
            }
            Kind::Bar(bar) => self.bar(migration, bar).await,
            Kind::Disarm(disarm) => self.disarm(migration, disarm).await,
            Kind::Withdraw(withdraw) => self.withdraw(migration, withdraw).await,
            Kind::Tidy(tidy) => self.tidy(migration, tidy).await,
            Kind::ExportImages(export) => data
                .export_images(migration, export, progress, superseded)
                .await
                .map_or_else(of_data, |exported| {
                    Ended::Done(Some(StepResult::Exported(exported)))
                }),
            Kind::ImportImages(import) => data
                .import_images(migration, import, progress, superseded)
                .await
                .map_or_else(of_data, |()| Ended::Done(None)),
        }
    }

    async fn bar(&self, migration: &str, bar: &Bar) -> Ended {
        let pod = bar.pod.clone().unwrap_or_default();
        let data = self.data.as_ref();
        let barred = self.holder.bar(migration, &pod, &bar.images, data).await;
        barred.map_or_else(in_doubt, |barred| {
            Ended::Done(Some(StepResult::Barred(barred)))
        })
    }

    /// A leader that was deposed may have barred what the log knows to be restored.
    async fn disarm(&self, migration: &str, disarm: &Disarm) -> Ended {
        if let Err(error) = self.holder.unbar(migration).await {
            return in_doubt(error);
        }
        let disarmed = self.data.disarm(disarm).await;
        disarmed.map_or_else(of_data, |()| Ended::Done(None))
    }

    /// Not proved is not failed: something restored may still run here.
    async fn withdraw(&self, migration: &str, withdraw: &Withdraw) -> Ended {
        let pod = withdraw.pod.clone().unwrap_or_default();
        if let Err(error) = self.holder.end_barred(migration, &pod).await {
            return in_doubt(error);
        }
        let withdrawn = self.data.withdraw(migration, withdraw).await;
        withdrawn.map_or_else(
            |error| Ended::Unknown(error.to_string()),
            |()| Ended::Done(None),
        )
    }

    async fn tidy(&self, migration: &str, tidy: &Tidy) -> Ended {
        if let Err(error) = self
            .holder
            .remove_archives(migration, &Pod::default(), None)
            .await
        {
            return Ended::Failed(error.to_string());
        }
        self.data
            .tidy(migration, tidy)
            .await
            .map_or_else(of_data, |()| Ended::Done(None))
    }

    /// Archives that nobody needs any more go once their hold is remembered as done.
    async fn after(&self, key: &StepKey, request: &StepRequest, outcome: Outcome) {
        let Some(step_request::Kind::Hold(hold)) = &request.kind else {
            return;
        };
        if hold.keep_archives || outcome != Outcome::Done {
            return;
        }
        let pod = hold.pod.clone().unwrap_or_default();
        let removed = async {
            // With the hold's beginning also archives whose names nobody told us are found: a dump that was under way
            // when we died was finished by the kubelet.
            let known = self.journal.recall().await?.migration(&key.migration);
            self.holder
                .remove_archives(&key.migration, &pod, known.since_unix_ns())
                .await
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, "archives are left until the migration is tidied up");
        }
    }

    /// What stands in the way of a checkpoint, and what the containers were made from.
    async fn inspect(&self, pod: Pod, ghost_limit_bytes: u64) -> Result<Inspection, String> {
        let digests = self.data.running_digests(&pod.containers).await;
        let inspected = self.inspector.inspect(pod, ghost_limit_bytes).await;
        let mut inspection = inspected.map_err(|error| error.to_string())?;
        inspection.image_digests = digests.map_err(|error| error.to_string())?;
        Ok(inspection)
    }

    /// A pod that stands still is no success, whatever the runtime says of it: somebody was about to give it up.
    async fn verify(&self, verify: &Verify) -> Result<Verified, String> {
        let verified = self.data.verify(verify).await;
        let mut verified = verified.map_err(|error| error.to_string())?;
        let uid = verify.pod.as_ref().map_or("", |pod| pod.uid.as_str());
        let came_up = |c: &VerifiedContainer| c.origin() == Origin::Restored;
        let stands_still = verified.containers.iter().any(came_up)
            && self
                .holder
                .is_locked(uid)
                .map_err(|error| error.to_string())?;
        for container in verified
            .containers
            .iter_mut()
            .filter(|c| stands_still && came_up(c))
        {
            container.origin = Origin::Broken.into();
            container.detail = "it was restored, and stopped again to be given up".to_owned();
        }
        Ok(verified)
    }

    /// Answers a question.
    pub(super) async fn answer(&self, question: Question) -> Answer {
        let Question { call, kind } = question;
        let answer: Result<answer::Kind, String> = match kind {
            Some(question::Kind::Inspect(inspect)) => {
                let pod = inspect.pod.unwrap_or_default();
                self.inspect(pod, inspect.ghost_limit_bytes)
                    .await
                    .map(answer::Kind::Inspection)
            }
            Some(question::Kind::ConfirmHold(confirm)) => {
                let pod = confirm.pod.unwrap_or_default();
                let held = self.holder.confirm(&pod, &confirm.boot_id).await;
                held.map(answer::Kind::HoldState)
                    .map_err(|error| error.to_string())
            }
            Some(question::Kind::HasImages(has)) => {
                let missing = self.data.has_images(&has).await;
                missing
                    .map(|missing| answer::Kind::Images(ImagesState { missing }))
                    .map_err(|error| error.to_string())
            }
            Some(question::Kind::Verify(verify)) => {
                self.verify(&verify).await.map(answer::Kind::Verified)
            }
            Some(question::Kind::ListStore(_)) => {
                let listed = self.data.list_store().await;
                listed
                    .map(answer::Kind::StoreListing)
                    .map_err(|error| error.to_string())
            }
            Some(question::Kind::CheckStore(check)) => {
                let checked = self.data.check_store(&check.migration_id).await;
                checked
                    .map(answer::Kind::StoreChecked)
                    .map_err(|error| error.to_string())
            }
            Some(question::Kind::ClearStore(clear)) => {
                let cleared = self.data.clear_store(&clear.migration_id).await;
                cleared
                    .map(|()| answer::Kind::StoreCleared(StoreCleared {}))
                    .map_err(|error| error.to_string())
            }
            None => Err("this version of the worker does not know the question".to_owned()),
        };
        match answer {
            Ok(kind) => Answer {
                call,
                error: String::new(),
                kind: Some(kind),
            },
            Err(error) => Answer {
                call,
                error,
                kind: None,
            },
        }
    }
}

fn report(key: &StepKey, ended: Ended, timeline: Timeline) -> StepReport {
    let (outcome, detail, result) = match ended {
        Ended::Done(result) => (Outcome::Done, String::new(), result),
        Ended::Failed(detail) => (Outcome::Failed, detail, None),
        Ended::Unknown(detail) => (Outcome::Unknown, detail, None),
    };
    StepReport {
        call: 0,
        migration_id: key.migration.clone(),
        revision: key.revision,
        outcome: outcome.into(),
        detail,
        spans: timeline.into_spans(),
        result,
    }
}

fn urgency(kind: StepKind) -> Urgency {
    match kind {
        StepKind::Release
        | StepKind::Destroy
        | StepKind::Withdraw
        | StepKind::Tidy
        | StepKind::Bar => Urgency::EndsAHold,
        StepKind::Hold
        | StepKind::Deliver
        | StepKind::Disarm
        | StepKind::ExportImages
        | StepKind::ImportImages
        | StepKind::Copy
        | StepKind::Receive => Urgency::Ordinary,
    }
}

/// A failed hold is proved, for nothing of it runs a pod; a dump that can't be ended proves nothing.
fn of_hold(error: HoldError) -> Ended {
    if error.is_in_doubt() {
        Ended::Unknown(error.to_string())
    } else {
        Ended::Failed(error.to_string())
    }
}

/// An end of a hold that did not come about leaves everything open.
fn in_doubt(error: HoldError) -> Ended {
    Ended::Unknown(error.to_string())
}

fn of_data(error: DataError) -> Ended {
    Ended::Failed(error.to_string())
}

fn error_text(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_journal_and_damage_is_no_report() {
        let key = StepKey {
            migration: "m".into(),
            revision: 3,
            kind: StepKind::Hold,
        };
        let before = unknown(&key, "why".to_owned());
        assert_eq!(decode(&encode(&before)).unwrap(), before);
        assert!(decode("zz").is_none());
    }
}
