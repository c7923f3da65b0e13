//! What Prometheus and the kubelet's probes see: /metrics, /healthz, /readyz. Ready means that a peer of the
//! orchestrator has welcomed us on a stream that still stands.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use proto::worker::step_report::Outcome;

use crate::journal::StepKind;

/// Seconds; a release takes some 0.05, a hold of a large pod minutes.
const STEP_BUCKETS: [f64; 10] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0];

/// Counters of this worker; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    steps: IntCounterVec,
    seconds: HistogramVec,
    stream: IntGauge,
}

impl Metrics {
    /// All of them at zero.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let steps = Opts::new(
            "longshore_worker_steps_total",
            "Steps that ended, by kind and outcome.",
        );
        let steps = IntCounterVec::new(steps, &["step", "outcome"])?;
        let seconds = HistogramOpts::new("longshore_worker_step_seconds", "How long steps took.");
        let seconds = HistogramVec::new(seconds.buckets(STEP_BUCKETS.to_vec()), &["step"])?;
        let stream = IntGauge::new(
            "longshore_worker_stream_up",
            "Peers of the orchestrator that are heard.",
        )?;
        registry.register(Box::new(steps.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(stream.clone()))?;
        Ok(Self {
            registry,
            steps,
            seconds,
            stream,
        })
    }

    /// A step has ended.
    pub fn step(&self, kind: StepKind, outcome: Outcome, took: Duration) {
        let kind = format!("{kind:?}").to_lowercase();
        self.steps
            .with_label_values(&[kind.as_str(), &outcome.as_str_name().to_lowercase()])
            .inc();
        self.seconds
            .with_label_values(&[kind.as_str()])
            .observe(took.as_secs_f64());
    }

    /// So many peers of the orchestrator have welcomed us on a stream that stands.
    pub fn streams(&self, welcomed: usize) {
        self.stream.set(i64::try_from(welcomed).unwrap_or(i64::MAX));
    }

    /// Serves until the process ends.
    pub async fn serve(self, address: SocketAddr) -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        axum::serve(listener, self.router()).await
    }

    fn router(self) -> Router {
        let ready = self.stream.clone();
        let text = move || async move {
            TextEncoder::new()
                .encode_to_string(&self.registry.gather())
                .unwrap_or_default()
        };
        let readiness = move || async move {
            if ready.get() > 0 {
                (StatusCode::OK, "ready")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "no stream")
            }
        };
        Router::new()
            .route("/metrics", get(text))
            .route("/healthz", get(|| async { "alive" }))
            .route("/readyz", get(readiness))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_follows_the_stream_and_steps_are_counted() {
        let metrics = Metrics::new().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = metrics.clone().router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let ask = |path: &str| reqwest::get(format!("http://{address}/{path}"));
        assert_eq!(ask("readyz").await.unwrap().status(), 503);
        metrics.streams(3);
        assert_eq!(ask("readyz").await.unwrap().status(), 200);
        metrics.step(StepKind::Hold, Outcome::Done, Duration::from_secs(1));
        let text = ask("metrics").await.unwrap().text().await.unwrap();
        assert!(
            text.contains("longshore_worker_steps_total{outcome=\"done\",step=\"hold\"} 1"),
            "{text}"
        );
    }
}
