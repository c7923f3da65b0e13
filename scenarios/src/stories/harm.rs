//! What stories of faults do to a lab, mended again when the guard is dropped, however the story ended; and what they
//! look at afterwards.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::Stage;
use crate::{
    cgroup,
    deploy::{NAMESPACE, PEER_COUNT},
    node::{self, Program},
    process::{self, wait_for},
    s3,
    site::Site,
    state::{Lab, ProcessId},
};

/// What the lab's programs need to end or to begin.
pub const MENDED_WITHIN: Duration = Duration::from_secs(60);
/// Leftovers of an undone migration are cleared away behind the user's back, within this.
const CLEARED_WITHIN: Duration = Duration::from_secs(40);

/// A checkpoint that was left is some dozen objects, of which these tell enough.
const LEFT_SHOWN: usize = 5;

/// The processes of this name in node `n`, by their numbers on the host.
pub fn processes(lab: &Lab, n: u8, name: &str) -> Vec<u32> {
    let group = format!("/{}/{}", lab.site.cgroup(), Site::node_name(n));
    let listing = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = listing.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        read("comm").is_ok_and(|comm| comm.trim() == name)
            && read("cgroup").is_ok_and(|groups| is_below(&groups, &group))
    })
    .collect()
}

/// In the group, or in one below it: pods are, the node's own programs are not.
fn is_below(groups: &str, group: &str) -> bool {
    groups.lines().any(|line| {
        line.split_once(group)
            .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
    })
}

/// The one process of this name in node `n`.
pub fn process(lab: &Lab, n: u8, name: &str) -> Result<u32> {
    wait_for(
        &format!("{name} to run on {}", Site::node_name(n)),
        MENDED_WITHIN,
        || Ok(processes(lab, n, name).first().copied()),
    )
}

/// Sends a signal to a process of the lab.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("a process has a number")?;
    kill_process(pid, signal).context("send a signal to a process of the lab")
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// A process that is stopped where it stands: everybody's connections to it stay, and nothing answers.
pub struct Stopped {
    pid: u32,
    /// nsenter(1), which stops itself with the program it waits for.
    waiter: Option<u32>,
}

impl Stopped {
    /// Stops it.
    pub fn process(pid: u32) -> Result<Self> {
        let waiter = parent(pid).filter(|parent| {
            let comm = fs::read_to_string(format!("/proc/{parent}/comm"));
            comm.is_ok_and(|comm| comm.trim() == "nsenter")
        });
        signal(pid, Signal::STOP)?;
        Ok(Self { pid, waiter })
    }

    /// The lab's S3 server.
    pub fn s3(stage: &Stage) -> Result<Self> {
        let lab = Lab::expect(&stage.lab.site.name)?;
        Self::process(
            lab.processes
                .get("s3")
                .context("the lab has an S3 server")?
                .pid,
        )
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in [Some(self.pid), self.waiter].into_iter().flatten() {
            // Killed meanwhile: then there is nothing to continue.
            let _ = signal(pid, Signal::CONT);
        }
    }
}

/// Kills a program of the lab and waits until it is gone.
fn kill(pid: u32) -> Result<()> {
    let process = ProcessId::of(pid)?;
    signal(pid, Signal::KILL)?;
    wait_for("a killed program to be gone", MENDED_WITHIN, || {
        Ok((!process.is_alive()).then_some(()))
    })
}

/// A program of the lab that was killed; started again when dropped.
pub struct Killed<'a> {
    stage: &'a Stage,
    start: fn(&mut Lab) -> Result<()>,
}

impl<'a> Killed<'a> {
    /// The S3 server: connections are refused.
    pub fn s3(stage: &'a Stage) -> Result<Self> {
        let lab = Lab::expect(&stage.lab.site.name)?;
        kill(
            lab.processes
                .get("s3")
                .context("the lab has an S3 server")?
                .pid,
        )?;
        let start = s3::start;
        Ok(Self { stage, start })
    }

