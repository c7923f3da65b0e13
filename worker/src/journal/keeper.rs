//! The thread that owns the journal's file and the memory made of it, and the door to it.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    thread,
};

use tokio::sync::{mpsc, oneshot};

use super::{Entry, JournalError, Memory};

/// Version of the lines.
const FORMAT: u32 = 1;
/// Hexadecimal digits of blake3 before each line: 64 bits, enough against damage, which is not an adversary.
const CHECKSUM_DIGITS: usize = 16;
/// The file is rewritten beyond this size, or beyond twice what the last rewriting left, whichever is more.
const COMPACT_BYTES_MIN: u64 = 4 << 20;
/// Requests waiting for the disk; each waits for its sync, so a longer queue would only hide a slow disk.
const QUEUE_MAX: usize = 64;

/// Kept aside on the journal's file system, so that a full disk can still be told of a pod's release: about 200 lines.
const RESERVE_BYTES: usize = 256 << 10;

/// What a journal is asked for, by whoever came through its door.
pub enum Request {
    /// Write and sync these lines, then remember them, then answer.
    Append(
        Vec<Entry>,
        Urgency,
        oneshot::Sender<Result<(), JournalError>>,
    ),
    /// Everything remembered.
    Recall(oneshot::Sender<Memory>),
}

/// May this line use what is kept aside for a full disk?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// No: a step that can't be remembered is not begun.
    Ordinary,
    /// Yes: it ends a hold, or it says that something failed. A disk that is full of archives must not keep a pod frozen.
    EndsAHold,
}

/// A door to the journal; clones lead to the same one.
#[derive(Clone, Debug)]
pub struct Journal {
    requests: mpsc::Sender<Request>,
}

impl Journal {
    /// Opens the journal in a folder, or makes one, and starts its thread.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let mut file = JournalFile::open(folder)?;
        let (requests, mut queue) = mpsc::channel(QUEUE_MAX);
        let path = file.path.clone();
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || {
                while let Some(request) = queue.blocking_recv() {
                    match request {
                        // An asker that went away does not take back what was written.
                        Request::Append(entries, urgency, reply) => {
                            drop(reply.send(file.append(entries, urgency)))
                        }
                        Request::Recall(reply) => drop(reply.send(file.memory.clone())),
                    }
                }
            })
            .map_err(|source| JournalError::Io {
                doing: "start the thread of",
                path,
                source,
            })?;
        Ok(Self { requests })
    }

    /// The door to a journal that the caller keeps: a simulation's, on a disk that forgets what was not synced.
    pub fn kept_by_caller() -> (Self, mpsc::Receiver<Request>) {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        (Self { requests }, queue)
    }

    /// Writes and syncs these lines; once this returns they are remembered.
    pub async fn append(&self, entries: Vec<Entry>, urgency: Urgency) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Append(entries, urgency, reply))
            .await
            .map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)?
    }

    /// Everything remembered, as of now.
    pub async fn recall(&self) -> Result<Memory, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Recall(reply))
            .await
            .map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)
    }
}

struct JournalFile {
    path: PathBuf,
    file: File,
    memory: Memory,
    /// Bytes known to be whole lines on disk.
    length: u64,
    compact_at: u64,
    /// A failed write could not be taken back: the end of the file is not known.
    unclear: bool,
}

