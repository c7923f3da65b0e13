//! The gRPC server that workers dial, and the conversions between the wire and the core's own types: here, and only
//! here.
//!
//! A worker proves who it is by its ServiceAccount token: Kubernetes reviews it (audience `longshore`), and the node
//! that the token is bound to must be the node the worker speaks for. The orchestrator proves itself by its
//! certificate ([`crate::tls`]).

use std::{pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::Stream;
use orchestrator_core::{
    id::{NodeName, Revision},
    migration::Span,
    refusal::Finding,
    view::{InspectionView, WorkerView},
};
use proto::worker::{
    FromWorker, Hello, Inspection, Inventory, PeerAddress, PeersReply, PeersRequest,
    ProtocolVersion, Severity, ToWorker, Welcome, from_worker, orchestrator_server::Orchestrator,
    to_worker,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    peers::book::Book,
    workers::{Clock, OUTBOX_MAX, Workers},
};

/// The first message of a stream must come within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// How often a worker's clock is measured: drift between two NTP-less clocks is below 1 ms in this time.
const PING_EVERY: Duration = Duration::from_secs(10);
/// At first several times in a row: a worker connects when everything else begins, too, and answers late.
const PINGS_AT_FIRST: u32 = 5;
const PING_AT_FIRST_EVERY: Duration = Duration::from_millis(200);

/// Proves who calls.
#[async_trait]
pub trait Authenticate: Send + Sync {
    /// The node that the bearer of this token may speak for.
    ///
    /// # Errors
    /// Why not, for the worker's log.
    async fn node_of(&self, token: &str) -> Result<NodeName, String>;
}

/// Registers workers in the log.
#[async_trait]
pub trait Register: Send + Sync {
    /// Registers a worker's journal and gives the log index of its registration.
    ///
    /// # Errors
    /// There is no leader, or no quorum.
    async fn register(&self, node: &NodeName, journal: &str) -> Result<Revision, String>;
}

/// The service.
pub struct Api {
    /// Who is connected.
    pub workers: Workers,
    /// Proves who calls.
    pub authenticate: Arc<dyn Authenticate>,
    /// The log.
    pub register: Arc<dyn Register>,
    /// Where the peers are.
    pub book: Book,
}

#[async_trait]
impl Orchestrator for Api {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<ToWorker, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let node = self.authenticated(&request).await?;
        let mut stream = request.into_inner();
        let (outbox, inbox) = mpsc::channel(OUTBOX_MAX);
        let workers = self.workers.clone();
        let register = Arc::clone(&self.register);
        // The response must go out before the worker sends anything: tonic hands headers over with it.
        tokio::spawn(async move {
            match welcome(&node, &mut stream, register.as_ref()).await {
                Ok(welcome) => {
                    let message = ToWorker {
                        kind: Some(to_worker::Kind::Welcome(welcome)),
                    };
                    if outbox.send(message).await.is_ok() {
                        serve(node, stream, outbox, workers).await;
                    }
                }
                Err(status) => tracing::warn!(%node, %status, "a worker was turned away"),
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(inbox).map(Ok))))
    }

    async fn peers(&self, request: Request<PeersRequest>) -> Result<Response<PeersReply>, Status> {
        self.authenticated(&request).await?;
        let entries = Arc::clone(&self.book.entries().borrow());
        let peers = entries.peers.iter().filter_map(|(id, known)| {
            Some(PeerAddress {
                id: *id,
                address: known.address.as_ref()?.for_workers(),
            })
        });
        Ok(Response::new(PeersReply {
            peers: peers.collect(),
        }))
    }
}

impl Api {
    async fn authenticated<T>(&self, request: &Request<T>) -> Result<NodeName, Status> {
        let token = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| Status::unauthenticated("a ServiceAccount token is needed"))?;
        self.authenticate
            .node_of(token)
            .await
            .map_err(Status::unauthenticated)
    }
}

