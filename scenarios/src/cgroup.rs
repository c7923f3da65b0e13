//! The lab's own cgroups: one per lab in every hierarchy, with a child for the control plane and one per node.
//!
//! They are what makes `down` certain: every process of a lab enters its group before it becomes the program it is to
//! be, so whatever is in the groups belongs to the lab and nothing of the lab is outside, whoever its parent was and
//! whatever crashed. A node also *needs* a group of its own in every hierarchy: containers are made below it, and a
//! restore fails when its containerd runs in a group the node cannot see.
//!
//! cgroup v1 has one tree per controller, v2 a single one; a machine may mount both, and an empty v2 tree beside v1
//! is left alone. In v2 a group with children may hold no process itself, so a node's programs live in its child
//! `init`.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How long the killed may take to be gone. A node dies in well under a second; a machine busy compiling needs more.
const EMPTY_WITHIN: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The child of a v2 node group that holds the node's own programs.
const V2_LEAF: &str = "init";

/// One mounted tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where it is mounted, on the host and, the lab's part of it, in the nodes.
    pub mount: PathBuf,
    /// Which kind it is.
    pub kind: Kind,
}

/// What a hierarchy controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// v1 with the controllers, or the `name=…`, given as mount options.
    V1(String),
    /// v2 with controllers of its own.
    V2,
}

/// The hierarchies nodes are put into.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mut found = mounted()?;
    // v2 beside v1 controls little or nothing, and would only make runtimes see two trees for one container.
    if found.iter().any(Hierarchy::has_v1_controllers) {
        found.retain(|hierarchy| hierarchy.kind != Kind::V2);
    }
    if found.is_empty() {
        bail!("no cgroup hierarchy is mounted here; nodes need them");
    }
    Ok(found)
}

/// Every mounted hierarchy: where a group of ours may be, whatever made it.
fn mounted() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the list of mounts")?;
    let names =
        fs::read_to_string("/proc/cgroups").context("read the list of cgroup controllers")?;
    Ok(parse(&mounts, &names))
}

impl Hierarchy {
    fn has_v1_controllers(&self) -> bool {
        matches!(&self.kind, Kind::V1(options) if !options.starts_with("name="))
    }
}

fn parse(mounts: &str, controllers: &str) -> Vec<Hierarchy> {
    let known: BTreeSet<&str> = controllers
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, mount, kind, options, ..] = fields[..] else {
            continue;
        };
        let mount = PathBuf::from(mount);
        let kind = match kind {
            "cgroup" => {
                let wanted: Vec<&str> = options
                    .split(',')
                    .filter(|o| known.contains(o) || o.starts_with("name="))
                    .collect();
                Kind::V1(wanted.join(","))
            }
            "cgroup2" => Kind::V2,
            _ => continue,
        };
        // The same tree mounted twice is one tree.
        if found.iter().all(|known| known.kind != kind) {
            found.push(Hierarchy { mount, kind });
        }
    }
    found
}

/// Makes the group `lab/unit` in every hierarchy, ready for processes.
pub fn create(lab: &str, unit: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut path = hierarchy.mount.clone();
        for name in [lab, unit] {
            if hierarchy.kind == Kind::V2 {
                pass_controllers_on(&path)?;
            }
            path.push(name);
            fs::create_dir_all(&path)
                .with_context(|| format!("create cgroup {}", path.display()))?;
            inherit_cpuset(&path)?;
        }
    }
    Ok(())
}

/// v2: children get only the controllers their parent hands on.
fn pass_controllers_on(path: &Path) -> Result<()> {
    let controllers = fs::read_to_string(path.join("cgroup.controllers"))
        .with_context(|| format!("read the controllers of {}", path.display()))?;
    let wanted: Vec<String> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(path.join("cgroup.subtree_control"), wanted.join(" "))
        .with_context(|| format!("hand controllers on below {}", path.display()))
}

/// v1: a new cpuset has no CPUs and takes no process until it is given some; its children shall inherit.
fn inherit_cpuset(path: &Path) -> Result<()> {
    let parent = path.parent().context("a cgroup has a parent")?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !path.join("cgroup.clone_children").exists() || !path.join(file).exists() {
            return Ok(());
        }
        let value = fs::read_to_string(parent.join(file))
            .with_context(|| format!("read {file} of {}", parent.display()))?;
        fs::write(path.join(file), value.trim())
            .with_context(|| format!("set {file} of {}", path.display()))?;
    }
    fs::write(path.join("cgroup.clone_children"), "1")
        .with_context(|| format!("make children of {} inherit", path.display()))
}

