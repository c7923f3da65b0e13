//! An archive on its way into the store: units on every thread, packs in order, the recipe at the end.
//!
//! ```text
//!  spans ─► units of 8 MiB ─► compare + encode (threads) ─► in order ─► packs of 4 MiB ─► sealed ─► emit
//! ```
//! The order of units does not depend on which thread was faster, so the same archive against the same base under the
//! same key gives the same objects.
//!
//! Memory: [`AHEAD`] + threads units, each at most its own size when nothing shrinks: (2 + 2) x 8 MiB, a pack being filled
//! and its sealed copy, 10 MiB, and 16 bytes for each page of the base that has no counterpart. What is emitted and not
//! yet sent is the caller's to bound.

use std::{
    collections::BTreeMap,
    io,
    sync::{Condvar, Mutex, PoisonError},
    thread,
};

use crate::{
    compare::{Comparer, Sides, Unit, push},
    frame::Frame,
    keys::DataKey,
    layout::{Layout, Span, What, spans},
    moved::Table,
    recipe::{Entry, Recipe},
    sealed::{self, PACK_BYTES, Purpose, SealError, Sealed},
    source::ReadAt,
};

/// Bytes of the archive that one thread takes at once.
const UNIT_BYTES: u64 = 8 << 20;
/// Units that may be finished before their turn.
const AHEAD: usize = 2;
/// The recipe is small and compressed once.
const RECIPE_LEVEL: i32 = 3;

/// The archive that a capture is a difference to.
#[derive(Clone, Copy)]
pub struct Base<'a> {
    /// Its bytes.
    pub source: &'a dyn ReadAt,
    /// Its root, as its own capture gave it.
    pub root: [u8; 32],
}

/// What became of an archive.
#[derive(Clone, Debug)]
pub struct Captured {
    /// Bytes of the archive.
    pub size: u64,
    /// What later differences call it.
    pub root: [u8; 32],
    /// The recipe as it is kept beside a base: plain.
    pub recipe: Vec<u8>,
    /// The recipe for the store.
    pub sealed_recipe: Sealed,
    /// Pages of memory in the archive.
    pub pages: u64,
    /// Of these, sent.
    pub changed_pages: u64,
}

/// Why an archive was not captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It or its base can't be read, or zstd would not.
    #[error("take the archive apart")]
    Io(#[from] io::Error),
    /// An object can't be sealed.
    #[error("seal an object")]
    Seal(#[from] SealError),
    /// Whoever takes the packs has given up, and says why itself.
    #[error("nobody takes the packs any more")]
    Refused,
    /// A thread ended in a bug of ours.
    #[error("a thread of the capture ended early")]
    Thread,
}

/// Takes an archive apart on `threads` threads. Each pack goes to `emit` as soon as it is full, with how many bytes of the
/// archive are done; the answer says whether to go on. Everything emitted must be durable before the recipe's name is.
pub fn capture(
    archive: &dyn ReadAt,
    base: Option<Base<'_>>,
    key: &DataKey,
    threads: usize,
    mut emit: impl FnMut(Sealed, u64) -> bool,
) -> Result<Captured, CaptureError> {
    let layout = Layout::of(archive)?;
    let (base_layout, moved) = match base {
        None => (None, Table::default()),
        Some(base) => {
            let theirs = Layout::of(base.source)?;
            let orphans = layout.orphans_of(&theirs);
            (Some(theirs), Table::of_pages(base.source, &orphans)?)
        }
    };
    let both = base_layout.as_ref().zip(base);
    let spans = spans(
        &layout,
        archive.size(),
        both.map(|(layout, base)| (layout, base.source.size())),
    );
    let units = units(spans);
    let sides = Sides::new(archive, base.map(|base| base.source), moved);
    let mut packer = Packer::new(key, archive.size(), base.map(|base| base.root));
    let queue = Queue::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| scope.spawn(|| queue.work(&units, &sides)))
            .collect();
        let taken = (0..units.len()).try_for_each(|number| {
            let unit = queue.take(number).ok_or(CaptureError::Thread)??;
            packer.unit(unit, &mut emit)
        });
        queue.close();
        let whole = workers.into_iter().all(|worker| worker.join().is_ok());
        taken.and(if whole {
            Ok(())
        } else {
            Err(CaptureError::Thread)
        })
    })?;
    packer.finish(layout.pages(), &mut emit)
}

/// Cuts spans into units; memory and loose bytes are cut where a unit is full, files stay whole for their cut points.
fn units(spans: Vec<Span>) -> Vec<Vec<Span>> {
    let mut units = vec![Vec::new()];
    let mut filled = 0;
    for mut span in spans {
        while span.len > 0 {
            if filled >= UNIT_BYTES {
                units.push(Vec::new());
                filled = 0;
            }
            let len = match span.what {
                What::Pages { .. } | What::Loose => span.len.min(UNIT_BYTES - filled),
                What::Chunks { .. } => span.len,
            };
            // A unit may be filled up by less than a page; pages are never cut.
            let len = match span.what {
                What::Pages { .. } => len.next_multiple_of(crate::PAGE_BYTES).min(span.len),
                What::Chunks { .. } | What::Loose => len,
            };
            let (head, tail) = split(span, len);
            units.last_mut().expect("never empty").push(head);
            filled += len;
            span = tail;
        }
    }
    units
}