async fn welcome(
    node: &NodeName,
    stream: &mut Streaming<FromWorker>,
    register: &dyn Register,
) -> Result<Welcome, Status> {
    let first = tokio::time::timeout(HELLO_WITHIN, stream.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
    let Some(FromWorker {
        kind: Some(from_worker::Kind::Hello(hello)),
    }) = first
    else {
        return Err(Status::invalid_argument("the first message must be Hello"));
    };
    let Hello {
        protocol,
        node: said,
        boot_id,
        journal_id,
        registered_revision,
        version,
    } = hello;
    if protocol != ProtocolVersion::ProtocolVersion1 as i32 {
        return Err(Status::failed_precondition(format!(
            "protocol {protocol} is not known here, 1 is"
        )));
    }
    if said != node.0 {
        return Err(Status::permission_denied(format!(
            "the token is of node {node}, the worker says {said}"
        )));
    }
    let Revision(registered) = register
        .register(node, &journal_id)
        .await
        .map_err(Status::unavailable)?;
    tracing::info!(%node, %version, %boot_id, registered_revision, registered, "a worker is connected");
    Ok(Welcome {
        registered_revision: registered,
    })
}

async fn serve(
    node: NodeName,
    mut stream: Streaming<FromWorker>,
    outbox: mpsc::Sender<ToWorker>,
    workers: Workers,
) {
    let generation = workers.attach(&node, outbox);
    let mut ping = tokio::time::interval(PING_EVERY);
    let (mut first, mut pings_at_first) =
        (tokio::time::interval(PING_AT_FIRST_EVERY), PINGS_AT_FIRST);
    let ended = loop {
        tokio::select! {
            _ = ping.tick() => workers.ping(&node),
            _ = first.tick(), if pings_at_first > 0 => {
                pings_at_first -= 1;
                workers.ping(&node);
            }
            message = stream.message() => match message {
                Ok(Some(message)) => workers.receive(&node, generation, message),
                Ok(None) => break "the worker closed it".to_owned(),
                Err(status) => break status.to_string(),
            },
        }
    };
    workers.detach(&node, generation);
    tracing::info!(%node, ended, "a worker's stream ended");
}

/// A finding of the wire.
#[must_use]
pub fn finding(wire: &proto::worker::Finding) -> Finding {
    let proto::worker::Finding {
        severity: _,
        code,
        message,
        remedy,
    } = wire;
    Finding::new(code, message.clone(), remedy.clone())
}

fn of_severity(findings: &[proto::worker::Finding], severity: Severity) -> Vec<Finding> {
    findings
        .iter()
        .filter(|found| found.severity == severity as i32)
        .map(finding)
        .collect()
}

/// What the planner sees of a worker.
#[must_use]
pub fn worker_view(inventory: &Inventory) -> WorkerView {
    WorkerView {
        architecture: inventory.architecture.clone(),
        cgroup_version: inventory.cgroup_version,
        cpu_flags: inventory.cpu_flags.clone(),
        runtime: format!("{} {}", inventory.runtime_name, inventory.runtime_version),
        checkpoint_refusals: of_severity(&inventory.checkpoint, Severity::Refuse),
        restore_refusals: of_severity(&inventory.restore, Severity::Refuse),
        free_bytes: inventory.free_bytes,
    }
}

/// What the planner sees of an inspection.
#[must_use]
pub fn inspection_view(inspection: &Inspection) -> InspectionView {
    let Inspection {
        findings,
        memory_bytes: _,
        archive_bytes,
        processes: _,
        image_digests,
    } = inspection;
    InspectionView {
        refusals: of_severity(findings, Severity::Refuse),
        warnings: of_severity(findings, Severity::Warn),
        archive_bytes: *archive_bytes,
        image_digests: image_digests.clone().into_iter().collect(),
    }
}

/// A worker's spans, by our clock.
#[must_use]
pub fn spans(node: &NodeName, clock: Clock, wire: &[proto::worker::Span]) -> Vec<Span> {
    wire.iter()
        .map(|span| Span {
            name: span.name.clone(),
            place: node.0.clone(),
            parent: span.parent.clone(),
            start_unix_ns: clock.correct(span.start_unix_ns),
            end_unix_ns: clock.correct(span.end_unix_ns),
            attributes: span.attributes.clone().into_iter().collect(),
        })
        .collect()
}