    /// Node 2's containerd, which has this number.
    pub fn containerd_of_node2(stage: &'a Stage, pid: u32) -> Result<Self> {
        kill(pid)?;
        let start = |lab: &mut Lab| {
            node::start(lab, 2, Program::Containerd)?;
            node::wait_for_containerd(lab, 2)
        };
        Ok(Self { stage, start })
    }
}

impl Drop for Killed<'_> {
    fn drop(&mut self) {
        let started =
            Lab::expect(&self.stage.lab.site.name).and_then(|mut lab| (self.start)(&mut lab));
        if let Err(error) = started {
            eprintln!("a program of the lab was not started again: {error:#}");
        }
    }
}

/// A CRIU that restores and dumps nothing. It still says its version, or the worker, which looks every 30 s, would
/// rightly refuse the migration.
pub const LAME_CRIU: &str = "criu=$(command -v criu); cp -a $criu $criu.whole; \
     printf '#!/bin/sh\\ncase \"$*\" in *version*) exec %s.whole \"$@\";; esac\\nexit 1\\n' $criu > $criu.lame; \
     chmod 755 $criu.lame; mv $criu.lame $criu";
/// Undoes that.
pub const WHOLE_CRIU: &str = "criu=$(command -v criu); mv $criu.whole $criu";

/// Something done in a node by a shell command, undone by another when dropped.
pub struct Changed<'a> {
    stage: &'a Stage,
    n: u8,
    undo: &'static str,
}

impl<'a> Changed<'a> {
    /// Does it.
    pub fn node(stage: &'a Stage, n: u8, change: &str, undo: &'static str) -> Result<Self> {
        shell(&stage.lab, n, change)?;
        Ok(Self { stage, n, undo })
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        if let Err(error) = shell(&self.stage.lab, self.n, self.undo) {
            eprintln!("{} was not undone: {error:#}", Site::node_name(self.n));
        }
    }
}

/// Runs a shell command in a node.
pub fn shell(lab: &Lab, n: u8, command: &str) -> Result<String> {
    let mut inside = node::inside(lab, n)?;
    inside.args(["sh", "-ec", command]);
    process::succeed(&mut inside, MENDED_WITHIN)
}

/// A new worker on node `n`: with the mounts as they are now.
pub fn renew_worker(stage: &Stage, n: u8) -> Result<()> {
    let on_node = format!("spec.nodeName={}", Site::node_name(n));
    let workers = [
        "-n",
        NAMESPACE,
        "-l",
        "app.kubernetes.io/name=longshore-worker",
        "--field-selector",
        &on_node,
    ];
    let delete = [&["delete", "pod", "--grace-period=1"][..], &workers].concat();
    stage.cluster.run_within(MENDED_WITHIN, &delete)?;
    all_well(stage)
}

/// Waits until every part of Longshore runs, every worker is connected, and every node can do what it could: a worker
/// that looked at its node while something was broken there looks again within 30 s, and refuses until then.
pub fn all_well(stage: &Stage) -> Result<()> {
    wait_for("every part of Longshore to be well", MENDED_WITHIN, || {
        let pods = stage.cluster.json(&["-n", NAMESPACE, "get", "pods"])?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let nodes = stage.cluster.json(&["get", "migrationnodes"])?;
        let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
        let kubelets = stage.cluster.json(&["get", "nodes"])?;
        let kubelets = kubelets["items"].as_array().cloned().unwrap_or_default();
        let wanted = usize::from(stage.lab.site.nodes);
        let well = pods.len() == wanted + usize::from(PEER_COUNT)
            && pods.iter().all(is_ready)
            && kubelets.iter().all(is_ready)
            && nodes.len() == wanted
            && nodes.iter().all(|node| {
                let spec = &node["spec"];
                spec["connected"] == true && spec["checkpoint"] == "yes" && spec["restore"] == "yes"
            });
        Ok(well.then_some(()))
    })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|c| c["type"] == "Ready" && c["status"] == "True");
    ready.next().is_some() && pod["metadata"]["deletionTimestamp"].is_null()
}

