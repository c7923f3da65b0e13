//! `MigrationNode` objects: what each node can do and why not, as its worker says. Written by server-side apply, whole,
//! so that what a worker no longer says disappears.

use std::{collections::BTreeMap, sync::Arc};

use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use orchestrator_core::id::NodeName;
use proto::worker::{Finding, Inventory, Severity};
use tokio::sync::watch;

use super::{
    call::{CallError, bounded},
    pods::FIELD_MANAGER,
    resource::{MigrationNode, MigrationNodeSpec, StatusFinding},
};

/// A node as its worker last described it.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// A worker is connected now.
    pub connected: bool,
    /// Its last words.
    pub inventory: Inventory,
}

/// Free space is shown in steps of 1 GiB, so that an object isn't written at every file's coming and going.
const FREE_STEP_BYTES: u64 = 1 << 30;

/// What users read of a node.
#[must_use]
pub fn spec(known: &Known) -> MigrationNodeSpec {
    let Known {
        connected,
        inventory,
    } = known;
    let can = |findings: &[Finding]| match (connected, findings.iter().any(refuses)) {
        (true, false) => "yes".to_owned(),
        (true, true) | (false, _) => "no".to_owned(),
    };
    let all = inventory.checkpoint.iter().chain(&inventory.restore);
    let mut findings = Vec::new();
    for finding in all.map(shown) {
        // What stands in the way of both is said once.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    }
    if !connected {
        findings.insert(
            0,
            StatusFinding {
                code: "WorkerNotConnected".to_owned(),
                message: "no worker of this node is connected; the rest is what it said last"
                    .to_owned(),
                remedy: "see that Longshore's worker runs on this node".to_owned(),
            },
        );
    }
    let runtime = [
        format!("{} {}", inventory.runtime_name, inventory.runtime_version),
        inventory.oci_runtime.clone(),
    ];
    let runtime = runtime
        .iter()
        .map(|part| part.trim())
        .filter(|part| !part.is_empty());
    MigrationNodeSpec {
        checkpoint: can(&inventory.checkpoint),
        restore: can(&inventory.restore),
        connected: *connected,
        runtime: runtime.collect::<Vec<_>>().join(", "),
        criu: inventory.criu_version.clone(),
        kernel: inventory.kernel.clone(),
        cgroups: format!("v{}", inventory.cgroup_version),
        architecture: inventory.architecture.clone(),
        free_bytes: inventory.free_bytes / FREE_STEP_BYTES * FREE_STEP_BYTES,
        findings,
    }
}

fn refuses(finding: &Finding) -> bool {
    match finding.severity() {
        // A worker that doesn't say how bad it is may mean the worst.
        Severity::Refuse | Severity::Unspecified => true,
        Severity::Warn => false,
    }
}

fn shown(finding: &Finding) -> StatusFinding {
    StatusFinding {
        code: finding.code.clone(),
        message: finding.message.clone(),
        remedy: finding.remedy.clone(),
    }
}

/// Writes a node's object. Repeating it changes nothing.
///
/// # Errors
/// When the API server gives no clear answer.
pub async fn apply(
    client: &Client,
    node: &NodeName,
    spec: &MigrationNodeSpec,
) -> Result<(), CallError> {
    let api: Api<MigrationNode> = Api::all(client.clone());
    let object = MigrationNode::new(&node.0, spec.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&object);
    let call = api.patch(&node.0, &params, &patch);
    bounded(format!("apply migrationnode {node}"), call)
        .await
        .map(|_| ())
}

/// Keeps the objects as the workers' words are, while `leads` says so, until either sender is gone.
pub async fn run(
    client: Client,
    mut nodes: watch::Receiver<Arc<BTreeMap<NodeName, Known>>>,
    mut leads: watch::Receiver<bool>,
) {
    let mut written: BTreeMap<NodeName, MigrationNodeSpec> = BTreeMap::new();
    loop {
        if *leads.borrow_and_update() {
            let known = nodes.borrow_and_update().clone();
            for (node, known) in known.iter() {
                let wanted = spec(known);
                if written.get(node) == Some(&wanted) {
                    continue;
                }
                match apply(&client, node, &wanted).await {
                    Ok(()) => drop(written.insert(node.clone(), wanted)),
                    // Written with the next change; a node's worker speaks at least every minute.
                    Err(error) => tracing::warn!(%node, %error, "a MigrationNode was not written"),
                }
            }
        } else {
            written.clear();
        }
        tokio::select! {
            changed = nodes.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding {
            severity: severity.into(),
            code: "NoCriu".into(),
            message: "there is no CRIU".into(),
            remedy: "install it".into(),
        }
    }

    fn known() -> Known {
        Known {
            connected: true,
            inventory: Inventory {
                runtime_name: "containerd".into(),
                runtime_version: "2.1.9".into(),
                oci_runtime: "runc 1.3.6".into(),
                cgroup_version: 1,
                free_bytes: (3 << 30) + 5,
                ..Inventory::default()
            },
        }
    }

    #[test]
    fn a_node_can_what_nothing_forbids() {
        let mut node = known();
        node.inventory.restore = vec![finding(Severity::Refuse)];
        node.inventory.checkpoint = vec![finding(Severity::Warn)];
        let shown = spec(&node);
        assert_eq!(
            (shown.checkpoint.as_str(), shown.restore.as_str()),
            ("yes", "no")
        );
        assert_eq!(shown.findings.len(), 1, "said once");
        assert_eq!(shown.runtime, "containerd 2.1.9, runc 1.3.6");
        assert_eq!((shown.cgroups.as_str(), shown.free_bytes), ("v1", 3 << 30));
    }

    #[test]
    fn a_node_without_its_worker_can_do_nothing() {
        let mut node = known();
        node.connected = false;
        let shown = spec(&node);
        assert_eq!(
            (shown.checkpoint.as_str(), shown.restore.as_str()),
            ("no", "no")
        );
        assert_eq!(shown.findings[0].code, "WorkerNotConnected");
    }
}
