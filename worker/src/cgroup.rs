//! Freezing a pod: the second lock of the hold.
//!
//! The kubelet gives every pod a cgroup, and every container of it one below. Freezing the pod's stops everything in
//! it, also what the kubelet or the runtime start in it later. There are two kinds of hierarchy:
//!
//! * version 2: `<pod>/cgroup.freeze` takes 1 and 0, `<pod>/cgroup.events` tells when it came true;
//! * version 1: the controller `freezer` has a hierarchy of its own; `<pod>/freezer.state` takes FROZEN and THAWED and
//!   reads FREEZING until it came true.
//!
//! The one thing that must never happen here is to freeze more than the pod: a node whose root cgroup is frozen is
//! dead. So a [`PodCgroup`] can only be made of a folder whose own name carries the pod's UID.
//!
//! On version 1 a frozen process dies of SIGKILL only once it is thawed; on version 2 at once.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// Folders below the root that may lie above a pod's: `kubepods.slice/kubepods-burstable.slice/…`, one more for kubelets
/// with a cgroup root of their own, one for nodes that are containers themselves.
const DEPTH_MAX: usize = 6;
/// A pod's UID is a UUID (36) or, for static pods, a hash of 32 hexadecimal digits.
const UID_LENGTH_MIN: usize = 32;
/// How often a freezer is asked whether it is done; a freeze takes single milliseconds.
const POLL: Duration = Duration::from_millis(2);
/// A freeze that takes longer than this has met a process that can't be stopped (state D).
/// (Tests stand in for the kernel and never let it come true.)
const SETTLE_MAX: Duration = if cfg!(test) {
    Duration::from_millis(50)
} else {
    Duration::from_secs(5)
};

/// The hierarchies of this node.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Folder of the hierarchy that freezes.
    freezer: PathBuf,
    version: Version,
}

/// Which kind of hierarchy freezes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Controllers in hierarchies of their own.
    V1,
    /// One hierarchy.
    V2,
}

/// The cgroup of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodCgroup {
    folder: PathBuf,
    version: Version,
    uid: String,
}

/// What was in the way.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither kind.
    #[error("find a freezer below {}: neither cgroup.controllers nor a folder freezer is there", root.display())]
    NoFreezer {
        /// Where it was looked for.
        root: PathBuf,
    },
    /// The safeguard.
    #[error("refuse to freeze {}: its name does not carry the UID of pod {uid}", folder.display())]
    NotThePod {
        /// What would have been frozen.
        folder: PathBuf,
        /// Whose cgroup it should be.
        uid: String,
    },
    /// The process is somewhere else.
    #[error("process {pid} is in no cgroup of pod {uid}: it is in {found:?}")]
    NotInPod {
        /// The container's first process.
        pid: u32,
        /// Whose cgroup it should be in.
        uid: String,
        /// What its cgroup file says.
        found: String,
    },
    /// The kernel refused.
    #[error("{doing} {}", path.display())]
    Io {
        /// Verb.
        doing: &'static str,
        /// Object.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It did not come true.
    #[error("{} is {state} and not {wanted} after {} s", folder.display(), SETTLE_MAX.as_secs())]
    Unsettled {
        /// The pod's.
        folder: PathBuf,
        /// What it reads.
        state: String,
        /// What was asked for.
        wanted: &'static str,
    },
}

impl CgroupError {
    /// The cgroup is not there (any more).
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if source.kind() == std::io::ErrorKind::NotFound || source.raw_os_error() == Some(19))
    }
}

impl Cgroups {
    /// Looks what is mounted at `root`.
    pub fn at(root: &Path) -> Result<Self, CgroupError> {
        if root.join("cgroup.controllers").is_file() {
            return Ok(Self {
                freezer: root.to_owned(),
                version: Version::V2,
            });
        }
        let freezer = root.join("freezer");
        if freezer.is_dir() {
            return Ok(Self {
                freezer,
                version: Version::V1,
            });
        }
        Err(CgroupError::NoFreezer {
            root: root.to_owned(),
        })
    }

