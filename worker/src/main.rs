//! The worker's process: reads its flags, makes the parts and starts them. Everything else is in the library.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use tracing_subscriber::EnvFilter;
use worker::{
    agent::{self, Tools},
    cgroup::Cgroups,
    checkpoint::kubelet::Kubelet,
    config::Config,
    containerd::Containerd,
    data::{Data, DataPath},
    hold::{Holder, ThisNode},
    images::Images,
    inspect::Inspector,
    inventory::{self, Surveyor},
    journal::Journal,
    metrics::Metrics,
    registry::Registry,
    store::s3::{S3, S3Place},
};

const PROC: &str = "/proc";

/// A pod that is gone keeps a few hundred bytes until then.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Before anything else: this process is about to be another program.
    if arguments
        .first()
        .is_some_and(|first| first == inventory::BECOME)
    {
        let error = inventory::become_program(&arguments[1..]);
        eprintln!("become {}: {error}", arguments[1..].join(" "));
        return ExitCode::from(127);
    }
    let config = Config::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: Config) -> Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is installed already");
    }
    tracing::info!(?config, version = env!("CARGO_PKG_VERSION"), "worker");
    let tools = tools(config)?;
    let (metrics, address) = (tools.metrics.clone(), tools.config.metrics_address);
    tokio::select! {
        served = metrics.serve(address) => served.with_context(|| format!("serve metrics on {address}")),
        ended = agent::run(tools) => ended.context("remember what is done"),
    }
}

fn tools(config: Config) -> Result<Tools> {
    let boot_id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("read the boot id")?;
    let journal = Journal::open(&config.state_dir).context("open the journal")?;
    let cgroups = Cgroups::at(&config.cgroup_root).context("look at the cgroups")?;
    let containerd = Containerd::at(&config.containerd_socket);
    let kubelet = Kubelet::new(&config);
    let (path, registry) = data(&config)?;
    let data: Arc<dyn Data> = path.clone();
    tokio::spawn(sweep(path));
    tokio::spawn(async move {
        if let Err(error) = registry.serve().await {
            // Without it nothing can be restored here; the supervisor starts us again.
            tracing::error!(%error, "the registry ended");
            std::process::exit(1);
        }
    });
    Ok(Tools {
        holder: Holder {
            node: Arc::new(ThisNode {
                containerd: containerd.clone(),
                cgroups: cgroups.clone(),
                proc: PROC.into(),
            }),
            checkpointer: Arc::new(kubelet.clone()),
            journal: journal.clone(),
            boot_id: boot_id.trim().to_owned(),
        },
        inspector: Arc::new(Inspector {
            containerd: containerd.clone(),
            proc: PROC.into(),
            node_root: config.node_root.clone(),
        }),
        surveyor: Arc::new(Surveyor {
            containerd,
            kubelet,
            cgroups,
            node_root: config.node_root.clone(),
            state_dir: config.state_dir.clone(),
        }),
        data,
        journal,
        metrics: Metrics::new().context("make the metrics")?,
        config,
    })
}

/// The data path is made here, and only here.
fn data(config: &Config) -> Result<(Arc<DataPath>, Arc<Registry>)> {
    let worker::config::Store {
        endpoint,
        region,
        bucket,
        access_key_id,
        secret_access_key,
        keys_dir,
    } = config.store.clone();
    let store = S3::new(S3Place {
        endpoint,
        region,
        bucket,
        access_key_id,
        secret_access_key,
    });
    let images = Images::new(config.containerd_socket.clone());
    let registry = Registry::open(&config.state_dir, config.registry_port, images.clone())
        .context("open the registry")?;
    let path = DataPath::new(
        Arc::new(store),
        images,
        registry.clone(),
        config.state_dir.clone(),
        keys_dir,
    )
    .context("make the folder for bases")?;
    Ok((Arc::new(path), registry))
}

/// Names kept for pods that are gone don't pile up.
async fn sweep(path: Arc<DataPath>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        if let Err(error) = path.sweep().await {
            tracing::warn!(%error, "names of gone pods were not swept");
        }
    }
}
