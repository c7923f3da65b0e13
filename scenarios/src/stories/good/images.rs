//! The target lacks the pod's image: it is pulled before the freeze, or, its registry gone, comes through the store.

use super::{
    super::{Stage, ground},
    PORT, container, restarts,
};
use crate::{control, node, parts, process, state::Lab, workloads};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    thread,
    time::{Duration, Instant},
};

const POD: &str = "kuard";
const TARGET: &str = "node2";
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// The registry answers.
pub fn by_pull(stage: &Stage) -> Result<()> {
    pulled_image(stage, || move_and_compare(stage))?;
    ensure!(
        spans(stage)?.iter().any(|name| name == "pull base images"),
        "no image was pulled: the node had it all the time"
    );
    Ok(())
}

/// The registry is gone.
pub fn through_the_store(stage: &Stage) -> Result<()> {
    pulled_image(stage, || {
        without_registry(stage, || move_and_compare(stage))
    })?;
    let names = spans(stage)?;
    ensure!(
        names
            .iter()
            .any(|name| name == "send base images through the store"),
        "the image did not come through the store; the trace has {}",
        names.join(", ")
    );
    Ok(())
}

/// Tells `then` on a target without the image, and puts it back.
fn pulled_image(stage: &Stage, then: impl FnOnce() -> Result<()>) -> Result<()> {
    stage.run_pod(
        POD,
        "node1",
        json!([container(POD, workloads::KUARD, &["--mib=8"])]),
        json!({}),
    )?;
    forget_image(stage)?;
    let told = then();
    let archive = workloads::part(&parts::base())?.path()?.join("images.tar");
    let target = ground::node_number(stage, TARGET)?;
    let mended = node::import_images(&stage.lab, target, &archive);
    told.and(mended)
}

/// Removes every name the image has on the target, until the runtime says it is not there.
fn forget_image(stage: &Stage) -> Result<()> {
    let known = || -> Result<Vec<String>> {
        let listed = ground::ctr(stage, TARGET, &["images", "list"])?;
        let digest = listed
            .lines()
            .find(|line| line.starts_with(workloads::KUARD))
            .and_then(|line| line.split_whitespace().nth(2))
            .map(str::to_owned);
        let has = |line: &&str| {
            digest
                .as_deref()
                .is_some_and(|digest| line.contains(digest))
        };
        let name = |line: &str| line.split_whitespace().next().map(str::to_owned);
        Ok(listed.lines().filter(has).filter_map(name).collect())
    };
    let names = known()?;
    ensure!(
        !names.is_empty(),
        "{TARGET} has no image of kuard to forget"
    );
    let words: Vec<&str> = ["images", "remove", "--sync"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    ground::ctr(stage, TARGET, &words)?;
    process::wait_for("the image to be forgotten", ENDED_WITHIN, || {
        Ok(known()?.is_empty().then_some(()))
    })
}

fn move_and_compare(stage: &Stage) -> Result<()> {
    let before = stage.get(POD, PORT, "/mem/digest")?;
    stage.move_pod(POD, TARGET)?;
    let after = stage.get(POD, PORT, "/mem/digest")?;
    ensure!(before == after, "the memory was {before}and is {after}");
    ensure!(restarts(stage, POD)? == 0, "kuard was started again");
    Ok(())
}

/// Tells `then` while the lab's registry is down, and starts it again.
fn without_registry(stage: &Stage, then: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut lab = Lab::expect(&stage.lab.site.name)?;
    let registry = *lab
        .processes
        .get("registry")
        .context("the lab has no registry")?;
    process::run("kill", ["-KILL", &registry.pid.to_string()])?;
    let began = Instant::now();
    while registry.is_alive() {
        ensure!(began.elapsed() < ENDED_WITHIN, "the registry does not end");
        thread::sleep(Duration::from_millis(20));
    }
    let told = then();
    told.and(control::start_registry(&mut lab))
}

fn spans(stage: &Stage) -> Result<Vec<String>> {
    let migrations = stage.migrations()?;
    let migration = migrations.last().context("there is no migration")?;
    let spans = migration["status"]["trace"]
        .as_array()
        .into_iter()
        .flatten();
    Ok(spans
        .filter_map(|span| span["name"].as_str().map(str::to_owned))
        .collect())
}
