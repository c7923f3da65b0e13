//! A line to one peer of the orchestrator: dialled again and again.
//!
//! Authority, token and address are looked up at every dial, since all of them change while we run.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use proto::worker::{PeersRequest, orchestrator_client::OrchestratorClient};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{Event, LineId, hello};
use crate::{
    config::Config,
    journal::{Journal, JournalError},
};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// A peer that comes back may lead soon.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A dead peer is noticed after the sum of both: well before a hold's lease could matter to anybody.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_ANSWER_MAX: Duration = Duration::from_secs(3);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Messages on their way out: reports, answers and progress of some ten migrations.
const OUTBOUND_MAX: usize = 256;

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("read {}: {source}", path.display())]
    Read {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("the token in {} can't be sent: it is empty or not of one line", path.display())]
    Token { path: std::path::PathBuf },
    #[error("dial {address}: {}", chain(source))]
    Dial {
        address: String,
        source: tonic::transport::Error,
    },
    #[error("the orchestrator refuses the stream: {}", status.message())]
    Refused { status: Box<Status> },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// What dials.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) config: Config,
    pub(super) journal: Journal,
    pub(super) boot_id: String,
    pub(super) events: mpsc::Sender<Event>,
}

/// Names of lines. One process has one agent.
static LINES: AtomicU64 = AtomicU64::new(1);

impl Dialer {
    /// Keeps a line to the peer at this `host:port` until the agent is gone, or this is dropped.
    pub(super) async fn keep(self, address: String) {
        let mut backoff = BACKOFF_MIN;
        while !self.events.is_closed() {
            match self.hold_line(&address).await {
                // It was up: what comes next is a new attempt and not a repeated one.
                Ok(()) => {
                    backoff = BACKOFF_MIN;
                    tracing::warn!(address, "a stream to the orchestrator ended");
                }
                Err(error) => {
                    tracing::warn!(address, %error, retry_ms = backoff.as_millis(), "no line to a peer of the orchestrator")
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Dials and listens. Ok: there was a stream, and it ended.
    async fn hold_line(&self, address: &str) -> Result<(), LineError> {
        let channel = dial(&self.config, &self.url(address)).await?;
        let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
        let hello = hello(&self.config, &self.journal, &self.boot_id).await?;
        // Before the call: the orchestrator may read it before it answers.
        outbound
            .try_send(hello)
            .expect("a new channel has room for one message");
        let request = self.request(ReceiverStream::new(messages)).await?;
        let mut inbound = OrchestratorClient::new(channel)
            .attach(request)
            .await
            .map_err(refused)?
            .into_inner();
        let line = LineId(LINES.fetch_add(1, Ordering::Relaxed));
        // Whatever ends this, an address that is no peer's any more too, the agent hears of it.
        let _down = Down {
            line,
            events: self.events.clone(),
        };
        let _agent_gone = self.events.send(Event::Up(line, outbound)).await;
        loop {
            match inbound.message().await {
                Ok(Some(message)) => {
                    let heard = Event::Heard(line, message);
                    if self.events.send(heard).await.is_err() {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(status) => {
                    let reason = status.message();
                    tracing::warn!(address, reason, "a stream to the orchestrator broke");
                    return Ok(());
                }
            }
        }
    }

    /// Asks whoever answers at the orchestrator's address where all peers are.
    pub(super) async fn peers(&self) -> Result<BTreeSet<String>, LineError> {
        let channel = dial(&self.config, &self.config.orchestrator).await?;
        let request = self.request(PeersRequest {}).await?;
        let asked = OrchestratorClient::new(channel).peers(request).await;
        let peers = asked.map_err(refused)?.into_inner().peers;
        Ok(peers.into_iter().map(|peer| peer.address).collect())
    }

    async fn request<T>(&self, body: T) -> Result<Request<T>, LineError> {
        let mut request = Request::new(body);
        let bearer = bearer(&self.config).await?;
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// A peer's address is reached as the orchestrator's is.
    fn url(&self, address: &str) -> String {
        match self.config.orchestrator.split_once("://") {
            Some((scheme, _)) => format!("{scheme}://{address}"),
            None => address.to_owned(),
        }
    }
}

struct Down {
    line: LineId,
    events: mpsc::Sender<Event>,
}

impl Drop for Down {
    fn drop(&mut self) {
        let (line, events) = (self.line, self.events.clone());
        tokio::spawn(async move {
            let _agent_gone = events.send(Event::Down(line)).await;
        });
    }
}

fn refused(status: Status) -> LineError {
    LineError::Refused {
        status: Box::new(status),
    }
}

async fn dial(config: &Config, address: &str) -> Result<Channel, LineError> {
    let failed = |source| LineError::Dial {
        address: address.to_owned(),
        source,
    };
    let mut endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(failed)?
        .connect_timeout(CONNECT_MAX)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_ANSWER_MAX)
        .keep_alive_while_idle(true);
    if address.starts_with("https://") {
        let pem = read(&config.orchestrator_ca).await?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pem))
            .domain_name(&config.orchestrator_name);
        endpoint = endpoint.tls_config(tls).map_err(failed)?;
    }
    endpoint.connect().await.map_err(failed)
}

async fn bearer(config: &Config) -> Result<MetadataValue<Ascii>, LineError> {
    let path = config.token_file.clone();
    let token = String::from_utf8_lossy(&read(&path).await?)
        .trim()
        .to_owned();
    let value = format!("Bearer {token}")
        .parse()
        .ok()
        .filter(|_| !token.is_empty());
    value.ok_or(LineError::Token { path })
}

async fn read(path: &std::path::Path) -> Result<Vec<u8>, LineError> {
    tokio::fs::read(path)
        .await
        .map_err(|source| LineError::Read {
            path: path.to_owned(),
            source,
        })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
