//! A world in which every step is done at once, and migrations of ordinary size for it.

use std::collections::BTreeMap;

use async_trait::async_trait;
use orchestrator::{
    clock::{unix_ms, unix_ns},
    driver::Perform,
};
use orchestrator_core::{
    id::{NodeName, PodRef},
    migration::{Checkpoint, Done, Migration, Outcome, Restored, Span, Step},
    plan::{CheckpointVia, Handover, Plan, PlannedContainer, Request, RestoreVia},
    state::{Command, Decision, Due},
};
use uuid::Uuid;

/// Everything is done at once, but for what is to go on running: that is never delivered.
pub struct NoOp;

/// Pods of this prefix stay in Delivering.
pub const GOES_ON: &str = "goes-on-";

#[async_trait]
impl Perform for NoOp {
    async fn perform(&self, due: &Due, migration: &Migration) -> (Outcome, Vec<Span>) {
        if due.step == Step::Deliver && migration.request.pod.name.starts_with(GOES_ON) {
            return std::future::pending().await;
        }
        let restored = || Restored {
            pod_uid: "restored".into(),
            node: migration.request.target.clone(),
            running_unix_ns: unix_ns(),
            images: Vec::new(),
        };
        let done = match due.step {
            Step::Recheck => Done::Rechecked,
            // Its plans have no rounds.
            Step::Prepare | Step::Copy => Done::Prepared,
            Step::Hold => Done::Held(Checkpoint {
                store_prefix: format!("checkpoints/{}/", due.id),
                manifest_key: format!("checkpoints/{}/manifest", due.id),
                manifest_blake3: "0".repeat(64),
                paused_unix_ns: unix_ns(),
                raw_bytes: 1 << 26,
                stored_bytes: 1 << 25,
                packs: 8,
                boot_id: Uuid::nil().to_string(),
            }),
            Step::Deliver => Done::Delivered(Vec::new()),
            Step::Restore => Done::Restored(restored()),
            Step::Rescue => Done::Rescued(restored()),
            Step::Retire => Done::Retired,
            Step::Release => Done::Released {
                clean: true,
                detail: String::new(),
                left_over: None,
            },
        };
        (Outcome::Done(done), spans())
    }
}

/// As many and as long as a real step's.
fn spans() -> Vec<Span> {
    let span = |n: u64| Span {
        name: format!("part {n} of the step"),
        place: "node1".to_owned(),
        parent: String::new(),
        start_unix_ns: n,
        end_unix_ns: n + 1,
        attributes: BTreeMap::from([("requests".to_owned(), "1".to_owned())]),
    };
    (0..5).map(span).collect()
}

/// Asks for the migration of a pod between a pair of nodes.
pub fn submit(name: &str, pair: usize) -> Command {
    let pod = PodRef {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    };
    let (source, target) = (NodeName(format!("a{pair}")), NodeName(format!("b{pair}")));
    let plan = Plan {
        pod: pod.clone(),
        uid: "uid".into(),
        source,
        target: target.clone(),
        pod_ip: "10.0.0.1".to_owned(),
        containers: vec![PlannedContainer {
            name: "main".to_owned(),
            image: "registry.example/app:1".to_owned(),
            image_digest: format!("sha256:{}", "0".repeat(64)),
            container_id: "0".repeat(64),
            sidecar: false,
        }],
        finished_init_containers: Vec::new(),
        handover: Handover::Replace,
        checkpoint: CheckpointVia::Kubelet,
        restore: RestoreVia::Image,
        freeze_budget_ms: 3_600_000,
        freeze_predicted_ms: 1_000,
        archive_predicted_bytes: 1 << 26,
        rounds_max: 0,
        base: None,
        timeout_ms: 3_600_000,
        warnings: Vec::new(),
        // A pod of ordinary size.
        target_pod: format!("{{\"spec\":\"{}\"}}", "x".repeat(1_500)),
    };
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
    Command::Submit {
        // The same for the same name: told twice it is one.
        id: Uuid::from_bytes(bytes).to_string().as_str().into(),
        object: pod.clone(),
        request: Request {
            pod,
            target,
            freeze_max_ms: None,
            timeout_ms: None,
            dry_run: false,
            rounds_max: None,
            keep_checkpoint_ms: None,
        },
        decision: Decision::Plan(Box::new(plan)),
        at_ms: unix_ms(),
        spans: Vec::new(),
    }
}
