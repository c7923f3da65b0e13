//! The record of the group: which peer each pod of the StatefulSet is. In a ConfigMap, changed by compare-and-swap.
//!
//! ```text
//! pod N, disk of peer P  ─► the record says P too: that is who we are. It says another: P was replaced, stop.
//! pod N, empty disk      ─► its founder was never there: be it. It was: take a new id, for the old one has promised
//!                           things to raft (its vote, entries it acknowledged) that the empty disk has forgotten.
//! ```
//!
//! Only pod 0 begins a record, so that a log that was kept by one peer until now is found before a new one is founded.
//! The record is written before the disk: a crash between the two costs an id, never a vote. When Kubernetes' API is
//! away, a disk that has an owner is believed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::k8s::call::{CallError, bounded, if_there};

/// The ConfigMap.
pub const CONFIG_MAP: &str = "longshore-orchestrator-group";
const KEY: &str = "group.json";
const VERSION: u32 = 1;

/// Who a pod of the StatefulSet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Its peer.
    pub peer: u64,
    /// That peer has been there: an empty disk is no longer the first one.
    pub taken: bool,
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The group's name.
    #[serde(with = "crate::consensus::format::group_as_text")]
    pub group: Uuid,
    /// Who founded it.
    pub founders: Vec<u64>,
    /// By the ordinal of the pod.
    pub seats: BTreeMap<u32, Seat>,
    /// Removed by an operator; their disks are not taken any more.
    pub retired: BTreeSet<u64>,
    /// The next id: each is given once.
    pub next: u64,
}

/// What a disk says of itself.
pub type OnDisk = Option<(u64, Option<Uuid>)>;

/// Who this peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its id.
    pub peer: u64,
    /// Its group.
    pub group: Uuid,
    /// With whom it founds the log, if its disk is new; none: it joins.
    pub founders: Vec<u64>,
}

/// What to do about a record as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Be this.
    Be(Place),
    /// Write this record, then be that.
    Write(Record, Place),
    /// Pod 0 has not begun the record yet.
    Wait,
}

/// This disk can't be used in this group.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// Of another group.
    #[error(
        "this disk is of group {found}, the record {CONFIG_MAP} says {expected}: if that group was founded anew by an import, empty this disk"
    )]
    OtherGroup {
        /// The disk's.
        found: Uuid,
        /// The record's.
        expected: Uuid,
    },
    /// Its peer was replaced.
    #[error(
        "this disk is of peer {peer}, which was replaced by peer {by} when its disk was missing: empty this disk"
    )]
    Replaced {
        /// The disk's.
        peer: u64,
        /// Who sits there now.
        by: u64,
    },
    /// Its peer was removed.
    #[error("this disk is of peer {peer}, which an operator removed: empty this disk to join anew")]
    Retired {
        /// The disk's.
        peer: u64,
    },
}

impl Record {
    /// Of a group with these founders in the first seats.
    #[must_use]
    pub fn founding(group: Uuid, founders: u32) -> Self {
        let ids: Vec<u64> = (1..=u64::from(founders)).collect();
        let seats = (0..founders).zip(&ids);
        Self {
            version: VERSION,
            group,
            seats: seats
                .map(|(ordinal, peer)| {
                    (
                        ordinal,
                        Seat {
                            peer: *peer,
                            taken: false,
                        },
                    )
                })
                .collect(),
            retired: BTreeSet::new(),
            next: u64::from(founders) + 1,
            founders: ids,
        }
    }

    /// Of a group that has one peer, in this seat.
    #[must_use]
    pub fn of_one(group: Uuid, ordinal: u32, peer: u64, next: u64) -> Self {
        Self {
            version: VERSION,
            group,
            founders: vec![peer],
            seats: BTreeMap::from([(ordinal, Seat { peer, taken: true })]),
            retired: BTreeSet::new(),
            next: next.max(peer + 1),
        }
    }

    /// The peers that should be members.
    #[must_use]
    pub fn wanted(&self) -> BTreeSet<u64> {
        self.seats.values().map(|seat| seat.peer).collect()
    }

    /// Without this peer: its disk is not taken any more.
    #[must_use]
    pub fn without(&self, peer: u64) -> Self {
        let mut record = self.clone();
        record.seats.retain(|_, seat| seat.peer != peer);
        record.retired.insert(peer);
        record
    }

    /// With this peer in this seat.
    #[cfg(test)]
    pub(crate) fn and(&self, ordinal: u32, peer: u64) -> Self {
        self.seat(ordinal, peer)
    }

    fn place(&self, peer: u64, founders: &[u64]) -> Place {
        Place {
            peer,
            group: self.group,
            founders: founders.to_vec(),
        }
    }

