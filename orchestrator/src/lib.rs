//! The orchestrator: intake, plan, log, driver.

pub mod api;
pub mod config;
pub mod driver;
pub mod k8s;
pub mod perform;
pub mod tls;
pub mod workers;
