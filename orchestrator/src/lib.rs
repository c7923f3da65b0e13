//! The orchestrator: takes requests in, plans them, keeps their log and drives them; and the command users ask it
//! with. [`daemon`] shows how the parts hang together.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consensus;
pub mod daemon;
pub mod desk;
pub mod driver;
pub mod janitor;
pub mod k8s;
pub mod metrics;
pub mod operate;
pub mod peers;
pub mod perform;
pub mod store_desk;
pub mod tls;
pub mod trace;
pub mod workers;
