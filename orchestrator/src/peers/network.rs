//! The way out to other peers: one task and one bounded queue for each, so that nobody waits for anybody.
//!
//! On a good day a peer's task holds a stream to it and what raft sends goes straight on. When the stream breaks, or
//! the peer is not there, messages are dropped and raft is told that the peer is unreachable; the task dials again, at
//! the address that the book has by then. Snapshots go by a call of their own, so that heartbeats don't wait behind
//! them, and raft is told of each whether it arrived.

use std::{collections::HashMap, time::Duration};

use prometheus::IntCounter;
use proto::peer::{
    Envelope, Greeting, Message as WireMessage, ProtocolVersion, Snapshot, envelope,
    peers_client::PeersClient,
};
use raft::eraftpb::{Message, MessageType};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use super::{
    book::{Address, Book},
    gate::wire_address,
};
use crate::{
    consensus::{
        format::{FormatError, raft_to_bytes},
        transport::{Inbound, Transport},
    },
    tls::{Identity, peer_name},
};

/// Messages that wait for one peer. Raft has 64 appends under way at most, and heartbeats and answers beside them.
const QUEUED_MAX: usize = 256;
/// Messages handed to the stream and not yet taken by the connection: a peer that doesn't read is noticed here.
const STREAMED_MAX: usize = 64;
/// One message: an append holds 1 MiB of entries and at most one entry more, of 1 MiB.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// A snapshot: a full history is 20 MiB, and everything that runs at once comes on top.
pub const SNAPSHOT_BYTES_MAX: usize = 256 << 20;
/// 256 MiB at 10 MiB/s.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(30);
/// Between two dials. A peer that comes back must be there before it is missed: an election takes half a second.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// A connection that says nothing is dead after the sum of both.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
const KEEPALIVE_ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// What every task needs.
#[derive(Clone)]
pub struct Parts {
    /// This peer.
    pub own: u64,
    /// Its group.
    pub group: Uuid,
    /// Where it is found, when it knows.
    pub address: Option<Address>,
    /// What it shows.
    pub identity: Identity,
    /// Where the others are.
    pub book: Book,
    /// The way back into the log.
    pub inbound: mpsc::Sender<Inbound>,
    /// Counts messages that were not sent.
    pub dropped: IntCounter,
}

/// Why a peer can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It was never found.
    #[error("nobody knows where peer {0} is")]
    NoAddress(u64),
    /// No connection.
    #[error("dial peer {peer} at {address}")]
    Dial {
        /// Which.
        peer: u64,
        /// Where.
        address: String,
        /// Why not.
        source: tonic::transport::Error,
    },
    /// It refused, or went away.
    #[error("peer {peer}: {}", status.message())]
    Ended {
        /// Which.
        peer: u64,
        /// Its words.
        status: Box<tonic::Status>,
    },
    /// A message that can't be sent.
    #[error("write a message down")]
    Format(#[from] FormatError),
}

impl Parts {
    /// The first words to a peer.
    #[must_use]
    pub fn greeting(&self, to: u64) -> Greeting {
        Greeting {
            protocol: ProtocolVersion::ProtocolVersion1.into(),
            group: self.group.to_string(),
            from: self.own,
            to,
            address: self.address.as_ref().map(wire_address),
        }
    }

    /// Connects to a peer, wherever it was last found.
    ///
    /// # Errors
    /// When it isn't there, or isn't that peer.
    pub async fn dial(&self, peer: u64) -> Result<Channel, PeerError> {
        let known = self.book.address(peer).ok_or(PeerError::NoAddress(peer))?;
        let address = known.for_peers();
        let failed = |source| PeerError::Dial {
            peer,
            address: address.clone(),
            source,
        };
        let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(failed)?;
        endpoint
            .tls_config(self.identity.towards(&peer_name(self.group, peer)))
            .map_err(failed)?
            .connect_timeout(CONNECT_WITHIN)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_ANSWER_WITHIN)
            .keep_alive_while_idle(true)
            .connect()
            .await
            .map_err(failed)
    }

    fn unreachable(&self, peer: u64) {
        // When its queue is full, raft has enough to do, and hears of it at the next message.
        let _full = self.inbound.try_send(Inbound::Unreachable { peer });
    }
}

/// The way out.
pub struct Network {
    parts: Parts,
    lines: HashMap<u64, mpsc::Sender<Message>>,
}