/// An admission webhook for the story's pods that accepts and says nothing: every such call of the API takes a second
/// longer, so that a phase which is over in milliseconds can be hit.
pub struct SlowAdmission<'a> {
    stage: &'a Stage,
    name: String,
}

impl<'a> SlowAdmission<'a> {
    /// `operation` is CREATE or UPDATE. Returns once the API server knows of it.
    pub fn of(stage: &'a Stage, operation: &str) -> Result<Self> {
        let listener = TcpListener::bind(SocketAddr::from((stage.lab.site.gateway(), 0)))
            .context("listen for the API server")?;
        let address = listener.local_addr().context("where we listen")?;
        thread::spawn(move || {
            let mut silent = Vec::new();
            for call in listener.incoming() {
                silent.push(call);
            }
        });
        let name = stage.namespace.clone();
        let admission = Self {
            stage,
            name: name.clone(),
        };
        stage.cluster.apply(&json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": "slow.longshore.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "clientConfig": {"url": format!("https://{address}/")},
                "failurePolicy": "Ignore", "timeoutSeconds": 1,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": stage.namespace}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": [operation]}],
            }],
        }))?;
        wait_for("the API server to be slow", MENDED_WITHIN, || {
            let began = std::time::Instant::now();
            let probe = match operation {
                "CREATE" => stage.cluster.run(&[
                    "-n",
                    &stage.namespace,
                    "run",
                    "probe",
                    "--image=none",
                    "--dry-run=server",
                ]),
                _ => stage.cluster.run(&[
                    "-n",
                    &stage.namespace,
                    "label",
                    "pods",
                    "--all",
                    "--overwrite",
                    "slow=yes",
                    "--dry-run=server",
                ]),
            };
            probe?;
            Ok((began.elapsed() > Duration::from_millis(900)).then_some(()))
        })?;
        Ok(admission)
    }
}

impl Drop for SlowAdmission<'_> {
    fn drop(&mut self) {
        let gone = ["delete", "validatingwebhookconfiguration", &self.name];
        let gone = [&gone[..], &["--ignore-not-found"]].concat();
        // An API server that has just come up refuses its administrator for a moment.
        let removed = wait_for("the slow webhook to go", MENDED_WITHIN, || {
            Ok(self.stage.cluster.run(&gone).ok())
        });
        if let Err(error) = removed {
            eprintln!("the slow webhook is left: {error:#}");
        }
    }
}

/// Insists that nothing of the story's migrations is left anywhere; a pod restored from one may keep the names it runs
/// under, and the store what was to be kept.
pub fn nothing_left(stage: &Stage) -> Result<()> {
    nothing_left_but(stage, &mut Vec::new())
}

/// The same, but for what was left before, and told then. What is left now is added to that.
pub fn nothing_left_but(stage: &Stage, known: &mut Vec<String>) -> Result<()> {
    let mut last = Vec::new();
    let cleared = wait_for(
        "what migrations leave to be cleared away",
        CLEARED_WITHIN,
        || {
            last = left(stage)?;
            last.retain(|one| !known.contains(one));
            Ok(last.is_empty().then_some(()))
        },
    );
    known.extend(last.iter().cloned());
    let shown = &last[..last.len().min(LEFT_SHOWN)];
    cleared.with_context(|| format!("left over, {} in all: {}", last.len(), shown.join("; ")))
}

