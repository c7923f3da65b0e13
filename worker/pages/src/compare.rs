//! A unit of the archive against the base: what is equal is named, what is not is gathered into frames.
//!
//! Both sides are read window by window into buffers that stay in a core's cache, and compared there: reading runs at
//! 10 GB/s, comparing at 20, hashing every page would at 3. Units know nothing of one another, so threads take them in
//! any order and the result is the same.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    PAGE, PAGE_BYTES,
    frame::{DELTA_BYTES_MAX, Encoder, FRESH_BYTES_MAX, Frame},
    layout::{Span, What},
    moved::{self, Table},
    recipe::{From, Op},
    source::ReadAt,
};

/// Bytes read at once of either side: 64 pages, two windows fit in a core's second cache.
const WINDOW_BYTES: usize = 64 * PAGE;
const ZERO_PAGE: [u8; PAGE] = [0; PAGE];

/// What is compared with what.
pub struct Sides<'a> {
    /// The archive.
    pub new: &'a dyn ReadAt,
    /// The archive it becomes a difference to.
    pub base: Option<&'a dyn ReadAt>,
    /// Pages of the base that are nowhere by their address.
    pub moved: Table,
    /// By range of the base: its chunks, cut when first asked for.
    files: Mutex<HashMap<(u64, u64), Arc<Table>>>,
}

/// A unit, taken apart.
#[derive(Debug, Default)]
pub struct Unit {
    /// In order.
    pub ops: Vec<Op>,
    /// With (true) and without an earlier version; within each kind in order.
    pub frames: Vec<(bool, Frame)>,
    /// Pages of memory that are sent.
    pub changed_pages: u64,
}

/// What a thread needs to take units apart.
#[derive(Default)]
pub struct Comparer {
    encoder: Encoder,
    new: Vec<u8>,
    old: Vec<u8>,
    delta_new: Vec<u8>,
    delta_old: Vec<u8>,
    fresh: Vec<u8>,
    unit: Unit,
}

impl<'a> Sides<'a> {
    /// Nothing of the base's files has been looked at yet.
    pub fn new(new: &'a dyn ReadAt, base: Option<&'a dyn ReadAt>, moved: Table) -> Self {
        Self {
            new,
            base,
            moved,
            files: Mutex::default(),
        }
    }

    fn chunks_of(&self, base: &dyn ReadAt, (at, len): (u64, u64)) -> io::Result<Arc<Table>> {
        // Held while the table is made: who comes second needs the same one.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = files.get(&(at, len)) {
            return Ok(table.clone());
        }
        let table = Arc::new(Table::of_chunks(base, at..at + len)?);
        files.insert((at, len), table.clone());
        Ok(table)
    }
}

impl Comparer {
    /// Takes a unit apart.
    pub fn unit(&mut self, sides: &Sides<'_>, spans: &[Span]) -> io::Result<Unit> {
        self.encoder.begin_unit();
        for span in spans {
            match (&span.what, sides.base) {
                (What::Pages { base: Some(at) }, Some(base)) => {
                    self.pages(sides.new, span, base, *at)?;
                }
                (What::Pages { .. }, base) => self.new_pages(sides, span, base)?,
                (What::Chunks { base: Some(file) }, Some(base)) => {
                    let table = sides.chunks_of(base, *file)?;
                    self.chunks(sides.new, span, base, &table)?;
                }
                (What::Chunks { .. } | What::Loose, _) => self.loose(sides.new, span)?,
            }
        }
        self.flush_delta()?;
        self.flush_fresh()?;
        Ok(std::mem::take(&mut self.unit))
    }

    /// Memory whose addresses the base has.
    fn pages(
        &mut self,
        new: &dyn ReadAt,
        span: &Span,
        base: &dyn ReadAt,
        from: u64,
    ) -> io::Result<()> {
        for window in windows(span) {
            let from = from + (window.start - span.at);
            let (ours, theirs) = (read(&mut self.new, new, &window)?, {
                let range = from..from + (window.end - window.start);
                read(&mut self.old, base, &range)?
            });
            if ours == theirs {
                push(
                    &mut self.unit.ops,
                    window.end - window.start,
                    From::Base(from),
                );
                continue;
            }
            let (ours, theirs) = (std::mem::take(&mut self.new), std::mem::take(&mut self.old));
            let len = (window.end - window.start) as usize;
            let pages = ours[..len]
                .chunks_exact(PAGE)
                .zip(theirs[..len].chunks_exact(PAGE));
            for ((ours, theirs), from) in pages.zip((from..).step_by(PAGE)) {
                self.page(ours, theirs, from)?;
            }
            (self.new, self.old) = (ours, theirs);
        }
        Ok(())
    }

