//! What a worker is told at its start: flags, each with an environment variable where a manifest sets it.
//!
//! Nothing is decided here. Files that change while the worker runs (tokens, certificates) are kept as paths and read
//! at each use.

use std::{net::SocketAddr, path::PathBuf};

/// Longshore's worker: one per node, it holds, checkpoints, ships and restores pods.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "longshore-worker", version)]
pub struct Config {
    /// Name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,

    /// Where the orchestrator listens; http:// goes without TLS and is meant for tests.
    #[arg(long, env = "LONGSHORE_ORCHESTRATOR")]
    pub orchestrator: String,

    /// The authority that signed the orchestrator's certificate (PEM), read again at every dial.
    #[arg(
        long,
        env = "LONGSHORE_ORCHESTRATOR_CA",
        default_value = "/etc/longshore/orchestrator/ca.crt"
    )]
    pub orchestrator_ca: PathBuf,

    /// Name that the orchestrator's certificate must carry.
    #[arg(long, default_value = "longshore-orchestrator.longshore-system.svc")]
    pub orchestrator_name: String,

    /// Token that proves to the orchestrator who we are (projected, audience `longshore`), read again at every dial.
    #[arg(
        long,
        env = "LONGSHORE_TOKEN_FILE",
        default_value = "/var/run/secrets/longshore/token"
    )]
    pub token_file: PathBuf,

    /// Token for the kubelet's checkpoint call, read again at every call.
    #[arg(
        long,
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub kubelet_token_file: PathBuf,

    /// Certificate to trust when calling the kubelet: its own one when it signs for itself, else its authority's.
    #[arg(long, default_value = "/var/lib/kubelet/pki/kubelet.crt")]
    pub kubelet_certificate: PathBuf,

    /// Port of the kubelet on this node.
    #[arg(long, default_value_t = 10250)]
    pub kubelet_port: u16,

    /// Socket of containerd.
    #[arg(long, default_value = "/run/containerd/containerd.sock")]
    pub containerd_socket: PathBuf,

    /// Where the node's cgroup file systems are mounted.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,

    /// Root file system of the node, as the worker reaches it.
    #[arg(long, default_value = "/proc/1/root")]
    pub node_root: PathBuf,

    /// Where the worker keeps its journal and its images.
    #[arg(long, default_value = "/var/lib/longshore")]
    pub state_dir: PathBuf,

    /// Port of the read-only registry, on 127.0.0.1 only.
    #[arg(long, default_value_t = 5717)]
    pub registry_port: u16,

    /// Where metrics and health are served.
    #[arg(long, default_value = "127.0.0.1:5718")]
    pub metrics_address: SocketAddr,

    /// The store that checkpoints go through.
    #[command(flatten)]
    pub store: Store,
}

/// Where checkpoints are kept, and for whom they are sealed; the same variables as everywhere.
#[derive(clap::Args, Clone)]
pub struct Store {
    /// Address of the S3 service.
    #[arg(long = "s3-endpoint", env = "S3_ENDPOINT", default_value = "")]
    pub endpoint: String,
    /// Region to sign for.
    #[arg(long = "s3-region", env = "S3_REGION", default_value = "us-east-1")]
    pub region: String,
    /// Folder with the keys that checkpoints are sealed and opened with: `identity`, and `recipients` if others may, too.
    #[arg(
        long = "store-keys",
        env = "STORE_KEYS",
        default_value = "/var/run/secrets/longshore-store-keys"
    )]
    pub keys_dir: PathBuf,
    /// Bucket that holds the checkpoints.
    #[arg(long = "s3-bucket", env = "S3_BUCKET", default_value = "longshore")]
    pub bucket: String,
    /// Access key.
    #[arg(
        long = "s3-access-key-id",
        env = "AWS_ACCESS_KEY_ID",
        default_value = "",
        hide_env_values = true
    )]
    pub access_key_id: String,
    /// Its secret; only from the environment, for flags are seen by every process of the node.
    #[arg(skip = std::env::var("AWS_SECRET_ACCESS_KEY").unwrap_or_default())]
    pub secret_access_key: String,
}

// By hand, so that the secret is in no log.
impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            endpoint,
            region,
            bucket,
            keys_dir,
            access_key_id: _,
            secret_access_key: _,
        } = self;
        formatter
            .debug_struct("Store")
            .field("endpoint", endpoint)
            .field("region", region)
            .field("bucket", bucket)
            .field("keys_dir", keys_dir)
            .finish_non_exhaustive()
    }
}
