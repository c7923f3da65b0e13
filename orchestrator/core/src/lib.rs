//! Longshore's decisions, and nothing else: no clock, no random, no IO, no async, no Kubernetes, no raft.
//!
//! * [`migration`]: what can happen to a migration, and who may run the pod in each phase. Start here.
//! * [`state`]: the replicated state; [`State::apply`](state::State::apply) is its only writer.
//! * [`planner`]: may this pod move, and how; every reason when not. From a [`view`] to a [`plan`].
//!
//! Everything that must be the same on every peer is decided here, so it can be tested in milliseconds.

mod base;
pub mod id;
pub mod migration;
pub mod plan;
pub mod planner;
pub mod refusal;
pub mod state;
pub mod store;
pub mod view;
