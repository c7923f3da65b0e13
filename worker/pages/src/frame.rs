//! One batch of new bytes, made small: the way is chosen by trying, and written down beside it.
//!
//! | codec | holds | wins for |
//! | --- | --- | --- |
//! | raw | the bytes | what is compressed or encrypted already |
//! | zstd | zstd level 1 | bytes without an earlier version |
//! | xor | zstd level 1 of new XOR old | numbers that change in place |
//! | prefix | zstd level 3 with the old bytes before the new | text and objects that move within their pages |
//!
//! Neither delta always wins (performance.md section 3), so both are tried on the first batch of a unit and then on
//! every sixteenth.

use std::io;

use zstd::zstd_safe::{CCtx, CParameter, DCtx, DParameter, ResetDirective, get_error_name};

/// Bytes without an earlier version, in one frame: larger ones compress no better.
pub const FRESH_BYTES_MAX: usize = 1 << 20;
/// Changed bytes in one frame: 64 pages, so that a prefix and its text fit in a core's cache.
pub const DELTA_BYTES_MAX: usize = 64 * crate::PAGE;
/// Level of everything but prefixes: 3 takes twice the time for 4 % of the bytes.
const LEVEL: i32 = 1;
/// Level 1 hardly finds the prefix (20.5 MiB instead of 5.0 on redis).
const PREFIX_LEVEL: i32 = 3;
/// A batch is tried with both deltas this often.
pub const TRIED_EVERY: usize = 16;
/// As much is tried before a batch without earlier version is compressed …
const SAMPLE_BYTES: usize = 16 << 10;
/// … and must shrink to this many percent, or it is stored as it is.
const WORTH_PERCENT: usize = 95;
/// Window of 1 MiB: a prefix and its text, or a fresh frame.
const WINDOW_LOG: u32 = 20;

/// How a frame's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Raw,
    /// Compressed.
    Zstd,
    /// Compressed difference.
    Xor,
    /// Compressed behind the old bytes.
    Prefix,
}

/// A batch, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// How.
    pub codec: Codec,
    /// Bytes it stands for.
    pub raw_len: usize,
    /// Hash of those bytes.
    pub hash: [u8; 32],
    /// What is stored.
    pub encoded: Vec<u8>,
}

/// Why a frame is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It can't be decompressed.
    #[error("it does not decompress: {0}")]
    Damaged(&'static str),
    /// More or fewer bytes than the recipe says.
    #[error("it holds {found} bytes, expected {expected}")]
    Length {
        /// Bytes found.
        found: usize,
        /// Bytes the recipe says.
        expected: usize,
    },
    /// Other bytes than were captured: it was altered, or the base is another one.
    #[error("the hash of its bytes is {found}, expected {expected}")]
    Hash {
        /// Of the bytes found.
        found: String,
        /// In the recipe.
        expected: String,
    },
}

/// Compresses; keeps zstd's tables between batches.
pub struct Encoder {
    context: CCtx<'static>,
    scratch: Vec<u8>,
    delta: Codec,
    since_tried: usize,
}

impl Encoder {
    /// Ready for a unit's first batch.
    pub fn new() -> Self {
        Self {
            context: CCtx::create(),
            scratch: Vec::new(),
            delta: Codec::Xor,
            since_tried: 0,
        }
    }

    /// A new unit: what is learnt from one must not depend on which thread had which before.
    pub fn begin_unit(&mut self) {
        self.since_tried = 0;
    }

    /// A batch without an earlier version.
    pub fn fresh(&mut self, new: &[u8]) -> io::Result<Frame> {
        let sample = &new[..new.len().min(SAMPLE_BYTES)];
        let shrunk = self.compress(sample, None, LEVEL)?;
        let worth = shrunk.len() * 100 <= sample.len() * WORTH_PERCENT;
        if !worth {
            return Ok(frame(Codec::Raw, new, new.to_vec()));
        }
        let encoded = if sample.len() == new.len() {
            shrunk
        } else {
            self.compress(new, None, LEVEL)?
        };
        Ok(frame(Codec::Zstd, new, encoded))
    }

    /// A batch with its earlier version, of the same length.
    pub fn delta(&mut self, new: &[u8], old: &[u8]) -> io::Result<Frame> {
        let tries = self.since_tried == 0;
        self.since_tried = (self.since_tried + 1) % TRIED_EVERY;
        if !tries {
            let encoded = self.encode(self.delta, new, old)?;
            return Ok(frame(self.delta, new, encoded));
        }
        let mut best: Option<(Codec, Vec<u8>)> = None;
        for codec in [Codec::Xor, Codec::Prefix] {
            let encoded = self.encode(codec, new, old)?;
            if best
                .as_ref()
                .is_none_or(|(_, least)| encoded.len() < least.len())
            {
                best = Some((codec, encoded));
            }
        }
        let (codec, encoded) = best.expect("two were tried");
        self.delta = codec;
        Ok(frame(codec, new, encoded))
    }

    fn encode(&mut self, codec: Codec, new: &[u8], old: &[u8]) -> io::Result<Vec<u8>> {
        match codec {
            Codec::Prefix => self.compress(new, Some(old), PREFIX_LEVEL),
            Codec::Xor => {
                let mut scratch = std::mem::take(&mut self.scratch);
                scratch.clear();
                scratch.extend(new.iter().zip(old).map(|(new, old)| new ^ old));
                let encoded = self.compress(&scratch, None, LEVEL);
                self.scratch = scratch;
                encoded
            }
            Codec::Zstd => self.compress(new, None, LEVEL),
            Codec::Raw => Ok(new.to_vec()),
        }
    }

