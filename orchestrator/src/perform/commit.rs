//! The commit: from here the target may run.
//!
//! Order is safety:
//! 1. confirm the hold (a lease of [`HOLD_LEASE`]): a source that runs has left its checkpoint behind, and while its
//!    object is untouched there is a way back; once it is deleted there is none, and the source is destroyed instead;
//! 2. delete the source's object: from here its kubelet starts nothing of it, and the frozen cgroup lets nothing run;
//! 3. make the target's object and bind it to its node, within the lease: a reboot of the source takes longer, and after
//!    one the kubelet finds no object to start;
//! 4. wait until every container is proved to be restored.
//!
//! The other order would let two run: 3 before 2 can't (the name is taken), 2 before 1 might delete a pod that runs on.
//!
//! A restore that reports an error is not yet proof that nothing runs, and its kubelet may try once more at any moment. So
//! it is barred first: its worker sees to it that nothing more comes up and that what did stands still, and looks. A pod
//! that is restored after all runs on. Any other's object is deleted, and the worker must say that the runtime has no
//! container of it. Only that is `Failed`.

use std::time::Duration;

use orchestrator_core::{
    id::{NodeName, PodUid},
    migration::{Done, Image, Outcome, Restored},
    refusal::Finding,
};
use proto::worker::{
    self as wire, answer, question, step_report, step_request, verified_container::Origin,
};
use tokio::time::Instant;

use super::{Act, Deletion, Ended, RestoredObject, SHORT_STEP_WITHIN, SourceObject, wire_images};

/// How long a confirmation of the hold is trusted: shorter than any reboot.
pub const HOLD_LEASE: Duration = Duration::from_secs(5);

/// A restore that isn't there after this time is given up: the sandbox takes 1 s, runc's restore 1 s per GiB or so, and
/// the kubelet's own retries of image and sandbox errors up to 20 s. Counted from when it is waited for, by a clock that
/// doesn't jump: one that did would end a pod that just came up.
const RESTORE_WITHIN: Duration = Duration::from_secs(60);

/// A kubelet whose API server was away looks again after a time that doubles up to 30 s and is doubled again by chance (its
/// client's backoff): 52 s on the lab after 20 s away. Giving up before it has seen the pod would not help, for the
/// rescue needs a kubelet that waits as long.
const TAKEN_UP_WITHIN: Duration = Duration::from_secs(180);

/// How far two clocks whose offset was measured may seem to be apart: half a slow round trip, and drift since.
const CLOCKS_DIFFER_NS: u64 = 500_000_000;

/// How often the target is looked at: the answer to a finished restore is late by half of it.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// How often Kubernetes is asked about the pod while the worker says that it isn't there yet.
const LOOK_AT_OBJECT_EVERY: Duration = Duration::from_millis(250);

