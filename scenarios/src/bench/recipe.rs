//! Moving a pod by hand, as the kubelet's checkpoint API is commonly used: checkpoint, build an image of it with
//! buildah, push it to a registry, run a pod from it on the other node.
//!
//! Each tool is the one a person would take (curl, Debian's buildah, kubectl) and each step begins when the one before
//! it has ended. Two things are made easy for it: the registry is on this machine, and the client learns the copy's
//! address as quickly as ours.

use super::pod::NAMESPACE;
use super::subject::Subject;
use crate::certificates::Pki;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::machine;
use crate::node;
use crate::parts;
use crate::process;
use crate::site::REGISTRY_PORT;
use crate::state::Lab;
use crate::steps::Steps;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const COPY: &str = "copy";
const BUILT: &str = "localhost/bench/checkpoint-image:latest";
const PUSHED: &str = "bench/checkpoint-image:latest";
const KUBELET_PORT: u16 = 10250;
const STEP_WITHIN: Duration = Duration::from_secs(240);

/// Seconds that each step took.
pub struct Taken {
    checkpoint: f64,
    build: f64,
    push: f64,
    pod: f64,
}

/// What a part is called, and how long it took.
type Part = (&'static str, fn(&Taken) -> f64);

impl Taken {
    /// The steps, for a table.
    pub const PARTS: &[Part] = &[
        ("kubelet checkpoint", |taken| taken.checkpoint),
        ("buildah: from, add, config, commit", |taken| taken.build),
        ("buildah push", |taken| taken.push),
        ("kubectl run to first answer", |taken| taken.pod),
    ];

    /// From the call of the checkpoint to the copy's first answer.
    pub fn total(&self) -> f64 {
        Self::PARTS.iter().map(|(_, part)| part(self)).sum()
    }
}

/// The tools.
pub struct Recipe {
    storage: PathBuf,
}

impl Recipe {
    /// Installs what is missing; buildah keeps its images in the lab's folder.
    pub fn prepare(lab: &Lab, steps: &Steps) -> Result<Self> {
        Self::at(lab, "buildah", steps)
    }

    /// The same with a storage of its own: another machine, as far as images go.
    pub fn at(lab: &Lab, storage: &str, steps: &Steps) -> Result<Self> {
        machine::install(steps, &[("buildah", "buildah")])?;
        let storage = lab.folder()?.join(storage);
        fs::create_dir_all(&storage).with_context(|| format!("create {}", storage.display()))?;
        Ok(Self { storage })
    }

    /// Follows the recipe for the pod on node1: its copy answers on node2 at the end.
    pub fn follow(&self, lab: &Lab, cluster: &Cluster, subject: &Subject) -> Result<Taken> {
        let mut clock = Clock(Instant::now());
        let archive = checkpoint(lab, subject.name)?;
        let checkpoint = clock.lap();
        self.build(subject.name, &[&archive])?;
        let build = clock.lap();
        self.push(lab)?;
        let push = clock.lap();
        run_copy(cluster, subject)?;
        let client = Client::asking(cluster, NAMESPACE, COPY, subject.port, subject.ask)?;
        client.wait_for("the copy's first answer", |_| true)?;
        let pod = clock.lap();
        fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
        self.run(&["rmi", "--all", "--force"])?;
        Ok(Taken {
            checkpoint,
            build,
            push,
            pod,
        })
    }

    /// Makes a checkpoint image of a container, of files and of what archives hold.
    pub fn build(&self, name: &str, content: &[&Path]) -> Result<()> {
        let container = self.run(&["from", "scratch"])?;
        let container = container.trim();
        for file in content {
            let file = file.display().to_string();
            self.run(&["add", "--quiet", container, &file, "/"])?;
        }
        // The first name is CRI-O's, the second is the one containerd looks for.
        let names = [
            format!("--annotation=io.kubernetes.cri-o.annotations.checkpoint.name={name}"),
            format!("--annotation=org.criu.checkpoint.container.name={name}"),
        ];
        self.run(&["config", &names[0], &names[1], container])?;
        self.run(&["commit", "--quiet", "--rm", container, BUILT])?;
        Ok(())
    }

    /// Brings the image into the lab's registry.
    pub fn push(&self, lab: &Lab) -> Result<()> {
        self.run(&["push", "--quiet", "--tls-verify=false", BUILT, &pushed(lab)])?;
        Ok(())
    }

    /// Fetches it from there.
    pub fn pull(&self, lab: &Lab) -> Result<()> {
        self.run(&["pull", "--quiet", "--tls-verify=false", &pushed(lab)])?;
        Ok(())
    }

    /// Runs buildah on the lab's own storage.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("buildah");
        command
            .env("BUILDAH_ISOLATION", "chroot")
            .arg("--root")
            .arg(self.storage.join("root"))
            .arg("--runroot")
            .arg(self.storage.join("run"))
            .args(["--storage-driver", "overlay"])
            .args(arguments);
        process::succeed(&mut command, STEP_WITHIN)
    }
}

fn pushed(lab: &Lab) -> String {
    format!("docker://{}:{REGISTRY_PORT}/{PUSHED}", lab.site.gateway())
}

struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> f64 {
        let now = Instant::now();
        let took = now.duration_since(self.0).as_secs_f64();
        self.0 = now;
        took
    }
}

/// Asks node1's kubelet for a checkpoint of the pod's container, which is called like the pod; gives the archive as the
/// host sees it.
pub fn checkpoint(lab: &Lab, pod: &str) -> Result<PathBuf> {
    let pki = Pki::of(&lab.folder()?);
    let base = lab.base.as_deref().context("the lab has no node tree")?;
    let curl = parts::program(base, "usr/bin/curl")?;
    let (program, loading) = curl.split_first().context("curl is a program")?;
    let mut command = Command::new(program);
    command
        .args(loading)
        .args([
            "--silent",
            "--insecure",
            "--fail-with-body",
            "--request",
            "POST",
        ])
        .arg("--cert")
        .arg(pki.file("kubelet-client.crt"))
        .arg("--key")
        .arg(pki.file("kubelet-client.key"))
        .arg(format!(
            "https://{}:{KUBELET_PORT}/checkpoint/{NAMESPACE}/{pod}/{pod}",
            lab.site.node_address(1)
        ));
    let text = process::succeed(&mut command, STEP_WITHIN).context("checkpoint by the kubelet")?;
    let answer: Value = serde_json::from_str(&text).context("read the kubelet's answer")?;
    let path = answer["items"][0]
        .as_str()
        .with_context(|| format!("find the archive in the kubelet's answer {text}"))?;
    node::path_from_host(lab, 1, path)
}

fn run_copy(cluster: &Cluster, subject: &Subject) -> Result<()> {
    let image = format!("localhost:{REGISTRY_PORT}/{PUSHED}");
    let place = serde_json::json!({"spec": {
        "nodeName": "node2", "terminationGracePeriodSeconds": 1,
        // As the checkpoint names it: `kubectl run` would call the container after the pod.
        "containers": [{"name": subject.name, "image": image}],
    }});
    cluster.run(&[
        "--namespace",
        NAMESPACE,
        "run",
        COPY,
        "--image",
        &image,
        "--overrides",
        &place.to_string(),
    ])?;
    Ok(())
}
