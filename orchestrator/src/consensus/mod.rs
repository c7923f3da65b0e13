//! The replicated log: what is decided is in it, and nothing acknowledged is ever lost.
//!
//! ```text
//!  propose ─► node (one task owns raft) ─► storage (one thread, one fsync for many writes)
//!                │        ▲                        │
//!                │        └──── persisted ◄────────┘
//!                ├─► transport ─► other peers
//!                └─► State::apply ─► watch: a new state ─► answer to whoever proposed
//! ```
//!
//! * [`format`]: what lies on the disk and in the log, byte for byte, with its version.
//! * [`storage`]: the log in memory as raft reads it, the log on disk, and what one write carries.
//! * [`core`]: raft without IO, clock or random of its own: messages and ticks in; writes, messages and answers out.
//! * [`node`]: the task around the core, and [`Log`](node::Log), the handle everybody else uses.
//! * [`transport`]: how messages reach other peers; [`crate::peers`] is how they do.
//! * [`exported`]: the state as a file, and how a group is founded from one.
//!
//! The good day: a command is proposed, written, fsynced by a majority, applied, answered. How it goes wrong: a crash
//! before the fsync loses commands nobody was told about; a crash after it replays them. A full disk stops the log,
//! not the process: proposals are refused by name, the write is tried again until there is room, and a leader hands the
//! lead over. A command or a snapshot that can't be read stops the peer: skipping it would make two peers disagree for
//! ever. A leader that can't be heard is missed after half a second to one, and a new one elected.
//!
//! What a leader does may rest on a state from before an election that it has not heard of. Commands don't care: `apply`
//! judges them. Workers don't: they refuse old revisions. Kubernetes can't tell, so before a leader writes there it asks
//! a majority ([`Log::confirm`](node::Log::confirm), one round trip and no fsync): the driver before steps that begin
//! with Kubernetes, the desk before it lets go of an object that the log doesn't know.
//!
//! Not here: what a command means ([`orchestrator_core::state`]), and who acts on the state (the driver).

pub mod core;
pub mod exported;
pub mod format;
pub mod node;
pub mod storage;
pub mod transport;
mod writer;

#[cfg(test)]
mod simulation;
