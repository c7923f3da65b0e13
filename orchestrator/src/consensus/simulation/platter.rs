//! A disk in memory that forgets and tears what was not synced.

use std::{
    io,
    sync::{Arc, Mutex},
};

use redb::StorageBackend;

use super::Dice;

/// Disks write sectors whole.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Resize(len) => bytes.resize(*len, 0),
            Self::Write(at, data) => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Surface {
    seen: Vec<u8>,
    synced: Vec<u8>,
    since_sync: Vec<Change>,
}

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Platter(Arc<Mutex<Surface>>);

impl Platter {
    /// The disk as it is found after a power cut now. The old one may go on being written: nobody will read it.
    pub(super) fn crash(&self, dice: &mut Dice) -> Self {
        let surface = self.0.lock().unwrap();
        let mut bytes = surface.synced.clone();
        for change in &surface.since_sync {
            match change {
                _ if dice.one_in(2) => {}
                Change::Write(at, data) if data.len() > SECTOR && dice.one_in(4) => {
                    let sectors = dice.below(data.len() / SECTOR);
                    Change::Write(*at, data[..sectors * SECTOR].to_vec()).apply(&mut bytes);
                }
                Change::Write(..) | Change::Resize(_) => change.apply(&mut bytes),
            }
        }
        Self(Arc::new(Mutex::new(Surface {
            seen: bytes.clone(),
            synced: bytes,
            since_sync: Vec::new(),
        })))
    }

    fn change(&self, change: Change) {
        let mut surface = self.0.lock().unwrap();
        change.apply(&mut surface.seen);
        surface.since_sync.push(change);
    }
}

fn place(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

impl StorageBackend for Platter {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let surface = self.0.lock().unwrap();
        let at = place(offset);
        let Some(found) = surface.seen.get(at..at + out.len()) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.change(Change::Resize(place(len)));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut surface = self.0.lock().unwrap();
        let Surface {
            seen: _,
            synced,
            since_sync,
        } = &mut *surface;
        for change in since_sync.drain(..) {
            change.apply(synced);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.change(Change::Write(place(offset), data.to_vec()));
        Ok(())
    }
}
