//! The two ends of a hold: the pod runs on, or it is gone for good. Each may be asked for twice.

use std::{
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use proto::worker::{Pod, Release, Released};

use super::{HoldError, Holder, Sight, Timeline, see};
use crate::{
    containerd::{Task, TaskState},
    journal::{Entry, Urgency},
};

/// containerd needs some ten milliseconds to notice the end of a killed process; the shim of a busy node more.
const GONE_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// The kubelet may be at an older update of the pod when it hears of the deletion, and that one waits for the next look
/// at the runtime, up to 1 s; a busy node takes several times that.
const KUBELET_ENDS_IT_WITHIN: Duration = Duration::from_secs(20);
/// Where nothing of the pod could start again, this is enough.
pub(super) const KUBELET_MAY_END_IT_WITHIN: Duration = Duration::from_secs(1);
/// SIGTERM and SIGKILL in the masks of /proc/PID/status: bit N-1 for signal N.
const TERM_OR_KILL: u64 = 1 << (15 - 1) | 1 << (9 - 1);
/// runc's word for a container that is not frozen.
const NOT_PAUSED: &str = "container not paused";
/// Where the kubelet puts archives, below its own folder.
pub(super) const KUBELET_CHECKPOINTS: &str = "/var/lib/kubelet/checkpoints";

impl Holder {
    /// Thaws and resumes the pod, proves that it runs, and removes its archives. A pod that is gone is no error.
    ///
    /// Order: first what may still be dumping it, then the outer lock, then the inner one. The inner lock first would
    /// let containerd wait for processes that the outer one holds.
    pub async fn release(
        &self,
        migration: &str,
        request: &Release,
        timeline: &mut Timeline,
    ) -> Result<Released, HoldError> {
        let pod = &request.pod.clone().unwrap_or_default();
        let start = self.node.unix_ns();
        let known = self.journal.recall().await?.migration(migration);
        self.end_dumps(pod).await?;
        if request.keep_if_doomed
            && let Some(detail) = self.doomed(pod).await?
        {
            return Ok(Released {
                was_held: true,
                doomed: true,
                detail,
                ..Released::default()
            });
        }
        let was_frozen = self.thaw(&pod.uid).await?;
        let resumed = self.resume_paused(pod).await?;
        let resumed_unix_ns = self.node.unix_ns();
        timeline.ended("resume", start, resumed_unix_ns);
        let now = see(self.node.as_ref(), &pod.uid).await?;
        let detail = if now.is_empty() {
            "the pod is gone from this node".to_owned()
        } else {
            now.stands(pod, TaskState::Running)
                .err()
                .unwrap_or_default()
        };
        self.remove_archives(migration, pod, known.since_unix_ns())
            .await?;
        let entry = Entry::HoldEnded {
            migration: migration.to_owned(),
        };
        self.journal.append(vec![entry], Urgency::EndsAHold).await?;
        let was_held = was_frozen || resumed;
        Ok(Released {
            was_held,
            running: detail.is_empty(),
            detail,
            resumed_unix_ns,
            doomed: false,
        })
    }

    /// Why a thaw would not let the pod go on as it was: a container was killed under the hold, or will be by the signal
    /// that waits in it. Only while the outer lock is there: behind it nothing has run since the checkpoint.
    async fn doomed(&self, pod: &Pod) -> Result<Option<String>, HoldError> {
        if !self.is_locked(&pod.uid)? {
            return Ok(None);
        }
        let seen = see(self.node.as_ref(), &pod.uid).await?;
        for container in &pod.containers {
            let task = seen.task(&container.container_id);
            let fate = match task.map(|task| task.state) {
                None | Some(TaskState::Stopped) => "was ended while it was held",
                Some(_) if task.is_some_and(|task| self.node.end_is_pending(task.pid)) => {
                    "would be ended by the signal that waits in it"
                }
                Some(_) => continue,
            };
            return Ok(Some(format!("container {} {fate}", container.name)));
        }
        Ok(None)
    }

    /// Waits until no container of the pod is being dumped.
    pub(super) async fn end_dumps(&self, pod: &Pod) -> Result<(), HoldError> {
        for container in &pod.containers {
            if !self.node.end_dump(&container.container_id).await {
                return Err(HoldError::DumpStuck {
                    container: container.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// Lets every container that is paused go on; true: there was one.
    pub(super) async fn resume_paused(&self, pod: &Pod) -> Result<bool, HoldError> {
        let seen = see(self.node.as_ref(), &pod.uid).await?;
        let mut resumed = false;
        for container in &pod.containers {
            let task = seen.task(&container.container_id);
            if task.is_some_and(|task| task.state == TaskState::Paused) {
                self.resume(&pod.uid, &container.container_id).await?;
                resumed = true;
            }
        }
        Ok(resumed)
    }

    /// Removes archives; those that are gone are no error.
    pub(super) async fn remove_all(&self, paths: Vec<PathBuf>) -> Result<(), HoldError> {
        for path in paths {
            match self.node.remove_archive(&path).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(HoldError::Read { path, source }),
            }
        }
        Ok(())
    }

    /// Undoes lock 1. A dump that was ended midway leaves the container thawed while containerd still counts it as
    /// paused, and its runtime resumes only what is frozen: then it is frozen again for that moment.
    async fn resume(&self, uid: &str, id: &str) -> Result<(), HoldError> {
        let Err(error) = self.node.resume(id).await else {
            return Ok(());
        };
        let cgroup = self.node.find_cgroup(uid)?;
        match cgroup.filter(|_| error.to_string().contains(NOT_PAUSED)) {
            Some(cgroup) => {
                self.node.freeze_container(&cgroup, uid, id).await?;
                Ok(self.node.resume(id).await?)
            }
            None => Err(error.into()),
        }
    }

    /// Ends every process of the pod and waits until containerd has no running task of it.
    ///
    /// Order: the kubelet must have begun to end the pod before we do. While it is still at an older update, a pod whose
    /// processes die under its eyes is one to start again, sandbox, init containers and all: a second copy.
    pub async fn destroy(
        &self,
        migration: &str,
        pod: &Pod,
        timeline: &mut Timeline,
    ) -> Result<(), HoldError> {
        let start = self.node.unix_ns();
        // Its hold on the processes would keep them from dying.
        self.end_dumps(pod).await?;
        if !self.kubelet_ends(&pod.uid, KUBELET_ENDS_IT_WITHIN).await? {
            return Err(HoldError::KubeletSilent {
                waited: KUBELET_ENDS_IT_WITHIN,
            });
        }
        let deadline = tokio::time::Instant::now() + GONE_MAX;
        loop {
            // Each time again: the kubelet may have started something in the frozen pod meanwhile.
            if let Some(cgroup) = self.node.find_cgroup(&pod.uid)? {
                self.node.kill(&cgroup, &pod.uid).await?;
            }
            let seen = see(self.node.as_ref(), &pod.uid).await?;
            if seen.alive().is_empty() {
                break;
            }
            if tokio::time::Instant::now() > deadline {
                return Err(HoldError::StillAlive {
                    waited: GONE_MAX,
                    left: names(&seen),
                });
            }
            tokio::time::sleep(POLL).await;
        }
        timeline.ended("destroy", start, self.node.unix_ns());
        let entry = Entry::HoldEnded {
            migration: migration.to_owned(),
        };
        Ok(self.journal.append(vec![entry], Urgency::EndsAHold).await?)
    }

    /// Waits for the proof that the kubelet is ending the pod, after which it starts nothing of it any more: its signal,
    /// pending in a held process, or, where nothing is left alive, the end of the pod's frozen cgroup. A container that was
    /// killed under the hold, and its sandbox with it, say nothing about the kubelet, which would start them again in a
    /// cgroup that lets them run. Thawed, it was destroyed before: this is a repetition.
    /// False: not within this time.
    pub(super) async fn kubelet_ends(
        &self,
        uid: &str,
        within: Duration,
    ) -> Result<bool, HoldError> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let seen = see(self.node.as_ref(), uid).await?;
            let alive = seen.alive();
            let ending = |(_, task): &(&_, Task)| self.node.end_is_pending(task.pid);
            if alive.iter().any(ending) || (alive.is_empty() && !self.is_locked(uid)?) {
                return Ok(true);
            }
            if tokio::time::Instant::now() > deadline {
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Is the outer lock there?
    pub(crate) fn is_locked(&self, uid: &str) -> Result<bool, HoldError> {
        match self.node.find_cgroup(uid)? {
            Some(cgroup) => self.node.is_frozen(&cgroup, uid),
            None => Ok(false),
        }
    }

    /// Removes the archives of a migration from this node, those of its rounds too; those that are gone are no error.
    /// `since_unix_ns`: nobody may have told us the names of those that were begun after that.
    pub async fn remove_archives(
        &self,
        migration: &str,
        pod: &Pod,
        since_unix_ns: Option<u64>,
    ) -> Result<(), HoldError> {
        let known = self.journal.recall().await?.migration(migration);
        let mut paths: Vec<PathBuf> = known
            .archives
            .into_iter()
            .chain(known.copies)
            .map(|archive| archive.path)
            .collect();
        if let Some(since) = since_unix_ns {
            // A dump that was given up leaves a part of an archive.
            let since = UNIX_EPOCH + Duration::from_nanos(since);
            paths.extend(self.node.strays(pod, since));
        }
        self.remove_all(paths).await?;
        let entry = Entry::ArchivesRemoved {
            migration: migration.to_owned(),
        };
        Ok(self.journal.append(vec![entry], Urgency::EndsAHold).await?)
    }

    /// True: the pod's cgroup was frozen.
    async fn thaw(&self, uid: &str) -> Result<bool, HoldError> {
        let Some(cgroup) = self.node.find_cgroup(uid)? else {
            return Ok(false);
        };
        let was_frozen = self.node.is_frozen(&cgroup, uid)?;
        self.node.thaw(&cgroup, uid).await?;
        Ok(was_frozen)
    }
}

/// Does the process, by its /proc/PID/status, have a signal to end it pending?
pub(super) fn end_is_pending(status: &str) -> bool {
    let pending = status.lines().filter_map(|line| {
        line.strip_prefix("SigPnd:")
            .or(line.strip_prefix("ShdPnd:"))
    });
    pending
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & TERM_OR_KILL != 0)
}

fn names(seen: &Sight) -> String {
    let alive = seen.alive();
    let names = alive
        .iter()
        .map(|(container, task)| format!("{} (pid {})", container.name, task.pid));
    names.collect::<Vec<_>>().join(", ")
}

/// Archives of this pod in the kubelet's folder that were begun after its hold.
pub(super) fn strays(folder: &Path, pod: &Pod, since: std::time::SystemTime) -> Vec<PathBuf> {
    let Ok(listing) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let begins = |name: &str| {
        pod.containers.iter().any(|c| {
            name.starts_with(&format!(
                "checkpoint-{}_{}-{}-",
                pod.name, pod.namespace, c.name
            ))
        })
    };
    let ours = listing.flatten().filter(|entry| {
        entry.file_name().to_str().is_some_and(begins)
            && entry
                .metadata()
                .and_then(|facts| facts.modified())
                .is_ok_and(|time| time >= since)
    });
    ours.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_end_is_read_from_either_mask_and_no_other_signal_counts() {
        let status = |own: &str, shared: &str| {
            format!("Name:\tx\nSigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t0000000000004100\n")
        };
        let none = "0000000000000000";
        assert!(end_is_pending(&status(none, "0000000000004000")), "SIGTERM");
        assert!(end_is_pending(&status("0000000000000100", none)), "SIGKILL");
        assert!(
            !end_is_pending(&status(none, "0000000000002000")),
            "SIGALRM"
        );
        assert!(!end_is_pending(&status(none, none)));
    }

    #[test]
    fn only_archives_of_this_pod_and_this_hold_are_strays() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "checkpoint-p_ns-c-2026.tar",
            "checkpoint-p_ns-other-2026.tar",
            "checkpoint-q_ns-c-2026.tar",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let container = proto::worker::Container {
            name: "c".into(),
            ..Default::default()
        };
        let pod = Pod {
            namespace: "ns".into(),
            name: "p".into(),
            containers: vec![container],
            ..Default::default()
        };
        let found = strays(folder.path(), &pod, UNIX_EPOCH);
        assert_eq!(found, [folder.path().join("checkpoint-p_ns-c-2026.tar")]);
        let later = std::time::SystemTime::now() + Duration::from_secs(60);
        assert!(strays(folder.path(), &pod, later).is_empty());
    }
}