impl Network {
    /// To whoever is in the book.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            lines: HashMap::new(),
        }
    }

    fn drop_message(&self, peer: u64) {
        self.parts.dropped.inc();
        self.parts.unreachable(peer);
    }
}

impl Transport for Network {
    fn send(&mut self, message: Message) {
        let peer = message.to;
        if message.get_msg_type() == MessageType::MsgSnapshot {
            tokio::spawn(install(self.parts.clone(), message));
            return;
        }
        let parts = &self.parts;
        let line = self.lines.entry(peer).or_insert_with(|| {
            let (line, queue) = mpsc::channel(QUEUED_MAX);
            tokio::spawn(keep(parts.clone(), peer, queue));
            line
        });
        match line.try_send(message) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.drop_message(peer),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.lines.remove(&peer);
                self.drop_message(peer);
            }
        }
    }
}

/// Keeps the line to one peer until nobody sends to it any more.
async fn keep(parts: Parts, peer: u64, mut queue: mpsc::Receiver<Message>) {
    let mut backoff = BACKOFF_MIN;
    let mut said = String::new();
    loop {
        let began = Instant::now();
        let ended = match carry(&parts, peer, &mut queue).await {
            Ok(()) => return,
            Err(error) => format!("{:#}", anyhow::Error::new(error)),
        };
        if began.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF_MIN; // it was up: this is a new failure
        }
        if ended == said {
            tracing::debug!(peer, ended, "no line to a peer still");
        } else {
            tracing::warn!(peer, ended, "no line to a peer");
            said = ended;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
        // What waited is old by now; raft sends what is still wanted again.
        while queue.try_recv().is_ok() {
            parts.dropped.inc();
        }
        parts.unreachable(peer);
        if queue.is_closed() {
            return;
        }
    }
}

/// Holds one stream. `Ok`: nobody sends any more.
async fn carry(
    parts: &Parts,
    peer: u64,
    queue: &mut mpsc::Receiver<Message>,
) -> Result<(), PeerError> {
    let channel = parts.dial(peer).await?;
    let (out, stream) = mpsc::channel(STREAMED_MAX);
    let greeting = Envelope {
        kind: Some(envelope::Kind::Greeting(parts.greeting(peer))),
    };
    out.try_send(greeting)
        .expect("a new channel has room for one message");
    let mut client = PeersClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let delivered = client.deliver(ReceiverStream::new(stream));
    tokio::pin!(delivered);
    loop {
        tokio::select! {
            ended = &mut delivered => {
                let status = ended.err().unwrap_or_else(|| tonic::Status::unavailable("it hung up"));
                return Err(PeerError::Ended { peer, status: Box::new(status) });
            }
            message = queue.recv() => {
                let Some(message) = message else { return Ok(()) };
                let raft = raft_to_bytes("a message", &message)?;
                let envelope = Envelope {
                    kind: Some(envelope::Kind::Message(WireMessage { raft })),
                };
                if out.try_send(envelope).is_err() {
                    parts.dropped.inc();
                    parts.unreachable(peer);
                }
            }
        }
    }
}

/// Sends a snapshot and says whether it arrived. Until that is said, raft sends the peer nothing else.
async fn install(parts: Parts, message: Message) {
    let peer = message.to;
    let arrived = match tokio::time::timeout(SNAPSHOT_WITHIN, send_snapshot(&parts, message)).await
    {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::warn!(
                peer,
                error = format!("{:#}", anyhow::Error::new(error)),
                "send a snapshot"
            );
            false
        }
        Err(_) => {
            tracing::warn!(peer, "a snapshot did not arrive in time");
            false
        }
    };
    // An error means that the log is gone.
    let _ = parts
        .inbound
        .send(Inbound::Snapshot { peer, arrived })
        .await;
}

async fn send_snapshot(parts: &Parts, message: Message) -> Result<(), PeerError> {
    let peer = message.to;
    let raft = raft_to_bytes("a snapshot", &message)?;
    tracing::info!(
        peer,
        bytes = raft.len(),
        "a peer that is far behind gets a snapshot"
    );
    let snapshot = Snapshot {
        greeting: Some(parts.greeting(peer)),
        raft,
    };
    let mut client =
        PeersClient::new(parts.dial(peer).await?).max_encoding_message_size(SNAPSHOT_BYTES_MAX);
    let installed = client.install(snapshot).await;
    installed.map(drop).map_err(|status| PeerError::Ended {
        peer,
        status: Box::new(status),
    })
}
