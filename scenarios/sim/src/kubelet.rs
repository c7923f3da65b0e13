//! The kubelet of a node: looks at what the API names for it, and makes it so. What it saw may be old by the time it
//! acts; what it starts in a frozen pod can't run; what it ends gets SIGTERM, and after its grace SIGKILL.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use worker::containerd::TaskState;

use crate::{
    api::Seen,
    sim::Sim,
    truth::{Cause, Content, LocalPod},
};

/// A kubelet's patience between SIGTERM and SIGKILL, shortened from 30 s: a schedule is some seconds.
const GRACE_MS: u64 = 2_000;
/// Between two starts of a container that ended.
const BACKOFF_MS: u64 = 1_000;

/// Is one for as long as the schedule lasts.
pub async fn run(sim: Sim, node: String) {
    let mut written: BTreeMap<String, Value> = BTreeMap::new();
    loop {
        sim.rest(80..=220).await;
        let (up, boot, reaches) = sim.look(|inner| {
            let machine = inner.truth.machine(&node);
            let (up, boot) = (machine.up, machine.boot);
            let halted = inner.faults.kubelets_down.contains(&node);
            let reaches = !inner.faults.api_down && inner.network.reaches(&node, "api");
            (up && !halted, boot, reaches)
        });
        if !up {
            continue;
        }
        end_what_is_ending(&sim, &node);
        if !reaches {
            continue;
        }
        let seen = sim.look(|inner| inner.truth.objects.seen_by(&node));
        // Between seeing and acting anything happens.
        sim.rest(5..=120).await;
        let same = sim.look(|inner| inner.truth.machine(&node).boot == boot);
        if same {
            act(&sim, &node, boot, &seen);
            write_statuses(&sim, &node, &seen, &mut written);
        }
    }
}

fn act(sim: &Sim, node: &str, boot: u32, seen: &[Seen]) {
    let now_ms = sim.now_ms();
    let gone: Vec<String> = sim.look(|inner| {
        let pods = &inner.truth.machine(node).pods;
        let named = |uid: &String| seen.iter().any(|s| s.uid == *uid && !s.deleting);
        pods.iter()
            .filter(|(uid, pod)| !named(uid) && pod.ending_since_ms.is_none())
            .map(|(uid, _)| uid.clone())
            .collect()
    });
    for uid in gone {
        sim.event(node, format_args!("kubelet begins to end {uid}"));
        sim.with(|inner| {
            if let Some(pod) = inner.truth.machine(node).pods.get_mut(&uid) {
                pod.ending_since_ms = Some(now_ms);
                for container in &mut pod.containers {
                    container.term_pending = container.is_alive();
                }
            }
        });
    }
    for pod in seen {
        let local = sim.look(|inner| inner.truth.machine(node).pods.get(&pod.uid).cloned());
        match (local, pod.deleting) {
            (None, true) => {
                // Nothing of it is here: the API may forget it.
                sim.event(node, format_args!("kubelet lets {} go", pod.name));
                sim.with(|inner| {
                    let at_once = json!({
                        "gracePeriodSeconds": 0, "preconditions": { "uid": pod.uid },
                    });
                    inner.truth.objects.delete(&pod.name, &at_once)
                });
            }
            (Some(_), true) => {}
            (None, false) => {
                sim.event(node, format_args!("kubelet makes {} {}", pod.name, pod.uid));
                sim.with(|inner| {
                    let local = LocalPod {
                        name: pod.name.clone(),
                        made_by: pod.made_by.clone(),
                        ..LocalPod::default()
                    };
                    let pods = &mut inner.truth.machine(node).pods;
                    pods.insert(pod.uid.clone(), local);
                });
                start(sim, node, boot, pod);
            }
            (Some(local), false) => {
                let whole = pod
                    .containers
                    .iter()
                    .all(|(name, _)| local.alive().any(|c| c.name == *name));
                let due = !local.starting && now_ms >= local.not_before_ms;
                if !whole && due && local.ending_since_ms.is_none() {
                    start(sim, node, boot, pod);
                }
            }
        }
    }
}

