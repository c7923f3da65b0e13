//! On the leader: makes the log's members those of the record, one change at a time.
//!
//! ```text
//! in the record, no member           ─► it learns
//! a learner that has caught up       ─► takes the place of a voter that left the record, in one joint change,
//!                                       or just votes, when there is none
//! a learner that left the record     ─► goes
//! a joint change that doesn't end    ─► is ended
//! ```
//!
//! Level-triggered: every look compares what is with what should be, so a change that raft dropped without a word, or
//! a leader that died in the middle, is made up for by the next look. A voter that left the record goes only when
//! another comes for it: it may be the only one that has something. Operators remove voters by name.

use std::{collections::BTreeSet, time::Duration};

use tokio::sync::watch;

use super::record::Record;
use crate::consensus::{
    core::{Change, Standing},
    node::Log,
};

/// A change takes some round trips; looking costs nothing.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// A learner this close behind has everything within a round trip.
const CAUGHT_UP_WITHIN: u64 = 16;
/// Raft ends a joint change itself. Only where its leader died in the middle it needs help: after this many looks.
const JOINT_LOOKS: u32 = 5;

/// Runs while this peer leads; to be dropped when it doesn't.
pub async fn run(log: Log, record: watch::Receiver<Option<Record>>) {
    let mut looks_joint = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Ok(standing) = log.describe().await else {
            return;
        };
        let joint = !standing.members.outgoing.is_empty();
        looks_joint = if joint { looks_joint + 1 } else { 0 };
        let wanted = record.borrow().as_ref().map(Record::wanted);
        let change = match (joint, wanted) {
            (true, _) if looks_joint >= JOINT_LOOKS => Some(Change::Leave),
            (true, _) | (false, None) => None,
            (false, Some(wanted)) => next(&standing, &wanted),
        };
        if let Some(change) = change {
            tracing::info!(?change, "the group changes");
            if let Err(error) = log.change(change).await {
                tracing::warn!(?change, %error, "the group does not change yet");
            }
        }
    }
}

/// The change that is due.
#[must_use]
pub fn next(standing: &Standing, wanted: &BTreeSet<u64>) -> Option<Change> {
    let members = &standing.members;
    let caught_up = |peer: &u64| {
        let matched = standing.matched.get(peer).copied().unwrap_or(0);
        matched > 0 && matched + CAUGHT_UP_WITHIN >= standing.last
    };
    if let Some(gone) = members.learners.difference(wanted).next() {
        return Some(Change::Remove(*gone));
    }
    if let Some(learner) = members.learners.iter().find(|peer| caught_up(peer)) {
        let mut outdated = members.voters.difference(wanted);
        return Some(match outdated.find(|voter| **voter != standing.peer) {
            Some(voter) => Change::Swap {
                learner: *learner,
                voter: *voter,
            },
            None => Change::Promote(*learner),
        });
    }
    let missing = wanted.difference(&members.voters);
    let mut missing = missing.filter(|peer| !members.learners.contains(peer));
    missing.next().map(|peer| Change::Learn(*peer))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::consensus::core::Members;

    fn standing(voters: &[u64], learners: &[u64], matched: &[(u64, u64)]) -> Standing {
        Standing {
            peer: 1,
            term: 2,
            leader: Some(1),
            applied: 100,
            committed: 100,
            last: 100,
            members: Members {
                voters: voters.iter().copied().collect(),
                outgoing: BTreeSet::new(),
                learners: learners.iter().copied().collect(),
            },
            matched: matched.iter().copied().collect::<BTreeMap<_, _>>(),
        }
    }

    fn due(standing: &Standing, wanted: &[u64]) -> Option<Change> {
        next(standing, &wanted.iter().copied().collect())
    }

    #[test]
    fn a_group_as_the_record_has_it_does_not_change() {
        let group = standing(&[1, 2, 3], &[], &[(2, 100), (3, 40)]);
        assert_eq!(due(&group, &[1, 2, 3]), None);
        // A voter that left the record stays until another has everything.
        assert_eq!(due(&group, &[1, 3]), None);
    }

    #[test]
    fn a_new_peer_learns_first_and_takes_the_old_ones_place_once_it_has_everything() {
        let before = standing(&[1, 2, 3], &[], &[]);
        assert_eq!(due(&before, &[1, 3, 4]), Some(Change::Learn(4)));
        for far in [0, 50] {
            let learning = standing(&[1, 2, 3], &[4], &[(4, far)]);
            assert_eq!(due(&learning, &[1, 3, 4]), None, "at {far} of 100");
        }
        let learned = standing(&[1, 2, 3], &[4], &[(4, 95)]);
        let swap = Change::Swap {
            learner: 4,
            voter: 2,
        };
        assert_eq!(due(&learned, &[1, 3, 4]), Some(swap));
    }

    #[test]
    fn a_group_of_one_grows_one_by_one() {
        assert_eq!(
            due(&standing(&[1], &[], &[]), &[1, 2, 3]),
            Some(Change::Learn(2))
        );
        assert_eq!(
            due(&standing(&[1], &[2], &[(2, 100)]), &[1, 2, 3]),
            Some(Change::Promote(2))
        );
        assert_eq!(
            due(&standing(&[1, 2], &[], &[]), &[1, 2, 3]),
            Some(Change::Learn(3))
        );
    }

    #[test]
    fn a_learner_that_lost_its_disk_too_goes_again() {
        let group = standing(&[1, 2, 3], &[4], &[(4, 100)]);
        assert_eq!(due(&group, &[1, 3, 5]), Some(Change::Remove(4)));
    }
}