    /// 1 or 2.
    pub fn version(&self) -> u32 {
        match self.version {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }

    /// The pod's cgroup, from what /proc/PID/cgroup says about a process of one of its containers.
    pub fn of_process(
        &self,
        pid: u32,
        proc_cgroup: &str,
        uid: &str,
    ) -> Result<PodCgroup, CgroupError> {
        let not_in_pod = || CgroupError::NotInPod {
            pid,
            uid: uid.to_owned(),
            found: proc_cgroup.trim().to_owned(),
        };
        let path = self.path_of(proc_cgroup).ok_or_else(not_in_pod)?;
        let relative = Path::new(path.trim_start_matches('/'));
        // "/../x": the process is outside of what our own cgroup namespace shows.
        if relative
            .components()
            .any(|part| !matches!(part, Component::Normal(_)))
        {
            return Err(not_in_pod());
        }
        let pod = relative
            .ancestors()
            .skip(1)
            .find(|folder| carries(folder, uid))
            .ok_or_else(not_in_pod)?;
        self.pod(self.freezer.join(pod), uid)
    }

    /// The pod's cgroup by its name alone, for when no process tells any more. Nothing: there is none.
    pub fn find(&self, uid: &str) -> Result<Option<PodCgroup>, CgroupError> {
        let mut found = Vec::new();
        find_pods(&self.freezer, DEPTH_MAX, &mut found)?;
        found
            .into_iter()
            .find(|folder| carries(folder, uid))
            .map(|folder| self.pod(folder, uid))
            .transpose()
    }

    /// UIDs of the pods that are frozen now.
    pub fn frozen_pods(&self) -> Result<Vec<String>, CgroupError> {
        let mut found = Vec::new();
        find_pods(&self.freezer, DEPTH_MAX, &mut found)?;
        let mut frozen = Vec::new();
        for folder in found {
            let Some(uid) = folder.file_name().and_then(|name| uid_in(name.to_str()?)) else {
                continue;
            };
            match self.pod(folder, &uid)?.is_frozen() {
                Ok(true) => frozen.push(uid),
                Ok(false) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(frozen)
    }

    /// A cgroup whose folder is known.
    pub(crate) fn pod(&self, folder: PathBuf, uid: &str) -> Result<PodCgroup, CgroupError> {
        if !carries(&folder, uid) {
            return Err(CgroupError::NotThePod {
                folder,
                uid: uid.to_owned(),
            });
        }
        Ok(PodCgroup {
            folder,
            version: self.version,
            uid: uid.to_owned(),
        })
    }

    /// The path in our hierarchy, from lines `ID:CONTROLLERS:PATH`.
    fn path_of<'a>(&self, proc_cgroup: &'a str) -> Option<&'a str> {
        proc_cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            match self.version {
                Version::V1 => controllers
                    .split(',')
                    .any(|name| name == "freezer")
                    .then_some(path),
                Version::V2 => controllers.is_empty().then_some(path),
            }
        })
    }
}

