//! Raft without IO, clock or random of our own: ticks, messages and proposals in; writes, messages and answers out.
//!
//! Whoever drives it (the node's task, or the simulation) calls [`Core::pump`] after every batch of input and carries
//! out what comes back, in this order: `send_now`, `writes` (each one's `after` only once it is written, then
//! [`Core::persisted`]), answers. The core never blocks and never sees a disk.

use std::{collections::BTreeMap, sync::Arc};

use orchestrator_core::{id::Revision, state::State};
use protobuf::Message as _;
use raft::{
    Config, RawNode, Ready, SnapshotStatus, StateRole,
    eraftpb::{ConfChangeV2, ConfState, Entry, EntryType, Snapshot},
};

use super::{
    format::{self, FormatError, command_from_bytes, state_from_bytes},
    storage::{Cache, Loaded, SnapshotWrite, WriteTask},
    transport::Inbound,
};
pub use members::{Change, Members, Standing};
pub use output::{Answer, CoreError, Leadership, Output, Refused, SnapshotPlan};
use ticket::Ticket;

mod members;
mod output;
mod ticket;

/// Ticks without a leader until an election; raft adds up to as many again at random. With the node's tick of 50 ms:
/// 0.5 to 1 s, twice that when two stand at once, so the lead is lost for less than 3 s. Half of it is still five
/// heartbeats, and a peer that doesn't get the processor for 300 ms unseats nobody.
pub const ELECTION_TICKS: usize = 10;
/// Ticks between heartbeats: five may be lost before anybody doubts the leader.
const HEARTBEAT_TICKS: usize = 2;
/// One append message: one command of the longest kind fits.
const APPEND_BYTES_MAX: u64 = format::COMMAND_BYTES_MAX as u64;
/// Append messages under way to one peer: 64 MiB at most.
const APPENDS_UNDER_WAY_MAX: usize = 64;
/// Proposed but not committed: beyond it proposals are dropped, so a stalled majority can't fill the memory.
const UNCOMMITTED_BYTES_MAX: u64 = 32 << 20;
/// Applied in one go before others get their turn.
const APPLIED_BYTES_MAX: u64 = 4 << 20;

/// When a snapshot is taken, and how much log stays behind it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// After this many entries.
    pub entries: u64,
    /// Or after this many bytes of commands.
    pub bytes: usize,
    /// Entries that stay for peers that are a little behind.
    pub keep: usize,
    /// Unless they are more bytes than this.
    pub keep_bytes: usize,
}

/// A migration makes about 12 commands of 2 KiB. 4096 entries are 340 migrations and 8 MiB: a replay takes some
/// milliseconds, and a snapshot of a full history (20 MiB) is written once in 340 migrations.
pub const LIMITS: Limits = Limits {
    entries: 4096,
    bytes: 16 << 20,
    keep: 512,
    keep_bytes: 4 << 20,
};

/// One peer's raft and its state.
pub struct Core {
    pub(super) raft: RawNode<Cache>,
    state: Arc<State>,
    /// Index and term of the last applied entry.
    applied: (u64, u64),
    pub(super) members: ConfState,
    /// A received snapshot that isn't written yet: the Ready's number and its index.
    installing: Option<(u64, u64)>,
    bytes_since_snapshot: usize,
    building: bool,
    limits: Limits,
    incarnation: u128,
    proposals: u64,
    /// Proposals that wait, and the term they were proposed in.
    waiting: BTreeMap<u64, u64>,
    /// Confirmations that wait: the term they were asked in, and once a majority answered the entry to be applied.
    confirming: BTreeMap<u64, (u64, Option<u64>)>,
}

impl Core {
    /// From what the disk held. `incarnation` must be one that no peer ever had.
    ///
    /// # Errors
    /// When raft can't start from that.
    pub fn new(
        config: &Config,
        loaded: Loaded,
        limits: Limits,
        incarnation: u128,
        logger: &slog::Logger,
    ) -> Result<Self, CoreError> {
        let Loaded {
            cache,
            state,
            members,
            applied,
        } = loaded;
        let config = Config {
            applied: applied.0,
            ..config.clone()
        };
        let raft = RawNode::new(&config, cache, logger).map_err(|source| CoreError::Raft {
            doing: "start raft from the disk",
            source,
        })?;
        Ok(Self {
            raft,
            state: Arc::new(state),
            applied,
            members,
            installing: None,
            bytes_since_snapshot: 0,
            building: false,
            limits,
            incarnation,
            proposals: 0,
            waiting: BTreeMap::new(),
            confirming: BTreeMap::new(),
        })
    }

    /// Raft's settings for this peer; all four safety switches that are off by default are on.
    #[must_use]
    pub fn config(peer: u64) -> Config {
        Config {
            id: peer,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            pre_vote: true,
            check_quorum: true,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_UNDER_WAY_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: APPLIED_BYTES_MAX,
            ..Config::default()
        }
    }

    /// The state after the last applied entry.
    #[must_use]
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The last applied entry.
    #[must_use]
    pub fn applied(&self) -> Revision {
        Revision(self.applied.0)
    }

