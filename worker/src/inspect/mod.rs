//! What stands in the way of a checkpoint, seen in /proc while the pod runs on. Nothing is touched: no signal, no
//! ptrace, no freeze.
//!
//! [`process`] and [`network`] read and parse; [`rules`] judge what was read, and are pure. Findings of severity REFUSE
//! are things that make CRIU's dump or restore fail; WARN are things that come back silently different. What can't be
//! seen from here (unix sockets to the outside, what a program keeps in its keyring) is left to the dump itself.

mod mounts;
mod network;
mod process;
mod rules;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use proto::worker::{Finding, Inspection, Pod, Severity};

use crate::{
    containerd::{Containerd, ContainerdError, TaskState},
    hold::see,
};
use process::Process;

/// What CRIU writes per process besides its memory: core, maps, files. Measured: some 20 KiB; a thread takes 2 more.
const PROCESS_OVERHEAD_BYTES: u64 = 64 << 10;

/// Looks into running pods. The second implementation is the simulator's.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// Looks at every container of the pod that moves.
    async fn inspect(&self, pod: Pod, ghost_limit_bytes: u64) -> Result<Inspection, InspectError>;
}

/// Looks through containerd and /proc.
#[derive(Clone, Debug)]
pub struct Inspector {
    /// The runtime.
    pub containerd: Containerd,
    /// Where /proc is.
    pub proc: PathBuf,
    /// The node's root file system.
    pub node_root: PathBuf,
}

/// Why nothing could be seen.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The runtime did not answer.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// The looking broke off.
    #[error("the inspection was interrupted")]
    Interrupted,
}

/// One container, as it was seen.
#[derive(Clone, Debug, Default)]
struct Container {
    name: String,
    /// Its first process.
    init: u32,
    has_terminal: bool,
    processes: Vec<Process>,
    network: network::Network,
    /// Files in /dev/shm.
    shared_files: Vec<String>,
    /// System V objects of the pod.
    sysv_objects: usize,
    /// Bytes changed in the root file system.
    changed_bytes: u64,
}

/// The node, as far as it decides.
#[derive(Clone, Debug, Default)]
struct Node {
    user_namespace: String,
    may_raise_limits: bool,
}

#[async_trait]
impl Inspect for Inspector {
    async fn inspect(&self, pod: Pod, ghost_limit_bytes: u64) -> Result<Inspection, InspectError> {
        let seen = see(&self.containerd, &pod.uid).await?;
        let mut findings: Vec<Finding> = Vec::new();
        if let Err(why) = seen.stands(&pod, TaskState::Running) {
            findings.push(refuse(
                "NotRunning",
                why,
                "wait until every container of the pod runs",
            ));
        }
        let tasks: Vec<(String, u32, bool)> = pod
            .containers
            .iter()
            .filter_map(|container| Some((container, seen.task(&container.container_id)?)))
            .map(|(container, task)| (container.name.clone(), task.pid, task.terminal))
            .collect();
        let inspector = self.clone();
        let looking = tokio::task::spawn_blocking(move || inspector.look(&tasks));
        let (node, containers) = looking.await.map_err(|_| InspectError::Interrupted)?;
        findings.extend(rules::judge(
            &node,
            &containers,
            &pod.pod_ip,
            ghost_limit_bytes,
        ));
        let all = || containers.iter().flat_map(|container| &container.processes);
        let memory_bytes = all().map(|process| process.memory_bytes).sum();
        let processes = u32::try_from(all().count()).unwrap_or(u32::MAX);
        let changed: u64 = containers
            .iter()
            .map(|container| container.changed_bytes)
            .sum();
        let archive_bytes = memory_bytes + changed + u64::from(processes) * PROCESS_OVERHEAD_BYTES;
        Ok(Inspection {
            findings,
            memory_bytes,
            archive_bytes,
            processes,
            image_digests: std::collections::HashMap::new(),
        })
    }
}

impl Inspector {
    /// Reads. What vanishes meanwhile is not there.
    fn look(&self, tasks: &[(String, u32, bool)]) -> (Node, Vec<Container>) {
        let status = std::fs::read_to_string(self.proc.join("1/status")).unwrap_or_default();
        let node = Node {
            user_namespace: process::namespace(&self.proc.join("self"), "user"),
            may_raise_limits: process::may_raise_limits(&status),
        };
        let containers = tasks.iter().map(|(name, init, has_terminal)| Container {
            name: name.clone(),
            init: *init,
            has_terminal: *has_terminal,
            ..self.look_at(*init)
        });
        (node, containers.collect())
    }

    fn look_at(&self, init: u32) -> Container {
        let folder = self.proc.join(init.to_string());
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let mounts = mounts::parse(&text("mountinfo"));
        let processes = process::in_cgroup_of(&self.proc, init, &mounts);
        let changed = mounts::upper_folder(&text("mountinfo"))
            .map(|upper| bytes_below(&under(&self.node_root, &upper)));
        Container {
            network: network::Network::parse(
                &text("net/tcp"),
                &text("net/tcp6"),
                &text("net/udp"),
                &text("net/udp6"),
            )
            .with_protocols(&text("net/protocols")),
            shared_files: names_in(&folder.join("root/dev/shm")),
            sysv_objects: sysv_objects(&folder),
            changed_bytes: changed.unwrap_or_default(),
            processes,
            ..Container::default()
        }
    }
}

fn refuse(code: &str, message: String, remedy: &str) -> Finding {
    finding(Severity::Refuse, code, message, remedy)
}

fn finding(severity: Severity, code: &str, message: String, remedy: &str) -> Finding {
    Finding {
        severity: severity.into(),
        code: code.to_owned(),
        message,
        remedy: remedy.to_owned(),
    }
}

fn under(root: &Path, absolute: &str) -> PathBuf {
    root.join(absolute.trim_start_matches('/'))
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(listing) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    listing
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(listing) = std::fs::read_dir(folder) else {
        return 0;
    };
    let entries = listing
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)));
    entries
        .map(|(path, facts)| {
            if facts.is_dir() {
                bytes_below(&path)
            } else {
                facts.len()
            }
        })
        .sum()
}

/// Counts the System V objects of the pod. /proc/sysvipc shows those of the reader's IPC namespace, so a thread of its
/// own enters the pod's for the look and ends with it.
fn sysv_objects(folder: &Path) -> usize {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let Ok(namespace) = std::fs::File::open(folder.join("ns/ipc")) else {
        return 0;
    };
    let counting = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::InterProcessCommunication);
        move_into_link_name_space(namespace.as_fd(), kind).ok()?;
        let lists = ["shm", "sem", "msg"]
            .map(|list| std::fs::read_to_string(format!("/proc/sysvipc/{list}")));
        // The first line of each is its heading.
        Some(
            lists
                .iter()
                .flatten()
                .map(|list| list.lines().skip(1).count())
                .sum(),
        )
    });
    counting.join().ok().flatten().unwrap_or_default()
}

/// A process is in none of these when it is not one of the init's family.
fn family(init: u32, processes: &[Process]) -> BTreeSet<u32> {
    let mut family = BTreeSet::from([init]);
    loop {
        let before = family.len();
        family.extend(
            processes
                .iter()
                .filter(|process| family.contains(&process.parent))
                .map(|p| p.pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            return family;
        }
    }
}
