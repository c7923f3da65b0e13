//! The target lacks the pod's image: it is pulled before the freeze, or, its registry gone, comes through the store.

use super::{
    super::{Stage, ground},
    PORT, container, restarts,
};
use crate::{control, node, parts, process, site::REGISTRY_NAME, state::Lab, workloads};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};

const POD: &str = "kuard";
const SECRET: &str = "registry-password";
const TARGET: &str = "node2";
const ENDED_WITHIN: Duration = Duration::from_secs(10);
/// A kubelet removes the dead containers of deleted pods once a minute.
const REMOVED_WITHIN: Duration = Duration::from_secs(120);

/// The registry answers.
pub fn by_pull(stage: &Stage) -> Result<()> {
    pulled_image(stage, json!({}), || move_and_compare(stage))?;
    ensure!(
        spans(stage)?.iter().any(|name| name == "pull base images"),
        "no image was pulled: the node had it all the time"
    );
    Ok(())
}

/// The registry wants a password, which is in a Secret that the pod names.
pub fn by_secret(stage: &Stage) -> Result<()> {
    let login = control::REGISTRY_LOGIN;
    stage.cluster.run(&[
        "-n",
        &stage.namespace,
        "create",
        "secret",
        "docker-registry",
        SECRET,
        &format!("--docker-server={REGISTRY_NAME}"),
        &format!("--docker-username={}", login.user),
        &format!("--docker-password={}", login.password),
    ])?;
    let with_secret = json!({"imagePullSecrets": [{"name": SECRET}]});
    pulled_image(stage, with_secret, || {
        with_registry(stage, control::start_asking_registry, || {
            move_and_compare(stage)
        })
    })?;
    let names = spans(stage)?;
    let came = |by: &str| names.iter().any(|name| name == by);
    ensure!(
        came("pull base images") && !came("send base images through the store"),
        "the image was not pulled ({}); the trace has {}",
        warnings(stage)?.join("; "),
        names.join(", ")
    );
    Ok(())
}

/// The registry is gone.
pub fn through_the_store(stage: &Stage) -> Result<()> {
    pulled_image(stage, json!({}), || {
        with_registry(stage, |_| Ok(()), || move_and_compare(stage))
    })?;
    let names = spans(stage)?;
    ensure!(
        names
            .iter()
            .any(|name| name == "send base images through the store"),
        "the image did not come through the store; the trace has {}",
        names.join(", ")
    );
    let warnings = warnings(stage)?;
    ensure!(
        warnings.iter().any(|words| words.contains("ImagePull")),
        "nobody is told why the image was not pulled: {}",
        warnings.join("; ")
    );
    Ok(())
}

/// Tells `then` on a target without the image, and puts it back.
fn pulled_image(stage: &Stage, spec: Value, then: impl FnOnce() -> Result<()>) -> Result<()> {
    stage.run_pod(
        POD,
        "node1",
        json!([container(POD, workloads::KUARD, &["--mib=8"])]),
        spec,
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
    unpacked_nowhere(stage)?;
    let words: Vec<&str> = ["images", "remove", "--sync"]
        .into_iter()
        .chain(names.iter().map(String::as_str))
        .collect();
    ground::ctr(stage, TARGET, &words)?;
    process::wait_for("the image to be forgotten", ENDED_WITHIN, || {
        Ok(known()?.is_empty().then_some(()))
    })
}

/// Waits until no container on the target has the image's layers unpacked: containerd fetches no layer again that it finds
/// unpacked, and the image is incomplete then, however it was pulled.
fn unpacked_nowhere(stage: &Stage) -> Result<()> {
    process::wait_for("the last container of kuard to go", REMOVED_WITHIN, || {
        let listed = ground::ctr(stage, TARGET, &["containers", "list"])?;
        Ok((!listed.contains(POD)).then_some(()))
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

/// Tells `then` with another registry in place of the lab's (none, perhaps), and starts that one again.
fn with_registry(
    stage: &Stage,
    other: fn(&mut Lab) -> Result<()>,
    then: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut lab = Lab::expect(&stage.lab.site.name)?;
    end_registry(&lab)?;
    let told = other(&mut lab).and_then(|()| then());
    if lab.runs("registry") {
        end_registry(&lab)?;
    }
    told.and(control::start_registry(&mut lab))
}

fn end_registry(lab: &Lab) -> Result<()> {
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
    Ok(())
}

fn spans(stage: &Stage) -> Result<Vec<String>> {
    said(stage, "trace", "name")
}

fn warnings(stage: &Stage) -> Result<Vec<String>> {
    said(stage, "warnings", "message")
}

/// This field of everything in that list of the last migration's status.
fn said(stage: &Stage, list: &str, field: &str) -> Result<Vec<String>> {
    let migrations = stage.migrations()?;
    let migration = migrations.last().context("there is no migration")?;
    let items = migration["status"][list].as_array().into_iter().flatten();
    Ok(items
        .filter_map(|item| item[field].as_str().map(str::to_owned))
        .collect())
}
