//! The orchestrator: intake, plan, log, driver.

pub mod k8s;
