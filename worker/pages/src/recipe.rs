//! How an archive is put together: five verbs over byte ranges, and a table of the frames that hold what is new.
//!
//! ```text
//!  "LSRC" 1   size  root of the base, or none   ops: count, then each   frames: count, then each   packs: count, then each
//! ```
//! Ops cover the archive from its first byte to its last. `Delta` and `Fresh` take the next bytes of two streams, which
//! the frames of that kind hold in order. `Base` and `Delta` read the base at *place in the archive + shift*, and
//! `Shift` changes the shift: memory that stays where it is costs a byte or two a run. Lengths that are whole pages are
//! written in pages. Numbers are [`varint`](crate::varint)s.
//!
//! A recipe comes from a store, so reading one trusts nothing: whatever contradicts itself is refused before a byte is
//! written, and no number in it can make the reader allocate more than the recipe has bytes.

use crate::{
    PAGE_BYTES,
    frame::{Codec, DELTA_BYTES_MAX, FRESH_BYTES_MAX},
    sealed::PACK_BYTES_MAX,
    varint,
};

const MAGIC: &[u8; 4] = b"LSRC";
/// The version written.
const VERSION: u8 = 1;
/// What a root is the hash of, before the recipe's bytes.
const ROOT_CONTEXT: &str = "longshore 2026-11 archive root v1";
/// Archives above this are refused: 16 TiB, the largest file of ext4, and far from where sums overflow.
const ARCHIVE_BYTES_MAX: u64 = 1 << 44;

/// A part of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// Its length.
    pub len: u64,
    /// Where its bytes come from.
    pub from: From,
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The base has them there.
    Base(u64),
    /// They are zeros.
    Zeros,
    /// New, with an earlier version in the base there.
    Delta(u64),
    /// New, without one.
    Fresh,
}

/// A frame as the recipe describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Does it belong to the stream of bytes with an earlier version?
    pub delta: bool,
    /// How it is encoded.
    pub codec: Codec,
    /// Bytes it stands for.
    pub raw_len: u32,
    /// Bytes in its pack.
    pub encoded_len: u32,
    /// blake3 of the bytes it stands for.
    pub hash: [u8; 32],
}

/// All that is needed to put an archive together, but the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Bytes of the archive.
    pub size: u64,
    /// Root of the archive it is a difference to.
    pub base: Option<[u8; 32]>,
    /// From the first byte to the last.
    pub ops: Vec<Op>,
    /// In the order of their packs.
    pub frames: Vec<Entry>,
    /// How many frames each pack holds.
    pub packs: Vec<u32>,
}

/// Why bytes are no recipe. The text names what contradicts itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RecipeError(&'static str);

impl Recipe {
    /// What the archive is called by those that are differences to it: the hash of this recipe, which names the base's
    /// root and the hash of everything new. So a root stands for every byte, down to the first round.
    pub fn root(bytes: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        hasher.update(bytes);
        hasher.finalize().into()
    }

