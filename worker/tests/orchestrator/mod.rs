//! A tiny orchestrator: takes one worker at a time, asks what it is told to, and hands back what comes.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "only tests use it: what is missing ends them, what else is said is passed over"
)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use proto::worker::{
    Answer, FromWorker, Hello, Inventory, PeerAddress, PeersReply, PeersRequest, Question,
    StepReport, StepRequest, ToWorker, Welcome, from_worker,
    orchestrator_server::{Orchestrator, OrchestratorServer},
    question, step_request, to_worker,
};
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The stream to the worker that said hello last.
type Line = Arc<Mutex<Option<mpsc::Sender<Result<ToWorker, Status>>>>>;

/// The seat of the orchestrator.
pub struct Desk {
    pub address: SocketAddr,
    heard: mpsc::Receiver<from_worker::Kind>,
    line: Line,
    call: u64,
}

struct Service {
    address: SocketAddr,
    heard: mpsc::Sender<from_worker::Kind>,
    line: Line,
}

#[tonic::async_trait]
impl Orchestrator for Service {
    type AttachStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        if request
            .metadata()
            .get("authorization")
            .is_none_or(|token| token != "Bearer the-token")
        {
            return Err(Status::unauthenticated("the token is not the one"));
        }
        let (out, messages) = mpsc::channel(16);
        let mut inbound = request.into_inner();
        let (heard, line) = (self.heard.clone(), self.line.clone());
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let Some(kind) = message.kind else { continue };
                if let from_worker::Kind::Hello(_) = &kind {
                    let welcome = to_worker::Kind::Welcome(Welcome {
                        registered_revision: 10,
                    });
                    let _gone = out
                        .send(Ok(ToWorker {
                            kind: Some(welcome),
                        }))
                        .await;
                    *line.lock().await = Some(out.clone());
                }
                let _gone = heard.send(kind).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn peers(&self, _: Request<PeersRequest>) -> Result<Response<PeersReply>, Status> {
        let address = self.address.to_string();
        let peers = vec![PeerAddress { id: 1, address }];
        Ok(Response::new(PeersReply { peers }))
    }
}

impl Desk {
    pub async fn open() -> Self {
        let (sender, heard) = mpsc::channel(1024);
        let line = Arc::new(Mutex::new(None));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service {
            address,
            heard: sender,
            line: line.clone(),
        };
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server =
            tonic::transport::Server::builder().add_service(OrchestratorServer::new(service));
        tokio::spawn(server.serve_with_incoming(incoming));
        Self {
            address,
            heard,
            line,
            call: 0,
        }
    }

    pub async fn hello(&mut self) -> Hello {
        self.wait(|kind| {
            if let from_worker::Kind::Hello(hello) = kind {
                Some(hello)
            } else {
                None
            }
        })
        .await
    }

    pub async fn inventory(&mut self) -> Inventory {
        self.wait(|kind| {
            if let from_worker::Kind::Inventory(inventory) = kind {
                Some(inventory)
            } else {
                None
            }
        })
        .await
    }

    /// Asks for a step; the number of the call.
    pub async fn ask(&mut self, migration: &str, revision: u64, kind: step_request::Kind) -> u64 {
        self.call += 1;
        let request = StepRequest {
            call: self.call,
            migration_id: migration.to_owned(),
            revision,
            kind: Some(kind),
        };
        self.say(to_worker::Kind::Step(request)).await;
        self.call
    }

    pub async fn report(&mut self, call: u64) -> StepReport {
        self.wait(|kind| match kind {
            from_worker::Kind::Report(report) if report.call == call => Some(report),
            _ => None,
        })
        .await
    }

    pub async fn step(
        &mut self,
        migration: &str,
        revision: u64,
        kind: step_request::Kind,
    ) -> StepReport {
        let call = self.ask(migration, revision, kind).await;
        self.report(call).await
    }

    pub async fn question(&mut self, kind: question::Kind) -> Answer {
        self.call += 1;
        let call = self.call;
        self.say(to_worker::Kind::Question(Question {
            call,
            kind: Some(kind),
        }))
        .await;
        self.wait(|kind| match kind {
            from_worker::Kind::Answer(answer) if answer.call == call => Some(answer),
            _ => None,
        })
        .await
    }

    /// Breaks the stream from this side.
    pub async fn hang_up(&mut self) {
        if let Some(line) = self.line.lock().await.take() {
            let _gone = line.send(Err(Status::unavailable("hung up"))).await;
        }
    }

    async fn say(&self, kind: to_worker::Kind) {
        let line = self
            .line
            .lock()
            .await
            .clone()
            .expect("a worker said hello before it is asked");
        line.send(Ok(ToWorker { kind: Some(kind) })).await.unwrap();
    }

    async fn wait<T>(&mut self, want: impl Fn(from_worker::Kind) -> Option<T>) -> T {
        tokio::time::timeout(PATIENCE, async {
            loop {
                let kind = self
                    .heard
                    .recv()
                    .await
                    .expect("the server lives as long as the test");
                if let Some(found) = want(kind) {
                    return found;
                }
            }
        })
        .await
        .expect("the worker answers in time")
    }
}