    fn seat(&self, ordinal: u32, peer: u64) -> Self {
        let mut record = self.clone();
        record.seats.insert(ordinal, Seat { peer, taken: true });
        record.next = record.next.max(peer + 1);
        record
    }
}

/// Decides who the pod of this ordinal is. `ids_seen` is the highest id that it knows to have been given, `fresh` a
/// name that no group has.
///
/// # Errors
/// When its disk must not be used.
pub fn decide(
    record: Option<&Record>,
    ordinal: u32,
    disk: OnDisk,
    founders: u32,
    ids_seen: u64,
    fresh: Uuid,
) -> Result<Verdict, Misplaced> {
    let Some(record) = record else {
        return Ok(match (ordinal, disk) {
            (0, None) => write(Record::founding(fresh, founders), 0),
            // A log from before there were records, or a record that somebody deleted.
            (0, Some((peer, group))) => {
                let record = Record::of_one(group.unwrap_or(fresh), 0, peer, ids_seen + 1);
                let place = record.place(peer, &[]);
                Verdict::Write(record, place)
            }
            (_, None | Some(_)) => Verdict::Wait,
        });
    };
    let Some((peer, group)) = disk else {
        return Ok(match record.seats.get(&ordinal) {
            Some(Seat { taken: false, .. }) => write(record.clone(), ordinal),
            Some(Seat { taken: true, .. }) | None => {
                let peer = record.next.max(ids_seen + 1);
                let place = record.place(peer, &[]);
                Verdict::Write(record.seat(ordinal, peer), place)
            }
        });
    };
    if let Some(found) = group.filter(|group| *group != record.group) {
        return Err(Misplaced::OtherGroup {
            found,
            expected: record.group,
        });
    }
    if record.retired.contains(&peer) {
        return Err(Misplaced::Retired { peer });
    }
    let place = record.place(peer, &[]);
    match record.seats.get(&ordinal) {
        Some(seat) if seat.peer == peer && seat.taken => Ok(Verdict::Be(place)),
        Some(seat) if seat.peer != peer => Err(Misplaced::Replaced {
            peer,
            by: seat.peer,
        }),
        Some(_) | None => Ok(Verdict::Write(record.seat(ordinal, peer), place)),
    }
}

/// Takes the seat that waits for its founder.
fn write(mut record: Record, ordinal: u32) -> Verdict {
    let peer = match record.seats.get_mut(&ordinal) {
        Some(seat) => {
            seat.taken = true;
            seat.peer
        }
        None => return Verdict::Wait,
    };
    let place = record.place(peer, &record.founders);
    Verdict::Write(record, place)
}

/// The record in Kubernetes.
#[derive(Clone)]
pub struct Records {
    api: Api<ConfigMap>,
}

/// Why the record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Kubernetes.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Somebody else changed it meanwhile.
    #[error("the record {CONFIG_MAP} was changed meanwhile")]
    Changed,
    /// It can't be understood.
    #[error("understand the record {CONFIG_MAP}: {why}")]
    Format {
        /// Why not.
        why: String,
    },
}

/// A record and the version of its object.
pub type Found = Option<(Record, String)>;

