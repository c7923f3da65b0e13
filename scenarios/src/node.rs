//! A node: namespaces and cgroups that look to Kubernetes like a machine of its own.
//!
//! ```text
//! <lab>/nodes/nodeN/
//!   upper work root   the overlay over the shared tree: what the node changes; its workdir; where it is mounted
//!   world.json        what the first process is told (see `init`)
//!   containerd kubelet longshore log   what is kept under /var/lib and /var/log, on the host's file system
//! ```
//! Good day: cgroups, first process, cable, containerd, images, kubelet, kube-proxy. Everything that runs in a node
//! enters the node's cgroups first and its namespaces second, in that order, because inside the namespaces the way
//! to the groups is no longer visible. A component that stopped, or was stopped by a story, is started again by the
//! same function.

pub mod config;
pub mod init;

use crate::cgroup;
use crate::control;
use crate::network;
use crate::process;
use crate::site::Site;
use crate::state::{Lab, ProcessId};
use anyhow::{Context, Result};
use init::World;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A node's namespaces are made in milliseconds; a machine that compiles beside it needs more.
const BUILT_WITHIN: Duration = Duration::from_secs(20);
const CONTAINERD_WITHIN: Duration = Duration::from_secs(30);
/// Importing reads a few hundred megabytes at most.
const IMPORT_WITHIN: Duration = Duration::from_secs(120);

/// Folders that must not lie on the overlay, and where the node sees them.
const KEPT: &[(&str, &str)] = &[
    ("containerd", "/var/lib/containerd"),
    ("kubelet", "/var/lib/kubelet"),
    ("longshore", "/var/lib/longshore"),
    ("log", "/var/log"),
];

/// Programs of a node, besides its first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The container runtime.
    Containerd,
    /// The kubelet.
    Kubelet,
    /// Service addresses.
    Proxy,
}

impl Program {
    /// Its name among the lab's components.
    pub fn component(self, n: u8) -> String {
        let name = match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::Proxy => "proxy",
        };
        format!("{}/{name}", Site::node_name(n))
    }

    fn arguments(self, site: &Site, n: u8) -> Vec<String> {
        let name = Site::node_name(n);
        let words: Vec<String> = match self {
            Self::Containerd => vec!["/usr/bin/containerd".into()],
            Self::Kubelet => vec![
                "/usr/local/bin/kubelet".into(),
                "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig".into(),
                "--config=/etc/kubernetes/kubelet.yaml".into(),
                format!("--hostname-override={name}"),
                format!("--node-ip={}", site.node_address(n)),
                "--v=2".into(),
            ],
            Self::Proxy => vec![
                "/usr/local/bin/kube-proxy".into(),
                "--kubeconfig=/etc/kubernetes/proxy.kubeconfig".into(),
                format!("--hostname-override={name}"),
                format!("--cluster-cidr={}", site.all_pods_range()),
                "--proxy-mode=iptables".into(),
                // Settings of the whole machine, which a lab leaves alone.
                "--conntrack-max-per-core=0".into(),
                "--conntrack-tcp-timeout-established=0".into(),
                "--conntrack-tcp-timeout-close-wait=0".into(),
            ],
        };
        words
    }
}

/// The folder of node `n`.
pub fn folder(lab: &Lab, n: u8) -> Result<PathBuf> {
    Ok(lab.folder()?.join("nodes").join(Site::node_name(n)))
}

/// Where a path of node `n` is seen from the host, while the node runs.
pub fn path_from_host(lab: &Lab, n: u8, path: &str) -> Result<PathBuf> {
    let root = format!("/proc/{}/root", first_process(lab, n)?);
    Ok(Path::new(&root).join(path.trim_start_matches('/')))
}

/// The number, on the host, of node `n`'s first process.
pub fn first_process(lab: &Lab, n: u8) -> Result<u32> {
    let name = Site::node_name(n);
    let process = lab
        .processes
        .get(&name)
        .with_context(|| format!("{name} has not been started"))?;
    Ok(process.pid)
}

/// Makes node `n`'s world and connects it; its programs are started by [`start`].
pub fn create(lab: &mut Lab, n: u8) -> Result<()> {
    let world_file = lay_out(lab, n)?;
    let name = Site::node_name(n);
    cgroup::create(&lab.site.cgroup(), &name)?;
    let pid = start_first_process(lab, &name, &world_file)?;
    let built = path_from_host(lab, n, "/run/node-is-built")?;
    process::wait_for(&format!("{name} to be built"), BUILT_WITHIN, || {
        process::check_alive(lab, &name).with_context(|| {
            let said = process::log_tail(lab, &format!("{name}/parent"));
            format!("build {name}: {}", said.unwrap_or_default())
        })?;
        Ok(process::exists(&built))
    })?;
    cgroup::open_for_children(&lab.site.cgroup(), &name)?;
    network::connect(&lab.site, n, pid)?;
    reach_registry_on_localhost(lab, n)
}

