//! The daemon: its parts, and how they hang together.
//!
//! ```text
//! k8s::intake ─► desk ─► log ─► state ─► driver ─► perform ─► workers, k8s
//!                                  ├───► k8s::status (the board), k8s::nodes
//!                                  └───► metrics, trace (OTLP, when an endpoint is given)
//! workers ─► api (gRPC, TLS) ─► workers
//! ```

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use async_trait::async_trait;
use axum::{Router, http::StatusCode, routing::get};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    core::v1::ConfigMap,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use orchestrator_core::{
    id::NodeName,
    state::{Applied, Command, State},
};
use proto::worker::orchestrator_server::OrchestratorServer;
use tokio::sync::{mpsc, watch};
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::{
    api::{Api as WorkerApi, Authenticate, Register},
    clock::SystemTimeOfDay,
    config::Config,
    consensus::{core::Leadership, node::Log},
    desk::Desk,
    driver::{Driver, Propose},
    janitor::Janitor,
    k8s::{
        call::{self, bounded},
        cluster::RealCluster,
        events::Events,
        intake, nodes,
        pods::FIELD_MANAGER,
        status::board::Board,
    },
    metrics::Metrics,
    perform::World,
    tls,
    trace::Exporter,
    workers::Workers,
};

/// The audience of workers' tokens.
const AUDIENCE: &str = "longshore";

/// The ConfigMap in which workers find our certificate's authority.
const AUTHORITY_CONFIG_MAP: &str = "longshore-orchestrator-ca";

/// The extra of a reviewed token that names the node it is bound to (KEP-4193, Kubernetes >= 1.30).
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";

/// A worker that is silent this long is gone: three of its keepalives.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Requests seen and not yet taken in.
const INTAKE_QUEUED_MAX: usize = 256;

/// Runs until something essential ends.
///
/// # Errors
/// What ended, and why.
pub async fn run(config: Config) -> Result<()> {
    let metrics = Arc::new(Metrics::new().context("make the metrics")?);
    let log = Log::start(&config.data_dir.join("raft"), 1)
        .await
        .context("open the log")?;
    let log = log.measured_by(metrics.commit_seconds());
    let client = Client::try_from(call::config().await.context("find the Kubernetes API")?)
        .context("make a Kubernetes client")?;
    let name = format!("{}.{}.svc", config.service_name, config.namespace);
    let identity = tls::identity(
        &config.data_dir.join("tls"),
        &[name, "localhost".to_owned()],
    )?;
    publish_authority(&client, &config, &identity.authority).await?;

    let workers = Workers::new();
    let leader = leads(&log);
    let proposer = Arc::new(Proposer { log: log.clone() });

    let (intake_out, intake_in) = mpsc::channel(INTAKE_QUEUED_MAX);
    tokio::spawn(intake::run(client.clone(), intake_out));
    let desk = Desk {
        client: client.clone(),
        log: log.clone(),
        workers: workers.clone(),
        busy: Arc::default(),
    };
    tokio::spawn(desk.run(intake_in));

    let board = Board::new(
        client.clone(),
        Events::new(client.clone(), std::env::var("POD_NAME").ok()),
    );
    tokio::spawn(board.run(log.state(), leader.clone(), workers.progress()));
    tokio::spawn(nodes::run(
        client.clone(),
        known_nodes(&workers),
        leader.clone(),
    ));

    if let Some(endpoint) = &config.otlp_endpoint {
        let exporter = Exporter::new(endpoint).context("set up the export of traces")?;
        tokio::spawn(exporter.run(log.state(), leader.clone()));
    }

    let world = World {
        cluster: Arc::new(RealCluster::new(client.clone())),
        nodes: Arc::new(workers.clone()),
        clock: Arc::new(SystemTimeOfDay),
    };
    let janitor = Janitor {
        clear: Arc::new(world.clone()),
        propose: proposer.clone(),
        state: log.state(),
        leader: leader.clone(),
    };
    tokio::spawn(janitor.run());
    let driver = Driver {
        perform: Arc::new(world),
        propose: proposer.clone(),
        state: log.state(),
        leader,
        clock: Arc::new(SystemTimeOfDay),
    };
    let driver = tokio::spawn(driver.run());

    let served = serve_workers(&config, identity, client, workers.clone(), proposer);
    let http = serve_http(&config, metrics, log.state(), workers);
    tokio::select! {
        ended = served => ended.context("serve workers"),
        ended = http => ended.context("serve metrics and health"),
        ended = driver => ended.context("drive migrations"),
        () = stopped(&log) => anyhow::bail!("the log stopped"),
        () = terminated() => {
            tracing::info!("asked to end");
            log.stop().await;
            Ok(())
        }
    }
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

fn leads(log: &Log) -> watch::Receiver<bool> {
    let mut leadership = log.leadership();
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            let leads = matches!(*leadership.borrow_and_update(), Leadership::Leader { .. });
            sender.send_if_modified(|before| std::mem::replace(before, leads) != leads);
            if leadership.changed().await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// What is known of the nodes, also of those whose worker is away.
fn known_nodes(workers: &Workers) -> watch::Receiver<Arc<BTreeMap<NodeName, nodes::Known>>> {
    let workers = workers.clone();
    let mut changes = workers.changes();
    let (sender, receiver) = watch::channel(Arc::default());
    tokio::spawn(async move {
        let mut known: BTreeMap<NodeName, nodes::Known> = BTreeMap::new();
        loop {
            changes.borrow_and_update();
            let connected = workers.connected();
            for (node, known) in &mut known {
                known.connected = connected.contains_key(node);
            }
            for (node, worker) in connected {
                if let Some(inventory) = worker.inventory {
                    known.insert(
                        node,
                        nodes::Known {
                            connected: true,
                            inventory,
                        },
                    );
                }
            }
            sender.send_replace(Arc::new(known.clone()));
            if changes.changed().await.is_err() || sender.is_closed() {
                return;
            }
        }
    });
    receiver
}

async fn publish_authority(client: &Client, config: &Config, authority: &str) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &config.namespace);
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(AUTHORITY_CONFIG_MAP.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            "ca.crt".to_owned(),
            authority.to_owned(),
        )])),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&map);
    let call = api.patch(AUTHORITY_CONFIG_MAP, &params, &patch);
    bounded("publish the certificate's authority", call).await?;
    Ok(())
}

