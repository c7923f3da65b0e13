//! The disk of a worker's journal: what is synced survives the process, what isn't may not. The memory made of the lines
//! is the production one.

use std::time::Duration;

use tokio::sync::mpsc;
use worker::journal::{Entry, Memory, Request};

use crate::{life::Life, mistakes::Mistake, sim::Sim};

const WRITTEN_LATE: Duration = Duration::from_secs(2);

/// Lines that are on the disk.
#[derive(Clone, Debug, Default)]
pub struct Lines(Vec<Entry>);

impl Lines {
    /// A new journal of this identity.
    #[must_use]
    pub fn new(journal_id: String) -> Self {
        Self(vec![Entry::Created {
            format: 1,
            journal_id,
        }])
    }

    /// What they add up to.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let mut memory = Memory::default();
        self.0.iter().cloned().for_each(|entry| memory.apply(entry));
        memory
    }
}

/// Keeps the journal of a life on this machine.
pub async fn keep(sim: Sim, life: Life, node: String, mut queue: mpsc::Receiver<Request>) {
    let lines = sim.look(|inner| inner.faults.journal(&node).clone());
    let mut memory = Memory::default();
    let trusting = sim.makes(Mistake::StaleRevisionAccepted);
    let remember = |memory: &mut Memory, entry| {
        if !(trusting && is_fence(&entry)) {
            memory.apply(entry);
        }
    };
    for entry in lines.0 {
        remember(&mut memory, entry);
    }
    while let Some(request) = queue.recv().await {
        match request {
            Request::Append(entries, _, reply) => {
                if sim.makes(Mistake::JournalAfterTheEffect) {
                    // Remembered in memory only; the disk has it when the effect is long done.
                    let (sim, life, node) = (sim.clone(), life.clone(), node.clone());
                    let entries = entries.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(WRITTEN_LATE).await;
                        if !life.is_dead() {
                            sync(&sim, &node, entries);
                        }
                    });
                } else {
                    life.edge("write the journal").await;
                    sim.rest(0..=3).await;
                    sync(&sim, &node, entries.clone());
                    life.edge("journal written").await;
                }
                for entry in entries {
                    remember(&mut memory, entry);
                }
                // An asker that went away does not take back what was written.
                let _ = reply.send(Ok(()));
            }
            Request::Recall(reply) => {
                let _ = reply.send(memory.clone());
            }
        }
    }
}

fn sync(sim: &Sim, node: &str, entries: Vec<Entry>) {
    sim.look(|inner| inner.faults.journal(node).0.extend(entries));
}

/// Says which revisions are too old.
fn is_fence(entry: &Entry) -> bool {
    match entry {
        Entry::Registered { .. } | Entry::Seen { .. } | Entry::Forgot { .. } | Entry::Begun(_) => {
            true
        }
        Entry::Created { .. }
        | Entry::Finished { .. }
        | Entry::Pausing { .. }
        | Entry::Dumping { .. }
        | Entry::Archived { .. }
        | Entry::Freezing { .. }
        | Entry::HoldEnded { .. }
        | Entry::ArchivesRemoved { .. }
        | Entry::Barring { .. }
        | Entry::BarEnded { .. }
        | Entry::Copying { .. }
        | Entry::Copied { .. }
        | Entry::CopyEnded { .. } => false,
    }
}
