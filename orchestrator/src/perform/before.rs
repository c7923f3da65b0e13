//! Before anything is frozen: is the plan still true, and does the target have the base images?

use orchestrator_core::{
    id::NodeName,
    migration::{Done, Outcome},
    refusal::Finding,
};
use proto::worker::{self as wire, answer, question, step_report, step_request};

use super::{Act, ClusterError, Ended, LONG_STEP_WITHIN, PULL_SPAN, SourceObject};

/// containerd fetches no layer that another container on the node has unpacked already; restoring needs every layer as it
/// was packed.
const PULLED_IN_PART: &str = "the image was pulled, but not every layer of it was fetched: another container of that \
     node has it unpacked";

/// A worker that doesn't answer before the freeze is waited for this long: its pod may just be restarting.
const WORKER_PATIENCE_MS: u64 = 30_000;

impl Act<'_> {
    pub(super) async fn recheck(&mut self) -> Result<Outcome, Ended> {
        let checked = self.recheck_now().await;
        self.patience(checked)
    }

    async fn recheck_now(&mut self) -> Result<Outcome, Ended> {
        if self.world.cluster.source(self.plan).await? == SourceObject::Deleted {
            return Err(Ended::pod_deleted(self.plan));
        }
        if let Some(reason) = self.world.cluster.target_refuses(self.plan).await? {
            return Ok(Outcome::Failed(reason));
        }
        let inspect = question::Kind::Inspect(wire::Inspect {
            pod: Some(self.source_pod()),
            ghost_limit_bytes: 0,
        });
        let answer::Kind::Inspection(inspection) = self.ask(&self.plan.source, inspect).await?
        else {
            return Err(Ended::unknown(
                "WorkerConfused",
                "the answer to Inspect was something else",
            ));
        };
        if let Some(reason) = crate::api::inspection_view(&inspection)
            .refusals
            .into_iter()
            .next()
        {
            return Ok(Outcome::Failed(reason));
        }
        self.missing_images(&self.plan.target).await?;
        Ok(Outcome::Done(Done::Rechecked))
    }

    pub(super) async fn prepare(&mut self) -> Result<Outcome, Ended> {
        let prepared = self.prepare_now().await;
        self.patience(prepared)
    }

    /// Already there; or pulled by the target's kubelet with the pod's own secrets; or, the registry being gone,
    /// through the store from the source node, which runs from it.
    async fn prepare_now(&mut self) -> Result<Outcome, Ended> {
        let target = self.plan.target.clone();
        let (mut missing, pull_error) = self.pull_images(&target).await?;
        if !missing.is_empty() {
            let started = self.world.clock.unix_ns();
            self.send_images(&missing).await?;
            self.span("send base images through the store", started);
            missing = self.missing_images(&target).await?;
        }
        if !missing.is_empty() {
            let pull =
                pull_error.map_or_else(String::new, |error| format!("; pulling them: {error}"));
            return Ok(Outcome::Failed(Finding::new(
                "BaseImageMissing",
                format!(
                    "node {} lacks the images of {}{pull}",
                    self.plan.target,
                    missing.join(", ")
                ),
                "pull them on that node",
            )));
        }
        if self
            .world
            .cluster
            .mark_source(self.plan, &self.due.id)
            .await?
            == SourceObject::Deleted
        {
            return Err(Ended::pod_deleted(self.plan));
        }
        Ok(Outcome::Done(if self.plan.rounds_max > 0 {
            Done::ReadyToCopy
        } else {
            Done::Prepared
        }))
    }

    /// Lets the node pull what it lacks. Gives what it lacks then, and why.
    pub(super) async fn pull_images(
        &mut self,
        node: &NodeName,
    ) -> Result<(Vec<String>, Option<ClusterError>), Ended> {
        let missing = self.missing_images(node).await?;
        if missing.is_empty() {
            return Ok((missing, None));
        }
        let started = self.world.clock.unix_ns();
        let (plan, id) = (self.plan, &self.due.id);
        let pulled = self.world.cluster.prepull(plan, id, node, &missing).await;
        self.span(PULL_SPAN, started);
        let missing = self.missing_images(node).await?;
        let why = match &pulled {
            Err(error) => Some(error.to_string()),
            Ok(()) if !missing.is_empty() => Some(PULLED_IN_PART.to_owned()),
            Ok(()) => None,
        };
        // The images may come another way, and nobody would learn why it took so long.
        if let (Some(why), Some(span)) = (why, self.spans.last_mut()) {
            let facts = [("node", node.to_string()), ("error", why)];
            span.attributes = facts.map(|(key, fact)| (key.to_owned(), fact)).into();
        }
        Ok((missing, pulled.err()))
    }

    async fn missing_images(&self, node: &NodeName) -> Result<Vec<String>, Ended> {
        let kind = question::Kind::HasImages(wire::HasImages {
            containers: self.source_pod().containers,
        });
        match self.ask(node, kind).await? {
            answer::Kind::Images(images) => Ok(images.missing),
            answer::Kind::Inspection(_)
            | answer::Kind::HoldState(_)
            | answer::Kind::Verified(_)
            | answer::Kind::StoreListing(_)
            | answer::Kind::StoreChecked(_)
            | answer::Kind::StoreCleared(_) => Err(Ended::unknown(
                "WorkerConfused",
                "the answer to HasImages was something else",
            )),
        }
    }

    async fn send_images(&mut self, missing: &[String]) -> Result<(), Ended> {
        let containers: Vec<wire::Container> = self
            .source_pod()
            .containers
            .into_iter()
            .filter(|container| missing.contains(&container.name))
            .collect();
        let store_prefix = format!("images/{}/{}/", self.due.id, self.due.revision);
        let export = wire::ExportImages {
            containers: containers.clone(),
            store_prefix,
        };
        let source = self.plan.source.clone();
        let target = self.plan.target.clone();
        let exported = self
            .must(
                &source,
                step_request::Kind::ExportImages(export),
                LONG_STEP_WITHIN,
                "ExportImagesFailed",
            )
            .await?;
        let Some(step_report::Result::Exported(exported)) = exported.result else {
            return Err(Ended::unknown(
                "WorkerConfused",
                "images were exported without a manifest",
            ));
        };
        let import = wire::ImportImages {
            containers,
            manifest_key: exported.manifest_key,
            manifest_blake3: exported.manifest_blake3,
        };
        self.must(
            &target,
            step_request::Kind::ImportImages(import),
            LONG_STEP_WITHIN,
            "ImportImagesFailed",
        )
        .await?;
        Ok(())
    }

    /// Nothing is frozen yet: what can't be told for long is a failure, and nothing of it can run a pod.
    #[expect(
        clippy::result_large_err,
        reason = "an outcome ends a step: made once, copied once"
    )]
    pub(super) fn patience(&self, ended: Result<Outcome, Ended>) -> Result<Outcome, Ended> {
        let Err(Ended(Outcome::Unknown(what))) = ended else {
            return ended;
        };
        let entered_ms = self.migration.attempted_ms;
        if self.world.clock.unix_ms().saturating_sub(entered_ms) > WORKER_PATIENCE_MS {
            return Err(Ended(Outcome::Failed(what)));
        }
        Err(Ended(Outcome::Unknown(what)))
    }
}