    fn compress(&mut self, bytes: &[u8], prefix: Option<&[u8]>, level: i32) -> io::Result<Vec<u8>> {
        let mut encoded = Vec::with_capacity(zstd::zstd_safe::compress_bound(bytes.len()));
        let failed = |code| io::Error::other(format!("zstd: {}", get_error_name(code)));
        // A context of its own for prefixes: it borrows them.
        match prefix {
            None => {
                self.context
                    .reset(ResetDirective::SessionOnly)
                    .map_err(failed)?;
                self.context
                    .set_parameter(CParameter::CompressionLevel(level))
                    .map_err(failed)?;
                self.context
                    .compress2(&mut encoded, bytes)
                    .map_err(failed)?;
            }
            Some(prefix) => {
                let mut context = CCtx::create();
                context
                    .set_parameter(CParameter::CompressionLevel(level))
                    .map_err(failed)?;
                context
                    .set_parameter(CParameter::WindowLog(WINDOW_LOG))
                    .map_err(failed)?;
                context.ref_prefix(prefix).map_err(failed)?;
                context.compress2(&mut encoded, bytes).map_err(failed)?;
            }
        }
        Ok(encoded)
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

fn frame(codec: Codec, new: &[u8], encoded: Vec<u8>) -> Frame {
    Frame {
        codec,
        raw_len: new.len(),
        hash: blake3::hash(new).into(),
        encoded,
    }
}

/// The bytes a frame stands for, proved. `old` is their earlier version, empty where the codec needs none.
pub fn decode(
    codec: Codec,
    encoded: &[u8],
    raw_len: usize,
    hash: &[u8; 32],
    old: &[u8],
) -> Result<Vec<u8>, FrameError> {
    let mut raw = match codec {
        Codec::Raw => encoded.to_vec(),
        Codec::Zstd | Codec::Xor => decompress(encoded, raw_len, None)?,
        Codec::Prefix => decompress(encoded, raw_len, Some(old))?,
    };
    if raw.len() != raw_len || (codec == Codec::Xor && old.len() != raw_len) {
        return Err(FrameError::Length {
            found: raw.len(),
            expected: raw_len,
        });
    }
    if codec == Codec::Xor {
        for (byte, old) in raw.iter_mut().zip(old) {
            *byte ^= old;
        }
    }
    let found = blake3::hash(&raw);
    if found != *hash {
        return Err(FrameError::Hash {
            found: found.to_hex().to_string(),
            expected: blake3::Hash::from_bytes(*hash).to_hex().to_string(),
        });
    }
    Ok(raw)
}

fn decompress(
    encoded: &[u8],
    raw_len: usize,
    prefix: Option<&[u8]>,
) -> Result<Vec<u8>, FrameError> {
    let mut raw = Vec::with_capacity(raw_len);
    let failed = |code| FrameError::Damaged(get_error_name(code));
    let mut context = DCtx::create();
    context
        .set_parameter(DParameter::WindowLogMax(WINDOW_LOG + 1))
        .map_err(failed)?;
    if let Some(prefix) = prefix {
        context.ref_prefix(prefix).map_err(failed)?;
    }
    context.decompress(&mut raw, encoded).map_err(failed)?;
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize, seed: usize) -> Vec<u8> {
        let words = (0..len / 8 + 1).map(|word| ((word * word * seed) >> 7) as u16 as u64);
        words.flat_map(u64::to_le_bytes).take(len).collect()
    }

    fn there_and_back(frame: &Frame, old: &[u8]) -> Result<Vec<u8>, FrameError> {
        decode(frame.codec, &frame.encoded, frame.raw_len, &frame.hash, old)
    }

    #[test]
    fn every_codec_gives_back_the_bytes() {
        let (new, mut old) = (text(DELTA_BYTES_MAX, 3), text(DELTA_BYTES_MAX, 3));
        old[77] ^= 1;
        old[200_000] ^= 0x80;
        let mut encoder = Encoder::new();
        for codec in [Codec::Raw, Codec::Zstd, Codec::Xor, Codec::Prefix] {
            let encoded = encoder.encode(codec, &new, &old).unwrap();
            let frame = frame(codec, &new, encoded);
            assert_eq!(there_and_back(&frame, &old).unwrap(), new, "{codec:?}");
        }
    }

    #[test]
    fn the_smaller_delta_is_chosen() {
        let old: Vec<u8> = text(DELTA_BYTES_MAX, 5).iter().map(|b| b ^ 0x5a).collect();
        let mut in_place = old.clone();
        in_place.iter_mut().step_by(8).for_each(|byte| *byte ^= 3);
        let mut moved = old[8..].to_vec();
        moved.extend_from_slice(&old[..8]);
        assert_eq!(
            Encoder::new().delta(&in_place, &old).unwrap().codec,
            Codec::Xor
        );
        assert_eq!(
            Encoder::new().delta(&moved, &old).unwrap().codec,
            Codec::Prefix
        );
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let frame = Encoder::new().fresh(&noise).unwrap();
        assert_eq!(frame.codec, Codec::Raw);
        assert_eq!(
            Encoder::new().fresh(&text(100_000, 1)).unwrap().codec,
            Codec::Zstd
        );
    }

    #[test]
    fn another_base_than_the_captures_is_noticed() {
        let old = text(DELTA_BYTES_MAX, 3);
        let mut new = old.clone();
        new[5000] ^= 1;
        let mut encoder = Encoder::new();
        for codec in [Codec::Xor, Codec::Prefix] {
            let encoded = encoder.encode(codec, &new, &old).unwrap();
            let frame = frame(codec, &new, encoded);
            assert!(there_and_back(&frame, &old).is_ok());
            let other = vec![1; DELTA_BYTES_MAX];
            assert!(there_and_back(&frame, &other).is_err(), "{codec:?}");
        }
    }
}
