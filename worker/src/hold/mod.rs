//! The hold: a pod stopped in such a way that its checkpoint stays its last instant.
//!
//! ```text
//!  look ─► pause every task ─► dump each ─► freeze the pod's cgroup ─► store ─► report
//!            lock 1                              lock 2
//!          └── the freeze budget runs from here ─────────────────────────────┘
//! ```
//!
//! Lock 1 is taken through containerd, before the first dump: containerd then knows that the tasks are paused, and its
//! checkpoint leaves them so. Lock 2 can only be taken after the last dump, since CRIU has to run code inside the
//! processes; from then on nothing that anybody starts in the pod can run. After every stage the locks taken so far are
//! looked at again: a source that was found running means that the snapshot is stale, and the step has failed.
//!
//! A failed hold leaves the pod as it is. Undoing is [`Holder::release`], asked for by the orchestrator; ending is
//! [`Holder::destroy`]. Nothing here thaws without being asked: not a time limit, not a restart.
//!
//! After a crash the journal tells which stage was begun. If the tasks are still paused in the same boot, the step goes
//! on from there; in every other case it has failed.

mod bar;
mod copy;
mod end;
mod error;
mod node;
mod sight;
#[cfg(test)]
mod tests;
mod timeline;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proto::worker::{Container, HeldCheckpoint, Hold, HoldState, Pod};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoint::{CheckpointError, Checkpointer, Subject, proof},
    containerd::TaskState,
    data::{Data, ProgressFn, Saved, Stores},
    journal::{Archive, Entry, HoldFacts, Journal, StepKey, Urgency},
};

pub use error::HoldError;
pub use node::{Node, Tasks, ThisNode};
pub use sight::{Sight, see};
pub use timeline::Timeline;

/// A checkpoint call that was given up and whose dump was ended answers at once; longer than this, nobody knows.
const ANSWER_AFTER_END_MAX: Duration = Duration::from_secs(3);

/// Holds, releases and ends the pods of this node.
#[derive(Clone)]
pub struct Holder {
    /// Tasks, cgroups, processes.
    pub node: Arc<dyn Node>,
    /// Makes archives.
    pub checkpointer: Arc<dyn Checkpointer>,
    /// What was begun and done.
    pub journal: Journal,
    /// This boot of the node.
    pub boot_id: String,
}

/// The archive of a call that was given up, once it is there: nobody else knows its name. One that
/// comes after the worker's end stays in the kubelet's folder.
async fn discard(node: Arc<dyn Node>, call: JoinHandle<Result<PathBuf, CheckpointError>>) {
    let Ok(Ok(path)) = call.await else { return };
    if let Err(error) = node.remove_archive(&path).await {
        tracing::warn!(path = %path.display(), %error, "the archive of a dump that was given up stays");
    }
}

/// One hold on its way.
struct Attempt<'a> {
    holder: &'a Holder,
    migration: &'a str,
    pod: &'a Pod,
    facts: HoldFacts,
    budget: Duration,
    /// What the tasks are to do while they are dumped: stand still for a hold, run for a round.
    wanted: TaskState,
    timeline: &'a mut Timeline,
    /// A newer step of the migration is wanted.
    superseded: &'a CancellationToken,
}

