//! The orchestrator's process: flags, log lines, run.

use std::process::ExitCode;

use clap::Parser as _;
use orchestrator::{config::Arguments, daemon, operate};
use tracing_subscriber::EnvFilter;

/// Commands, plans and spans are many small pieces: a quarter of what the log costs was the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let Some(command) = command else {
        tracing::info!(?config, version = env!("CARGO_PKG_VERSION"), "orchestrator");
        return match daemon::run(config).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            }
        };
    };
    operate::run(&config, command)
        .await
        .unwrap_or_else(|error| {
            operate::complain(&format!("{error:#}"));
            ExitCode::FAILURE
        })
}
