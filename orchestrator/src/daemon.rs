//! The daemon: its parts, and how they hang together.
//!
//! ```text
//! on every peer:     peers (gRPC, mutual TLS) ─► log ─► state ─► metrics
//!                    workers ─► api (gRPC, TLS) ─► workers
//! on the leader:     k8s::intake ─► desk ─► log ─► state ─► driver ─► perform ─► workers, k8s
//!                                                    ├───► k8s::status (the board), k8s::nodes
//!                                                    └───► trace (OTLP, when an endpoint is given)
//! ```
//!
//! It begins by finding out who this peer is (`start`), then serves (`serve`) what every peer serves, and `leading`
//! begins and ends what only the leader does.

use std::sync::Arc;

use anyhow::{Context, Result};
use kube::Client;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::{
    config::Config,
    consensus::{
        core::Leadership,
        node::{INBOUND_QUEUED_MAX, LIMITS, Log, Membership},
        transport::Inbound,
    },
    k8s::call,
    metrics::Metrics,
    peers::{
        book::{Address, Book},
        discovery::Discovery,
        gate::Gate,
        network::{Network, Parts},
        operator::Desk as OperatorDesk,
        record::{Place, Record, Records},
        server::{self, Door},
    },
    workers::Workers,
};
use admission::Registrar;
use leading::Leading;

mod admission;
mod leading;
mod serve;
mod start;

/// Runs until something essential ends.
///
/// # Errors
/// What ended, and why.
pub async fn run(config: Config) -> Result<()> {
    let metrics = Arc::new(Metrics::new().context("make the metrics")?);
    let client = Client::try_from(call::config().await.context("find the Kubernetes API")?)
        .context("make a Kubernetes client")?;
    let book = Book::open(&config.data_dir);
    let records = Records::new(client.clone(), &config.namespace);
    let place = start::place(&config, &records, &book).await?;
    let (peer, group) = (place.peer, place.group);
    let identity = start::identity(&client, &config, peer, group).await?;
    let (inbound_out, inbound) = mpsc::channel(INBOUND_QUEUED_MAX);
    let parts = Parts {
        own: peer,
        group,
        address: own_address(&config, &book, peer),
        identity: identity.clone(),
        book: book.clone(),
        inbound: inbound_out.clone(),
        dropped: metrics.messages_dropped(),
    };
    // Before the log: whoever answers late makes elections, and the port must be ours.
    let listener = TcpListener::bind(config.listen_peers)
        .await
        .context("listen for peers")?;
    let log = open(&config, place, &parts, inbound).await?;
    let log = log.measured_by(metrics.commit_seconds());

    let gate = Gate::new(peer, group, book.clone(), log.members(), metrics.refused());
    tokio::spawn(gate.clone().note_removals());
    let workers = Workers::new();
    let leading = Leading {
        client: client.clone(),
        log: log.clone(),
        workers: workers.clone(),
        record: discover(&config, &client, &book, &records)?,
        otlp_endpoint: config.otlp_endpoint.clone(),
        pod_name: config.pod_name.clone(),
    };
    let door = Door {
        gate: gate.clone(),
        inbound: inbound_out,
        log: log.clone(),
    };
    let operators = OperatorDesk {
        log: log.clone(),
        gate,
        records,
    };
    let registrar = Registrar {
        log: log.clone(),
        state: log.state(),
        parts,
    };
    let for_workers = serve::Workers {
        workers: workers.clone(),
        client,
        registrar,
        book,
    };
    tokio::select! {
        ended = server::serve(listener, &identity, door, operators) => ended.context("serve peers"),
        ended = for_workers.serve(&config, &identity) => ended.context("serve workers"),
        ended = serve::http(&config, metrics, log.clone(), workers) => ended.context("serve metrics and health"),
        ended = leading.run() => ended.context("lead"),
        () = stopped(&log) => anyhow::bail!("the log stopped"),
        () = terminated() => {
            tracing::info!("asked to end");
            log.hand_over().await;
            log.stop().await;
            Ok(())
        }
    }
}

/// Where others find this peer, if it knows; noted for those who ask it.
fn own_address(config: &Config, book: &Book, peer: u64) -> Option<Address> {
    book.named(peer, &config.pod_name);
    let address = Address {
        host: config.pod_ip.clone()?,
        peer_port: config.listen_peers.port(),
        worker_port: config.listen.port(),
    };
    book.found(peer, &address);
    Some(address)
}

async fn open(
    config: &Config,
    place: Place,
    parts: &Parts,
    inbound: mpsc::Receiver<Inbound>,
) -> Result<Log> {
    let Place {
        peer,
        group,
        founders,
    } = place;
    let membership = Membership {
        peer,
        group,
        founders,
    };
    let (dir, network) = (config.data_dir.join("raft"), Network::new(parts.clone()));
    Log::start_with(&dir, membership, network, inbound, LIMITS)
        .await
        .context("open the log")
}

/// Begins to look for the peers; gives the record as it is seen.
fn discover(
    config: &Config,
    client: &Client,
    book: &Book,
    records: &Records,
) -> Result<watch::Receiver<Option<Record>>> {
    let (seen, record) = watch::channel(None);
    let discovery = Discovery {
        client: client.clone(),
        namespace: config.namespace.clone(),
        set: start::set(config)?.0.to_owned(),
        peer_port: config.listen_peers.port(),
        worker_port: config.listen.port(),
        book: book.clone(),
        records: records.clone(),
    };
    tokio::spawn(discovery.run(seen));
    Ok(record)
}

async fn terminated() {
    let Ok(mut terminate) =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

async fn stopped(log: &Log) {
    let mut leadership = log.leadership();
    // An error means that the log's task is gone, which is the same.
    let _ = leadership.wait_for(|now| *now == Leadership::Stopped).await;
}