impl Holder {
    /// Takes both locks, archives every container in between, stores the archives and proves the locks again.
    /// Repeating this goes on where it was.
    pub async fn hold(
        &self,
        key: &StepKey,
        request: &Hold,
        data: &dyn Data,
        timeline: &mut Timeline,
        progress: &ProgressFn,
        superseded: &CancellationToken,
    ) -> Result<HeldCheckpoint, HoldError> {
        let pod = request.pod.as_ref().ok_or(HoldError::NoPod)?;
        let known = self.journal.recall().await?.migration(&key.migration);
        let facts = match known.hold {
            Some(facts) if facts.revision == key.revision => self.may_go_on(facts)?,
            Some(facts) => {
                return Err(HoldError::HeldBefore {
                    revision: facts.revision,
                });
            }
            None => self.pause(key, pod, timeline).await?,
        };
        let budget = Duration::from_millis(request.budget_ms);
        let mut attempt = Attempt {
            holder: self,
            migration: &key.migration,
            pod,
            facts,
            budget,
            wanted: TaskState::Paused,
            timeline,
            superseded,
        };
        attempt.still(TaskState::Paused, "after pausing").await?;
        let archives = attempt.dump_all(known.archives).await?;
        let cgroup = attempt.freeze().await?;
        let saved = attempt.save(request, &archives, data, progress).await?;
        attempt.both_locks(&cgroup, "after storing").await?;
        let Saved {
            manifest_key,
            manifest_blake3,
            manifest_bytes: _,
            raw_bytes,
            stored_bytes,
            packs,
            spans,
        } = saved;
        attempt.timeline.extend(spans);
        let (paused_unix_ns, boot_id) = (attempt.facts.paused_unix_ns, self.boot_id.clone());
        Ok(HeldCheckpoint {
            manifest_key,
            manifest_blake3,
            paused_unix_ns,
            raw_bytes,
            stored_bytes,
            packs,
            boot_id,
        })
    }

    /// Is the pod held, now?
    pub async fn confirm(&self, pod: &Pod, boot_id: &str) -> Result<HoldState, HoldError> {
        let detail = match self.locks(pod).await? {
            Ok(()) if boot_id == self.boot_id => String::new(),
            Ok(()) => format!(
                "the node was booted anew: this is boot {}, the hold was in {boot_id}",
                self.boot_id
            ),
            Err(why) => why,
        };
        Ok(HoldState {
            held: detail.is_empty(),
            boot_id: self.boot_id.clone(),
            detail,
        })
    }

    /// Both locks, or why not.
    async fn locks(&self, pod: &Pod) -> Result<Result<(), String>, HoldError> {
        let seen = see(self.node.as_ref(), &pod.uid).await?;
        if let Err(why) = seen.stands(pod, TaskState::Paused) {
            return Ok(Err(why));
        }
        Ok(match self.node.find_cgroup(&pod.uid)? {
            None => Err("the pod has no cgroup".to_owned()),
            Some(cgroup) if self.node.is_frozen(&cgroup, &pod.uid)? => Ok(()),
            Some(cgroup) => Err(format!(
                "the pod's cgroup {} is not frozen",
                cgroup.display()
            )),
        })
    }

    /// A hold that was begun before a crash of ours: only the same boot can still have it.
    fn may_go_on(&self, facts: HoldFacts) -> Result<HoldFacts, HoldError> {
        if facts.boot_id == self.boot_id {
            return Ok(facts);
        }
        Err(HoldError::Stale {
            when: "after a restart of the worker",
            why: "the node was booted anew".to_owned(),
        })
    }

    /// Lock 1.
    ///
    /// Order: the journal knows of it before the first pause, or a crash would leave a paused pod that nobody remembers.
    /// The time is taken before the first pause, so that the budget is never undercounted.
    async fn pause(
        &self,
        key: &StepKey,
        pod: &Pod,
        timeline: &mut Timeline,
    ) -> Result<HoldFacts, HoldError> {
        let seen = see(self.node.as_ref(), &pod.uid).await?;
        seen.stands(pod, TaskState::Running)
            .map_err(|why| HoldError::NotRunning { why })?;
        let start = self.node.unix_ns();
        let containers: BTreeSet<String> = pod
            .containers
            .iter()
            .map(|c| c.container_id.clone())
            .collect();
        let facts = HoldFacts {
            revision: key.revision,
            pod_uid: pod.uid.clone(),
            paused_unix_ns: start,
            boot_id: self.boot_id.clone(),
            containers: containers.clone(),
            dumping: BTreeSet::new(),
            cgroup: None,
        };
        let entry = Entry::Pausing {
            migration: key.migration.clone(),
            facts: facts.clone(),
        };
        self.journal.append(vec![entry], Urgency::Ordinary).await?;
        // All at once: the closer together, the better the cut.
        let all = containers.iter().map(|id| self.node.pause(id));
        futures::future::try_join_all(all).await?;
        timeline.ended("pause", start, self.node.unix_ns());
        Ok(facts)
    }
}