    fn page(&mut self, ours: &[u8], theirs: &[u8], from: u64) -> io::Result<()> {
        if ours == theirs {
            push(&mut self.unit.ops, PAGE_BYTES, From::Base(from));
        } else if ours == ZERO_PAGE {
            push(&mut self.unit.ops, PAGE_BYTES, From::Zeros);
        } else {
            self.unit.changed_pages += 1;
            push(&mut self.unit.ops, PAGE_BYTES, From::Delta(from));
            self.delta_new.extend_from_slice(ours);
            self.delta_old.extend_from_slice(theirs);
            if self.delta_new.len() >= DELTA_BYTES_MAX {
                self.flush_delta()?;
            }
        }
        Ok(())
    }

    /// Memory whose addresses the base does not have.
    fn new_pages(
        &mut self,
        sides: &Sides<'_>,
        span: &Span,
        base: Option<&dyn ReadAt>,
    ) -> io::Result<()> {
        for window in windows(span) {
            read(&mut self.new, sides.new, &window)?;
            let ours = std::mem::take(&mut self.new);
            let len = (window.end - window.start) as usize;
            for page in ours[..len].chunks_exact(PAGE) {
                if page == ZERO_PAGE {
                    push(&mut self.unit.ops, PAGE_BYTES, From::Zeros);
                    continue;
                }
                let place = base.and_then(|base| Some((base, sides.moved.find(page)?)));
                match place {
                    Some((base, from)) if self.is_at(page, base, from)? => {
                        push(&mut self.unit.ops, PAGE_BYTES, From::Base(from));
                    }
                    Some(_) | None => {
                        self.unit.changed_pages += 1;
                        self.fresh(page)?;
                    }
                }
            }
            self.new = ours;
        }
        Ok(())
    }

    /// A file that the base has in another version.
    fn chunks(
        &mut self,
        new: &dyn ReadAt,
        span: &Span,
        base: &dyn ReadAt,
        table: &Table,
    ) -> io::Result<()> {
        moved::chunks(new, span.at..span.at + span.len, |_, chunk| {
            match table.find(chunk) {
                Some(from) if self.is_at(chunk, base, from)? => {
                    push(&mut self.unit.ops, chunk.len() as u64, From::Base(from));
                    Ok(())
                }
                Some(_) | None => self.fresh(chunk),
            }
        })
    }

    /// Bytes that are sent unseen.
    fn loose(&mut self, new: &dyn ReadAt, span: &Span) -> io::Result<()> {
        for window in windows(span) {
            read(&mut self.new, new, &window)?;
            let ours = std::mem::take(&mut self.new);
            self.fresh(&ours[..(window.end - window.start) as usize])?;
            self.new = ours;
        }
        Ok(())
    }

    /// A place that the base does not have at all holds nothing: a hash led there by chance.
    fn is_at(&mut self, bytes: &[u8], base: &dyn ReadAt, from: u64) -> io::Result<bool> {
        let range = from..from + bytes.len() as u64;
        if range.end > base.size() {
            return Ok(false);
        }
        Ok(read(&mut self.old, base, &range)? == bytes)
    }

    fn fresh(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        push(&mut self.unit.ops, bytes.len() as u64, From::Fresh);
        while !bytes.is_empty() {
            let room = FRESH_BYTES_MAX - self.fresh.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.fresh.extend_from_slice(now);
            if self.fresh.len() == FRESH_BYTES_MAX {
                self.flush_fresh()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn flush_delta(&mut self) -> io::Result<()> {
        if !self.delta_new.is_empty() {
            let frame = self.encoder.delta(&self.delta_new, &self.delta_old)?;
            self.unit.frames.push((true, frame));
            self.delta_new.clear();
            self.delta_old.clear();
        }
        Ok(())
    }

    fn flush_fresh(&mut self) -> io::Result<()> {
        if !self.fresh.is_empty() {
            let frame = self.encoder.fresh(&self.fresh)?;
            self.unit.frames.push((false, frame));
            self.fresh.clear();
        }
        Ok(())
    }
}

fn windows(span: &Span) -> impl Iterator<Item = Range<u64>> + use<> {
    let end = span.at + span.len;
    (span.at..end)
        .step_by(WINDOW_BYTES)
        .map(move |at| at..end.min(at + WINDOW_BYTES as u64))
}

/// The bytes of a range, in a buffer that only grows.
fn read<'b>(
    buffer: &'b mut Vec<u8>,
    source: &dyn ReadAt,
    range: &Range<u64>,
) -> io::Result<&'b [u8]> {
    let len = (range.end - range.start) as usize;
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    source.read_exact_at(&mut buffer[..len], range.start)?;
    Ok(&buffer[..len])
}

/// Appends an op, or makes the last one longer.
pub fn push(ops: &mut Vec<Op>, len: u64, from: From) {
    if len == 0 {
        return;
    }
    if let Some(last) = ops.last_mut() {
        let goes_on = match (last.from, from) {
            (From::Base(before), From::Base(from)) | (From::Delta(before), From::Delta(from)) => {
                before + last.len == from
            }
            (From::Zeros, From::Zeros) | (From::Fresh, From::Fresh) => true,
            (From::Base(_) | From::Zeros | From::Delta(_) | From::Fresh, _) => false,
        };
        if goes_on {
            last.len += len;
            return;
        }
    }
    ops.push(Op { len, from });
}
