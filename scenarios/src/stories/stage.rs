//! What a story stands on: a lab with Longshore deployed, a namespace of its own, and the `migrate` command.

use crate::{
    cluster::Cluster,
    deploy, http,
    process::{self, wait_for},
    state::Lab,
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

/// A pod of the lab is Running within 2 s; a busy machine takes longer.
const RUNNING_WITHIN: Duration = Duration::from_secs(60);

/// A migration of the lab takes seconds; one that is being put right after a fault waits for backoffs.
const MIGRATE_WITHIN: Duration = Duration::from_secs(180);

/// Objects that wait for nobody go at once; a namespace goes in some ten seconds.
const CLEARED_WITHIN: Duration = Duration::from_secs(70);

/// Everything a story needs.
pub struct Stage {
    /// The lab.
    pub lab: Lab,
    /// Its cluster, as administrator.
    pub cluster: Cluster,
    /// The story's namespace.
    pub namespace: String,
    migrate: PathBuf,
}

/// How a `migrate` command ended.
pub struct Migrated {
    /// 0 done, 1 error, 2 refused, 3 rolled back, 4 in doubt.
    pub code: i32,
    /// What it printed, both streams.
    pub text: String,
}

impl Stage {
    /// An empty namespace named after the story.
    pub fn set(lab: &Lab, story: &str) -> Result<Self> {
        let cluster = Cluster::of(lab)?;
        let namespace = format!("story-{story}");
        cluster.apply(
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
        )?;
        // Pods are refused before the namespace has its default ServiceAccount.
        wait_for("the namespace's ServiceAccount", RUNNING_WITHIN, || {
            Ok(cluster
                .run(&["-n", &namespace, "get", "serviceaccount", "default"])
                .ok())
        })?;
        let migrate = deploy::program("migrate")?;
        Ok(Self {
            lab: lab.clone(),
            cluster,
            namespace,
            migrate,
        })
    }

    /// Deletes what is in the namespace, and asks for its own end, which takes ten idle seconds: [`Self::gone`] waits.
    pub fn clear(&self) -> Result<()> {
        let within = |words: &[&str]| {
            self.cluster
                .run_within(
                    CLEARED_WITHIN,
                    &[&["-n", &self.namespace, "delete"], words].concat(),
                )
                .map(drop)
        };
        // At once, for a story's pods have nothing to say in their last 30 s.
        within(&["pods", "--all", "--grace-period=0", "--force"])?;
        within(&["podmigrations", "--all", "--timeout=60s"])?;
        within(&["namespace", &self.namespace, "--wait=false"])
    }

    /// Waits until nothing of the story is left.
    pub fn gone(&self) -> Result<()> {
        let namespace = format!("namespace/{}", self.namespace);
        self.cluster
            .run_within(
                CLEARED_WITHIN,
                &["wait", "--for=delete", &namespace, "--timeout=60s"],
            )
            .map(drop)
    }

    /// Starts a bare pod on a node and waits until it runs; `spec` is merged into the pod's.
    pub fn run_pod(&self, name: &str, node: &str, containers: Value, spec: Value) -> Result<()> {
        let mut pod_spec =
            json!({"nodeName": node, "containers": containers, "terminationGracePeriodSeconds": 1});
        if let (Some(into), Some(extra)) = (pod_spec.as_object_mut(), spec.as_object()) {
            into.extend(extra.clone());
        }
        self.cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace, "labels": {"app": name}},
            "spec": pod_spec,
        }))?;
        wait_for(&format!("pod {name} to run"), RUNNING_WITHIN, || {
            let pod = self.pod(name)?;
            let ready = pod["status"]["containerStatuses"]
                .as_array()
                .is_some_and(|containers| {
                    !containers.is_empty()
                        && containers
                            .iter()
                            .all(|container| container["ready"] == true)
                });
            Ok(ready.then_some(()))
        })
    }

    /// The pod's object.
    pub fn pod(&self, name: &str) -> Result<Value> {
        self.cluster
            .json(&["-n", &self.namespace, "get", "pod", name])
    }

    /// The node a pod is on.
    pub fn node_of(&self, name: &str) -> Result<String> {
        let pod = self.pod(name)?;
        Ok(pod["spec"]["nodeName"]
            .as_str()
            .context("the pod is on no node")?
            .to_owned())
    }

    /// Where a pod answers.
    pub fn address(&self, name: &str, port: u16) -> Result<SocketAddr> {
        let pod = self.pod(name)?;
        let ip: IpAddr = pod["status"]["podIP"]
            .as_str()
            .context("the pod has no IP")?
            .parse()?;
        Ok(SocketAddr::new(ip, port))
    }

    /// GET on a pod, as text.
    pub fn get(&self, name: &str, port: u16, path: &str) -> Result<String> {
        let answer = http::get(self.address(name, port)?, path, Duration::from_secs(10))?;
        Ok(answer.text())
    }

    /// `migrate` with these arguments, in the story's namespace.
    pub fn migrate(&self, arguments: &[&str]) -> Result<Migrated> {
        let mut command = self.migrate_command(arguments);
        let Output {
            status,
            stdout,
            stderr,
        } = process::output(&mut command, MIGRATE_WITHIN)?;
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr)
        );
        Ok(Migrated {
            code: status.code().context("migrate was killed")?,
            text,
        })
    }

    /// The same, not started yet.
    pub fn migrate_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.migrate);
        command.env("KUBECONFIG", self.cluster.kubeconfig());
        command.args(arguments).args(["-n", &self.namespace]);
        command
    }

    /// Moves a pod and insists that it ends on the node.
    pub fn move_pod(&self, name: &str, to: &str) -> Result<()> {
        let Migrated { code, text } = self.migrate(&["pod", name, "--to", to])?;
        if code != 0 {
            bail!("migrate pod {name} --to {to} ended with {code}:\n{text}");
        }
        let on = self.node_of(name)?;
        if on != to {
            bail!("migrate said done, but the pod {name} is on {on} and not on {to}");
        }
        Ok(())
    }

    /// The PodMigrations of the story, newest last.
    pub fn migrations(&self) -> Result<Vec<Value>> {
        let list = self
            .cluster
            .json(&["-n", &self.namespace, "get", "podmigrations"])?;
        let mut items = list["items"].as_array().cloned().unwrap_or_default();
        items.sort_by_key(|item| {
            item["metadata"]["creationTimestamp"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        });
        Ok(items)
    }
}
