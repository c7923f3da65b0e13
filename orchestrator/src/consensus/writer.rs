//! The one thread that writes the log: it takes whatever has queued up and writes it with one fsync.
//!
//! A write that fails is tried again, from the same tasks on a freshly opened file (redb trusts no file after an IO
//! error, and neither do we): until it succeeds nothing of it is promised to anybody. The queue is bounded by what
//! raft lets be under way: 32 MiB of proposals on a leader, 64 unanswered appends on a follower.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use raft::eraftpb::Message;
use tokio::sync::mpsc::UnboundedSender;

use super::storage::{Disk, DiskError, WriteTask};

/// Tasks in one transaction: more would only make the first one wait.
const BATCH_MAX: usize = 256;

/// Between two tries to write to a disk that can't.
const RETRY: Duration = Duration::from_millis(500);

/// Opens the disk again after a failure.
pub(crate) type Reopen = Box<dyn Fn() -> Result<Disk, DiskError> + Send>;

/// What the writer says.
#[derive(Debug)]
pub(super) enum Written {
    /// Everything up to this Ready is on the disk; the messages that promise it may go.
    Persisted {
        /// The Ready's number.
        number: Option<u64>,
        /// The messages.
        messages: Vec<Message>,
    },
    /// The disk can't; trying again.
    Stalled {
        /// There is no room.
        full: bool,
        /// What it said.
        detail: String,
    },
}

/// The writer's thread.
pub(super) struct Writer {
    tasks: mpsc::Sender<WriteTask>,
    stopping: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Writer {
    /// Starts it.
    pub(super) fn start(
        disk: Disk,
        reopen: Reopen,
        events: UnboundedSender<Written>,
    ) -> std::io::Result<Self> {
        let (tasks, queue) = mpsc::channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || write_all(disk, &reopen, &queue, &events, &stop))?;
        Ok(Self {
            tasks,
            stopping,
            thread,
        })
    }

    /// Queues a task. A thread that is gone is noticed by its events ending.
    pub(super) fn write(&self, task: WriteTask) {
        if self.tasks.send(task).is_err() {
            tracing::error!("the log's writer is gone");
        }
    }

    /// Ends it after what is queued, or at once when the disk can't write. Blocks.
    pub(super) fn stop(self) {
        let Self {
            tasks,
            stopping,
            thread,
        } = self;
        stopping.store(true, Ordering::Relaxed);
        drop(tasks);
        if thread.join().is_err() {
            tracing::error!("the log's writer panicked");
        }
    }
}

fn write_all(
    disk: Disk,
    reopen: &Reopen,
    queue: &mpsc::Receiver<WriteTask>,
    events: &UnboundedSender<Written>,
    stopping: &AtomicBool,
) {
    let mut disk = Some(disk);
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(task) = queue.try_recv()
        {
            batch.push(task);
        }
        while let Err(cause) = write(&mut disk, reopen, &batch) {
            let stalled = Written::Stalled {
                full: cause.is_full(),
                detail: format!("{:#}", anyhow::Error::new(cause)),
            };
            if events.send(stalled).is_err() || stopping.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(RETRY);
        }
        let persisted = Written::Persisted {
            number: batch.iter().filter_map(|task| task.number).max(),
            messages: batch.into_iter().flat_map(|task| task.after).collect(),
        };
        if events.send(persisted).is_err() {
            return;
        }
    }
}

fn write(disk: &mut Option<Disk>, reopen: &Reopen, batch: &[WriteTask]) -> Result<(), DiskError> {
    let open = match disk.take() {
        Some(open) => open,
        None => reopen()?,
    };
    open.write(batch)?;
    *disk = Some(open);
    Ok(())
}