    /// The bytes to store. The same recipe gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        varint::put(&mut out, self.size);
        out.push(u8::from(self.base.is_some()));
        out.extend_from_slice(self.base.as_ref().map_or(&[], |root| root));
        varint::put(&mut out, self.ops.len() as u64);
        let (mut at, mut shift) = (0i64, 0i64);
        for op in &self.ops {
            let (verb, from) = match op.from {
                From::Base(from) => (0, Some(from)),
                From::Zeros => (1, None),
                From::Delta(from) => (2, Some(from)),
                From::Fresh => (3, None),
            };
            let wanted = from.map_or(shift, |from| from as i64 - at);
            let in_pages = op.len % PAGE_BYTES == 0;
            let len = if in_pages {
                op.len / PAGE_BYTES
            } else {
                op.len
            };
            varint::put(
                &mut out,
                len << 4 | u64::from(in_pages) << 3 | u64::from(wanted != shift) << 2 | verb,
            );
            if wanted != shift {
                varint::put_signed(&mut out, wanted - shift);
                shift = wanted;
            }
            at += op.len as i64;
        }
        varint::put(&mut out, self.frames.len() as u64);
        for frame in &self.frames {
            let codec = match frame.codec {
                Codec::Raw => 0,
                Codec::Zstd => 1,
                Codec::Xor => 2,
                Codec::Prefix => 3,
            };
            out.push(codec << 1 | u8::from(frame.delta));
            varint::put(&mut out, u64::from(frame.raw_len));
            varint::put(&mut out, u64::from(frame.encoded_len));
            out.extend_from_slice(&frame.hash);
        }
        varint::put(&mut out, self.packs.len() as u64);
        for frames in &self.packs {
            varint::put(&mut out, u64::from(*frames));
        }
        out
    }

    /// Reads and checks; whatever is accepted can be followed, given the base and the frames.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecipeError> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(RecipeError("it does not begin as a recipe does"))?;
        let (version, mut rest) = rest.split_first().ok_or(SHORT)?;
        if *version != VERSION {
            return Err(RecipeError(
                "it is of another version than this worker reads",
            ));
        }
        let rest = &mut rest;
        let size = varint::take(rest).ok_or(SHORT)?;
        if size > ARCHIVE_BYTES_MAX {
            return Err(RecipeError("it is of an archive above 16 TiB"));
        }
        let base = take_base(rest)?;
        let ops = take_ops(rest, size)?;
        let frames = take_frames(rest)?;
        let packs = take_packs(rest)?;
        if !rest.is_empty() {
            return Err(RecipeError("there is something behind its end"));
        }
        let recipe = Self {
            size,
            base,
            ops,
            frames,
            packs,
        };
        recipe.check()?;
        Ok(recipe)
    }

    /// Bytes of the two streams: with an earlier version, and without.
    pub fn streams(&self) -> (u64, u64) {
        let bytes = |delta| {
            let frames = self.frames.iter().filter(move |frame| frame.delta == delta);
            frames.map(|frame| u64::from(frame.raw_len)).sum()
        };
        (bytes(true), bytes(false))
    }

    /// Do the ops cover the archive, and the frames the ops, and the packs the frames?
    fn check(&self) -> Result<(), RecipeError> {
        let (mut covered, mut delta, mut fresh) = (0u64, 0, 0);
        for op in &self.ops {
            covered = covered
                .checked_add(op.len)
                .filter(|covered| op.len > 0 && *covered <= self.size)
                .ok_or(RecipeError("its ops cover more than the archive"))?;
            match op.from {
                From::Base(_) => {}
                From::Zeros => {}
                From::Delta(_) => delta += op.len,
                From::Fresh => fresh += op.len,
            }
            let needs_base = matches!(op.from, From::Base(_) | From::Delta(_));
            if needs_base && self.base.is_none() {
                return Err(RecipeError("it reads a base that it does not name"));
            }
        }
        if covered != self.size {
            return Err(RecipeError("its ops do not cover the archive"));
        }
        if (delta, fresh) != self.streams() {
            return Err(RecipeError("its frames do not hold what its ops take"));
        }
        for frame in &self.frames {
            let most = if frame.delta {
                DELTA_BYTES_MAX
            } else {
                FRESH_BYTES_MAX
            };
            if frame.raw_len == 0 || frame.raw_len as usize > most {
                return Err(RecipeError("a frame is empty or too large"));
            }
            let has_old = matches!(frame.codec, Codec::Xor | Codec::Prefix);
            if has_old && !frame.delta {
                return Err(RecipeError(
                    "a frame without an earlier version is a difference",
                ));
            }
        }
        let mut frames = self.frames.iter();
        for count in &self.packs {
            let own = frames.by_ref().take(*count as usize);
            let bytes: u64 = own.map(|frame| u64::from(frame.encoded_len)).sum();
            if *count == 0 || bytes > PACK_BYTES_MAX as u64 {
                return Err(RecipeError("a pack is empty or too large"));
            }
        }
        let named: u64 = self.packs.iter().map(|count| u64::from(*count)).sum();
        if named != self.frames.len() as u64 {
            return Err(RecipeError("its packs do not hold its frames"));
        }
        Ok(())
    }
}

