//! The orchestrator: intake, plan, log, driver.

pub mod consensus;
pub mod k8s;
pub mod metrics;
pub mod trace;
