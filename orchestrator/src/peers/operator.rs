//! What an operator may ask of a peer, by the program's own commands: see, hand the lead over, remove, export.
//!
//! The answer to a question says who is asked and what that one knows; orders are carried out by the leader only, and
//! another peer says so: the command finds the leader itself.

use std::{pin::Pin, time::Instant};

use futures::Stream;
use proto::peer::{
    DescribeRequest, Description, ExportRequest, Peer, Piece, RemoveRequest, Removed,
    TransferRequest, Transferred, Vote, operator_server::Operator,
};
use tonic::{Code, Request, Response, Status};

use super::{
    gate::{Gate, wire_address},
    record::{RecordError, Records},
};
use crate::consensus::{
    core::{Change, Leadership, Standing},
    exported::Exported,
    node::{AskError, Log},
};

/// One message of an export: below the usual limit of 4 MiB.
const PIECE_BYTES: usize = 1 << 20;
/// Others change the record at the same time at worst once each.
const RECORD_TRIES: u32 = 5;

/// Where operators' questions are answered.
pub struct Desk {
    /// The log.
    pub log: Log,
    /// Knows who was heard, and where peers are.
    pub gate: Gate,
    /// Who belongs to the group.
    pub records: Records,
}

#[tonic::async_trait]
impl Operator for Desk {
    type ExportStream = Pin<Box<dyn Stream<Item = Result<Piece, Status>> + Send>>;

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<Description>, Status> {
        let standing = self.log.describe().await.map_err(refusal)?;
        let leads = matches!(*self.log.leadership().borrow(), Leadership::Leader { .. });
        let quorum = leads && self.log.confirm().await.is_ok();
        Ok(Response::new(self.description(&standing, quorum)))
    }

    async fn transfer(
        &self,
        request: Request<TransferRequest>,
    ) -> Result<Response<Transferred>, Status> {
        let to = request.into_inner().to;
        let standing = self.log.describe().await.map_err(refusal)?;
        if !standing.members.voters.contains(&to) {
            return Err(Status::invalid_argument(format!(
                "peer {to} doesn't vote: the voters are {:?}",
                standing.members.voters
            )));
        }
        self.log.transfer(to).await.map_err(refusal)?;
        Ok(Response::new(Transferred {}))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<Removed>, Status> {
        let peer = request.into_inner().peer;
        let standing = self.log.describe().await.map_err(refusal)?;
        let members = &standing.members;
        if !members.all().contains(&peer) {
            return Err(Status::not_found(format!(
                "peer {peer} is no member: the members are {:?}",
                members.all()
            )));
        }
        if peer == standing.peer {
            return Err(refusal(AskError::RemovesLeader));
        }
        if members.voters.len() == 1 && members.voters.contains(&peer) {
            return Err(Status::failed_precondition(
                "the last voter can't be removed",
            ));
        }
        self.log.confirm().await.map_err(refusal)?;
        // The record first: else it would be made a member again.
        self.retire(peer).await?;
        self.log
            .change(Change::Remove(peer))
            .await
            .map_err(refusal)?;
        Ok(Response::new(Removed {}))
    }

    async fn export(
        &self,
        _: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let (index, state) = {
            // In this order: the state has at least that index in it.
            let standing = self.log.describe().await.map_err(refusal)?;
            let state = self.log.state().borrow().clone();
            (standing.applied, state)
        };
        let exported = Exported::new(self.gate.group, index, (*state).clone());
        let bytes = exported
            .to_bytes()
            .map_err(|error| Status::internal(error.to_string()))?;
        let pieces: Vec<Result<Piece, Status>> = bytes
            .chunks(PIECE_BYTES)
            .map(|piece| {
                Ok(Piece {
                    bytes: piece.to_vec(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(futures::stream::iter(pieces))))
    }
}

impl Desk {
    async fn retire(&self, peer: u64) -> Result<(), Status> {
        for _ in 0..RECORD_TRIES {
            let unclear = |error: RecordError| Status::unavailable(error.to_string());
            let found = self.records.read().await.map_err(unclear)?;
            let Some((record, _)) = &found else {
                return Err(Status::failed_precondition("the group has no record"));
            };
            match self.records.write(&record.without(peer), &found).await {
                Ok(()) => return Ok(()),
                Err(RecordError::Changed) => {}
                Err(error) => return Err(unclear(error)),
            }
        }
        Err(Status::unavailable(
            "the group's record is changed by others all the time",
        ))
    }

    fn description(&self, standing: &Standing, quorum: bool) -> Description {
        let entries = self.gate.book.entries();
        let entries = entries.borrow();
        let heard = self.gate.heard();
        let now = Instant::now();
        let own = standing.peer;
        let peers = standing.members.all().into_iter().map(|id| {
            let known = entries.peers.get(&id).cloned().unwrap_or_default();
            let applied = match id == own {
                true => Some(standing.applied),
                false => standing.matched.get(&id).copied(),
            };
            let silent = match id == own {
                true => Some(0),
                false => heard.get(&id).map(|at| {
                    let silent = now.saturating_duration_since(*at).as_millis();
                    u64::try_from(silent).unwrap_or(u64::MAX)
                }),
            };
            Peer {
                id,
                name: known.name,
                address: known.address.as_ref().map(wire_address),
                vote: vote(standing, id).into(),
                has_applied: applied.is_some(),
                applied: applied.unwrap_or(0),
                heard: silent.is_some(),
                silent_ms: silent.unwrap_or(0),
            }
        });
        Description {
            group: self.gate.group.to_string(),
            peer: own,
            leader: standing.leader.unwrap_or(0),
            term: standing.term,
            quorum,
            peers: peers.collect(),
        }
    }
}

fn vote(standing: &Standing, peer: u64) -> Vote {
    if standing.members.voters.contains(&peer) {
        Vote::Voter
    } else if standing.members.outgoing.contains(&peer) {
        Vote::Outgoing
    } else {
        Vote::Learner
    }
}

fn refusal(error: AskError) -> Status {
    let code = match error {
        AskError::NotLeader { .. } | AskError::RemovesLeader => Code::FailedPrecondition,
        AskError::Busy | AskError::OutOfTime { .. } | AskError::Stopped => Code::Unavailable,
    };
    Status::new(code, error.to_string())
}