impl Attempt<'_> {
    /// Between the locks: an archive of every container that has none yet.
    async fn dump_all(
        &mut self,
        archived: Vec<Archive>,
    ) -> Result<Vec<(String, PathBuf)>, HoldError> {
        let mut archives = Vec::new();
        for container in &self.pod.containers {
            let before = archived.iter().find(|archive| {
                archive.container == container.name
                    && archive.container_id == container.container_id
                    && self.holder.node.has_archive(&archive.path)
            });
            let path = match before {
                Some(archive) => archive.path.clone(),
                None if self.facts.cgroup.is_some() => {
                    return Err(HoldError::Stale {
                        when: "after a restart of the worker",
                        why: format!(
                            "the archive of container {} is gone, and the pod is frozen already",
                            container.name
                        ),
                    });
                }
                None => self.dump(container).await?,
            };
            archives.push((container.name.clone(), path));
        }
        Ok(archives)
    }

    async fn dump(&mut self, container: &Container) -> Result<PathBuf, HoldError> {
        let (name, id) = (&container.name, &container.container_id);
        // One that a crash of ours left running would be in the way, and in the archive's place.
        if self.facts.dumping.contains(id) && !self.holder.node.end_dump(id).await {
            return Err(HoldError::DumpStuck {
                container: name.clone(),
            });
        }
        let entry = Entry::Dumping {
            migration: self.migration.to_owned(),
            container_id: id.clone(),
        };
        self.holder
            .journal
            .append(vec![entry], Urgency::Ordinary)
            .await?;
        let archive = self.archive(container).await?;
        let path = archive.path.clone();
        let entry = Entry::Archived {
            migration: self.migration.to_owned(),
            archive,
        };
        self.holder
            .journal
            .append(vec![entry], Urgency::Ordinary)
            .await?;
        Ok(path)
    }

    /// A proved archive of a container whose task did what it should before and after.
    async fn archive(&mut self, container: &Container) -> Result<Archive, HoldError> {
        let (name, id) = (&container.name, &container.container_id);
        let start = self.holder.node.unix_ns();
        let path = self.call(container).await?;
        self.still(self.wanted, "after the dump").await?;
        let proof = self.prove(container, &path).await?;
        let mut facts = proof.statistics;
        facts.insert("bytes".to_owned(), proof.bytes.to_string());
        let end = self.holder.node.unix_ns();
        self.timeline
            .ended_with(format!("checkpoint {name}"), start, end, facts);
        Ok(Archive {
            container: name.clone(),
            container_id: id.clone(),
            path,
        })
    }

    /// One call, bounded by what is left of the budget and by the next step. Given up, its dump is ended: it may hang,
    /// and then holds the container in a way that no thaw undoes.
    ///
    /// Superseded by a release, nobody waits for the kubelet's answer: with no dump left it only packs files, which is
    /// no reason for the pod to stand still.
    async fn call(&self, container: &Container) -> Result<PathBuf, HoldError> {
        let subject = Subject {
            namespace: self.pod.namespace.clone(),
            pod: self.pod.name.clone(),
            container: container.name.clone(),
            container_id: container.container_id.clone(),
        };
        if self.superseded.is_cancelled() {
            return Err(HoldError::Superseded);
        }
        let checkpointer = Arc::clone(&self.holder.checkpointer);
        let mut call = tokio::spawn(async move { checkpointer.checkpoint(&subject).await });
        let (given_up, patience) = tokio::select! {
            biased;
            answer = tokio::time::timeout(self.left()?, &mut call) => match answer {
                Ok(answer) => return Ok(answer.map_err(|_| HoldError::Interrupted)??),
                Err(_) => (
                    HoldError::OverBudget { doing: "dumping", budget: self.budget },
                    ANSWER_AFTER_END_MAX,
                ),
            },
            () = self.superseded.cancelled() => (HoldError::Superseded, Duration::ZERO),
        };
        let ended = self.holder.node.end_dump(&container.container_id).await;
        let answered = tokio::time::timeout(patience, &mut call).await.is_ok();
        if !answered {
            tokio::spawn(discard(Arc::clone(&self.holder.node), call));
        }
        match ended && (answered || patience.is_zero()) {
            true => Err(given_up),
            false => Err(HoldError::DumpStuck {
                container: container.name.clone(),
            }),
        }
    }

    async fn prove(&self, container: &Container, path: &Path) -> Result<proof::Proof, HoldError> {
        let proof = tokio::select! {
            biased;
            proof = self.holder.node.prove(path) => proof?,
            () = self.superseded.cancelled() => return Err(HoldError::Superseded),
        };
        if proof.container_id != container.container_id {
            return Err(HoldError::OtherContainer {
                archive: path.to_owned(),
                found: sight::short(&proof.container_id),
                wanted: sight::short(&container.container_id),
            });
        }
        Ok(proof)
    }

    /// Lock 2.
    async fn freeze(&mut self) -> Result<PathBuf, HoldError> {
        if self.superseded.is_cancelled() {
            return Err(HoldError::Superseded);
        }
        let node = &self.holder.node;
        let start = node.unix_ns();
        let cgroup = self.cgroup().await?;
        let entry = Entry::Freezing {
            migration: self.migration.to_owned(),
            cgroup: cgroup.clone(),
        };
        self.holder
            .journal
            .append(vec![entry], Urgency::Ordinary)
            .await?;
        node.freeze(&cgroup, &self.pod.uid).await?;
        self.both_locks(&cgroup, "after freezing").await?;
        self.timeline.ended("freeze cgroup", start, node.unix_ns());
        Ok(cgroup)
    }

    /// From where the first container's process is, and not from a name alone.
    async fn cgroup(&self) -> Result<PathBuf, HoldError> {
        let seen = see(self.holder.node.as_ref(), &self.pod.uid).await?;
        let first = self.pod.containers.first().ok_or(HoldError::NoPod)?;
        let task = seen
            .task(&first.container_id)
            .ok_or_else(|| HoldError::Stale {
                when: "before freezing",
                why: format!("container {} has ended", first.name),
            })?;
        self.holder.node.cgroup_of(task.pid, &self.pod.uid).await
    }

    async fn save(
        &self,
        request: &Hold,
        archives: &[(String, PathBuf)],
        data: &dyn Data,
        progress: &ProgressFn,
    ) -> Result<Saved, HoldError> {
        let what = Stores {
            migration: self.migration,
            prefix: &request.store_prefix,
            archives,
            base: request.base.as_ref(),
        };
        let saving = data.save(what, progress);
        tokio::select! {
            biased;
            saved = tokio::time::timeout(self.left()?, saving) => match saved {
                Ok(saved) => Ok(saved?),
                Err(_) => Err(HoldError::OverBudget { doing: "storing", budget: self.budget }),
            },
            () = self.superseded.cancelled() => Err(HoldError::Superseded),
        }
    }

    async fn both_locks(&self, cgroup: &Path, when: &'static str) -> Result<(), HoldError> {
        self.still(TaskState::Paused, when).await?;
        if self.holder.node.is_frozen(cgroup, &self.pod.uid)? {
            return Ok(());
        }
        Err(HoldError::Stale {
            when,
            why: format!("the pod's cgroup {} is not frozen", cgroup.display()),
        })
    }

    async fn still(&self, wanted: TaskState, when: &'static str) -> Result<(), HoldError> {
        let seen = see(self.holder.node.as_ref(), &self.pod.uid).await?;
        seen.stands(self.pod, wanted)
            .map_err(|why| HoldError::Stale { when, why })
    }

    /// What is left of the budget.
    fn left(&self) -> Result<Duration, HoldError> {
        let now = self.holder.node.unix_ns();
        let spent = Duration::from_nanos(now.saturating_sub(self.facts.paused_unix_ns));
        self.budget
            .checked_sub(spent)
            .filter(|left| !left.is_zero())
            .ok_or(HoldError::OverBudget {
                doing: "holding",
                budget: self.budget,
            })
    }
}
