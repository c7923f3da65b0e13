//! The peers of the group: who they are, how they find one another, and how they talk.
//!
//! ```text
//! Kubernetes: Secret (authority) ─► own certificate     ConfigMap (record: ordinal -> id) ─► who belongs here
//!             pods ─► book (addresses, kept on disk) ◄─ greetings of other peers
//!
//! raft ─► network: one task per peer ── gRPC over mutual TLS ──► server: gate ─► raft
//! ```
//!
//! * [`record`]: which peer each pod of the StatefulSet is; the first word about it, changed by compare-and-swap.
//! * [`authority`]: the group's certificate authority, in a Secret.
//! * [`book`]: where the peers are, as last known.
//! * [`discovery`]: fills the book from Kubernetes.
//! * [`network`]: the way out, the [`Transport`](crate::consensus::transport::Transport) of the log.
//! * [`server`]: the way in; [`gate`] refuses strangers and counts them.
//! * [`membership`]: the leader makes the log's members those of the record.
//! * [`operator`]: what an operator may ask.
//!
//! The good day: three pods read the record, find that they are peers 1 to 3, found the log and elect a leader. How it
//! goes wrong: a peer whose disk is gone takes a new id and is swapped in for its old one; a peer that can't be
//! reached gets what it missed later; Kubernetes' API may be away, for what was last known is on every disk.

pub mod authority;
pub mod book;
pub mod discovery;
pub mod gate;
pub mod membership;
pub mod network;
pub mod operator;
pub mod record;
pub mod server;

#[cfg(test)]
mod tests;