fn split(span: Span, len: u64) -> (Span, Span) {
    let after = match &span.what {
        What::Pages { base } => What::Pages {
            base: base.map(|base| base + len),
        },
        What::Chunks { .. } | What::Loose => span.what.clone(),
    };
    let tail = Span {
        at: span.at + len,
        len: span.len - len,
        what: after,
    };
    let head = Span {
        at: span.at,
        len,
        what: span.what,
    };
    (head, tail)
}

/// Units between the threads that make them and the one that packs them.
#[derive(Default)]
struct Queue {
    state: Mutex<Turns>,
    changed: Condvar,
}

#[derive(Default)]
struct Turns {
    next: usize,
    packed: usize,
    done: BTreeMap<usize, io::Result<Unit>>,
    closed: bool,
    /// Threads that ended in a panic.
    lost: bool,
}

/// Tells the packer when a thread ends without having delivered.
struct Alarm<'q>(&'q Queue);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lock().lost = true;
            self.0.changed.notify_all();
        }
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, Turns> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, units: &[Vec<Span>], sides: &Sides<'_>) {
        let _alarm = Alarm(self);
        let mut comparer = Comparer::default();
        loop {
            let number = {
                let mut turns = self.lock();
                while turns.next > turns.packed + AHEAD && !turns.closed {
                    turns = self
                        .changed
                        .wait(turns)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if turns.closed || turns.next == units.len() {
                    return;
                }
                turns.next += 1;
                turns.next - 1
            };
            let unit = comparer.unit(sides, &units[number]);
            let failed = unit.is_err();
            self.lock().done.insert(number, unit);
            self.changed.notify_all();
            if failed {
                return;
            }
        }
    }

    /// The unit whose turn it is, or nothing when the thread that had it is lost.
    fn take(&self, number: usize) -> Option<io::Result<Unit>> {
        let mut turns = self.lock();
        loop {
            if let Some(unit) = turns.done.remove(&number) {
                turns.packed = number + 1;
                self.changed.notify_all();
                return Some(unit);
            }
            if turns.lost {
                return None;
            }
            turns = self
                .changed
                .wait(turns)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// Puts frames into packs and writes down where they are.
struct Packer<'k> {
    key: &'k DataKey,
    recipe: Recipe,
    pack: Vec<u8>,
    in_pack: u32,
    changed_pages: u64,
    /// Bytes of the archive whose ops are written down.
    covered: u64,
}

impl<'k> Packer<'k> {
    fn new(key: &'k DataKey, size: u64, base: Option<[u8; 32]>) -> Self {
        let recipe = Recipe {
            size,
            base,
            ops: Vec::new(),
            frames: Vec::new(),
            packs: Vec::new(),
        };
        Self {
            key,
            recipe,
            pack: Vec::new(),
            in_pack: 0,
            changed_pages: 0,
            covered: 0,
        }
    }

    fn unit(
        &mut self,
        unit: Unit,
        emit: &mut impl FnMut(Sealed, u64) -> bool,
    ) -> Result<(), CaptureError> {
        self.changed_pages += unit.changed_pages;
        for op in unit.ops {
            push(&mut self.recipe.ops, op.len, op.from);
            self.covered += op.len;
        }
        for (delta, frame) in unit.frames {
            let Frame {
                codec,
                raw_len,
                hash,
                encoded,
            } = frame;
            self.recipe.frames.push(Entry {
                delta,
                codec,
                // Both are bounded by the largest frame, 1 MiB and zstd's margin.
                raw_len: raw_len as u32,
                encoded_len: encoded.len() as u32,
                hash,
            });
            self.pack.extend_from_slice(&encoded);
            self.in_pack += 1;
            if self.pack.len() >= PACK_BYTES {
                self.seal(emit)?;
            }
        }
        Ok(())
    }

    fn seal(&mut self, emit: &mut impl FnMut(Sealed, u64) -> bool) -> Result<(), CaptureError> {
        if self.in_pack == 0 {
            return Ok(());
        }
        self.recipe.packs.push(std::mem::take(&mut self.in_pack));
        let pack = std::mem::take(&mut self.pack);
        if emit(sealed::seal(self.key, Purpose::Pack, pack)?, self.covered) {
            Ok(())
        } else {
            Err(CaptureError::Refused)
        }
    }

    fn finish(
        mut self,
        pages: u64,
        emit: &mut impl FnMut(Sealed, u64) -> bool,
    ) -> Result<Captured, CaptureError> {
        self.seal(emit)?;
        let recipe = self.recipe.to_bytes();
        let small = zstd::bulk::compress(&recipe, RECIPE_LEVEL)?;
        Ok(Captured {
            size: self.recipe.size,
            root: Recipe::root(&recipe),
            sealed_recipe: sealed::seal(self.key, Purpose::Recipe, small)?,
            recipe,
            pages,
            changed_pages: self.changed_pages,
        })
    }
}
