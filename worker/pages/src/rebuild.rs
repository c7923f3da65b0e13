//! An archive put together: new bytes are decoded, proved and kept; the archive itself is a [`View`] of them, of the base
//! and of zeros. What does not change is not touched, so the work is that of what changed.
//!
//! Packs may come in any order and on several threads: each knows where its frames' bytes belong. The file of new bytes
//! holds the stream without earlier version first and the other one behind it.

use std::{io, ops::Range, sync::Arc};

use crate::{
    frame::{self, Codec, FrameError},
    keys::DataKey,
    recipe::{Entry, From, Recipe, RecipeError},
    sealed::{self, Purpose, RECIPE_BYTES_MAX, SealError},
    source::{Origin, ReadAt, View},
};

/// A recipe with everything that following it needs to know.
pub struct Rebuild {
    recipe: Recipe,
    root: [u8; 32],
    base: Option<Arc<View>>,
    /// Where in the file of new bytes each frame's bytes begin.
    places: Vec<u64>,
    /// First frame of each pack.
    firsts: Vec<usize>,
    /// Bytes without earlier version: where the other stream begins.
    fresh: u64,
    /// Of the stream with earlier versions, in order: place in the stream, place in the base, length.
    earlier: Vec<(u64, u64, u64)>,
}

/// Where new bytes are written; places don't overlap, so threads need no lock.
pub trait WriteAt: Sync {
    /// Writes all of them there.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl WriteAt for std::fs::File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }
}