/// The `cgroup.procs` files a process writes itself into to be in group `lab/unit`.
pub fn entrances(lab: &str, unit: &str) -> Result<Vec<PathBuf>> {
    let entrance = |hierarchy: Hierarchy| {
        let group = hierarchy.mount.join(lab).join(unit);
        let leaf = group.join(V2_LEAF);
        if hierarchy.kind == Kind::V2 && leaf.is_dir() {
            leaf.join("cgroup.procs")
        } else {
            group.join("cgroup.procs")
        }
    };
    Ok(hierarchies()?.into_iter().map(entrance).collect())
}

/// v2: moves what runs in the group into a child, so that the node's kubelet may make groups beside it.
pub fn open_for_children(lab: &str, unit: &str) -> Result<()> {
    for hierarchy in hierarchies()?
        .iter()
        .filter(|hierarchy| hierarchy.kind == Kind::V2)
    {
        let group = hierarchy.mount.join(lab).join(unit);
        let leaf = group.join(V2_LEAF);
        fs::create_dir_all(&leaf).with_context(|| format!("create cgroup {}", leaf.display()))?;
        for pid in members(&group) {
            fs::write(leaf.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("move process {pid} to {}", leaf.display()))?;
        }
        pass_controllers_on(&group)?;
    }
    Ok(())
}

/// Ends every process of the group and below, frozen or not, and removes the groups. Repeating this does nothing.
pub fn remove(lab: &str) -> Result<()> {
    let tops: Vec<PathBuf> = mounted()?
        .into_iter()
        .map(|hierarchy| hierarchy.mount.join(lab))
        .filter(|path| path.is_dir())
        .collect();
    let give_up = Instant::now() + EMPTY_WITHIN;
    loop {
        let groups: Vec<PathBuf> = tops.iter().flat_map(|top| below(top)).collect();
        // Kill first: what is thawed with a SIGKILL waiting dies without running another instruction, while a
        // held pod thawed alive would run on.
        let alive: BTreeSet<i32> = groups.iter().flat_map(|group| members(group)).collect();
        for pid in alive.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
        groups.iter().for_each(|group| thaw(group));
        let left: Vec<&PathBuf> = groups
            .iter()
            .rev()
            .filter(|group| fs::remove_dir(group).is_err() && group.exists())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > give_up {
            bail!(
                "cgroups {left:?} are not empty {} s after their processes {alive:?} were killed",
                EMPTY_WITHIN.as_secs()
            );
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Every process of the lab, in any of its groups.
pub fn processes(lab: &str) -> Result<BTreeSet<i32>> {
    let tops = mounted()?
        .into_iter()
        .map(|hierarchy| hierarchy.mount.join(lab));
    Ok(tops
        .flat_map(|top| below(&top))
        .flat_map(|group| members(&group))
        .collect())
}

fn members(group: &Path) -> Vec<i32> {
    // A group that went away between the listing and now has no members.
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn thaw(group: &Path) {
    for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if group.join(file).exists() {
            let _ = fs::write(group.join(file), value);
        }
    }
}

/// A group and all below it, parents before children.
fn below(group: &Path) -> Vec<PathBuf> {
    if !group.is_dir() {
        return Vec::new();
    }
    let mut found = vec![group.to_path_buf()];
    let children = fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir());
    found.extend(children.flat_map(|child| below(&child.path())));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROLLERS: &str = "#subsys_name hierarchy\ncpu 1 1 1\ncpuacct 2 1 1\nfreezer 6 1 1\n";

    #[test]
    fn each_v1_tree_is_found_once_with_the_options_that_mount_it_again() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,name=systemd 0 0\n\
            cgroup /mnt/again cgroup rw,name=systemd 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found = parse(mounts, CONTROLLERS);
        assert!(found[0].has_v1_controllers() && !found[1].has_v1_controllers());
        let kinds: Vec<Kind> = found.into_iter().map(|hierarchy| hierarchy.kind).collect();
        assert_eq!(
            kinds,
            [
                Kind::V1("cpu,cpuacct".into()),
                Kind::V1("name=systemd".into()),
                Kind::V2
            ]
        );
    }
}
