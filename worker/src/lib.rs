//! Longshore's worker: one per node. It dials the orchestrator, is asked for steps, and performs them on the pods of
//! its node.
//!
//! On a good day, as the source: [`inspect`] a running pod, [`hold`] it (pause, [`checkpoint`], freeze its [`cgroup`]),
//! store its archives ([`data`]), and end it when the target runs. Everything it is about to do and did is in its
//! [`journal`] first. The [`agent`] decides which step is done, joined, answered from memory or refused; the others act.

pub mod agent;
pub mod cgroup;
pub mod checkpoint;
pub mod config;
pub mod containerd;
pub mod data;
pub mod hold;
pub mod inspect;
pub mod inventory;
pub mod journal;
pub mod metrics;
//! The worker, one per node.

pub mod archive;
pub mod content;
pub mod fetch;
pub mod images;
pub mod manifest;
pub mod rebuild;
pub mod registry;
pub mod restore;
pub mod save;
pub mod spans;
pub mod store;
