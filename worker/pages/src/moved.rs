//! Bytes that are in the base, but elsewhere: pages that moved to other addresses, files that grew in the middle.
//!
//! A table from a quick hash to a place. The hash (XXH3) can be forged by whoever chooses the bytes, so a hit is only
//! ever a place to compare with; what is not equal there is sent.

use std::{collections::HashMap, io, ops::Range};

use fastcdc::v2020::{FastCDC, Normalization};
use twox_hash::XxHash3_64;

use crate::{PAGE, PAGE_BYTES, source::ReadAt};

/// Chunks of files: of 16 KiB on average, because 64 KiB ones send two to four times as much after scattered writes
/// (reference/performance.md section 3).
pub const CHUNK_BYTES_MIN: usize = 4 << 10;
/// See [`CHUNK_BYTES_MIN`].
pub const CHUNK_BYTES: usize = 16 << 10;
/// See [`CHUNK_BYTES_MIN`].
pub const CHUNK_BYTES_MAX: usize = 64 << 10;
/// Bytes looked at once while cutting: 16 of the largest chunks.
const WINDOW_BYTES: usize = 1 << 20;

/// Where in the base bytes of a hash are.
#[derive(Debug, Default)]
pub struct Table {
    places: HashMap<u64, u64>,
}

impl Table {
    /// A place that may hold these bytes.
    pub fn find(&self, bytes: &[u8]) -> Option<u64> {
        self.places.get(&XxHash3_64::oneshot(bytes)).copied()
    }

    /// Of the pages in these ranges.
    pub fn of_pages(source: &dyn ReadAt, ranges: &[Range<u64>]) -> io::Result<Self> {
        let mut table = Self::default();
        let mut buffer = vec![0; WINDOW_BYTES];
        for range in ranges {
            let mut at = range.start;
            while at < range.end {
                let len = (range.end - at).min(WINDOW_BYTES as u64) as usize;
                let window = &mut buffer[..len];
                source.read_exact_at(window, at)?;
                for (page, place) in window.chunks_exact(PAGE).zip((at..).step_by(PAGE)) {
                    table.places.insert(XxHash3_64::oneshot(page), place);
                }
                at += len as u64;
            }
        }
        debug_assert_eq!(PAGE_BYTES, PAGE as u64);
        Ok(table)
    }

    /// Of the chunks of a file.
    pub fn of_chunks(source: &dyn ReadAt, file: Range<u64>) -> io::Result<Self> {
        let mut table = Self::default();
        chunks(source, file, |at, chunk| {
            table.places.insert(XxHash3_64::oneshot(chunk), at);
            Ok(())
        })?;
        Ok(table)
    }
}

/// Cuts a range where its content says so: the same bytes behind any others give the same cuts again.
pub fn chunks(
    source: &dyn ReadAt,
    range: Range<u64>,
    mut each: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; WINDOW_BYTES];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(WINDOW_BYTES as u64) as usize;
        let window = &mut buffer[..len];
        source.read_exact_at(window, at)?;
        let last_window = at + len as u64 == range.end;
        let mut done = 0;
        while done < len {
            // A cut near the window's end would be the window's, not the content's: read on from here first.
            if !last_window && len - done < CHUNK_BYTES_MAX {
                break;
            }
            let cut = cut(&window[done..]);
            each(at + done as u64, &window[done..done + cut])?;
            done += cut;
        }
        at += done as u64;
    }
    Ok(())
}

/// Length of the first chunk of these bytes. The parameters are part of the format: other cuts find nothing again.
fn cut(bytes: &[u8]) -> usize {
    let cutter = FastCDC::with_level(
        bytes,
        CHUNK_BYTES_MIN,
        CHUNK_BYTES,
        CHUNK_BYTES_MAX,
        Normalization::Level1,
    );
    let (_, end) = cutter.cut(0, bytes.len());
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern that are the same everywhere (xorshift).
    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.flatten().take(len).collect()
    }

    fn cuts(bytes: &Vec<u8>) -> Vec<u64> {
        let mut cuts = Vec::new();
        chunks(bytes, 0..bytes.len() as u64, |at, _| {
            cuts.push(at);
            Ok(())
        })
        .unwrap();
        cuts
    }

    #[test]
    fn cuts_are_where_they_were_in_the_first_version() {
        let found = cuts(&noise(300 << 10));
        let golden = include_str!("../testdata/cuts-v1.txt");
        let golden: Vec<u64> = golden.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(found, golden);
    }

    #[test]
    fn bytes_put_in_before_move_the_cuts_and_change_no_other() {
        let bytes = noise(3 << 20);
        let mut shifted = noise(777);
        shifted.extend_from_slice(&bytes);
        let table = Table::of_chunks(&bytes, 0..bytes.len() as u64).unwrap();
        let (mut found, mut all) = (0, 0);
        chunks(&shifted, 0..shifted.len() as u64, |_, chunk| {
            all += 1;
            found += u32::from(table.find(chunk).is_some());
            Ok(())
        })
        .unwrap();
        assert!(found + 8 > all, "{found} of {all} chunks found again");
    }

    #[test]
    fn a_page_is_found_where_it_was() {
        let bytes = noise(8 * PAGE);
        let table =
            Table::of_pages(&bytes, &[0..PAGE_BYTES * 2, PAGE_BYTES * 4..PAGE_BYTES * 8]).unwrap();
        assert_eq!(table.find(&bytes[5 * PAGE..6 * PAGE]), Some(5 * PAGE_BYTES));
        assert_eq!(table.find(&bytes[3 * PAGE..4 * PAGE]), None);
    }
}