    /// Who leads. A peer that was elected but hasn't applied an entry of its own term may miss what its predecessor
    /// acknowledged, so it doesn't count as leader yet.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        let term = self.raft.raft.term;
        if self.raft.raft.state == StateRole::Leader && self.applied.1 == term {
            return Leadership::Leader { term };
        }
        Leadership::Follower {
            term,
            leader: self.known_leader(),
        }
    }

    /// Time passed.
    pub fn tick(&mut self) {
        self.raft.tick();
    }

    /// Stands for election at once if nobody else could: a log of one peer needn't wait for silence.
    pub fn campaign_if_alone(&mut self) {
        let id = self.raft.raft.id;
        if self.members.voters == [id]
            && self.members.voters_outgoing.is_empty()
            && let Err(cause) = self.raft.campaign()
        {
            tracing::info!(%cause, "can't stand for election at once, waiting for the ordinary one");
        }
    }

    /// Proposes; the answer comes out of [`Core::pump`] under the number that is returned.
    ///
    /// # Errors
    /// When it is certain that the command isn't in the log.
    pub fn propose(&mut self, command: Vec<u8>) -> Result<u64, Refused> {
        self.leads()?;
        self.proposals += 1;
        let ticket = Ticket {
            incarnation: self.incarnation,
            number: self.proposals,
        };
        match self.raft.propose(ticket.to_bytes(), command) {
            Ok(()) => {
                self.waiting.insert(ticket.number, self.raft.raft.term);
                Ok(ticket.number)
            }
            Err(_) => Err(Refused::Busy),
        }
    }

    /// Something came in from other peers.
    pub fn receive(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Message(message) => {
                if message.to != self.raft.raft.id {
                    tracing::warn!(to = message.to, "a message for another peer came here");
                    return;
                }
                // A message from a peer that was removed meanwhile is an ordinary refusal.
                if let Err(cause) = self.raft.step(*message) {
                    tracing::debug!(%cause, "message refused");
                }
            }
            Inbound::Unreachable { peer } => self.raft.report_unreachable(peer),
            Inbound::Snapshot { peer, arrived } => {
                let status = if arrived {
                    SnapshotStatus::Finish
                } else {
                    SnapshotStatus::Failure
                };
                self.raft.report_snapshot(peer, status);
            }
        }
    }

    /// Everything up to and with Ready `number` is written.
    pub fn persisted(&mut self, number: u64) {
        self.raft.on_persist_ready(number);
        // Only now may raft believe that the snapshot is applied: before, a crash would find neither it nor the log.
        if let Some((ready, index)) = self.installing
            && ready <= number
        {
            self.installing = None;
            if index > self.raft.raft.raft_log.applied() {
                self.raft.advance_apply_to(index);
            }
        }
    }

    /// A snapshot that was asked for is built; what it wants written.
    pub fn snapshot_built(&mut self, snapshot: Snapshot) -> Option<WriteTask> {
        self.building = false;
        if snapshot.get_metadata().index <= self.raft.store().snapshot_index() {
            return None; // another peer's newer one came meanwhile
        }
        let (keep, keep_bytes) = (self.limits.keep, self.limits.keep_bytes);
        let compacted = self
            .raft
            .mut_store()
            .compact(snapshot.clone(), keep, keep_bytes);
        Some(WriteTask {
            snapshot: Some(SnapshotWrite::Taken {
                snapshot,
                compacted,
            }),
            must_sync: true,
            ..WriteTask::default()
        })
    }

    /// Takes everything raft wants done. To be called after every batch of input.
    ///
    /// # Errors
    /// When a committed entry or a received snapshot can't be applied: this peer must not go on.
    pub fn pump(&mut self) -> Result<Output, CoreError> {
        let mut output = Output::default();
        while self.raft.has_ready() {
            let ready = self.raft.ready();
            self.handle(ready, &mut output)?;
        }
        let (role, term) = (self.raft.raft.state, self.raft.raft.term);
        self.waiting.retain(|proposal, proposed_in| {
            let kept = role == StateRole::Leader && *proposed_in == term;
            if !kept {
                output.lost.push(*proposal);
            }
            kept
        });
        self.settle_confirmations(&mut output);
        output.snapshot = self.snapshot_due();
        Ok(output)
    }

    fn settle_confirmations(&mut self, output: &mut Output) {
        let (role, now, applied) = (self.raft.raft.state, self.raft.raft.term, self.applied.0);
        self.confirming.retain(|number, (term, index)| {
            if role != StateRole::Leader || *term != now {
                output.unconfirmed.push(*number);
                return false;
            }
            let confirmed = index.is_some_and(|index| index <= applied);
            if confirmed {
                output.confirmed.push(*number);
            }
            !confirmed
        });
    }

    /// One Ready. The order is safety:
    /// 1. a leader's appends go out while it writes its own (its own vote is counted only after `persisted`);
    /// 2. snapshot, then entries, then hard state become readable *before* raft is told they are under way: it reads
    ///    them back at once;
    /// 3. committed entries are applied: raft hands out only those that are written here, so no applied entry can be
    ///    missing after a crash;
    /// 4. messages that promise what is being written travel with the write: sent before the fsync, a crash would
    ///    break the promise;
    /// 5. the Ready is handed back, then what was applied: that may append the entry that ends a joint membership.
    fn handle(&mut self, mut ready: Ready, output: &mut Output) -> Result<(), CoreError> {
        let mut task = WriteTask {
            number: Some(ready.number()),
            must_sync: ready.must_sync(),
            ..WriteTask::default()
        };
        output.send_now.extend(ready.take_messages());
        for read in ready.take_read_states() {
            if let Some(ticket) = Ticket::from_bytes(&read.request_ctx)
                && ticket.incarnation == self.incarnation
                && let Some((_, index)) = self.confirming.get_mut(&ticket.number)
            {
                *index = Some(read.index);
            }
        }
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            self.install(&snapshot, ready.number())?;
            output.applied = true;
            task.snapshot = Some(SnapshotWrite::Received(snapshot));
        }
        task.entries = ready.take_entries();
        self.raft.mut_store().append(&task.entries);
        if let Some(hard_state) = ready.hs() {
            self.raft.mut_store().hard_state = hard_state.clone();
            task.hard_state = Some(hard_state.clone());
        }
        let committed = ready.take_committed_entries();
        let last = committed.last().map(|entry| entry.index);
        for entry in committed {
            self.apply(entry, output)?;
        }
        task.after = ready.take_persisted_messages();
        self.raft.advance_append_async(ready);
        if let Some(index) = last {
            self.raft.advance_apply_to(index);
            output.applied = true;
        }
        // Empty ones too: the numbers must be reported in order, after everything before them.
        output.writes.push(task);
        Ok(())
    }

    fn install(&mut self, snapshot: &Snapshot, number: u64) -> Result<(), CoreError> {
        let metadata = snapshot.get_metadata();
        let state =
            state_from_bytes(snapshot.get_data()).map_err(|source| CoreError::Unreadable {
                index: metadata.index,
                source,
            })?;
        self.state = Arc::new(state);
        self.applied = (metadata.index, metadata.term);
        self.members = metadata.get_conf_state().clone();
        self.installing = Some((number, metadata.index));
        self.bytes_since_snapshot = 0;
        self.raft.mut_store().install(snapshot.clone());
        Ok(())
    }

    fn apply(&mut self, entry: Entry, output: &mut Output) -> Result<(), CoreError> {
        let index = entry.index;
        assert_eq!(index, self.applied.0 + 1, "raft skipped an entry");
        self.applied = (index, entry.term);
        self.bytes_since_snapshot += entry.data.len();
        // The type is looked at before the data: the entry that ends a joint membership has none.
        match entry.get_entry_type() {
            EntryType::EntryNormal if entry.data.is_empty() => {} // a new leader's first
            EntryType::EntryNormal => {
                let command = command_from_bytes(&entry.data)
                    .map_err(|source| CoreError::Unreadable { index, source })?;
                let at = Revision(index);
                let result = Arc::make_mut(&mut self.state).apply(at, command);
                if let Some(proposal) = self.ours(&entry.context) {
                    output.answers.push(Answer {
                        proposal,
                        at,
                        result,
                    });
                }
            }
            EntryType::EntryConfChangeV2 => {
                let mut change = ConfChangeV2::default();
                change
                    .merge_from_bytes(&entry.data)
                    .map_err(|source| CoreError::Unreadable {
                        index,
                        source: FormatError::Protobuf {
                            what: "a membership change",
                            source,
                        },
                    })?;
                self.members =
                    self.raft
                        .apply_conf_change(&change)
                        .map_err(|source| CoreError::Raft {
                            doing: "apply a membership change",
                            source,
                        })?;
            }
            EntryType::EntryConfChange => return Err(CoreError::OldMembership { index }),
        }
        Ok(())
    }

    /// The proposal of this life that an entry was, if it still waits.
    fn ours(&mut self, context: &[u8]) -> Option<u64> {
        let ticket = Ticket::from_bytes(context)?;
        if ticket.incarnation != self.incarnation {
            return None;
        }
        self.waiting.remove(&ticket.number).map(|_| ticket.number)
    }

    /// A peer that isn't in a snapshot's membership refuses it: whoever came after it needs a newer one.
    fn has_newcomer(&self) -> bool {
        let before = self.raft.store().snapshot_members();
        // Asked at every pump: mostly they are the same, and no sets have to be made.
        self.members != *before
            && !Members::from(&self.members)
                .all()
                .is_subset(&Members::from(before).all())
    }

    fn snapshot_due(&mut self) -> Option<SnapshotPlan> {
        let (index, term) = self.applied;
        let entries = index - self.raft.store().snapshot_index();
        let due = entries >= self.limits.entries
            || self.bytes_since_snapshot >= self.limits.bytes
            || (entries > 0 && self.has_newcomer());
        if self.building || !due {
            return None;
        }
        self.building = true;
        self.bytes_since_snapshot = 0;
        Some(SnapshotPlan {
            state: Arc::clone(&self.state),
            index,
            term,
            members: self.members.clone(),
        })
    }
}
