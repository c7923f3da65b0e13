//! Speaking to a lab's Kubernetes with kubectl, every call with a time limit.

use crate::certificates::Pki;
use crate::control::kube_program;
use crate::process;
use crate::state::Lab;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// No call to an API server on the same machine takes this long; the ones that wait are given their own limit.
const CALL_WITHIN: Duration = Duration::from_secs(20);

/// A lab's Kubernetes, as its administrator.
#[derive(Clone)]
pub struct Cluster {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// The cluster of a lab that is up or coming up.
    pub fn of(lab: &Lab) -> Result<Self> {
        Ok(Self {
            kubectl: kube_program(lab, "kubectl")?,
            kubeconfig: Pki::of(&lab.folder()?).kubeconfig("admin"),
        })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A kubectl command, ready for arguments.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.kubectl);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs kubectl, which must succeed, and gives what it printed.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.run_within(CALL_WITHIN, args)
    }

    /// Runs kubectl with a time limit of its own, for commands that wait.
    pub fn run_within(&self, limit: Duration, args: &[&str]) -> Result<String> {
        process::succeed(self.kubectl().args(args), limit)
    }

    /// Runs kubectl and gives the JSON it printed.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let text = self.run(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("understand what kubectl {} printed", args.join(" ")))
    }

    /// Makes or changes objects.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let mut command = self.kubectl();
        command.args(["apply", "--filename", "-"]);
        process::succeed_with_input(
            &mut command,
            process::Input::Bytes(object.to_string().into_bytes()),
            CALL_WITHIN,
        )
        .context("apply an object")?;
        Ok(())
    }

    /// Whether the API server says it is ready.
    pub fn is_ready(&self) -> bool {
        self.run(&["get", "--raw", "/readyz"]).is_ok()
    }

    /// The names of the nodes whose Ready condition is true.
    pub fn ready_nodes(&self) -> Result<Vec<String>> {
        Ok(ready_in(&self.json(&["get", "nodes"])?))
    }
}

fn ready_in(nodes: &Value) -> Vec<String> {
    let items = nodes["items"].as_array().into_iter().flatten();
    let is_ready = |node: &&Value| {
        let conditions = node["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten();
        conditions
            .into_iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    items
        .filter(is_ready)
        .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_node_counts_as_ready_only_when_its_condition_is_true() {
        let node = |name: &str, kind: &str, status: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": kind, "status": status}]}});
        let nodes = json!({"items": [node("a", "Ready", "True"), node("b", "Ready", "Unknown"), node("c", "DiskPressure", "True")]});
        assert_eq!(ready_in(&nodes), ["a"]);
        assert_eq!(ready_in(&json!({})), Vec::<String>::new());
    }
}
