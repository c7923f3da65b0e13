//! Bytes that can be read anywhere: a file, memory in tests, or a [`View`] put together from several.
//!
//! Reading into a buffer that is reused beats mapping here: fresh mappings fault page by page, a file that shrinks under
//! a mapping kills the process, and no `unsafe` is needed.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

/// Bytes at any place of a known size.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset` on, or fails: a short source is an error.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Bytes in all.
    fn size(&self) -> u64;
}

/// A file and the size it had when it was opened.
pub struct Opened {
    file: File,
    size: u64,
}

impl Opened {
    /// Takes the file's present size for the size.
    pub fn new(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }
}

impl ReadAt for Opened {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn size(&self) -> u64 {
        self.size
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buffer.len())?))
            .and_then(|range| self.get(range))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(range);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.len() as u64
    }
}

/// Where the bytes of a piece come from.
#[derive(Clone)]
pub enum Origin {
    /// From a source, from an offset on.
    Source {
        /// Shared by all pieces that read it.
        source: Arc<dyn ReadAt>,
        /// Where in it the piece begins.
        offset: u64,
    },
    /// Zeros, which nobody stores.
    Zeros,
}

/// A run of bytes of a view.
#[derive(Clone)]
struct Piece {
    at: u64,
    len: u64,
    origin: Origin,
}

/// Bytes put together from pieces of other sources, without copying any.
#[derive(Clone, Default)]
pub struct View {
    pieces: Vec<Piece>,
    size: u64,
}

impl View {
    /// Appends a piece.
    pub fn push(&mut self, len: u64, origin: Origin) {
        if len > 0 {
            self.pieces.push(Piece {
                at: self.size,
                len,
                origin,
            });
            self.size += len;
        }
    }

    /// Appends `len` bytes of another view from `from` on, naming its sources instead of it: views of views stay flat.
    /// Nothing is appended when it is shorter than that.
    pub fn push_view(&mut self, view: &View, from: u64, len: u64) -> Result<(), io::Error> {
        let end = from.checked_add(len).filter(|end| *end <= view.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        for (taken, origin) in view.origins(from, end - from) {
            self.push(taken, origin);
        }
        Ok(())
    }

    /// What the bytes of a range are made of, in order; what lies beyond the end is left out.
    pub fn origins(&self, from: u64, len: u64) -> impl Iterator<Item = (u64, Origin)> {
        let end = from.saturating_add(len).min(self.size);
        self.covering(from, end).map(|(piece, skipped, taken)| {
            let origin = match &piece.origin {
                Origin::Zeros => Origin::Zeros,
                Origin::Source { source, offset } => Origin::Source {
                    source: source.clone(),
                    offset: offset + skipped,
                },
            };
            (taken, origin)
        })
    }

    /// The pieces that cover `from..end`, each with what of it lies before and within.
    fn covering(&self, from: u64, end: u64) -> impl Iterator<Item = (&Piece, u64, u64)> {
        let first = self
            .pieces
            .partition_point(|piece| piece.at + piece.len <= from);
        self.pieces[first..]
            .iter()
            .take_while(move |piece| piece.at < end)
            .map(move |piece| {
                let start = piece.at.max(from);
                let stop = (piece.at + piece.len).min(end);
                (piece, start - piece.at, stop - start)
            })
    }
}

impl ReadAt for View {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset
            .checked_add(buffer.len() as u64)
            .filter(|end| *end <= self.size)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut rest = buffer;
        for (piece, skipped, taken) in self.covering(offset, end) {
            // `taken` is at most the buffer's length.
            let (part, after) = rest.split_at_mut(taken as usize);
            match &piece.origin {
                Origin::Zeros => part.fill(0),
                Origin::Source { source, offset } => {
                    source.read_exact_at(part, offset + skipped)?;
                }
            }
            rest = after;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let mut view = View::default();
        let source: Arc<dyn ReadAt> = Arc::new(b"abcdefgh".to_vec());
        view.push(
            3,
            Origin::Source {
                source: source.clone(),
                offset: 4,
            },
        );
        view.push(2, Origin::Zeros);
        view.push(2, Origin::Source { source, offset: 0 });
        view
    }

    fn read(view: &View, from: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![1; len];
        view.read_exact_at(&mut buffer, from).map(|()| buffer)
    }

    #[test]
    fn a_view_reads_across_its_pieces() {
        assert_eq!(read(&view(), 0, 7).unwrap(), b"efg\0\0ab");
        assert_eq!(read(&view(), 2, 4).unwrap(), b"g\0\0a");
        assert_eq!(read(&view(), 7, 0).unwrap(), b"");
    }

    #[test]
    fn a_view_of_a_view_names_the_first_sources() {
        let mut outer = View::default();
        outer.push(1, Origin::Zeros);
        outer.push_view(&view(), 1, 5).unwrap();
        assert_eq!(read(&outer, 0, 6).unwrap(), b"\0fg\0\0a");
        assert!(outer.push_view(&view(), 3, 5).is_err());
        assert_eq!(outer.size(), 6);
    }

    #[test]
    fn beyond_the_end_is_an_error_and_no_zeros() {
        assert!(read(&view(), 5, 3).is_err());
        assert!(read(&view(), u64::MAX, 1).is_err());
    }
}