/// Starts what lacks, beside everything else.
fn start(sim: &Sim, node: &str, boot: u32, pod: &Seen) {
    let (sim, node, pod) = (sim.clone(), node.to_owned(), pod.clone());
    set_starting(&sim, &node, &pod.uid, true);
    tokio::spawn(async move {
        sim.rest(30..=150).await;
        for (name, image) in &pod.containers {
            let lacks = sim.look(|inner| {
                let machine = inner.truth.machine(&node);
                let up = machine.up && machine.boot == boot;
                let local = machine.pods.get(&pod.uid);
                local.is_some_and(|l| {
                    up && l.ending_since_ms.is_none() && !l.alive().any(|c| c.name == *name)
                })
            });
            if lacks {
                start_container(&sim, &node, boot, &pod, name, image).await;
            }
        }
        set_starting(&sim, &node, &pod.uid, false);
    });
}

fn set_starting(sim: &Sim, node: &str, uid: &str, starting: bool) {
    let not_before_ms = sim.now_ms() + BACKOFF_MS;
    sim.look(|inner| {
        if let Some(local) = inner.truth.machine(node).pods.get_mut(uid) {
            local.starting = starting;
            local.not_before_ms = not_before_ms;
        }
    });
}

async fn start_container(sim: &Sim, node: &str, boot: u32, pod: &Seen, name: &str, image: &str) {
    let Some((content, stray)) = resolve(sim, node, image) else {
        sim.event(node, format_args!("kubelet can't pull {image}"));
        return;
    };
    let made = sim.with(|inner| inner.truth.make_container(node, &pod.uid, name));
    let Some(id) = made else {
        return;
    };
    sim.rest(20..=200).await;
    let (always, per_mille) = sim.look(|inner| {
        let machine = inner.truth.machine(node);
        (machine.breaks_restores, machine.fails_restores_per_mille)
    });
    let restores = matches!(content, Content::Checkpoint(_));
    let breaks = restores && (always || sim.hits(per_mille));
    sim.with(|inner| {
        let machine = inner.truth.machine(node);
        if !machine.up || machine.boot != boot {
            return;
        }
        let local = machine.pods.get(&pod.uid);
        let ending = local.is_none_or(|local| local.ending_since_ms.is_some());
        if breaks || ending {
            if let Some(container) = machine.container_mut(&id) {
                container.state = TaskState::Stopped;
                container.exit_status = 128;
            }
            return;
        }
        inner.truth.start(node, &id, content, image, stray);
    });
    sim.event(
        node,
        format_args!(
            "kubelet started {}/{name} as {id}: {content:?}, broken {breaks}",
            pod.name
        ),
    );
}

/// What the name brings, and whether it should have been something else. Nothing: it can't be pulled.
fn resolve(sim: &Sim, node: &str, image: &str) -> Option<(Content, bool)> {
    if !image.starts_with("localhost:") {
        return Some((Content::Base, false));
    }
    let (answer, served, local, afresh) = sim.with(|inner| {
        let machine = inner.truth.machine(node);
        let served = machine.registry_up;
        let entry = machine.registry.get(image).filter(|entry| !entry.silent);
        let answer = entry.map(|entry| entry.content).filter(|_| served);
        if let Some(content) = answer {
            machine.images.insert(image.to_owned(), content);
        }
        let local = machine.images.get(image).copied();
        (answer, served, local, machine.starts_afresh)
    });
    // A registry that has no such name any more: newer kubelets ask it each time, older ones take what they have.
    let asks = served && sim.hits(500);
    let content = answer.or(local.filter(|_| !asks))?;
    match content {
        Content::Checkpoint(_) if afresh => Some((Content::Base, true)),
        Content::Checkpoint(_) | Content::Base => Some((content, false)),
    }
}

fn end_what_is_ending(sim: &Sim, node: &str) {
    let now_ms = sim.now_ms();
    let ending: Vec<(String, u64)> = sim.look(|inner| {
        let pods = &inner.truth.machine(node).pods;
        let ending = |(uid, pod): (&String, &LocalPod)| Some((uid.clone(), pod.ending_since_ms?));
        pods.iter().filter_map(ending).collect()
    });
    for (uid, since_ms) in ending {
        let killed = now_ms >= since_ms + GRACE_MS;
        let quick = sim.hits(300);
        sim.with(|inner| {
            let machine = inner.truth.machine(node);
            let dies_frozen = machine.dies_frozen;
            let Some(pod) = machine.pods.get(&uid) else {
                return;
            };
            let frozen = pod.frozen;
            let dies = |c: &&crate::truth::Container| {
                let stopped = frozen || c.state == TaskState::Paused;
                if stopped {
                    killed && dies_frozen
                } else {
                    killed || quick
                }
            };
            let ids: Vec<String> = pod.alive().filter(dies).map(|c| c.id.clone()).collect();
            for id in ids {
                let ended = inner.truth.end(now_ms, node, &id, 143, Cause::Ended);
                inner.violations.extend(ended);
            }
            let machine = inner.truth.machine(node);
            let over = machine
                .pods
                .get(&uid)
                .is_some_and(|pod| pod.alive().next().is_none() && !pod.starting);
            if over {
                machine.pods.remove(&uid);
            }
        });
    }
}

