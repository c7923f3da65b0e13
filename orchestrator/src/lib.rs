//! The orchestrator: intake, plan, log, driver; and the command users ask it with.

pub mod api;
pub mod config;
pub mod driver;
pub mod cli;
pub mod k8s;
pub mod perform;
pub mod tls;
pub mod workers;
pub mod consensus;
pub mod metrics;
