//! What the lines of a journal add up to. Pure: lines in, facts out, and back into as few lines as possible.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{Entry, StepKey, StepKind};

/// Migrations remembered in full. One takes some kilobytes with its reports, so this is below 32 MiB; ten migrations a
/// minute take seven hours to push one out, and what is pushed out was not touched longest.
const MIGRATIONS_MAX: usize = 4096;

/// A pod that we paused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldFacts {
    /// Of the step that did it.
    pub revision: u64,
    /// UID of the pod.
    pub pod_uid: String,
    /// Since the first task was paused.
    pub paused_unix_ns: u64,
    /// The boot in which it was done: a hold does not survive a reboot.
    pub boot_id: String,
    /// The runtime's ids of the containers that are paused.
    pub containers: BTreeSet<String>,
    /// Containers whose dump was asked for.
    #[serde(default)]
    pub dumping: BTreeSet<String>,
    /// The pod's folder in the freezer's hierarchy, once it was to be frozen.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

/// An archive that the kubelet wrote for us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// Name of the container in the pod.
    pub container: String,
    /// The runtime's id of the container it was made of.
    pub container_id: String,
    /// Where it lies.
    pub path: PathBuf,
}

/// What is known of one migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// Newest revision seen.
    pub highest: u64,
    /// Begun and not finished.
    pub begun: BTreeSet<(u64, StepKind)>,
    /// Reports by step, in hexadecimal.
    pub finished: BTreeMap<(u64, StepKind), String>,
    /// The hold, while there is one.
    pub hold: Option<HoldFacts>,
    /// Archives on this node.
    pub archives: Vec<Archive>,
    /// Since when a round is being made, nanoseconds since 1970: its dumps may have left the pod paused.
    pub copying: Option<u64>,
    /// Archives of rounds: bases, and never the pod's last instant.
    pub copies: Vec<Archive>,
    /// UID of the restored pod that stands still because it may be given up.
    pub barred: Option<String>,
}

/// Everything this worker remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Identity of the journal; empty before its first line.
    pub journal_id: String,
    /// Log index of its registration, 0 before it.
    pub registered: u64,
    /// Unknown migrations up to this revision are refused.
    pub forgot_up_to: u64,
    migrations: BTreeMap<String, Migration>,
}

impl Migration {
    fn archived(&mut self, archive: Archive) {
        self.archives
            .retain(|other| other.container != archive.container);
        self.archives.push(archive);
    }

    fn forget_archives(&mut self) {
        self.archives.clear();
        self.copies.clear();
        self.copying = None;
    }

    /// Archives of its pod that are younger may be its own, though nobody told us their names.
    pub fn since_unix_ns(&self) -> Option<u64> {
        let held = self.hold.as_ref().map(|hold| hold.paused_unix_ns);
        held.into_iter().chain(self.copying).min()
    }
}