/// Why an archive can't be put together.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// An object is not the one that was stored.
    #[error("{what}")]
    Object {
        /// "recipe", "pack 3".
        what: String,
        /// What does not fit.
        #[source]
        source: SealError,
    },
    /// A recipe that contradicts itself.
    #[error("recipe")]
    Recipe(#[from] RecipeError),
    /// The recipe does not decompress.
    #[error("recipe: it does not decompress: {reason}")]
    Decompress {
        /// zstd's words.
        reason: String,
    },
    /// It is a difference to another archive than the one at hand.
    #[error("it is a difference to the archive {wanted}, {found}")]
    OtherBase {
        /// Root in the recipe, or that there is none.
        wanted: String,
        /// What is at hand.
        found: String,
    },
    /// A frame is not what was captured.
    #[error("frame {frame} of pack {pack}")]
    Frame {
        /// Number of the pack.
        pack: usize,
        /// Number of the frame in it.
        frame: usize,
        /// What does not fit.
        #[source]
        source: FrameError,
    },
    /// A pack has other bytes than the recipe says.
    #[error("pack {pack} holds {found} bytes of frames, expected {expected}")]
    PackLength {
        /// Its number.
        pack: usize,
        /// Bytes in it.
        found: usize,
        /// Bytes in the recipe.
        expected: u64,
    },
    /// The base can't be read, or the new bytes can't be written.
    #[error("{doing}")]
    Io {
        /// A verb and an object.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An archive whose bytes are at hand, with its root.
#[derive(Clone)]
pub struct Known {
    /// The bytes.
    pub view: Arc<View>,
    /// What differences to it call it.
    pub root: [u8; 32],
}

/// Opens a stored recipe: its plain bytes, which [`Rebuild::new`] reads.
pub fn open_recipe(key: &DataKey, name: &str, stored: &[u8]) -> Result<Vec<u8>, RebuildError> {
    let small = sealed::open(key, Purpose::Recipe, name, stored).map_err(|source| {
        RebuildError::Object {
            what: "recipe".to_owned(),
            source,
        }
    })?;
    zstd::bulk::decompress(&small, RECIPE_BYTES_MAX).map_err(|error| RebuildError::Decompress {
        reason: error.to_string(),
    })
}

impl Rebuild {
    /// Reads a plain recipe and refuses one that can't be followed with this base.
    pub fn new(recipe: &[u8], base: Option<Known>) -> Result<Self, RebuildError> {
        let root = Recipe::root(recipe);
        let recipe = Recipe::from_bytes(recipe)?;
        let hex = |root: &[u8; 32]| blake3::Hash::from_bytes(*root).to_hex().to_string();
        if recipe.base != base.as_ref().map(|base| base.root) {
            let wanted = recipe.base.as_ref().map_or("(none)".to_owned(), hex);
            let found = match &base {
                None => "and no base is at hand".to_owned(),
                Some(base) => format!("the base at hand is {}", hex(&base.root)),
            };
            return Err(RebuildError::OtherBase { wanted, found });
        }
        let (_, fresh) = recipe.streams();
        let (mut fresh_at, mut delta_at) = (0, fresh);
        let places = recipe.frames.iter().map(|frame| {
            let next = if frame.delta {
                &mut delta_at
            } else {
                &mut fresh_at
            };
            let place = *next;
            *next += u64::from(frame.raw_len);
            place
        });
        let places = places.collect();
        let firsts = recipe.packs.iter().scan(0, |next, count| {
            let first = *next;
            *next += *count as usize;
            Some(first)
        });
        let firsts = firsts.collect();
        let mut earlier = Vec::new();
        let mut at = 0;
        for op in &recipe.ops {
            if let From::Delta(from) = op.from {
                earlier.push((at, from, op.len));
                at += op.len;
            }
        }
        Ok(Self {
            root,
            base: base.map(|base| base.view),
            places,
            firsts,
            fresh,
            earlier,
            recipe,
        })
    }

    /// Bytes that the file of new bytes will have.
    pub fn new_bytes(&self) -> u64 {
        let (delta, fresh) = self.recipe.streams();
        delta + fresh
    }

    /// How many packs there must be.
    pub fn packs(&self) -> usize {
        self.recipe.packs.len()
    }

    /// Bytes of the archive.
    pub fn size(&self) -> u64 {
        self.recipe.size
    }

    /// What differences to it will call it.
    pub fn root(&self) -> [u8; 32] {
        self.root
    }

    /// Proves a stored pack and writes its bytes to their places. May be repeated.
    pub fn pack(
        &self,
        key: &DataKey,
        number: usize,
        name: &str,
        stored: &[u8],
        out: &dyn WriteAt,
    ) -> Result<(), RebuildError> {
        let pack = sealed::open(key, Purpose::Pack, name, stored).map_err(|source| {
            RebuildError::Object {
                what: format!("pack {number}"),
                source,
            }
        })?;
        let first = self.firsts[number];
        let frames = &self.recipe.frames[first..][..self.recipe.packs[number] as usize];
        let expected: u64 = frames
            .iter()
            .map(|frame| u64::from(frame.encoded_len))
            .sum();
        if expected != pack.len() as u64 {
            return Err(RebuildError::PackLength {
                pack: number,
                found: pack.len(),
                expected,
            });
        }
        let mut rest = pack.as_slice();
        for (frame, (entry, place)) in frames.iter().zip(&self.places[first..]).enumerate() {
            let (encoded, after) = rest.split_at(entry.encoded_len as usize);
            rest = after;
            let old = self.old(entry, *place)?;
            let raw = frame::decode(
                entry.codec,
                encoded,
                entry.raw_len as usize,
                &entry.hash,
                &old,
            )
            .map_err(|source| RebuildError::Frame {
                pack: number,
                frame,
                source,
            })?;
            out.write_all_at(&raw, *place)
                .map_err(|source| RebuildError::Io {
                    doing: "write new bytes",
                    source,
                })?;
        }
        Ok(())
    }

    /// The earlier version of a frame's bytes, where its codec needs it.
    fn old(&self, entry: &Entry, place: u64) -> Result<Vec<u8>, RebuildError> {
        if !matches!(entry.codec, Codec::Xor | Codec::Prefix) {
            return Ok(Vec::new());
        }
        let failed = |source| RebuildError::Io {
            doing: "read the base",
            source,
        };
        let Some(base) = &self.base else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        let mut old = vec![0; entry.raw_len as usize];
        let start = place - self.fresh;
        for (range, from) in self.covering(start..start + old.len() as u64) {
            let part = &mut old[(range.start - start) as usize..(range.end - start) as usize];
            base.read_exact_at(part, from).map_err(failed)?;
        }
        Ok(old)
    }

    /// The parts of a range of the stream with earlier versions, each with its place in the base.
    fn covering(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> {
        let first = self
            .earlier
            .partition_point(|(at, _, len)| at + len <= range.start);
        self.earlier[first..]
            .iter()
            .take_while(move |(at, _, _)| *at < range.end)
            .map(move |(at, from, len)| {
                let start = range.start.max(*at);
                (start..range.end.min(at + len), from + (start - at))
            })
    }

    /// The archive, once every pack is written to what `new` reads.
    pub fn view(&self, new: Arc<dyn ReadAt>) -> Result<View, RebuildError> {
        let mut view = View::default();
        let (mut fresh_at, mut delta_at) = (0, self.fresh);
        for op in &self.recipe.ops {
            let next = match op.from {
                From::Zeros => {
                    view.push(op.len, Origin::Zeros);
                    continue;
                }
                From::Base(from) => {
                    let base = self.base.as_ref().ok_or(io::ErrorKind::NotFound.into());
                    base.and_then(|base| view.push_view(base, from, op.len))
                        .map_err(|source| RebuildError::Io {
                            doing: "read the base",
                            source,
                        })?;
                    continue;
                }
                From::Delta(_) => &mut delta_at,
                From::Fresh => &mut fresh_at,
            };
            view.push(
                op.len,
                Origin::Source {
                    source: new.clone(),
                    offset: *next,
                },
            );
            *next += op.len;
        }
        Ok(view)
    }

    /// Proves new bytes that were kept: frame by frame, against the recipe. A base is proved so before it is used
    /// again, while nothing is frozen.
    pub fn prove(&self, new: &dyn ReadAt) -> Result<(), RebuildError> {
        let mut raw = Vec::new();
        for (number, (entry, place)) in self.recipe.frames.iter().zip(&self.places).enumerate() {
            raw.resize(entry.raw_len as usize, 0);
            new.read_exact_at(&mut raw, *place)
                .map_err(|source| RebuildError::Io {
                    doing: "read kept bytes",
                    source,
                })?;
            let found = blake3::hash(&raw);
            if found != entry.hash {
                return Err(RebuildError::Frame {
                    pack: self.firsts.partition_point(|first| *first <= number) - 1,
                    frame: number,
                    source: FrameError::Hash {
                        found: found.to_hex().to_string(),
                        expected: blake3::Hash::from_bytes(entry.hash).to_hex().to_string(),
                    },
                });
            }
        }
        Ok(())
    }
}
