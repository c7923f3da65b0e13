//! `lab demo`: everything from nothing to a pod that went on counting on another node, and how to look around.
//!
//! ```text
//! Debian packages ─► Kubernetes, node tree, S3 server, images ─┐
//!                └─► Longshore ────────────────────────────────┴─► lab ─► kubectl apply -k ─► ledger on node1
//!                                                       client asks all the while, migrate pod … --to node2 ─► node2
//! ```
//! It ends well only if Kubernetes says that the pod is on node2 and its client heard it go on from its number. Told
//! again on the same lab, it begins with a new pod.

use crate::client::{Answer, Client, Gap};
use crate::cluster::Cluster;
use crate::deploy;
use crate::http;
use crate::machine;
use crate::process::wait_for;
use crate::state::Lab;
use crate::steps::Steps;
use crate::up;
use crate::workloads::LEDGER;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const NODES: u8 = 2;
const NAMESPACE: &str = "default";
const POD: &str = "ledger";
const PORT: u16 = 8080;
/// Two seconds of counting: a ledger that was started afresh could not have come so far by its first answer.
const COUNTED_BEFORE: u64 = 200;
const GONE_WITHIN: Duration = Duration::from_secs(30);
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Tells the demo on the lab called `name`.
pub fn demo(name: &str) -> Result<()> {
    let began = Instant::now();
    let steps = Steps::start();
    let lab = bring_up(name, &steps)?;
    let cluster = Cluster::of(&lab)?;
    let client = steps.run("start a pod on node1", || start_pod(&cluster))?;
    drop(steps);

    println!();
    println!(
        "The pod {NAMESPACE}/{POD} counts on node1, one number every 10 ms; a client asks it every 5 ms."
    );
    println!();
    run_migrate(
        &cluster,
        &["pod", &format!("{NAMESPACE}/{POD}"), "--to", "node2"],
    )?;
    let gap = client.wait_for_move()?;
    check(&cluster, &gap)?;
    println!();
    println!("{}", told(&gap, client.answers()));
    drop(client);

    println!();
    let newest = newest_migration(&cluster)?;
    run_migrate(&cluster, &["describe", &newest, "-n", NAMESPACE])?;
    println!();
    print!("{}", look_around(name, &newest));
    println!("({:.0} s in all)", began.elapsed().as_secs_f32());
    Ok(())
}

/// A lab with Longshore on it. Cargo builds while Go builds, packages are fetched and the cluster starts.
fn bring_up(name: &str, steps: &Steps) -> Result<Lab> {
    machine::prepare(steps)?;
    thread::scope(|scope| {
        let built = scope.spawn(|| deploy::build(steps));
        let lab = up::up(name, NODES, steps);
        built
            .join()
            .unwrap_or_else(|_| Err(anyhow!("building Longshore panicked")))?;
        let lab = lab?;
        deploy::deploy_built(&lab, None, steps)?;
        Ok(lab)
    })
}

/// A new ledger on node1 and its client, once it has counted for a while.
fn start_pod(cluster: &Cluster) -> Result<Client> {
    let delete = [
        "delete",
        "pod",
        POD,
        "--ignore-not-found",
        "--grace-period=1",
    ];
    cluster.run_within(GONE_WITHIN, &[&["-n", NAMESPACE], &delete[..]].concat())?;
    cluster.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": POD, "namespace": NAMESPACE, "labels": {"app": POD}},
        "spec": {
            // Placed by hand, for the story's sake: it is to begin there.
            "nodeName": "node1",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": POD, "image": LEDGER,
                "readinessProbe": {"httpGet": {"path": "/ready", "port": PORT}, "periodSeconds": 1},
            }],
        },
    }))?;
    let client = Client::start(cluster, NAMESPACE, POD, (PORT, "/"))?;
    client.wait_for("the ledger to have counted for a while", |answer| {
        number(answer).is_some_and(|number| number >= COUNTED_BEFORE)
    })?;
    wait_for("the pod to be Ready", GONE_WITHIN, || {
        let pod = cluster.json(&["-n", NAMESPACE, "get", "pod", POD])?;
        let ready = pod["status"]["containerStatuses"][0]["ready"] == true;
        Ok(ready.then_some(()))
    })?;
    Ok(client)
}

fn number(answer: &Answer) -> Option<u64> {
    answer.text.trim().parse().ok()
}

/// Shows a `migrate` command and runs it on this terminal.
fn run_migrate(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    println!("$ migrate {}", arguments.join(" "));
    let mut command = Command::new(deploy::program("migrate")?);
    command
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(arguments);
    let status = command.status().context("run migrate")?;
    if !status.success() {
        bail!("migrate {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// Kubernetes says it is on node2, its client heard it go on, and its book has every number.
fn check(cluster: &Cluster, gap: &Gap) -> Result<()> {
    let pod = cluster.json(&["-n", NAMESPACE, "get", "pod", POD])?;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or("no node");
    if node != "node2" {
        bail!("the pod is on {node}, not on node2");
    }
    let (before, after) = (number(&gap.before), number(&gap.after));
    if before.is_none() || after < before {
        bail!(
            "the ledger answered {before:?} before the move and {after:?} after it: it did not go on"
        );
    }
    let book = http::get(SocketAddr::new(gap.after.from, PORT), "/log", READ_WITHIN)?;
    if book.status != 200 {
        bail!("the ledger's book is not whole: {}", book.text().trim());
    }
    Ok(())
}

fn told(gap: &Gap, answers: usize) -> String {
    let Gap { before, after } = gap;
    format!(
        "What the client saw: {} from {} on node1, {:.2} s of silence, {} from {} on node2; {answers} good answers.\n\
         No number is missing in the ledger's book, and none is there twice.",
        before.text.trim(),
        before.from,
        gap.length().as_secs_f32(),
        after.text.trim(),
        after.from,
    )
}

fn newest_migration(cluster: &Cluster) -> Result<String> {
    let list = [
        "-n",
        NAMESPACE,
        "get",
        "podmigrations",
        "--sort-by=.metadata.creationTimestamp",
        "--output=jsonpath={.items[-1:].metadata.name}",
    ];
    cluster.run(&list)
}

fn look_around(name: &str, migration: &str) -> String {
    let lab = if name == "lab" {
        "cargo lab".to_owned()
    } else {
        format!("cargo lab --name {name}")
    };
    format!(
        "Look around:\n\
         \x20 {lab} kubectl get pods -A -o wide\n\
         \x20 {lab} kubectl get podmigrations -o wide\n\
         \x20 {lab} kubectl logs {POD} --tail=3\n\
         \x20 {lab} migrate pod {NAMESPACE}/{POD} --to node1\n\
         \x20 {lab} migrate describe {migration}\n\
         \x20 {lab} demo     tells it again\n\
         \x20 {lab} down     leaves nothing behind\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_of_another_name_is_named_in_every_command() {
        let told = look_around("other", "m");
        let commands = told.lines().skip(1);
        assert!(commands.clone().count() > 3);
        assert!(
            commands
                .into_iter()
                .all(|line| line.contains("cargo lab --name other ")),
            "{told}"
        );
    }
}
