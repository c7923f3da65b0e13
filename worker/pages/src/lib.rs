//! The page engine: a checkpoint archive is taken apart against an earlier one, and put together again, byte for byte.
//!
//! ```text
//!  archive ─► layout ─► compare with the base ─► units ─► frames ─► packs (sealed)      capture: reads, never guesses
//!             (hints)    equal: not sent         ops      deltas     + recipe
//!
//!  recipe + packs ─► open ─► frames decoded, each proved ─► new bytes ─► a view: base, new bytes, zeros      rebuild
//! ```
//! What [`layout`] knows about tar and CRIU only finds the bytes to compare with: it is a hint. What is written is
//! [`recipe`]'s five verbs over plain byte ranges, so an archive that nobody understands still goes through, at the
//! price of a first round. What is proved: each pack by its name and its seal, each frame by the hash of the bytes it
//! stands for, the recipe by its seal, and the base by its root, which the recipe names.
//!
//! Pure: no clock, no network, no configuration. Files are seen through [`ReadAt`](source::ReadAt).

pub mod capture;
pub mod compare;
pub mod criu;
pub mod frame;
pub mod keys;
pub mod layout;
pub mod manifest;
pub mod moved;
pub mod rebuild;
pub mod recipe;
pub mod sealed;
pub mod source;
pub mod tarblock;
pub mod varint;

/// Bytes of a page: the unit in which memory changes, on every architecture this runs on.
pub const PAGE: usize = 4096;
/// The same as a length in a file.
pub const PAGE_BYTES: u64 = PAGE as u64;
