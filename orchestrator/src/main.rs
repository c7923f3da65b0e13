//! The orchestrator's process: flags, log lines, run.

use std::process::ExitCode;

use clap::Parser as _;
use orchestrator::{config::Arguments, daemon, operate};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { config, command } = Arguments::parse();
    // An operator wants the answer, not the story of how it was got.
    let usual = if command.is_some() {
        "orchestrator=warn,error"
    } else {
        "info"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        tracing::debug!("a TLS provider is installed already");
    }
    let ended = match command {
        Some(command) => operate::run(&config, command).await,
        None => {
            tracing::info!(?config, version = env!("CARGO_PKG_VERSION"), "orchestrator");
            daemon::run(config).await.map(|()| ExitCode::SUCCESS)
        }
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
