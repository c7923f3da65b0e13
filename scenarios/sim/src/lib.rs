//! The simulator: production code on a seed, in a world that breaks.
//!
//! ```text
//!  seed ─► schedule ─► stage: peers (production core, driver, steps, janitor) ─ raft_log, doors
//!                        │      workers (production agent, hold, journal's memory) ─ machine, data, journal
//!                        │      kubelets, API server, store, network, clocks: models that break
//!                        └─► truth, ledger, verdict: what was promised, checked at every step
//! ```
//! One thread, a paused clock, no chance but the seed's: the same seed is the same run, event for event. What is
//! checked is design section 1; what goes wrong is in [`faults`]; that the checks see anything is shown by [`mistakes`].
//!
//! Not here: redb and torn writes (`consensus/simulation.rs` has them), gRPC, real bytes, and everything that only a real
//! kernel does. Those have tests and stories of their own.

pub mod api;
pub mod cases;
pub mod data;
pub mod dice;
pub mod doors;
pub mod faults;
pub mod journal;
pub mod kubelet;
pub mod ledger;
pub mod life;
mod lines;
pub mod machine;
pub mod mistakes;
pub mod peer;
pub mod raft_log;
pub mod runs;
pub mod schedule;
pub mod sim;
pub mod stage;
pub mod store;
pub mod trace;
pub mod truth;
pub mod verdict;
pub mod worker_process;
pub mod wrong;