impl Memory {
    /// Takes one line in.
    pub fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Created {
                format: _,
                journal_id,
            } => self.journal_id = journal_id,
            Entry::Registered { revision } => self.registered = self.registered.max(revision),
            Entry::Seen {
                migration,
                revision,
            } => self.seen(migration, revision),
            Entry::Forgot { up_to_revision } => {
                self.forgot_up_to = self.forgot_up_to.max(up_to_revision)
            }
            Entry::Begun(StepKey {
                migration,
                revision,
                kind,
            }) => {
                self.seen(migration.clone(), revision);
                self.entry(migration).begun.insert((revision, kind));
            }
            Entry::Finished {
                step:
                    StepKey {
                        migration,
                        revision,
                        kind,
                    },
                report,
            } => {
                let known = self.entry(migration);
                known.begun.remove(&(revision, kind));
                known.finished.insert((revision, kind), report);
            }
            Entry::Pausing { migration, facts } => self.entry(migration).hold = Some(facts),
            Entry::Dumping {
                migration,
                container_id,
            } => {
                if let Some(hold) = &mut self.entry(migration).hold {
                    hold.dumping.insert(container_id);
                }
            }
            Entry::Archived { migration, archive } => self.entry(migration).archived(archive),
            Entry::Freezing { migration, cgroup } => {
                if let Some(hold) = &mut self.entry(migration).hold {
                    hold.cgroup = Some(cgroup);
                }
            }
            Entry::HoldEnded { migration } => self.entry(migration).hold = None,
            Entry::ArchivesRemoved { migration } => self.entry(migration).forget_archives(),
            Entry::Copying {
                migration,
                since_unix_ns,
            } => self.entry(migration).copying = Some(since_unix_ns),
            Entry::Copied { migration, archive } => self.entry(migration).copies.push(archive),
            Entry::CopyEnded { migration } => self.entry(migration).copying = None,
            Entry::Barring { migration, pod_uid } => {
                self.entry(migration).barred = Some(pod_uid);
            }
            Entry::BarEnded { migration } => self.entry(migration).barred = None,
        }
    }

    /// What is known of a migration; nothing known is the default.
    pub fn migration(&self, id: &str) -> Migration {
        self.migrations.get(id).cloned().unwrap_or_default()
    }

    /// Is a step of this revision too old to be done?
    pub fn is_stale(&self, migration: &str, revision: u64) -> bool {
        let floor = match self.migrations.get(migration) {
            Some(known) => known.highest,
            None if self.forgot_up_to == 0 => 0,
            None => self.forgot_up_to + 1,
        };
        revision < floor.max(self.registered)
    }

    /// Pods that this worker paused and neither released nor destroyed.
    pub fn holds(&self) -> BTreeMap<String, HoldFacts> {
        self.migrations
            .iter()
            .filter_map(|(id, known)| Some((id.clone(), known.hold.clone()?)))
            .collect()
    }

    /// The fewest lines that add up to this memory again, the oldest migrations left out when there are too many.
    pub fn condense(&self, format: u32) -> Vec<Entry> {
        let Self {
            journal_id,
            registered,
            forgot_up_to,
            migrations,
        } = self;
        let mut entries = vec![Entry::Created {
            format,
            journal_id: journal_id.clone(),
        }];
        if *registered > 0 {
            entries.push(Entry::Registered {
                revision: *registered,
            });
        }
        let dropped = self.too_many();
        let forgotten = dropped
            .iter()
            .map(|id| migrations[*id].highest)
            .max()
            .unwrap_or(0)
            .max(*forgot_up_to);
        if forgotten > 0 {
            entries.push(Entry::Forgot {
                up_to_revision: forgotten,
            });
        }
        for (id, known) in migrations
            .iter()
            .filter(|(id, _)| !dropped.contains(id.as_str()))
        {
            condense_migration(id, known, &mut entries);
        }
        entries
    }

    /// Migrations to forget: the oldest beyond the limit, never one that still holds something.
    fn too_many(&self) -> BTreeSet<&str> {
        let surplus = self.migrations.len().saturating_sub(MIGRATIONS_MAX);
        let mut idle: Vec<_> = self
            .migrations
            .iter()
            .filter(|(_, known)| {
                known.hold.is_none()
                    && known.archives.is_empty()
                    && known.begun.is_empty()
                    && known.barred.is_none()
                    && known.copying.is_none()
                    && known.copies.is_empty()
            })
            .map(|(id, known)| (known.highest, id.as_str()))
            .collect();
        idle.sort_unstable();
        idle.into_iter().take(surplus).map(|(_, id)| id).collect()
    }

    fn seen(&mut self, migration: String, revision: u64) {
        let known = self.entry(migration);
        known.highest = known.highest.max(revision);
    }

    fn entry(&mut self, migration: String) -> &mut Migration {
        self.migrations.entry(migration).or_default()
    }
}