fn left(stage: &Stage) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let migrations = stage.migrations()?;
    let uids: Vec<&str> = migrations
        .iter()
        .filter_map(|migration| migration["metadata"]["uid"].as_str())
        .collect();
    for n in stage.lab.site.node_numbers() {
        let at = |what: String| format!("{}: {what}", Site::node_name(n));
        let folder = |path: &str| node::path_from_host(&stage.lab, n, path);
        let archive = format!("_{}-", stage.namespace);
        let archives = names(&folder("/var/lib/kubelet/checkpoints")?)?;
        left.extend(
            archives
                .into_iter()
                .filter(|name| name.contains(&archive))
                .map(at),
        );
        let layers = names(&folder("/var/lib/longshore/layers")?)?;
        left.extend(
            layers
                .into_iter()
                .filter(|name| uids.contains(&name.as_str()))
                .map(at),
        );
        left.extend(images(stage, n, &migrations)?.into_iter().map(at));
    }
    let kept = |migration: &&Value| migration["status"]["checkpointKept"] == true;
    let not_kept = migrations.iter().filter(|migration| !kept(migration));
    for uid in not_kept.filter_map(|migration| migration["metadata"]["uid"].as_str()) {
        let stored = stored(stage, uid)?.into_iter();
        left.extend(stored.map(|path| format!("S3: {}", path.display())));
    }
    left.extend(frozen(&stage.lab)?);
    left.extend(marks(stage)?);
    Ok(left)
}

/// The files of a migration's objects in the lab's store.
pub fn stored(stage: &Stage, uid: &str) -> Result<Vec<PathBuf>> {
    let bucket = stage.lab.folder()?.join("s3").join(s3::BUCKET);
    let kinds = ["checkpoints", "images"];
    let files = kinds.map(|kind| files_below(&bucket.join(kind).join(uid)));
    let files: Result<Vec<_>> = files.into_iter().collect();
    Ok(files?.concat())
}

/// Images of migrations that were undone: there is no pod that runs under their names.
fn images(stage: &Stage, n: u8, migrations: &[Value]) -> Result<Vec<String>> {
    let undone: Vec<&str> = migrations
        .iter()
        .filter(|migration| migration["status"]["phase"] == "RolledBack")
        .filter_map(|migration| migration["metadata"]["uid"].as_str())
        .collect();
    let listed = shell(&stage.lab, n, "ctr -n k8s.io images ls -q")?;
    let ours = |line: &&str| undone.iter().any(|uid| line.contains(uid));
    Ok(listed.lines().filter(ours).map(str::to_owned).collect())
}

/// Frozen groups of the lab.
fn frozen(lab: &Lab) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for hierarchy in cgroup::hierarchies()? {
        let mut folders = vec![hierarchy.mount.join(lab.site.cgroup())];
        while let Some(folder) = folders.pop() {
            let is_frozen = [("freezer.self_freezing", "1"), ("cgroup.freeze", "1")]
                .iter()
                .any(|(file, yes)| {
                    fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim() == *yes)
                });
            if is_frozen {
                found.push(format!("frozen: {}", folder.display()));
            }
            // A group may vanish while we look: then it is not frozen.
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(
                entries
                    .map(|entry| entry.path())
                    .filter(|path| path.is_dir()),
            );
        }
    }
    Ok(found)
}

/// Our marks on the story's pods, where no migration is under way.
fn marks(stage: &Stage) -> Result<Vec<String>> {
    let pods = stage
        .cluster
        .json(&["-n", &stage.namespace, "get", "pods"])?;
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for pod in pods {
        let metadata = &pod["metadata"];
        let held = metadata["finalizers"]
            .as_array()
            .is_some_and(|all| all.iter().any(|name| name == "longshore.dev/hold"));
        let noted = ["held-for", "committed"]
            .iter()
            .any(|note| !metadata["annotations"][format!("longshore.dev/{note}")].is_null());
        if held || noted {
            found.push(format!("marks of a hold on pod {}", metadata["name"]));
        }
    }
    Ok(found)
}

fn names(folder: &Path) -> Result<Vec<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", folder.display())),
    }
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for name in names(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_own_programs_and_those_of_its_pods_and_no_others() {
        let group = "/longshore-x/node1";
        assert!(is_below("4:freezer:/a/longshore-x/node1\n", group));
        assert!(is_below("4:freezer:/longshore-x/node1/kubepods/p\n", group));
        assert!(!is_below("4:freezer:/longshore-x/node10\n", group));
        assert!(!is_below("4:freezer:/longshore-x/node2\n", group));
    }
}
