//! Everything we ask of Kubernetes and write to it.
//!
//! ```text
//! PodMigration objects ─► intake ─► (submit, abort)          pods, nodes ─► view ─► core's planner
//! the log's state ──────► status, events ─► users            plan ────────► pods: hold, delete, create, prepull
//! workers' inventories ─► nodes ─► MigrationNode objects
//! ```
//!
//! Kubernetes is observed and acted upon; it is never the record of a migration. Every call is bounded by [`call`],
//! nothing is retried below the driver, and every write is fenced: deletes by UID, patches by resourceVersion,
//! creations by the pod's name.

pub mod call;
pub mod cluster;
pub mod events;
#[cfg(test)]
mod fake_api;
pub mod intake;
pub mod nodes;
pub mod origin;
pub mod pods;
pub mod prepull;
pub mod quantity;
pub mod resource;
pub mod status;
pub mod store_keys;
pub mod target_pod;
pub mod view;
