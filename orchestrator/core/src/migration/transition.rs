//! What an outcome, or a person's word that a node is dead, makes of a migration. Total: every phase and every
//! outcome is named, so that a new one doesn't compile until it was thought of.

use super::{Done, Doubt, Migration, Outcome, Phase};
use crate::{
    id::{NodeName, Revision, UnixMs},
    plan::Plan,
    refusal::Finding,
};

impl Migration {
    /// What this outcome makes of the phase. The caller has checked the revision.
    ///
    /// Total over phase x outcome: an outcome that does not belong to the phase's step changes nothing.
    pub fn next(&mut self, outcome: Outcome, at_ms: UnixMs) -> Option<Phase> {
        match outcome {
            Outcome::Done(done) => self.done(done),
            Outcome::Failed(reason) => self.failed(reason),
            Outcome::PodDeleted(reason) => self.pod_deleted(reason),
            Outcome::NotBegun(reason) if self.phase == Phase::Restoring => {
                self.reason = Some(reason);
                Some(Phase::Releasing)
            }
            Outcome::NotBegun(reason) => self.failed(reason),
            Outcome::Forgotten(_) => Some(self.phase),
            Outcome::Unknown(what) => {
                let (since_ms, asked) = match &self.doubt {
                    Some(doubt) => (doubt.since_ms, doubt.asked.saturating_add(1)),
                    None => (at_ms, 1),
                };
                self.doubt = Some(Doubt {
                    since_ms,
                    what,
                    asked,
                });
                None
            }
        }
    }

    fn done(&mut self, done: Done) -> Option<Phase> {
        match (self.phase, done) {
            (Phase::Planned, Done::Rechecked) => Some(Phase::Preparing),
            (Phase::Preparing, Done::Prepared) => Some(Phase::Holding),
            (Phase::Preparing, Done::ReadyToCopy) => Some(Phase::Copying),
            (Phase::Copying, Done::Copied { round, again }) => {
                self.rounds.push(round);
                Some(if again {
                    Phase::Copying
                } else {
                    Phase::Holding
                })
            }
            (Phase::Holding, Done::Held(checkpoint)) => {
                self.checkpoint = Some(checkpoint);
                Some(Phase::Delivering)
            }
            (Phase::Delivering, Done::Delivered(images)) => {
                self.images = images;
                Some(Phase::Restoring)
            }
            (Phase::Restoring, Done::Restored(restored))
            | (Phase::Rescuing, Done::Rescued(restored)) => {
                self.restored = Some(restored);
                Some(Phase::Retiring)
            }
            (Phase::Retiring, Done::Retired) => {
                self.left_over = self.left_on_the_dead();
                self.kept = self.keeps_checkpoint();
                Some(match (&self.restored, self.rescued()) {
                    (None, _) => Phase::Abandoned,
                    (Some(_), true) => Phase::Rescued,
                    (Some(_), false) => Phase::Succeeded,
                })
            }
            (
                Phase::Releasing,
                Done::Released {
                    clean,
                    detail,
                    left_over,
                },
            ) => {
                if !clean {
                    self.unclean = Some(detail);
                }
                self.left_over = left_over.or_else(|| self.left_on_the_dead());
                Some(Phase::RolledBack)
            }
            (Phase::Releasing, Done::Doomed(reason)) if self.checkpoint.is_some() => {
                self.reason = Some(reason);
                Some(Phase::Rescuing)
            }
            (
                _,
                Done::Rechecked
                | Done::Prepared
                | Done::ReadyToCopy
                | Done::Copied { .. }
                | Done::Held(_)
                | Done::Delivered(_)
                | Done::Restored(_)
                | Done::Rescued(_)
                | Done::Retired
                | Done::Released { .. }
                | Done::Doomed(_),
            ) => None,
        }
    }