/// Makes node `n`'s folders and configuration, and the file that tells its first process about them.
fn lay_out(lab: &Lab, n: u8) -> Result<PathBuf> {
    let (name, folder) = (Site::node_name(n), folder(lab, n)?);
    let kept = KEPT.iter().map(|(kept, _)| *kept);
    for part in ["upper", "work", "root"].into_iter().chain(kept) {
        fs::create_dir_all(folder.join(part))
            .with_context(|| format!("create {part} of {name}"))?;
    }
    config::write(lab, n, &folder.join("upper"))?;
    let kube = control::kube_program(lab, "kube")?;
    let programs = ["kubelet", "kube-proxy"]
        .map(|name| (kube.clone(), Path::new("/usr/local/bin").join(name)));
    let kept = KEPT
        .iter()
        .map(|(kept, seen)| (folder.join(kept), PathBuf::from(seen)));
    let world = World {
        name,
        base: lab
            .base
            .clone()
            .context("the node root filesystem is not there yet")?,
        folder: folder.clone(),
        binds: kept.chain(programs).collect(),
        hierarchies: cgroup::hierarchies()?,
    };
    let file = folder.join("world.json");
    let text = serde_json::to_vec_pretty(&world).context("write a node's world as JSON")?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// Starts a node's first process and gives its number on the host. Between it and us stands unshare(1), which made
/// the namespaces and waits; killed, it takes the node with it.
fn start_first_process(lab: &mut Lab, name: &str, world_file: &Path) -> Result<u32> {
    let namespaces = [
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--net",
        "--cgroup",
        "--fork",
        "--kill-child",
    ];
    let mut command = process::in_group(lab, name)?;
    command
        .arg("unshare")
        .args(namespaces)
        // Not by its path: cargo, building beside us, may have put another program there.
        .arg(format!("/proc/{}/exe", std::process::id()))
        .arg("node-init")
        .arg(world_file);
    let component = format!("{name}/parent");
    let parent = process::start(lab, &component, &command)?.id();
    let pid = process::wait_for(
        &format!("the first process of {name}"),
        BUILT_WITHIN,
        || {
            process::check_alive(lab, &component)?;
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
            Ok(children
                .unwrap_or_default()
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok()))
        },
    )?;
    lab.processes.insert(name.to_owned(), ProcessId::of(pid)?);
    lab.save()?;
    Ok(pid)
}

/// The lab's registry answers on the node's localhost, too: a runtime takes plain HTTP for granted only there, and
/// containerd 2.1 pulls a restored container's base image without looking at the mirrors of its configuration.
fn reach_registry_on_localhost(lab: &Lab, n: u8) -> Result<()> {
    let (port, registry) = (
        crate::site::REGISTRY_PORT.to_string(),
        format!("{}:{}", lab.site.gateway(), crate::site::REGISTRY_PORT),
    );
    let rules: [&[&str]; 2] = [
        &[
            "-A",
            "OUTPUT",
            "-d",
            "127.0.0.1",
            "-p",
            "tcp",
            "--dport",
            &port,
            "-j",
            "DNAT",
            "--to-destination",
            &registry,
        ],
        &[
            "-A",
            "POSTROUTING",
            "-s",
            "127.0.0.1",
            "!",
            "-o",
            "lo",
            "-j",
            "MASQUERADE",
        ],
    ];
    for rule in rules {
        let mut command = inside(lab, n)?;
        command.args(["iptables", "-w", "-t", "nat"]).args(rule);
        process::succeed(&mut command, BUILT_WITHIN)
            .context("lead the node's localhost to the registry")?;
    }
    Ok(())
}

/// A command to be run inside node `n`.
pub fn inside(lab: &Lab, n: u8) -> Result<Command> {
    let mut command = process::in_group(lab, &Site::node_name(n))?;
    command.args([
        "nsenter",
        "--target",
        &first_process(lab, n)?.to_string(),
        "--all",
        "--",
    ]);
    // What the host's user has set means nothing in there.
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root");
    if let Some(terminal) = std::env::var_os("TERM") {
        command.env("TERM", terminal);
    }
    Ok(command)
}

/// Starts a program of node `n` that doesn't run; one that does is left alone.
pub fn start(lab: &mut Lab, n: u8, program: Program) -> Result<()> {
    let component = program.component(n);
    if lab.runs(&component) {
        return Ok(());
    }
    let mut command = inside(lab, n)?;
    command.args(program.arguments(&lab.site, n));
    process::start(lab, &component, &command)?;
    Ok(())
}

/// Waits until node `n`'s containerd answers: a kubelet started earlier gives up at once.
pub fn wait_for_containerd(lab: &Lab, n: u8) -> Result<()> {
    let component = Program::Containerd.component(n);
    process::wait_for(&format!("{component} to answer"), CONTAINERD_WITHIN, || {
        process::check_alive(lab, &component)?;
        let mut ask = inside(lab, n)?;
        ask.args(["ctr", "--connect-timeout", "2s", "version"]);
        let answer = process::output(&mut ask, CONTAINERD_WITHIN)?;
        Ok(answer.status.success().then_some(()))
    })
}

/// Imports an archive of images that lies on the host.
pub fn import_images(lab: &Lab, n: u8, archive: &Path) -> Result<()> {
    // The archive goes in through standard input: no path of the host exists in the node, and nothing is left there.
    let file = fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut command = inside(lab, n)?;
    command.args(["ctr", "--namespace", "k8s.io", "images", "import", "-"]);
    process::succeed_with_input(&mut command, process::Input::File(file), IMPORT_WITHIN)
        .with_context(|| format!("import images into {}", Site::node_name(n)))?;
    Ok(())
}