fn condense_migration(id: &str, known: &Migration, entries: &mut Vec<Entry>) {
    let Migration {
        highest,
        begun,
        finished,
        hold,
        archives,
        barred,
        copying,
        copies,
    } = known;
    let migration = || id.to_owned();
    let key = |&(revision, kind): &(u64, StepKind)| StepKey {
        migration: migration(),
        revision,
        kind,
    };
    entries.push(Entry::Seen {
        migration: migration(),
        revision: *highest,
    });
    entries.extend(begun.iter().map(|step| Entry::Begun(key(step))));
    entries.extend(finished.iter().map(|(step, report)| Entry::Finished {
        step: key(step),
        report: report.clone(),
    }));
    entries.extend(hold.iter().map(|facts| Entry::Pausing {
        migration: migration(),
        facts: facts.clone(),
    }));
    entries.extend(archives.iter().map(|archive| Entry::Archived {
        migration: migration(),
        archive: archive.clone(),
    }));
    entries.extend(copying.iter().map(|since_unix_ns| Entry::Copying {
        migration: migration(),
        since_unix_ns: *since_unix_ns,
    }));
    entries.extend(copies.iter().map(|archive| Entry::Copied {
        migration: migration(),
        archive: archive.clone(),
    }));
    entries.extend(barred.iter().map(|pod_uid| Entry::Barring {
        migration: migration(),
        pod_uid: pod_uid.clone(),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(migration: &str, revision: u64) -> Entry {
        Entry::Seen {
            migration: migration.into(),
            revision,
        }
    }

    #[test]
    fn an_older_revision_than_one_seen_is_stale_and_the_same_one_is_not() {
        let mut memory = Memory::default();
        memory.apply(seen("m", 10));
        assert!(memory.is_stale("m", 9));
        assert!(!memory.is_stale("m", 10));
        assert!(!memory.is_stale("other", 9));
    }

    #[test]
    fn a_barred_pod_is_remembered_over_condensing_until_its_bar_has_ended() {
        let mut memory = Memory::default();
        let (migration, pod_uid) = ("m".to_owned(), "u".to_owned());
        memory.apply(Entry::Barring { migration, pod_uid });
        let mut again = Memory::default();
        let lines = memory.condense(1).into_iter();
        lines.for_each(|entry| again.apply(entry));
        assert_eq!(again.migration("m").barred.as_deref(), Some("u"));
        let migration = "m".to_owned();
        again.apply(Entry::BarEnded { migration });
        assert_eq!(again.migration("m").barred, None);
    }

    #[test]
    fn a_round_is_remembered_over_condensing_and_its_archives_are_not_the_holds() {
        let mut memory = Memory::default();
        let migration = || "m".to_owned();
        let archive = Archive {
            container: "c".into(),
            container_id: "i".into(),
            path: "/a".into(),
        };
        memory.apply(Entry::Copying {
            migration: migration(),
            since_unix_ns: 7,
        });
        memory.apply(Entry::Copied {
            migration: migration(),
            archive: archive.clone(),
        });
        let mut again = Memory::default();
        let lines = memory.condense(1).into_iter();
        lines.for_each(|entry| again.apply(entry));
        let known = again.migration("m");
        assert_eq!(known.copying, Some(7));
        assert_eq!(known.copies, [archive]);
        assert!(known.archives.is_empty());
        again.apply(Entry::CopyEnded {
            migration: migration(),
        });
        again.apply(Entry::ArchivesRemoved {
            migration: migration(),
        });
        assert_eq!(again.migration("m"), Migration::default());
    }

    #[test]
    fn everything_older_than_the_registration_is_stale() {
        let mut memory = Memory::default();
        memory.apply(Entry::Registered { revision: 50 });
        assert!(memory.is_stale("m", 49));
        assert!(!memory.is_stale("m", 50));
    }

    #[test]
    fn condensing_forgets_the_oldest_idle_migrations_and_refuses_them_from_then_on() {
        let mut memory = Memory {
            journal_id: "j".into(),
            ..Memory::default()
        };
        for number in 1..=MIGRATIONS_MAX as u64 + 2 {
            memory.apply(seen(&format!("m{number}"), number));
        }
        memory.apply(Entry::Archived {
            migration: "m1".into(),
            archive: Archive {
                container: "c".into(),
                container_id: "i".into(),
                path: "/a".into(),
            },
        });
        let mut again = Memory::default();
        memory
            .condense(1)
            .into_iter()
            .for_each(|entry| again.apply(entry));
        assert_eq!(
            again.migration("m1").archives.len(),
            1,
            "what holds something is never forgotten"
        );
        assert_eq!(again.migration("m2"), Migration::default());
        assert!(again.is_stale("m2", 2) && again.is_stale("m3", 3));
        assert!(!again.is_stale("new", 4));
    }
}
