//! Longshore's worker: one per node. It dials the orchestrator, is asked for steps, and performs them on the pods of
//! its node.
//!
//! On a good day, as the source: [`inspect`] a running pod, [`hold`] it (pause, [`checkpoint`], freeze its [`cgroup`]),
//! store its archives ([`capture`], [`store`]), and end it when the target runs. As the target: [`gather`], [`rebuild`],
//! answer for the images ([`registry`]) and prove that the pod was [`restore`]d. Everything it is about to do and did is in its
//! [`journal`] first. The [`agent`] decides which step is done, joined, answered from memory or refused; the others act.

pub mod agent;
pub mod archive;
pub mod audit;
pub mod capture;
pub mod cgroup;
pub mod checkpoint;
pub mod config;
pub mod containerd;
pub mod content;
pub mod data;
pub mod fetch;
pub mod gather;
pub mod hold;
pub mod images;
pub mod inspect;
pub mod inventory;
pub mod journal;
pub mod manifest;
pub mod metrics;
pub mod rebuild;
pub mod registry;
pub mod restore;
pub mod rounds;
pub mod save;
pub mod spans;
pub mod store;
pub mod trust;
