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
//! * [`transport`]: how messages reach other peers.
//!
//! The good day: a command is proposed, written, fsynced by a majority, applied, answered. How it goes wrong: a crash
//! before the fsync loses commands nobody was told about; a crash after it replays them. A full disk stops the log,
//! not the process: proposals are refused by name, the write is tried again until there is room. A command or a
//! snapshot that can't be read stops the peer: skipping it would make two peers disagree for ever.
//!
//! Not here: what a command means ([`orchestrator_core::state`]), and who acts on the state (the driver).

pub mod core;
pub mod format;
pub mod node;
pub mod storage;
pub mod transport;
mod writer;

#[cfg(test)]
mod simulation;
