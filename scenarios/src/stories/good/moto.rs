//! Another S3 server: moto, a Python program that has nothing in common with the lab's own.

use super::{
    super::{Stage, client::Client},
    PORT, book, run_ledger,
};
use crate::{control::UNIT, deploy::NAMESPACE, http, process, python, s3, state::Lab};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{io, net::SocketAddr, time::Duration};

const MOTO_PORT: u16 = 9100;
/// Python starts slowly on a busy machine.
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);
const ROLLED_OUT_WITHIN: Duration = Duration::from_secs(90);
const WORKERS: &str = "daemonset/longshore-worker";

/// Moves a ledger there and back through moto.
pub fn moto(stage: &Stage) -> Result<()> {
    let program = python::install("moto", "moto[server]", "moto_server")?;
    let mut lab = Lab::expect(&stage.lab.site.name)?;
    let address = SocketAddr::from((lab.site.gateway(), MOTO_PORT));
    let mut command = process::in_group(&lab, UNIT)?;
    command.arg(program).args([
        "-H",
        &address.ip().to_string(),
        "-p",
        &MOTO_PORT.to_string(),
    ]);
    let mut server = process::start(&mut lab, "moto", &command)?;
    let told = use_moto(stage, address);
    let ended = server.kill().and_then(|()| server.wait());
    // The lab is whole without it.
    lab.processes.remove("moto");
    lab.save()?;
    ended.context("end moto")?;
    told
}

fn use_moto(stage: &Stage, address: SocketAddr) -> Result<()> {
    process::wait_for("moto to answer", ANSWERS_WITHIN, || {
        let bucket = format!("/{}", s3::BUCKET);
        let made = http::request(
            address,
            "PUT",
            &bucket,
            &[],
            (0, io::empty()),
            Duration::from_secs(5),
        );
        Ok(made.ok().filter(|answer| answer.status == 200))
    })?;
    switch(stage, &format!("http://{address}"))?;
    let told = move_through_moto(stage, address);
    let back = switch(stage, &s3::endpoint(&stage.lab));
    told.and(back)
}

/// Tells the workers of another store.
fn switch(stage: &Stage, endpoint: &str) -> Result<()> {
    let patch = json!({"stringData": {"endpoint": endpoint}}).to_string();
    let system = ["--namespace", NAMESPACE];
    let run = |words: &[&str]| {
        stage
            .cluster
            .run_within(ROLLED_OUT_WITHIN, &[&system, words].concat())
    };
    run(&["patch", "secret", "longshore-s3", "--patch", &patch])?;
    run(&["rollout", "restart", WORKERS])?;
    run(&["rollout", "status", WORKERS, "--timeout=80s"])?;
    // A worker that has just been started is not connected yet.
    process::wait_for(
        "both nodes to be able to move pods",
        ROLLED_OUT_WITHIN,
        || {
            let line = ["pod", "ledger", "--to", "node2", "--dry-run"];
            let text = stage.migrate(&line)?.text;
            Ok((!text.contains("WorkerNotConnected") && !text.contains("no worker")).then_some(()))
        },
    )
}

fn move_through_moto(stage: &Stage, address: SocketAddr) -> Result<()> {
    const POD: &str = "ledger";
    run_ledger(stage, POD, "node1")?;
    let client = Client::start(stage, POD, PORT)?;
    let before = requests(address)?;
    stage.move_pod(POD, "node2")?;
    stage.move_pod(POD, "node1")?;
    let heard = client.stop()?;
    heard.check()?;
    ensure!(
        book(stage, POD, PORT)? >= heard.last(),
        "the ledger forgot what it had answered"
    );
    ensure!(
        requests(address)? > before,
        "nothing of the moves went through moto"
    );
    let left = http::get(
        address,
        &format!("/{}?list-type=2", s3::BUCKET),
        Duration::from_secs(5),
    )?;
    ensure!(
        !left.text().contains("<Key>"),
        "the store was not tidied up: {}",
        left.text()
    );
    Ok(())
}

/// How many requests moto remembers.
fn requests(address: SocketAddr) -> Result<usize> {
    let answer = http::get(address, "/moto-api/data.json", Duration::from_secs(10))?;
    Ok(answer.body.len())
}