impl Act<'_> {
    pub(super) async fn restore(&mut self) -> Result<Outcome, Ended> {
        let target = self.plan.target.clone();
        let images = self.migration.images.clone();
        let made = self.world.cluster.restored(self.plan, &self.due.id).await?;
        if self.is_dead(&target) {
            return Err(self.without_target(made).await?);
        }
        let uid = match made {
            Some(made) if made.deleted_by_user() => return Err(Ended::pod_deleted(self.plan)),
            Some(made) if made.given_up => {
                let reason = "it was given up before".to_owned();
                return Err(self
                    .prove_failed(&target, &made.uid, &images, reason)
                    .await?);
            }
            Some(made) if made.bound => made.uid,
            // Made and not bound, it lacks what making it would take: a hold that is confirmed now.
            Some(_) | None => self.hand_over(&target, &images).await?,
        };
        self.prove_restored(&target, &uid, &images)
            .await
            .map(|restored| Outcome::Done(Done::Restored(restored)))
    }

    /// The target's node is dead by a person's word, so nothing of it runs: that is the proof, whatever it had begun.
    async fn without_target(&mut self, made: Option<RestoredObject>) -> Result<Ended, Ended> {
        let word = format!("node {} was declared dead", self.plan.target);
        if let Some(made) = made {
            self.delete_restored(&made.uid).await?;
        } else if !self.is_dead(&self.plan.source)
            && self.world.cluster.source(self.plan).await? == SourceObject::Present
        {
            return Ok(Ended(Outcome::NotBegun(Finding::new(
                "TargetDeclaredDead",
                word,
                "",
            ))));
        }
        Ok(Ended::failed("TargetDeclaredDead", word))
    }

    /// The source's object goes by our hand; a deletion by its user ends the step.
    pub(super) async fn delete_source(&self) -> Result<(), Ended> {
        let (plan, id) = (self.plan, &self.due.id);
        self.ours(self.world.cluster.delete_source(plan, id).await?)
    }

    /// The same for a restored pod's object.
    pub(super) async fn delete_restored(&self, uid: &PodUid) -> Result<(), Ended> {
        let (plan, id) = (self.plan, &self.due.id);
        self.ours(self.world.cluster.delete_restored(plan, uid, id).await?)
    }

    #[expect(
        clippy::result_large_err,
        reason = "an outcome ends a step: made once, copied once"
    )]
    fn ours(&self, deletion: Deletion) -> Result<(), Ended> {
        match deletion {
            Deletion::Done => Ok(()),
            Deletion::ByUser => Err(Ended::pod_deleted(self.plan)),
        }
    }

    async fn hand_over(&mut self, target: &NodeName, images: &[Image]) -> Result<PodUid, Ended> {
        let started = self.world.clock.unix_ns();
        let confirmed = Instant::now();
        let dead = self.is_dead(&self.plan.source);
        // A dead node runs nothing, and a person has said so: there is nothing to confirm and no lease to keep.
        let held = if dead {
            Ok(())
        } else {
            self.hold_confirmed().await?
        };
        if let Err(lost) = &held
            && self.world.cluster.source(self.plan).await? == SourceObject::Present
        {
            return Err(Ended(Outcome::NotBegun(lost.clone())));
        }
        self.span("confirm hold", started);
        let started = self.world.clock.unix_ns();
        self.delete_source().await?;
        self.span("delete source pod", started);
        if held.is_err() {
            // Its object had gone before we asked, by our own hand in an earlier life: its kubelet ends it, and where
            // no hold can be confirmed only the proof that it is gone will do.
            self.destroy_source().await?;
        } else if !dead && confirmed.elapsed() > HOLD_LEASE {
            return Err(Ended::unknown(
                "LeaseLapsed",
                "the hold's confirmation is too old, it is asked for again",
            ));
        }
        let started = self.world.clock.unix_ns();
        let created = self
            .world
            .cluster
            .create(self.plan, &self.due.id, target, images)
            .await;
        self.span("create target pod", started);
        match created {
            Ok(uid) => Ok(uid),
            Err(super::ClusterError::Refused { what, reason }) => {
                // Proved: there is no object. What was delivered must not be pulled by anybody else's either.
                self.withdraw(target, None, images).await?;
                Err(Ended::failed(
                    "TargetRefused",
                    format!("Kubernetes refused to {what}: {reason}"),
                ))
            }
            Err(unclear @ super::ClusterError::Unclear { .. }) => Err(unclear.into()),
        }
    }

    /// Waits until every container is proved to be restored.
    pub(super) async fn prove_restored(
        &mut self,
        node: &NodeName,
        uid: &PodUid,
        images: &[Image],
    ) -> Result<Restored, Ended> {
        let started = self.world.clock.unix_ns();
        let mut patience = Patience::new();
        let mut looked_at_object = Instant::now();
        loop {
            match self.origins(node, uid).await? {
                Origins::Restored { running_unix_ns } => {
                    self.span("restore", started);
                    let (pod_uid, node) = (uid.clone(), node.clone());
                    return Ok(Restored {
                        pod_uid,
                        node,
                        running_unix_ns,
                        images: images.to_vec(),
                    });
                }
                Origins::Never(reason) => {
                    self.give_up(node, uid, images, reason).await?;
                }
                Origins::NotYet => {}
            }
            if looked_at_object.elapsed() > LOOK_AT_OBJECT_EVERY {
                looked_at_object = Instant::now();
                self.look_at_object(node, uid, images, &mut patience)
                    .await?;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look_at_object(
        &mut self,
        node: &NodeName,
        uid: &PodUid,
        images: &[Image],
        patience: &mut Patience,
    ) -> Result<(), Ended> {
        match self.world.cluster.restored(self.plan, &self.due.id).await? {
            None => Err(Ended::pod_deleted(self.plan)),
            Some(object) if object.deleted_by_user() || object.uid != *uid => {
                Err(Ended::pod_deleted(self.plan))
            }
            Some(object) => match (object.broken, patience.ends(object.taken_up)) {
                (Some(reason), _) => self.give_up(node, uid, images, reason).await,
                (None, true) => {
                    let waiting = object
                        .waiting
                        .unwrap_or_else(|| "nothing was said".to_owned());
                    let reason = format!(
                        "not restored after {} s: {waiting}",
                        patience.within.as_secs()
                    );
                    self.give_up(node, uid, images, reason).await
                }
                (None, false) => Ok(()),
            },
        }
    }

    async fn origins(&self, node: &NodeName, uid: &PodUid) -> Result<Origins, Ended> {
        let verify = wire::Verify {
            pod: Some(self.restored_pod(uid)),
            migration_id: self.due.id.0.to_string(),
        };
        let answer::Kind::Verified(verified) =
            self.ask(node, question::Kind::Verify(verify)).await?
        else {
            return Err(Ended::unknown(
                "WorkerConfused",
                "the answer to Verify was something else",
            ));
        };
        let mut running_unix_ns = 0;
        let mut missing = self.plan.containers.len();
        for container in &verified.containers {
            match container.origin() {
                Origin::Restored => {
                    missing = missing.saturating_sub(1);
                    running_unix_ns = running_unix_ns.max(container.running_since_unix_ns);
                }
                Origin::Started => {
                    return Ok(Origins::Never(format!(
                        "container {} started fresh instead of from its checkpoint: {}",
                        container.name, container.detail
                    )));
                }
                Origin::Broken => {
                    return Ok(Origins::Never(format!(
                        "container {}: {}",
                        container.name, container.detail
                    )));
                }
                Origin::NotYet | Origin::Unspecified => {}
            }
        }
        if missing > 0 {
            return Ok(Origins::NotYet);
        }
        let running_unix_ns = self.world.nodes.clock(node).correct(running_unix_ns);
        Ok(Origins::Restored {
            running_unix_ns: self.in_this_phase(running_unix_ns, |_, now| now),
        })
    }

    /// A time that a worker told of something done in this phase, or `otherwise`, of the phase's beginning and now, when
    /// it can't be: a clock was set in between, and the last measurement of it is some seconds old.
    pub(super) fn in_this_phase(&self, unix_ns: u64, otherwise: fn(u64, u64) -> u64) -> u64 {
        let phase = self.migration.phase;
        let entries = self.migration.entered.iter().rev();
        // Entered anew, it is the same phase still.
        let first = entries.take_while(|(entered, _)| *entered == phase).last();
        let entered_ms = first.map_or(0, |(_, at)| *at);
        let (entered, now) = (entered_ms * 1_000_000, self.world.clock.unix_ns());
        if (entered.saturating_sub(CLOCKS_DIFFER_NS)..=now.saturating_add(CLOCKS_DIFFER_NS))
            .contains(&unix_ns)
        {
            return unix_ns;
        }
        tracing::warn!(migration = %self.due.id, unix_ns, entered, now, "a worker's time can't be: a clock was set");
        otherwise(entered, now)
    }

    /// The restore has failed, it seems. `Ok`: it came up after all, and runs.
    async fn give_up(
        &mut self,
        node: &NodeName,
        uid: &PodUid,
        images: &[Image],
        reason: String,
    ) -> Result<(), Ended> {
        let started = self.world.clock.unix_ns();
        let bar = wire::Bar {
            pod: Some(self.restored_pod(uid)),
            images: wire_images(images),
        };
        let report = self
            .step(node, step_request::Kind::Bar(bar), SHORT_STEP_WITHIN)
            .await?;
        self.span("bar", started);
        match (report.outcome(), report.result) {
            (wire::step_report::Outcome::Done, Some(step_report::Result::Barred(barred))) => {
                if barred.restored {
                    return Ok(());
                }
                Err(self.prove_failed(node, uid, images, reason).await?)
            }
            _ => Err(Ended::unknown(
                "NotBarred",
                format!(
                    "it is not known whether the restore on node {node} came up: {}",
                    report.detail
                ),
            )),
        }
    }

    /// Makes it true, and proves, that nothing of this restore can run. It was barred before.
    pub(super) async fn prove_failed(
        &mut self,
        node: &NodeName,
        uid: &PodUid,
        images: &[Image],
        reason: String,
    ) -> Result<Ended, Ended> {
        let started = self.world.clock.unix_ns();
        // A container that ended, or never came up, may be one whose pod the user deleted: that is obeyed, not undone.
        let (plan, id) = (self.plan, &self.due.id);
        self.ours(self.world.cluster.condemn_restored(plan, uid, id).await?)?;
        self.withdraw(node, Some(uid), images).await?;
        // Only now: without its object the next leader would take it for never made.
        self.delete_restored(uid).await?;
        self.span("withdraw", started);
        Ok(Ended::failed("RestoreFailed", reason))
    }

    pub(super) async fn withdraw(
        &mut self,
        node: &NodeName,
        uid: Option<&PodUid>,
        images: &[Image],
    ) -> Result<(), Ended> {
        let pod = match uid {
            Some(uid) => self.restored_pod(uid),
            None => self.restored_pod(&PodUid(String::new())),
        };
        let withdraw = wire::Withdraw {
            pod: Some(pod),
            images: wire_images(images),
        };
        let report = self
            .step(
                node,
                step_request::Kind::Withdraw(withdraw),
                SHORT_STEP_WITHIN,
            )
            .await?;
        match report.outcome() {
            wire::step_report::Outcome::Done => Ok(()),
            wire::step_report::Outcome::Failed
            | wire::step_report::Outcome::Stale
            | wire::step_report::Outcome::Unknown
            | wire::step_report::Outcome::Unspecified => Err(Ended::unknown(
                "NotWithdrawn",
                format!(
                    "it is not proved that nothing of the restore runs on node {node}: {}",
                    report.detail
                ),
            )),
        }
    }
}

/// How long a restored pod is waited for, and since when.
struct Patience {
    since: Instant,
    within: Duration,
    taken_up: bool,
}

impl Patience {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            within: TAKEN_UP_WITHIN,
            taken_up: false,
        }
    }

    fn ends(&mut self, taken_up: bool) -> bool {
        if taken_up && !self.taken_up {
            *self = Self {
                since: Instant::now(),
                within: RESTORE_WITHIN,
                taken_up,
            };
        }
        self.since.elapsed() > self.within
    }
}

enum Origins {
    Restored { running_unix_ns: u64 },
    NotYet,
    Never(String),
}
