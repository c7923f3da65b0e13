//! The daemon's flags.

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;

/// Longshore's orchestrator: plans migrations, keeps their log and drives them.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    /// Where the log and the certificate are kept.
    #[arg(long, env = "LONGSHORE_DATA_DIR", default_value = "/var/lib/longshore")]
    pub data_dir: PathBuf,
    /// Where workers dial (gRPC over TLS).
    #[arg(long, env = "LONGSHORE_LISTEN", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,
    /// Where /metrics, /healthz and /readyz are served (plain HTTP).
    #[arg(long, env = "LONGSHORE_HTTP", default_value = "0.0.0.0:7480")]
    pub http: SocketAddr,
    /// The namespace Longshore runs in.
    #[arg(long, env = "POD_NAMESPACE", default_value = "longshore-system")]
    pub namespace: String,
    /// The Service that workers dial: its name is in the certificate.
    #[arg(
        long,
        env = "LONGSHORE_SERVICE",
        default_value = "longshore-orchestrator"
    )]
    pub service_name: String,
    /// The ServiceAccount that workers run as.
    #[arg(
        long,
        env = "LONGSHORE_WORKER_SERVICE_ACCOUNT",
        default_value = "longshore-worker"
    )]
    pub worker_service_account: String,
    /// Where traces go (OTLP over gRPC); none are sent without it.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}
