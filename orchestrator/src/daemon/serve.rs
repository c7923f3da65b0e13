//! What every peer serves beside its peers: workers, metrics and health.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use axum::{Router, http::StatusCode, routing::get};
use kube::Client;
use proto::worker::orchestrator_server::OrchestratorServer;
use tonic::transport::Server;

use super::admission::{Registrar, TokenReviews};
use crate::{
    api::Api as WorkerApi,
    config::Config,
    consensus::{
        core::{Leadership, Standing},
        node::Log,
    },
    metrics::Metrics,
    peers::book::Book,
    tls::Identity,
};

/// A worker that is silent this long is gone: three of its keepalives.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Looking through the log's history takes some hundred microseconds, which every commit need not cost.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// What workers are served from.
pub(super) struct Workers {
    pub(super) workers: crate::workers::Workers,
    pub(super) client: Client,
    pub(super) registrar: Registrar,
    pub(super) book: Book,
}

impl Workers {
    pub(super) async fn serve(self, config: &Config, identity: &Identity) -> Result<()> {
        let Self {
            workers,
            client,
            registrar,
            book,
        } = self;
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
            register: Arc::new(registrar),
            book,
        };
        Server::builder()
            .tls_config(identity.for_workers())?
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .tcp_nodelay(true)
            .add_service(OrchestratorServer::new(api))
            .serve(config.listen)
            .await?;
        Ok(())
    }
}

/// Counts what ends, until the log has stopped.
async fn count(metrics: Arc<Metrics>, log: Log) {
    let mut states = log.state();
    loop {
        let state = Arc::clone(&states.borrow_and_update());
        let leads = matches!(*log.leadership().borrow(), Leadership::Leader { .. });
        metrics.observe(&state, leads);
        drop(state);
        tokio::time::sleep(COUNT_EVERY).await;
        if states.changed().await.is_err() {
            return;
        }
    }
}

pub(super) async fn http(
    config: &Config,
    metrics: Arc<Metrics>,
    log: Log,
    workers: crate::workers::Workers,
) -> Result<()> {
    // An end is counted when it happens, by whoever leads then, and not only while somebody scrapes.
    tokio::spawn(count(Arc::clone(&metrics), log.clone()));
    let render = {
        let log = log.clone();
        move || {
            let (metrics, log, workers) = (Arc::clone(&metrics), log.clone(), workers.clone());
            async move {
                let state = Arc::clone(&log.state().borrow());
                let leads = matches!(*log.leadership().borrow(), Leadership::Leader { .. });
                metrics.observe(&state, leads);
                metrics.workers_connected(workers.connected().len());
                if let Ok(standing) = log.describe().await {
                    metrics.stands(&standing, leads);
                }
                metrics.render()
            }
        }
    };
    let ready = move || {
        let log = log.clone();
        async move {
            let standing = log.describe().await;
            match standing.map(|standing| not_ready(&standing)) {
                Ok(None) => (StatusCode::OK, "ready"),
                Ok(Some(why)) => (StatusCode::SERVICE_UNAVAILABLE, why),
                Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the log stopped"),
            }
        }
    };
    let routes = Router::new()
        .route("/metrics", get(render))
        .route("/healthz", get(|| std::future::ready(StatusCode::OK)))
        .route("/readyz", get(ready));
    let listener = tokio::net::TcpListener::bind(config.http).await?;
    axum::serve(listener, routes).await?;
    Ok(())
}

/// Why this peer doesn't count yet. A rolling restart goes on to the next one only when this is over: then the group
/// can do without that.
fn not_ready(standing: &Standing) -> Option<&'static str> {
    if standing.leader.is_none() {
        return Some("nobody leads");
    }
    if !standing.members.voters.contains(&standing.peer) {
        return Some("this peer doesn't vote yet");
    }
    (standing.applied < standing.committed).then_some("this peer is behind")
}
