//! The line to the orchestrator: dialled again and again, never given up.
//!
//! Authority, token and address are looked up at every dial, since all of them change while we run.

use std::time::Duration;

use proto::worker::orchestrator_client::OrchestratorClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use super::{Event, hello};
use crate::{
    config::Config,
    journal::{Journal, JournalError},
};

const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A dead peer is noticed after the sum of both: well before a hold's lease could matter to anybody.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_ANSWER_MAX: Duration = Duration::from_secs(3);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Messages on their way out: reports, answers and progress of some ten migrations.
const OUTBOUND_MAX: usize = 256;

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
enum LineError {
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

/// Keeps the line until the agent is gone.
pub(super) async fn keep(
    config: Config,
    journal: Journal,
    boot_id: String,
    events: mpsc::Sender<Event>,
) {
    let mut backoff = BACKOFF_MIN;
    while !events.is_closed() {
        match hold_line(&config, &journal, &boot_id, &events).await {
            // It was up: what comes next is a new attempt and not a repeated one.
            Ok(()) => {
                backoff = BACKOFF_MIN;
                tracing::warn!("the stream to the orchestrator ended");
            }
            Err(error) => {
                tracing::warn!(%error, retry_ms = backoff.as_millis(), "no line to the orchestrator")
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Dials and listens. Ok: there was a stream, and it ended.
async fn hold_line(
    config: &Config,
    journal: &Journal,
    boot_id: &str,
    events: &mpsc::Sender<Event>,
) -> Result<(), LineError> {
    let channel = dial(config).await?;
    let (outbound, messages) = mpsc::channel(OUTBOUND_MAX);
    let hello = hello(config, journal, boot_id).await?;
    // Before the call: the orchestrator may read it before it answers.
    outbound
        .try_send(hello)
        .expect("a new channel has room for one message");
    let mut request = Request::new(ReceiverStream::new(messages));
    request
        .metadata_mut()
        .insert("authorization", bearer(config).await?);
    let refused = |status| LineError::Refused {
        status: Box::new(status),
    };
    let mut inbound = OrchestratorClient::new(channel)
        .attach(request)
        .await
        .map_err(refused)?
        .into_inner();
    let _agent_gone = events.send(Event::Up(outbound)).await;
    loop {
        match inbound.message().await {
            Ok(Some(message)) => {
                if events.send(Event::Heard(message)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => break,
            Err(status) => {
                tracing::warn!(
                    reason = status.message(),
                    "the stream to the orchestrator broke"
                );
                break;
            }
        }
    }
    let _agent_gone = events.send(Event::Down).await;
    Ok(())
}

async fn dial(config: &Config) -> Result<Channel, LineError> {
    let address = &config.orchestrator;
    let failed = |source| LineError::Dial {
        address: address.clone(),
        source,
    };
    let mut endpoint = Endpoint::from_shared(address.clone())
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
