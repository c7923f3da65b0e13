//! The layer of a checkpoint image as a plan: which bytes of the archive, which of ours. Nothing is copied; gigabytes of
//! pages are neither read nor written to change a file of a kilobyte.

use std::ops::Range;

use pages::{source::ReadAt, tarblock::BLOCK};

use super::{ArchiveError, Edit, Rewriter};

/// A run of the layer's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// As they stand in the archive.
    Archive(Range<u64>),
    /// Changed.
    Ours(Vec<u8>),
}

/// Follows the archive's headers and makes the edits.
pub fn plan(archive: &dyn ReadAt, edits: Vec<Edit<'_>>) -> Result<Vec<Part>, ArchiveError> {
    let mut parts = Vec::new();
    let mut rewriter = Rewriter::new(Vec::new(), edits);
    let size = archive.size();
    let mut at = 0;
    let mut block = [0; BLOCK];
    while at < size {
        let unseen = rewriter.unseen().min(size - at);
        if unseen > 0 {
            take_ours(&mut parts, &mut rewriter.out);
            parts.push(Part::Archive(at..at + unseen));
            if unseen == rewriter.unseen() {
                rewriter.skip_unseen();
            }
            at += unseen;
            continue;
        }
        let block = &mut block[..(size - at).min(BLOCK as u64) as usize];
        archive
            .read_exact_at(block, at)
            .map_err(ArchiveError::Read)?;
        rewriter.feed(block)?;
        at += block.len() as u64;
    }
    let mut rest = rewriter.finish()?;
    take_ours(&mut parts, &mut rest);
    Ok(parts)
}

fn take_ours(parts: &mut Vec<Part>, written: &mut Vec<u8>) {
    if !written.is_empty() {
        parts.push(Part::Ours(std::mem::take(written)));
    }
}
