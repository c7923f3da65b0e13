//! The way in: what other peers and operators dial.
//!
//! The handshake is ours and not the gRPC server's, so that strangers without a certificate are counted too. Behind it
//! the [`Gate`] judges each stream by its greeting; after that every message must be of the peer that greeted.
//! Protobuf 2 can be overrun by nesting, so bytes are decoded only from peers that were let in, below a size.

use std::{io, time::Duration};

use futures::Stream;
use orchestrator_core::{
    id::NodeName,
    state::{Applied, Command},
};
use proto::peer::{
    Delivered, Envelope, Greeting, Installed, Registered, Registration, Snapshot, envelope,
    operator_server::OperatorServer,
    peers_server::{Peers, PeersServer},
};
use raft::eraftpb::{Message, MessageType};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::{
    gate::{Gate, Stranger},
    network::{MESSAGE_BYTES_MAX, SNAPSHOT_BYTES_MAX},
    operator::Desk,
};
use crate::{
    consensus::{format::raft_from_bytes, node::Log, transport::Inbound},
    tls::{Identity, TlsError},
};

/// A handshake takes milliseconds.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(2);
/// The first message of a stream must come within this time.
const GREETING_WITHIN: Duration = Duration::from_secs(2);
/// Connections whose handshake is done and that the server has not taken yet.
const CONNECTIONS_QUEUED_MAX: usize = 16;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
const KEEPALIVE_ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Around a message: its protobuf frame, or the greeting of a snapshot.
const FRAME_BYTES_MAX: usize = 4 << 10;

/// Serves peers and operators until the listener fails.
///
/// # Errors
/// When it can't.
pub async fn serve(
    listener: TcpListener,
    identity: &Identity,
    door: Door,
    desk: Desk,
) -> anyhow::Result<()> {
    let connections = connections(listener, identity, door.gate.clone())?;
    let peers = PeersServer::new(door).max_decoding_message_size(SNAPSHOT_BYTES_MAX);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER_WITHIN))
        .add_service(peers)
        .add_service(OperatorServer::new(desk))
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}

fn connections(
    listener: TcpListener,
    identity: &Identity,
    gate: Gate,
) -> Result<impl Stream<Item = io::Result<TlsStream<TcpStream>>> + use<>, TlsError> {
    let acceptor = TlsAcceptor::from(identity.for_peers()?);
    let (connected, connections) = mpsc::channel(CONNECTIONS_QUEUED_MAX);
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = connected.closed() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Too many open files, or a connection that was gone again: the next may do better.
                        tracing::warn!(%error, "accept a peer's connection");
                        tokio::time::sleep(HANDSHAKE_WITHIN / 10).await;
                        continue;
                    }
                },
            };
            let (acceptor, connected, gate) = (acceptor.clone(), connected.clone(), gate.clone());
            tokio::spawn(async move {
                // Heartbeats are small, and late ones make elections.
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => drop(connected.send(Ok(stream)).await),
                    Ok(Err(_)) | Err(_) => drop(gate.refuse(Stranger::NoCertificate, 0)),
                }
            });
        }
    });
    Ok(ReceiverStream::new(connections))
}

/// What peers ask of this one.
pub struct Door {
    /// Who may.
    pub gate: Gate,
    /// Into the log.
    pub inbound: mpsc::Sender<Inbound>,
    /// The log.
    pub log: Log,
}

#[tonic::async_trait]
impl Peers for Door {
    async fn deliver(
        &self,
        request: Request<Streaming<Envelope>>,
    ) -> Result<Response<Delivered>, Status> {
        let certificates = request.peer_certs();
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(GREETING_WITHIN, stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Greeting came"))??;
        let greeting = match first.and_then(|envelope| envelope.kind) {
            Some(envelope::Kind::Greeting(greeting)) => Some(greeting),
            Some(envelope::Kind::Message(_)) | None => None,
        };
        let from = self.admit(certificates.as_deref(), greeting)?;
        tracing::debug!(from, "a peer's stream");
        while let Some(Envelope { kind }) = stream.message().await? {
            let Some(envelope::Kind::Message(proto::peer::Message { raft })) = kind else {
                return Err(self.gate.refuse(Stranger::Malformed, from));
            };
            let message = self.understand(from, &raft, MESSAGE_BYTES_MAX)?;
            if message.get_msg_type() == MessageType::MsgSnapshot {
                return Err(self.gate.refuse(Stranger::Malformed, from));
            }
            self.gate.hears(from);
            // A log that can't follow loses messages: raft repeats what matters.
            match self.inbound.try_send(Inbound::Message(Box::new(message))) {
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => {}
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    return Err(Status::unavailable("the log stopped"));
                }
            }
        }
        Ok(Response::new(Delivered {}))
    }

    async fn install(&self, request: Request<Snapshot>) -> Result<Response<Installed>, Status> {
        let certificates = request.peer_certs();
        let Snapshot { greeting, raft } = request.into_inner();
        let from = self.admit(certificates.as_deref(), greeting)?;
        let message = self.understand(from, &raft, SNAPSHOT_BYTES_MAX)?;
        tracing::info!(from, bytes = raft.len(), "a snapshot came");
        self.inbound
            .send(Inbound::Message(Box::new(message)))
            .await
            .map_err(|_| Status::unavailable("the log stopped"))?;
        Ok(Response::new(Installed {}))
    }

    async fn register(
        &self,
        request: Request<Registration>,
    ) -> Result<Response<Registered>, Status> {
        let certificates = request.peer_certs();
        let Registration {
            greeting,
            node,
            journal_id,
        } = request.into_inner();
        self.admit(certificates.as_deref(), greeting)?;
        let command = Command::Register {
            node: NodeName(node),
            journal: journal_id,
        };
        let proposed = self.log.propose(command).await;
        let (at, applied) = proposed.map_err(|error| Status::unavailable(error.to_string()))?;
        match applied {
            Ok(Applied::Registered(revision)) => Ok(Response::new(Registered {
                revision: revision.0,
            })),
            Ok(Applied::Phase(_)) | Err(_) => Err(Status::internal(format!(
                "the registration at {at} was answered by something else"
            ))),
        }
    }
}

impl Door {
    fn admit(
        &self,
        certificates: Option<&Vec<rustls::pki_types::CertificateDer<'static>>>,
        greeting: Option<Greeting>,
    ) -> Result<u64, Status> {
        self.gate.admit(certificates.map(Vec::as_slice), greeting)
    }

    /// A message of this peer for us, and nothing else.
    fn understand(&self, from: u64, bytes: &[u8], bytes_max: usize) -> Result<Message, Status> {
        let malformed = || self.gate.refuse(Stranger::Malformed, from);
        if bytes.len() > bytes_max.saturating_sub(FRAME_BYTES_MAX) {
            return Err(malformed());
        }
        let message: Message = raft_from_bytes("a message", bytes).map_err(|error| {
            tracing::warn!(from, %error, "a peer's message is not understood");
            malformed()
        })?;
        match (message.from == from, message.to == self.gate.own) {
            (true, true) => Ok(message),
            (false, _) => Err(self.gate.refuse(Stranger::OtherName, from)),
            (true, false) => Err(self.gate.refuse(Stranger::NotForUs, from)),
        }
    }
}