impl JournalFile {
    fn open(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join("journal");
        fs::create_dir_all(folder).map_err(io("make the folder of", &path))?;
        let mut file = open_to_append(&path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read", &path))?;
        let (memory, whole) = replay(&bytes, &path)?;
        file.set_len(whole as u64)
            .map_err(io("cut the torn end of", &path))?;
        let length = whole as u64;
        let mut journal = Self {
            path,
            file,
            memory,
            length,
            compact_at: COMPACT_BYTES_MIN,
            unclear: false,
        };
        if journal.memory.journal_id.is_empty() {
            let journal_id = fresh_id().map_err(io("make an identity for", &journal.path))?;
            journal.append(
                vec![Entry::Created {
                    format: FORMAT,
                    journal_id,
                }],
                Urgency::Ordinary,
            )?;
        }
        journal.set_reserve_aside();
        // The name of the file must survive a crash as its lines do.
        sync_folder(folder, &journal.path)?;
        Ok(journal)
    }

    fn append(&mut self, entries: Vec<Entry>, urgency: Urgency) -> Result<(), JournalError> {
        let lines: String = entries.iter().map(line).collect();
        match self.write(&lines) {
            Err(JournalError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::StorageFull
                    && urgency == Urgency::EndsAHold =>
            {
                // Without a reserve there is nothing to free, and the second attempt says so.
                let _not_there = fs::remove_file(self.reserve());
                self.write(&lines)?;
            }
            other => other?,
        }
        self.length += lines.len() as u64;
        entries
            .into_iter()
            .for_each(|entry| self.memory.apply(entry));
        if self.length > self.compact_at {
            self.compact();
        }
        Ok(())
    }

    fn write(&mut self, lines: &str) -> Result<(), JournalError> {
        if self.unclear {
            return Err(JournalError::Unclear {
                path: self.path.clone(),
            });
        }
        self.file
            .write_all(lines.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|source| {
                // Whatever part got there must go, or the next line would stand behind half a one.
                let taken_back = self
                    .file
                    .set_len(self.length)
                    .and_then(|()| self.file.sync_data());
                self.unclear = taken_back.is_err();
                JournalError::Io {
                    doing: "write to",
                    path: self.path.clone(),
                    source,
                }
            })
    }

    fn reserve(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    /// Made at every start; a disk that is full already has none to give.
    fn set_reserve_aside(&self) {
        let is_there =
            fs::metadata(self.reserve()).is_ok_and(|reserve| reserve.len() == RESERVE_BYTES as u64);
        if is_there {
            return;
        }
        // Not zeros: some file systems keep those nowhere.
        if let Err(error) = fs::write(self.reserve(), vec![b'r'; RESERVE_BYTES]) {
            tracing::warn!(%error, path = %self.reserve().display(), "no reserve for a full disk");
            let _not_there = fs::remove_file(self.reserve());
        }
    }

    /// Rewrites the file. Failing is harmless: the old file stays, and it is tried again after as much again.
    fn compact(&mut self) {
        match self.rewrite() {
            Ok(()) => self.compact_at = COMPACT_BYTES_MIN.max(self.length * 2),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "the journal was not compacted");
                self.compact_at = self.length + COMPACT_BYTES_MIN;
            }
        }
    }

    // Order: the new file is whole on disk before it takes the old one's name, and the name is synced before the next
    // append; any other order can end with neither.
    fn rewrite(&mut self) -> std::io::Result<()> {
        let next = self.path.with_extension("next");
        let entries = self.memory.condense(FORMAT);
        let lines: String = entries.iter().map(line).collect();
        let mut file = File::create(&next)?;
        file.write_all(lines.as_bytes())?;
        file.sync_all()?;
        let file = OpenOptions::new().append(true).open(&next)?;
        fs::rename(&next, &self.path)?;
        // From here the new file is the journal, whatever else fails.
        self.file = file;
        self.length = lines.len() as u64;
        let mut memory = Memory::default();
        entries.into_iter().for_each(|entry| memory.apply(entry));
        self.memory = memory;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

fn line(entry: &Entry) -> String {
    let json = serde_json::to_string(entry)
        .expect("entries have string keys and no floats, so they always encode");
    format!("{} {json}\n", checksum(json.as_bytes()))
}

fn checksum(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..CHECKSUM_DIGITS].to_owned()
}

/// What the bytes of a journal say, and how many of them are whole lines.
fn replay(bytes: &[u8], path: &Path) -> Result<(Memory, usize), JournalError> {
    let mut memory = Memory::default();
    let mut whole = 0;
    for (number, text) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let is_last = whole + text.len() == bytes.len();
        match parse(text) {
            Some(Entry::Created {
                format,
                journal_id: _,
            }) if format > FORMAT => {
                return Err(JournalError::NewerFormat {
                    path: path.to_owned(),
                    format,
                    known: FORMAT,
                });
            }
            Some(entry) => memory.apply(entry),
            None if is_last => break,
            None => {
                return Err(JournalError::Damaged {
                    path: path.to_owned(),
                    line: number + 1,
                });
            }
        }
        whole += text.len();
    }
    Ok((memory, whole))
}

fn parse(line: &[u8]) -> Option<Entry> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (sum, json) = text.split_once(' ')?;
    (checksum(json.as_bytes()) == sum).then(|| serde_json::from_str(json).ok())?
}

fn fresh_id() -> std::io::Result<String> {
    let mut random = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn open_to_append(path: &Path) -> Result<File, JournalError> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .map_err(io("open", path))
}

fn sync_folder(folder: &Path, path: &Path) -> Result<(), JournalError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io("sync the folder of", path))
}

fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io {
        doing,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