impl PodCgroup {
    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Is everything in it stopped, now?
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(self.state()?.0)
    }

    /// Stops everything in it. Repeating this is harmless.
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        self.settle(true).await
    }

    /// Freezes one container by itself, as its runtime's pause does: the runtime looks at nothing else.
    pub async fn freeze_container(&self, id: &str) -> Result<(), CgroupError> {
        let named = |folder: &PathBuf| {
            folder
                .file_name()
                .is_some_and(|name| name.to_string_lossy().contains(id))
        };
        for folder in folders_in(&self.folder)?.into_iter().filter(named) {
            let container = Self {
                folder,
                ..self.clone()
            };
            container.settle(true).await?;
        }
        Ok(())
    }

    /// Lets everything in it go on that is not frozen on its own. Repeating this is harmless.
    pub async fn thaw(&self) -> Result<(), CgroupError> {
        self.settle(false).await
    }

    /// Processes in it and in the cgroups below.
    pub fn processes(&self) -> Result<BTreeSet<u32>, CgroupError> {
        let mut all = BTreeSet::new();
        for folder in self.below()? {
            match read(&folder.join("cgroup.procs")) {
                Ok(text) => all.extend(
                    text.lines()
                        .filter_map(|line| line.trim().parse::<u32>().ok()),
                ),
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Ends every process in it: one SIGKILL each, and on version 2 all at once before that. Then thaws the pod and its
    /// containers, because on version 1 only a thawed process dies.
    ///
    /// Order: every process has its SIGKILL pending before anything is thawed, so none runs an instruction of its own.
    pub async fn kill(&self) -> Result<(), CgroupError> {
        if self.version == Version::V2 {
            match write(&self.folder.join("cgroup.kill"), "1") {
                // Kernels before 5.14 have no such file; the signals below do the same.
                Ok(()) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        for pid in self.processes()? {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // 0 stands for a process outside of our PID namespace, and one that is gone needs no signal.
            if let Some(pid) = pid {
                let _already_gone = kill_process(pid, Signal::KILL);
            }
        }
        // The pod last: below a thawed container nothing moves while the pod is frozen.
        for folder in self.below()?.into_iter().rev() {
            let cgroup = Self {
                folder,
                version: self.version,
                uid: self.uid.clone(),
            };
            match cgroup.thaw().await {
                Ok(()) => {}
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn settle(&self, frozen: bool) -> Result<(), CgroupError> {
        let (file, value) = match (self.version, frozen) {
            (Version::V1, true) => ("freezer.state", "FROZEN"),
            (Version::V1, false) => ("freezer.state", "THAWED"),
            (Version::V2, true) => ("cgroup.freeze", "1"),
            (Version::V2, false) => ("cgroup.freeze", "0"),
        };
        let deadline = tokio::time::Instant::now() + SETTLE_MAX;
        loop {
            // Written again each time: on version 1 a fork in the wrong moment leaves FREEZING behind for good.
            write(&self.folder.join(file), value)?;
            let (is_frozen, state) = self.state()?;
            let thawing_under_a_frozen_parent = !frozen && self.is_thawed_itself()?;
            if is_frozen == frozen && state != "FREEZING" || thawing_under_a_frozen_parent {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                return Err(CgroupError::Unsettled {
                    folder: self.folder.clone(),
                    state,
                    wanted: value,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Frozen or not, and the kernel's word for it.
    fn state(&self) -> Result<(bool, String), CgroupError> {
        match self.version {
            Version::V1 => {
                let state = read(&self.folder.join("freezer.state"))?.trim().to_owned();
                Ok((state == "FROZEN", state))
            }
            Version::V2 => {
                // `frozen 1` in the events is the state reached; cgroup.freeze alone is only the wish.
                let events = read(&self.folder.join("cgroup.events"))?;
                let reached = events.lines().any(|line| line == "frozen 1");
                Ok((reached, events.replace('\n', " ").trim().to_owned()))
            }
        }
    }

    fn is_thawed_itself(&self) -> Result<bool, CgroupError> {
        let own = match self.version {
            Version::V1 => self.folder.join("freezer.self_freezing"),
            Version::V2 => self.folder.join("cgroup.freeze"),
        };
        Ok(own.is_file() && read(&own)?.trim() == "0")
    }

    /// This folder and all below, parents first.
    fn below(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut all = vec![self.folder.clone()];
        let mut next = 0;
        while next < all.len() {
            all.extend(folders_in(&all[next])?);
            next += 1;
        }
        Ok(all)
    }
}

/// Does the folder's own name carry the UID? With the systemd driver its dashes are underscores.
fn carries(folder: &Path, uid: &str) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    uid.len() >= UID_LENGTH_MIN && name.and_then(uid_in).is_some_and(|found| found == uid)
}

/// The UID in a folder's name like `pod1234…`, `kubepods-besteffort-pod1234_….slice`.
fn uid_in(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let (before, uid) = name.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    let is_uid = uid.len() >= UID_LENGTH_MIN
        && uid
            .chars()
            .all(|digit| digit.is_ascii_hexdigit() || digit == '-');
    (is_uid && (before.is_empty() || before.ends_with('-'))).then_some(uid)
}

fn find_pods(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), CgroupError> {
    for child in folders_in(folder)? {
        if child
            .file_name()
            .and_then(|name| uid_in(name.to_str()?))
            .is_some()
        {
            found.push(child);
        } else if depth > 1 {
            find_pods(&child, depth - 1, found)?;
        }
    }
    Ok(())
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        // Cgroups come and go while we look.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(CgroupError::Io {
                doing: "list",
                path: folder.to_owned(),
                source,
            });
        }
    };
    let folders = listing
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.map(|entry| entry.path()).collect())
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Io {
        doing: "read",
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Not created when missing: in a cgroup file system nobody creates files.
    let file = fs::OpenOptions::new().write(true).truncate(true).open(path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| CgroupError::Io {
            doing: "write",
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests;