const SHORT: RecipeError = RecipeError("it ends too early");

fn take_base(rest: &mut &[u8]) -> Result<Option<[u8; 32]>, RecipeError> {
    let (has_base, after) = rest.split_first().ok_or(SHORT)?;
    *rest = after;
    match has_base {
        0 => Ok(None),
        1 => take_hash(rest).map(Some),
        _ => Err(RecipeError(
            "it says neither that it has a base nor that it has none",
        )),
    }
}

fn take_hash(rest: &mut &[u8]) -> Result<[u8; 32], RecipeError> {
    let (hash, after) = rest.split_first_chunk().ok_or(SHORT)?;
    *rest = after;
    Ok(*hash)
}

/// A count of things that each take at least a byte of what is left.
fn take_count(rest: &mut &[u8]) -> Result<usize, RecipeError> {
    let count = varint::take(rest).ok_or(SHORT)?;
    if count > rest.len() as u64 {
        return Err(RecipeError("it counts more than it holds"));
    }
    Ok(count as usize)
}

fn take_ops(rest: &mut &[u8], size: u64) -> Result<Vec<Op>, RecipeError> {
    let count = take_count(rest)?;
    let mut ops = Vec::with_capacity(count);
    let (mut at, mut shift) = (0u64, 0i64);
    for _ in 0..count {
        let head = varint::take(rest).ok_or(SHORT)?;
        let unit = if head & 8 != 0 { PAGE_BYTES } else { 1 };
        let len = (head >> 4)
            .checked_mul(unit)
            .filter(|len| *len <= size - at)
            .ok_or(RecipeError("its ops cover more than the archive"))?;
        if head & 4 != 0 {
            let change = varint::take_signed(rest).ok_or(SHORT)?;
            shift = shift
                .checked_add(change)
                .ok_or(RecipeError("an op reads before its base"))?;
        }
        let from = || {
            at.checked_add_signed(shift)
                .filter(|from| *from <= ARCHIVE_BYTES_MAX)
                .ok_or(RecipeError("an op reads outside of its base"))
        };
        let from = match head & 3 {
            0 => From::Base(from()?),
            1 => From::Zeros,
            2 => From::Delta(from()?),
            _ => From::Fresh,
        };
        ops.push(Op { len, from });
        at += len;
    }
    Ok(ops)
}

fn take_frames(rest: &mut &[u8]) -> Result<Vec<Entry>, RecipeError> {
    let count = take_count(rest)?;
    let mut frames = Vec::with_capacity(count.min(rest.len() / 35 + 1));
    for _ in 0..count {
        let (kind, after) = rest.split_first().ok_or(SHORT)?;
        *rest = after;
        let codec = match kind >> 1 {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            2 => Codec::Xor,
            3 => Codec::Prefix,
            _ => {
                return Err(RecipeError(
                    "a frame has a codec that this worker does not know",
                ));
            }
        };
        let mut length = || {
            let value = varint::take(rest).ok_or(SHORT)?;
            u32::try_from(value).map_err(|_| RecipeError("a frame is empty or too large"))
        };
        let (raw_len, encoded_len) = (length()?, length()?);
        frames.push(Entry {
            delta: kind & 1 != 0,
            codec,
            raw_len,
            encoded_len,
            hash: take_hash(rest)?,
        });
    }
    Ok(frames)
}

fn take_packs(rest: &mut &[u8]) -> Result<Vec<u32>, RecipeError> {
    let count = take_count(rest)?;
    let one = |rest: &mut &[u8]| {
        let frames = varint::take(rest).ok_or(SHORT)?;
        u32::try_from(frames).map_err(|_| RecipeError("a pack is empty or too large"))
    };
    (0..count).map(|_| one(rest)).collect()
}
