//! Who belongs to the group, how it is changed, and how far each peer is.
//!
//! Raft turns a change into nothing without a word when another one is under way: whether a change came about is seen
//! in [`Standing::members`], never in the answer to the proposal.

use std::collections::{BTreeMap, BTreeSet};

use raft::{
    StateRole,
    eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState},
};

use super::{Core, Leadership, Refused, ticket::Ticket};

/// The members as of the last applied entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// They vote.
    pub voters: BTreeSet<u64>,
    /// They voted before; not empty while a joint change is under way.
    pub outgoing: BTreeSet<u64>,
    /// They get the log and don't vote.
    pub learners: BTreeSet<u64>,
}

impl Members {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> BTreeSet<u64> {
        let Self {
            voters,
            outgoing,
            learners,
        } = self;
        voters
            .iter()
            .chain(outgoing)
            .chain(learners)
            .copied()
            .collect()
    }
}

impl From<&ConfState> for Members {
    fn from(state: &ConfState) -> Self {
        let learners = state.get_learners().iter();
        Self {
            voters: state.get_voters().iter().copied().collect(),
            outgoing: state.get_voters_outgoing().iter().copied().collect(),
            learners: learners.chain(state.get_learners_next()).copied().collect(),
        }
    }
}

/// A change of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This peer gets the log and doesn't vote yet.
    Learn(u64),
    /// This learner votes from now on.
    Promote(u64),
    /// The learner votes from now on and the voter goes: one joint change, so that no majority of either membership
    /// can decide without the other.
    Swap {
        /// It comes.
        learner: u64,
        /// It goes.
        voter: u64,
    },
    /// This peer goes.
    Remove(u64),
    /// Ends a joint change that its leader did not live to end.
    Leave,
}

/// What one peer knows of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which peer.
    pub peer: u64,
    /// Raft's term.
    pub term: u64,
    /// Who leads, if known.
    pub leader: Option<u64>,
    /// The last entry it applied.
    pub applied: u64,
    /// The last entry it knows to be committed.
    pub committed: u64,
    /// The last entry it has.
    pub last: u64,
    /// The members.
    pub members: Members,
    /// On the leader: the last entry that each member is known to have. Empty on others.
    pub matched: BTreeMap<u64, u64>,
}

impl Core {
    /// What this peer knows of the group.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let raft = &self.raft.raft;
        let leads = raft.state == StateRole::Leader;
        let progress = raft.prs().iter().filter(|_| leads);
        Standing {
            peer: raft.id,
            term: raft.term,
            leader: (raft.leader_id != raft::INVALID_ID).then_some(raft.leader_id),
            applied: self.applied.0,
            committed: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
            members: Members::from(&self.members),
            matched: progress.map(|(id, peer)| (*id, peer.matched)).collect(),
        }
    }

    /// The members.
    #[must_use]
    pub fn members(&self) -> Members {
        Members::from(&self.members)
    }

    /// Proposes a change of the members. Accepted is not done: see [`Standing::members`].
    ///
    /// # Errors
    /// When it is certain that the change isn't in the log.
    pub fn change(&mut self, change: Change) -> Result<(), Refused> {
        self.leads()?;
        let singles = match change {
            Change::Learn(peer) => vec![single(ConfChangeType::AddLearnerNode, peer)],
            Change::Promote(peer) => vec![single(ConfChangeType::AddNode, peer)],
            Change::Swap { learner, voter } => vec![
                single(ConfChangeType::AddNode, learner),
                single(ConfChangeType::RemoveNode, voter),
            ],
            Change::Remove(peer) => vec![single(ConfChangeType::RemoveNode, peer)],
            Change::Leave => Vec::new(),
        };
        let own = self.raft.raft.id;
        let goes = |single: &ConfChangeSingle| {
            single.get_change_type() == ConfChangeType::RemoveNode && single.node_id == own
        };
        if singles.iter().any(goes) {
            return Err(Refused::RemovesLeader);
        }
        let mut proposed = ConfChangeV2::default();
        proposed.set_changes(singles.into());
        self.raft
            .propose_conf_change(Vec::new(), proposed)
            .map_err(|_| Refused::Busy)
    }

    /// Hands the lead to another voter. It is over when that one leads; raft gives up after an election's time.
    ///
    /// # Errors
    /// When this peer doesn't lead.
    pub fn transfer(&mut self, to: u64) -> Result<(), Refused> {
        self.leads()?;
        self.raft.transfer_leader(to);
        Ok(())
    }

    /// Of the other voters the one that has the most: whom to hand the lead to.
    #[must_use]
    pub fn heir(&self) -> Option<u64> {
        let Standing {
            peer,
            members,
            matched,
            ..
        } = self.standing();
        let others = members.voters.into_iter().filter(|voter| *voter != peer);
        others.max_by_key(|voter| matched.get(voter).copied().unwrap_or(0))
    }

    /// Asks a majority whether this peer leads still; the answer comes out of [`Core::pump`] under this number.
    ///
    /// # Errors
    /// When it doesn't lead, or raft drops the question.
    pub fn confirm(&mut self) -> Result<u64, Refused> {
        let Leadership::Leader { term } = self.leadership() else {
            return Err(Refused::NotLeader(self.known_leader()));
        };
        self.proposals += 1;
        let ticket = Ticket {
            incarnation: self.incarnation,
            number: self.proposals,
        };
        let raft = &self.raft.raft;
        let before = (raft.pending_read_count(), raft.ready_read_count());
        self.raft.read_index(ticket.to_bytes());
        let raft = &self.raft.raft;
        if before == (raft.pending_read_count(), raft.ready_read_count()) {
            return Err(Refused::Busy); // dropped without a word
        }
        self.confirming.insert(ticket.number, (term, None));
        Ok(ticket.number)
    }

    pub(super) fn leads(&self) -> Result<(), Refused> {
        match self.raft.raft.state {
            StateRole::Leader => Ok(()),
            StateRole::Follower | StateRole::Candidate | StateRole::PreCandidate => {
                Err(Refused::NotLeader(self.known_leader()))
            }
        }
    }

    pub(super) fn known_leader(&self) -> Option<u64> {
        let leader = self.raft.raft.leader_id;
        (leader != raft::INVALID_ID).then_some(leader)
    }
}

fn single(kind: ConfChangeType, peer: u64) -> ConfChangeSingle {
    let mut change = ConfChangeSingle::default();
    change.set_change_type(kind);
    change.node_id = peer;
    change
}
