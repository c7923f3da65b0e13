//! How messages reach other peers: the seam.
//!
//! A transport may lose, delay, repeat and reorder messages; raft is made for that. It must not invent or alter them,
//! so whoever brings them in proves who sent them. It never waits: what can't be sent now is dropped, and said.

use raft::eraftpb::Message;

/// What comes in from the outside.
#[derive(Debug)]
pub enum Inbound {
    /// A message of another peer.
    Message(Box<Message>),
    /// A peer was not reached: raft sends it less until it answers.
    Unreachable {
        /// Which.
        peer: u64,
    },
    /// A snapshot arrived at a peer, or didn't. Must be said for every one: until then the peer gets nothing else.
    Snapshot {
        /// To whom.
        peer: u64,
        /// It arrived.
        arrived: bool,
    },
}

/// The way out to other peers. What comes back goes through the [`Inbound`] channel given to the node.
pub trait Transport: Send + 'static {
    /// Sends without waiting.
    fn send(&mut self, message: Message);
}

/// For a log of one peer: there is nobody to talk to.
#[derive(Debug)]
pub struct Alone;

impl Transport for Alone {
    fn send(&mut self, message: Message) {
        tracing::warn!(to = message.to, kind = ?message.get_msg_type(), "a log of one peer has a message for another");
    }
}