    fn failed(&mut self, reason: Finding) -> Option<Phase> {
        match self.phase {
            Phase::Delivering if self.source_is_dead() => {
                self.reason = Some(reason);
                Some(Phase::Rescuing)
            }
            Phase::Planned | Phase::Preparing | Phase::Holding | Phase::Delivering => {
                self.reason = Some(reason);
                Some(Phase::Releasing)
            }
            // It only makes the freeze shorter.
            Phase::Copying => {
                self.copying_ended = Some(reason);
                Some(Phase::Holding)
            }
            Phase::Restoring => {
                self.reason = Some(reason);
                Some(Phase::Rescuing)
            }
            // Undo and rescue are tried again, as a new attempt: workers answer an old one from their journals. A
            // person sees what stands in the way.
            Phase::Rescuing | Phase::Retiring | Phase::Releasing => {
                self.stuck = Some(reason);
                Some(self.phase)
            }
            Phase::Succeeded
            | Phase::RolledBack
            | Phase::Rescued
            | Phase::Refused
            | Phase::Previewed
            | Phase::Abandoned => None,
        }
    }

    fn pod_deleted(&mut self, reason: Finding) -> Option<Phase> {
        match self.phase {
            Phase::Planned
            | Phase::Preparing
            | Phase::Copying
            | Phase::Holding
            | Phase::Delivering => {
                self.reason = Some(reason);
                Some(Phase::Releasing)
            }
            Phase::Restoring | Phase::Rescuing => {
                self.reason = Some(reason);
                Some(Phase::Retiring)
            }
            Phase::Retiring
            | Phase::Releasing
            | Phase::Succeeded
            | Phase::RolledBack
            | Phase::Rescued
            | Phase::Refused
            | Phase::Previewed
            | Phase::Abandoned => None,
        }
    }

    /// A person says that this node is dead: powered off, destroyed, cut off for good. From now on nothing is waited for
    /// from it. `None`: the phase stays as it is, with the step that is under way.
    pub(crate) fn declare_dead(&mut self, node: NodeName, at_ms: UnixMs) -> Option<Phase> {
        let Plan { source, target, .. } = self.plan.as_ref()?;
        let (is_source, is_target) = (*source == node, *target == node);
        let word = Finding::new("DeclaredDead", format!("node {node} was declared dead"), "");
        self.dead.insert(node, at_ms);
        match self.phase {
            Phase::Planned | Phase::Preparing | Phase::Copying | Phase::Holding => {
                self.reason = Some(word);
                Some(Phase::Releasing)
            }
            // Its checkpoint is durable and it can't be released: forward, the delivery under way is good.
            Phase::Delivering if is_source && !self.target_is_dead() => None,
            Phase::Delivering if is_target && !self.source_is_dead() => {
                self.reason = Some(word);
                Some(Phase::Releasing)
            }
            // Both: the store is the only place where the pod is.
            Phase::Delivering => {
                self.reason = Some(word);
                Some(Phase::Rescuing)
            }
            // Asked anew, without that node's word.
            Phase::Restoring | Phase::Rescuing | Phase::Retiring | Phase::Releasing => {
                Some(self.phase)
            }
            Phase::Succeeded
            | Phase::RolledBack
            | Phase::Rescued
            | Phase::Refused
            | Phase::Previewed
            | Phase::Abandoned => None,
        }
    }

    fn target_is_dead(&self) -> bool {
        self.plan
            .as_ref()
            .is_some_and(|plan| self.is_dead(&plan.target))
    }

    /// A dead node that comes back still has what was held or restored there, under the fences it had: that is to be
    /// ended there, and only then is nothing of the migration left.
    fn left_on_the_dead(&self) -> Option<Finding> {
        if self.dead.is_empty() {
            return None;
        }
        let nodes: Vec<String> = self.dead.keys().map(ToString::to_string).collect();
        Some(Finding::new(
            "OnADeadNode",
            format!(
                "what it left on {}, which was declared dead, is cleared away when its worker is back",
                nodes.join(" and ")
            ),
            "",
        ))
    }

    /// Enters a phase, or begins a new attempt at the one it is in: the only place where the revision changes.
    pub fn enter(&mut self, phase: Phase, at: Revision, at_ms: UnixMs) {
        if self.phase != phase || self.entered.is_empty() {
            self.entered.push((phase, at_ms));
            self.attempts = 0;
            self.stuck = None;
        }
        self.phase = phase;
        self.revision = at;
        self.doubt = None;
        self.attempts = self.attempts.saturating_add(1);
        self.attempted_ms = at_ms;
    }
}