impl Records {
    /// In this namespace.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
        }
    }

    /// As it is.
    ///
    /// # Errors
    /// No clear answer, or not understood.
    pub async fn read(&self) -> Result<Found, RecordError> {
        let read = bounded("read the group's record", self.api.get(CONFIG_MAP)).await;
        let Some(map) = if_there(read)? else {
            return Ok(None);
        };
        let text = map.data.unwrap_or_default().remove(KEY).unwrap_or_default();
        let record: Record = serde_json::from_str(&text).map_err(|why| RecordError::Format {
            why: why.to_string(),
        })?;
        if record.version != VERSION {
            return Err(RecordError::Format {
                why: format!(
                    "it is of version {}, this peer knows {VERSION}",
                    record.version
                ),
            });
        }
        Ok(Some((
            record,
            map.metadata.resource_version.unwrap_or_default(),
        )))
    }

    /// Writes it in place of what was found.
    ///
    /// # Errors
    /// [`RecordError::Changed`] when it isn't any more what was found.
    pub async fn write(&self, record: &Record, found: &Found) -> Result<(), RecordError> {
        let text = serde_json::to_string(record).map_err(|why| RecordError::Format {
            why: why.to_string(),
        })?;
        let version = found.as_ref().map(|(_, version)| version.clone());
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.to_owned()),
                resource_version: version.clone(),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), text)])),
            ..ConfigMap::default()
        };
        let params = PostParams::default();
        let doing = "write the group's record";
        let written = match version {
            Some(_) => bounded(doing, self.api.replace(CONFIG_MAP, &params, &map)).await,
            None => bounded(doing, self.api.create(&params, &map)).await,
        };
        match written {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(409) => Err(RecordError::Changed),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: Uuid = Uuid::from_u128(7);
    const OTHER: Uuid = Uuid::from_u128(8);

    fn place(peer: u64, founders: &[u64]) -> Place {
        Place {
            peer,
            group: G,
            founders: founders.to_vec(),
        }
    }

    /// What the pod becomes, and the record afterwards.
    fn ask(record: Option<&Record>, ordinal: u32, disk: OnDisk) -> (Option<Record>, Place) {
        match decide(record, ordinal, disk, 3, 0, G).unwrap() {
            Verdict::Write(record, place) => (Some(record), place),
            Verdict::Be(place) => (record.cloned(), place),
            Verdict::Wait => panic!("it waits"),
        }
    }

    fn founded() -> Record {
        let (record, _) = ask(None, 0, None);
        let (record, _) = ask(record.as_ref(), 1, None);
        ask(record.as_ref(), 2, None).0.unwrap()
    }

    #[test]
    fn three_pods_with_empty_disks_found_a_group_once_pod_0_has_begun_it() {
        assert_eq!(decide(None, 1, None, 3, 0, G), Ok(Verdict::Wait));
        let (record, first) = ask(None, 0, None);
        assert_eq!(first, place(1, &[1, 2, 3]));
        let (record, third) = ask(record.as_ref(), 2, None);
        assert_eq!(third, place(3, &[1, 2, 3]));
        let (record, second) = ask(record.as_ref(), 1, None);
        assert_eq!(second, place(2, &[1, 2, 3]));
        assert_eq!(record.unwrap().wanted(), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn yesterdays_record_is_read_and_written_again_the_same() {
        let yesterdays = r#"{"version":1,"group":"00000000-0000-0000-0000-000000000007","founders":[1,2,3],"seats":{"0":{"peer":1,"taken":true},"1":{"peer":2,"taken":true},"2":{"peer":3,"taken":true}},"retired":[],"next":4}"#;
        let read: Record = serde_json::from_str(yesterdays).unwrap();
        assert_eq!(read, founded());
        assert_eq!(serde_json::to_string(&read).unwrap(), yesterdays);
    }

    #[test]
    fn a_restart_is_who_it_was() {
        let record = founded();
        let again = decide(Some(&record), 1, Some((2, Some(G))), 3, 3, OTHER);
        assert_eq!(again, Ok(Verdict::Be(place(2, &[]))));
    }

    #[test]
    fn an_empty_disk_whose_founder_was_there_gets_an_id_that_nobody_had() {
        let (record, renewed) = ask(Some(&founded()), 1, None);
        assert_eq!(renewed, place(4, &[]));
        let record = record.unwrap();
        assert_eq!(record.wanted(), BTreeSet::from([1, 3, 4]));
        // Twice in a row, as after a crash between the record and the disk.
        let (_, again) = ask(Some(&record), 1, None);
        assert_eq!(again, place(5, &[]));
        let old = decide(Some(&record), 1, Some((2, Some(G))), 3, 4, OTHER);
        assert_eq!(old, Err(Misplaced::Replaced { peer: 2, by: 4 }));
    }

    #[test]
    fn a_log_of_one_peer_from_before_is_kept_and_others_join_it() {
        let (record, first) = ask(None, 0, Some((1, None)));
        assert_eq!(first, place(1, &[]));
        let (record, second) = ask(record.as_ref(), 1, None);
        assert_eq!(second, place(2, &[]));
        assert_eq!(record.unwrap().wanted(), BTreeSet::from([1, 2]));
    }

    #[test]
    fn disks_of_another_group_and_of_removed_peers_are_not_taken() {
        let record = founded();
        let foreign = decide(Some(&record), 0, Some((1, Some(OTHER))), 3, 3, G);
        assert_eq!(
            foreign,
            Err(Misplaced::OtherGroup {
                found: OTHER,
                expected: G
            })
        );
        let record = record.without(3);
        let removed = decide(Some(&record), 2, Some((3, Some(G))), 3, 3, OTHER);
        assert_eq!(removed, Err(Misplaced::Retired { peer: 3 }));
        assert_eq!(ask(Some(&record), 2, None).1, place(4, &[]));
    }

    #[test]
    fn a_deleted_record_is_written_again_from_the_disks() {
        let (record, first) = {
            let verdict = decide(None, 0, Some((1, Some(G))), 3, 6, OTHER);
            let Ok(Verdict::Write(record, place)) = verdict else {
                panic!("{verdict:?}")
            };
            (record, place)
        };
        assert_eq!(first, place(1, &[]));
        let (record, second) = ask(Some(&record), 1, Some((5, Some(G))));
        assert_eq!(second, place(5, &[]));
        // An id that was given before the record was lost is not given again.
        assert_eq!(ask(record.as_ref(), 2, None).1, place(7, &[]));
    }
}
