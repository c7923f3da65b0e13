//! Which of our own questions an entry or a confirmation answers.

use crate::consensus::format;

/// Says which proposal an entry was, in the entry's context: a version byte, the proposer's incarnation, a number.
/// The incarnation keeps entries of an earlier life, replayed now, from answering proposals of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) incarnation: u128,
    pub(super) number: u64,
}

impl Ticket {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![format::VERSION];
        bytes.extend(self.incarnation.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes
    }

    /// `None` for what another version wrote: nobody here waits for it.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&format::VERSION, rest) = bytes.split_first()? else {
            return None;
        };
        let (incarnation, rest) = rest.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        Some(Self {
            incarnation: u128::from_le_bytes(*incarnation),
            number: u64::from_le_bytes(*number),
        })
    }
}