fn write_statuses(sim: &Sim, node: &str, seen: &[Seen], written: &mut BTreeMap<String, Value>) {
    for pod in seen {
        let status = sim.look(|inner| {
            let local = inner.truth.machine(node).pods.get(&pod.uid)?;
            Some(status(local, pod))
        });
        let Some(status) = status else {
            continue;
        };
        if written.get(&pod.uid) == Some(&status) {
            continue;
        }
        sim.with(|inner| {
            let objects = &mut inner.truth.objects;
            objects.write_status(&pod.name, &pod.uid, status.clone());
        });
        written.insert(pod.uid.clone(), status);
    }
}

fn status(local: &LocalPod, pod: &Seen) -> Value {
    let mut ready = true;
    let containers: Vec<Value> = pod
        .containers
        .iter()
        .map(|(name, _)| {
            let latest = local.containers.iter().rfind(|c| c.name == *name);
            let runs = latest.is_some_and(|c| c.is_alive());
            ready &= runs;
            let state = match latest {
                Some(c) if c.is_alive() => json!({ "running": {} }),
                Some(c) if c.state == TaskState::Stopped => {
                    json!({ "terminated": { "exitCode": c.exit_status, "reason": "StartError" } })
                }
                Some(_) | None => json!({ "waiting": { "reason": "ContainerCreating" } }),
            };
            json!({
                "name": name, "image": "", "imageID": "", "ready": runs,
                "restartCount": latest.map_or(0, |c| c.attempt),
                "containerID": latest.map(|c| format!("containerd://{}", c.id)),
                "state": state,
            })
        })
        .collect();
    json!({
        "phase": "Running",
        "containerStatuses": containers,
        "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
    })
}

/// The node goes down: everything on it ends, freezers are gone, disks stay. Later it boots, longer than any lease.
pub async fn reboot(sim: Sim, node: String) {
    if !sim.look(|inner| inner.truth.machine(&node).up) {
        return;
    }
    let now_ms = sim.now_ms();
    sim.event(&node, format_args!("goes down"));
    sim.with(|inner| {
        let machine = inner.truth.machine(&node);
        machine.up = false;
        let all = machine.pods.values().flat_map(LocalPod::alive);
        let ids: Vec<String> = all.map(|c| c.id.clone()).collect();
        for id in ids {
            inner.truth.end(now_ms, &node, &id, 255, Cause::Accident);
        }
        let machine = inner.truth.machine(&node);
        // The runtime's records stay, so that what is started again is not its first attempt.
        for pod in machine.pods.values_mut() {
            pod.frozen = false;
            pod.starting = false;
            for container in &mut pod.containers {
                container.state = TaskState::Stopped;
                container.dumping = false;
            }
        }
        machine.registry_up = false;
    });
    sim.rest(5_500..=9_000).await;
    sim.with(|inner| {
        let machine = inner.truth.machine(&node);
        machine.boot += 1;
        machine.up = true;
    });
    sim.event(&node, format_args!("is up again"));
}

/// A container is killed by nobody's will: out of memory, a liveness probe.
pub fn accident(sim: &Sim, node: &str) {
    let now_ms = sim.now_ms();
    let hit = sim.with(|inner| {
        let machine = inner.truth.machine(node);
        let dies_frozen = machine.dies_frozen;
        let pods = machine.pods.values();
        let id = pods
            .filter(|pod| !pod.frozen || dies_frozen)
            .flat_map(LocalPod::alive)
            .map(|c| c.id.clone())
            .next()?;
        inner.truth.end(now_ms, node, &id, 137, Cause::Accident);
        Some(id)
    });
    sim.event(node, format_args!("an accident ends {hit:?}"));
}

/// Time for a deleted pod of a kubelet that runs, and what it takes to notice.
#[must_use]
pub fn settles_within() -> Duration {
    Duration::from_millis(2 * GRACE_MS)
}
