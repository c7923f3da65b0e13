//! The orchestrator: intake, plan, log, driver; and the command users ask it with.

pub mod cli;
pub mod k8s;
