//! A disk that is full, or slow, when the test says so.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use redb::{StorageBackend, backends::FileBackend};

/// What is wrong with a disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    pub(super) full: Arc<AtomicBool>,
    pub(super) sync_ms: Arc<AtomicU64>,
}

#[derive(Debug)]
pub(super) struct Faulty {
    file: FileBackend,
    faults: Faults,
}

impl Faulty {
    pub(super) fn open(path: &Path, faults: Faults) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        Self {
            file: FileBackend::new(file).unwrap(),
            faults,
        }
    }

    fn room(&self) -> io::Result<()> {
        match self.faults.full.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        thread::sleep(Duration::from_millis(
            self.faults.sync_ms.load(Ordering::Relaxed),
        ));
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
