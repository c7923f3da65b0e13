//! CRIU's page images, as far as finding a page by its address needs it.
//!
//! `pagemap-N.img` says which runs of addresses were dumped and names, by number, the `pages-M.img` that holds them one
//! behind the other (criu.org/Images, images/pagemap.proto). A file is two magic numbers and then protobuf messages,
//! each behind its length in 32 bits. Anything unexpected makes the whole pagemap a "don't know": its pages are then
//! found by content or sent.

use crate::PAGE_BYTES;

/// First word of every image file (`IMG_COMMON_MAGIC`, criu/include/magic.h).
const COMMON_MAGIC: u32 = 0x5456_4319;
/// Second word of a pagemap (`PAGEMAP_MAGIC`, ibid.).
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// The pages are in the parent's images (`PE_PARENT`, criu/include/pagemap.h).
const IN_PARENT: u64 = 1;
/// The pages are in the pages image (`PE_PRESENT`, ibid.).
const PRESENT: u64 = 4;

/// Runs of addresses whose pages lie one behind the other in a pages image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pagemap {
    /// Which pages image.
    pub pages_id: u64,
    /// By address; only those that are in the image.
    pub runs: Vec<Run>,
}

/// Pages that follow one another in memory and in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address of the first.
    pub vaddr: u64,
    /// How many.
    pub pages: u64,
    /// Where the first begins in the pages image, in bytes.
    pub offset: u64,
}

impl Pagemap {
    /// Understands a pagemap image, or says that it doesn't.
    pub fn parse(image: &[u8]) -> Option<Self> {
        let mut rest = image;
        if word(&mut rest)? != COMMON_MAGIC || word(&mut rest)? != PAGEMAP_MAGIC {
            return None;
        }
        let head = message(&mut rest)?;
        let pages_id = field(&fields(head)?, 1)?;
        let mut runs: Vec<Run> = Vec::new();
        let mut offset = 0u64;
        while !rest.is_empty() {
            let entry = fields(message(&mut rest)?)?;
            let vaddr = field(&entry, 1)?;
            // CRIU 4.1 widened the count and kept the old field filled.
            let pages = field(&entry, 5).or_else(|| field(&entry, 2))?;
            let present = match field(&entry, 4) {
                Some(flags) => flags & PRESENT != 0 && flags & IN_PARENT == 0,
                None => field(&entry, 3).unwrap_or(0) == 0,
            };
            let bytes = pages.checked_mul(PAGE_BYTES)?;
            vaddr.checked_add(bytes)?;
            if !present || pages == 0 {
                continue;
            }
            // Sorted and apart, or a merge by address would go wrong.
            if runs
                .last()
                .is_some_and(|last| last.vaddr + last.pages * PAGE_BYTES > vaddr)
            {
                return None;
            }
            runs.push(Run {
                vaddr,
                pages,
                offset,
            });
            offset = offset.checked_add(bytes)?;
        }
        Some(Self { pages_id, runs })
    }

    /// Bytes that its pages image has.
    pub fn bytes(&self) -> u64 {
        self.runs
            .last()
            .map_or(0, |last| last.offset + last.pages * PAGE_BYTES)
    }
}

fn word(bytes: &mut &[u8]) -> Option<u32> {
    let (word, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*word))
}

fn message<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(word(bytes)?).ok()?;
    let (message, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(message)
}

/// Number and value of each field; a pagemap has only varints.
fn fields(mut message: &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut fields = Vec::with_capacity(4);
    while !message.is_empty() {
        let tag = crate::varint::take(&mut message)?;
        if tag & 7 != 0 {
            return None;
        }
        fields.push((tag >> 3, crate::varint::take(&mut message)?));
    }
    Some(fields)
}

fn field(fields: &[(u64, u64)], number: u64) -> Option<u64> {
    fields
        .iter()
        .find(|(found, _)| *found == number)
        .map(|(_, value)| *value)
}
