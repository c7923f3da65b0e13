use std::collections::BTreeSet;

use super::*;
use crate::journal::{Archive, HoldFacts, StepKey, StepKind};

fn key(revision: u64) -> StepKey {
    StepKey {
        migration: "m".into(),
        revision,
        kind: StepKind::Hold,
    }
}

fn story() -> Vec<Entry> {
    let facts = HoldFacts {
        revision: 7,
        pod_uid: "u".into(),
        paused_unix_ns: 1,
        boot_id: "b".into(),
        containers: BTreeSet::from(["c1".to_owned()]),
        dumping: BTreeSet::new(),
        cgroup: None,
    };
    let archive = Archive {
        container: "c".into(),
        container_id: "c1".into(),
        path: "/a.tar".into(),
    };
    vec![
        Entry::Registered { revision: 3 },
        Entry::Seen {
            migration: "m".into(),
            revision: 7,
        },
        Entry::Begun(key(7)),
        Entry::Pausing {
            migration: "m".into(),
            facts,
        },
        Entry::Dumping {
            migration: "m".into(),
            container_id: "c1".into(),
        },
        Entry::Archived {
            migration: "m".into(),
            archive,
        },
        Entry::Freezing {
            migration: "m".into(),
            cgroup: "/pod".into(),
        },
        Entry::Finished {
            step: key(7),
            report: "00".into(),
        },
    ]
}

fn told(folder: &Path) -> Vec<u8> {
    let mut journal = JournalFile::open(folder).unwrap();
    for entry in story() {
        journal.append(vec![entry], Urgency::Ordinary).unwrap();
    }
    fs::read(folder.join("journal")).unwrap()
}

#[test]
fn a_journal_cut_at_any_byte_remembers_exactly_its_whole_lines() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = told(folder.path());
    for cut in 0..=bytes.len() {
        let (memory, whole) = replay(&bytes[..cut], Path::new("journal")).unwrap();
        let lines = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
        let (expected, _) = replay(&bytes[..whole], Path::new("journal")).unwrap();
        assert_eq!(memory, expected);
        assert_eq!(
            bytes[..whole].iter().filter(|&&byte| byte == b'\n').count(),
            lines,
            "cut at {cut}"
        );
    }
}

#[test]
fn a_torn_journal_can_be_opened_and_written_to_again() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = told(folder.path());
    fs::write(folder.path().join("journal"), &bytes[..bytes.len() - 5]).unwrap();
    let mut journal = JournalFile::open(folder.path()).unwrap();
    assert!(
        journal
            .memory
            .migration("m")
            .begun
            .contains(&(7, StepKind::Hold))
    );
    journal
        .append(
            vec![Entry::Finished {
                step: key(7),
                report: "01".into(),
            }],
            Urgency::Ordinary,
        )
        .unwrap();
    let again = JournalFile::open(folder.path()).unwrap();
    assert_eq!(again.memory, journal.memory);
    assert_eq!(
        again.memory.migration("m").finished[&(7, StepKind::Hold)],
        "01"
    );
}

#[test]
fn a_damaged_line_with_good_ones_after_it_is_refused_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = told(folder.path());
    let second = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 20;
    bytes[second] ^= 1;
    let refusal = replay(&bytes, Path::new("journal")).unwrap_err();
    assert!(
        matches!(refusal, JournalError::Damaged { line: 2, .. }),
        "{refusal}"
    );
}

#[test]
fn a_new_journal_has_an_identity_of_its_own_and_keeps_it() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = JournalFile::open(one.path()).unwrap().memory.journal_id;
    assert_eq!(
        JournalFile::open(one.path()).unwrap().memory.journal_id,
        first
    );
    assert_ne!(
        JournalFile::open(two.path()).unwrap().memory.journal_id,
        first
    );
}

#[test]
fn compaction_changes_the_file_and_not_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    told(folder.path());
    let mut journal = JournalFile::open(folder.path()).unwrap();
    for _ in 0..100 {
        journal
            .append(
                vec![Entry::Seen {
                    migration: "m".into(),
                    revision: 7,
                }],
                Urgency::Ordinary,
            )
            .unwrap();
    }
    let (before, length) = (journal.memory.clone(), journal.length);
    journal.rewrite().unwrap();
    assert_eq!(journal.memory, before);
    assert!(journal.length < length / 2);
    journal
        .append(
            vec![Entry::HoldEnded {
                migration: "m".into(),
            }],
            Urgency::Ordinary,
        )
        .unwrap();
    assert_eq!(
        JournalFile::open(folder.path()).unwrap().memory,
        journal.memory
    );
}

#[test]
fn a_full_disk_fails_the_append_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = JournalFile::open(folder.path()).unwrap();
    let before = journal.memory.clone();
    journal.file = OpenOptions::new().append(true).open("/dev/full").unwrap();
    let error = journal.append(story(), Urgency::Ordinary).unwrap_err();
    assert!(
        matches!(&error, JournalError::Io { source, .. } if source.raw_os_error() == Some(28)),
        "{error:?}"
    );
    assert_eq!(journal.memory, before);
    assert!(
        journal.unclear,
        "/dev/full can't be cut back, so nothing more may be written"
    );
    assert!(matches!(
        journal.append(story(), Urgency::Ordinary),
        Err(JournalError::Unclear { .. })
    ));
}

#[tokio::test]
async fn the_door_remembers_across_its_thread() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path()).unwrap();
    journal.append(story(), Urgency::Ordinary).await.unwrap();
    let memory = journal.recall().await.unwrap();
    assert_eq!(memory.registered, 3);
    assert_eq!(
        memory.holds()["m"].cgroup.as_deref(),
        Some(Path::new("/pod"))
    );
}
