//! The daemon's flags, and the commands of operators beside it.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, Subcommand, ValueEnum};

/// Longshore's orchestrator: plans migrations, keeps their log and drives them. Without a command it is the daemon; the
/// commands are for operators, inside a peer's pod.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// What both need.
    #[command(flatten)]
    pub config: Config,
    /// What an operator wants; none: be the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The daemon's flags.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where the log, the certificate and the peers' addresses are kept.
    #[arg(
        long,
        env = "LONGSHORE_DATA_DIR",
        default_value = "/var/lib/longshore",
        global = true
    )]
    pub data_dir: PathBuf,
    /// Where workers dial (gRPC over TLS).
    #[arg(long, env = "LONGSHORE_LISTEN", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,
    /// Where peers and operators dial (gRPC over mutual TLS).
    #[arg(
        long,
        env = "LONGSHORE_LISTEN_PEERS",
        default_value = "0.0.0.0:7444",
        global = true
    )]
    pub listen_peers: SocketAddr,
    /// Where /metrics, /healthz and /readyz are served (plain HTTP).
    #[arg(long, env = "LONGSHORE_HTTP", default_value = "0.0.0.0:7480")]
    pub http: SocketAddr,
    /// The namespace Longshore runs in.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "longshore-system",
        global = true
    )]
    pub namespace: String,
    /// This pod's name: its ordinal says which peer it is.
    #[arg(
        long,
        env = "POD_NAME",
        default_value = "longshore-orchestrator-0",
        global = true
    )]
    pub pod_name: String,
    /// Where this pod is found by others; they find it through Kubernetes without.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<String>,
    /// Peers that found a new group: as many as the StatefulSet has replicas. A group that exists is not changed.
    #[arg(long, env = "LONGSHORE_PEERS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub peers: u32,
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

/// What operators ask.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Who belongs to the group, and how far each peer is.
    Peers {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Who leads.
    Leader {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Hands the lead to another peer.
    Transfer {
        /// Its id.
        peer: u64,
    },
    /// Removes a peer from the group for good. The leader can't be removed: transfer the lead first.
    Remove {
        /// Its id.
        peer: u64,
    },
    /// Writes the state into a file.
    Export {
        /// The file, or - for the standard output.
        file: PathBuf,
        /// Read this peer's disk instead of asking the group: for a peer that does not run.
        #[arg(long)]
        offline: bool,
    },
    /// Founds a new group of one peer from an export, in an empty data directory. The others join it with empty disks.
    Import {
        /// The file.
        file: PathBuf,
        /// Migrations under way enter their phases anew. Only right when nothing happened after the export.
        #[arg(long)]
        enter_anew: bool,
        /// Move a log that is in the data directory aside instead of refusing.
        #[arg(long)]
        set_aside: bool,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}