async fn serve_workers(
    config: &Config,
    identity: tls::Identity,
    client: Client,
    workers: Workers,
    proposer: Arc<Proposer>,
) -> Result<()> {
    let authenticate = TokenReviews {
        client,
        user: format!(
            "system:serviceaccount:{}:{}",
            config.namespace, config.worker_service_account
        ),
    };
    let api = WorkerApi {
        workers,
        authenticate: Arc::new(authenticate),
        register: proposer,
    };
    let tls =
        ServerTlsConfig::new().identity(Identity::from_pem(&identity.certificate, &identity.key));
    Server::builder()
        .tls_config(tls)?
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .tcp_nodelay(true)
        .add_service(OrchestratorServer::new(api))
        .serve(config.listen)
        .await?;
    Ok(())
}

async fn serve_http(
    config: &Config,
    metrics: Arc<Metrics>,
    state: watch::Receiver<Arc<State>>,
    workers: Workers,
) -> Result<()> {
    let render = move || {
        let state = Arc::clone(&state.borrow());
        metrics.observe(&state);
        metrics.workers_connected(workers.connected().len());
        std::future::ready(metrics.render())
    };
    let healthy = || std::future::ready(StatusCode::OK);
    let routes = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(healthy))
        .route("/readyz", get(healthy));
    let listener = tokio::net::TcpListener::bind(config.http).await?;
    axum::serve(listener, routes).await?;
    Ok(())
}

struct Proposer {
    log: Log,
}

#[async_trait]
impl Propose for Proposer {
    async fn propose(&self, command: Command) {
        match self.log.propose(command).await {
            Ok((_, Ok(_))) => {}
            Ok((at, Err(rejection))) => {
                tracing::info!(%at, %rejection, "a command changed nothing")
            }
            // The step is still due: it is performed again, and reported again.
            Err(error) => tracing::warn!(%error, "a report was not taken"),
        }
    }
}

#[async_trait]
impl Register for Proposer {
    async fn register(&self, command: Command) -> Result<Applied, String> {
        match self.log.propose(command).await {
            Ok((_, Ok(applied))) => Ok(applied),
            Ok((_, Err(rejection))) => Err(rejection.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Asks Kubernetes whose token it is.
struct TokenReviews {
    client: Client,
    user: String,
}

#[async_trait]
impl Authenticate for TokenReviews {
    async fn node_of(&self, token: &str) -> Result<NodeName, String> {
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: token.to_owned(),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let reviewed = bounded("review a worker's token", api.create(&params, &review)).await;
        let status = reviewed
            .map_err(|error| error.to_string())?
            .status
            .unwrap_or_default();
        let audience = status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|audience| audience == AUDIENCE);
        if status.authenticated != Some(true) || !audience {
            return Err(format!(
                "the token is not valid here: {}",
                status.error.unwrap_or_default()
            ));
        }
        let user = status.user.unwrap_or_default();
        if user.username.as_deref() != Some(&self.user) {
            return Err(format!(
                "the token is not a worker's but {}'s",
                user.username.unwrap_or_default()
            ));
        }
        let node = user
            .extra
            .unwrap_or_default()
            .remove(NODE_NAME_EXTRA)
            .and_then(|values| values.into_iter().next());
        node.map(NodeName)
            .ok_or_else(|| "the token is not bound to a node".to_owned())
    }
}
