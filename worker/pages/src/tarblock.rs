//! One block of tar, as far as it has to be understood.

/// Tar's unit.
pub const BLOCK: usize = 512;

const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
/// The largest size eleven octal digits hold: 8 GiB - 1.
const OCTAL_MAX: u64 = (1 << 33) - 1;

/// How an entry is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Directory, link or node: its size field means nothing, no content follows.
    Bodiless,
    /// Attributes of the next entry.
    Pax,
}

/// A header that was understood.
#[derive(Clone, Debug)]
pub struct Header {
    block: Vec<u8>,
    /// As it stands in the header; a pax path replaces it.
    pub name: String,
    /// Bytes of content, unless a pax size replaces it.
    pub size: u64,
    /// What it is.
    pub kind: Kind,
}

/// Why it was not.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Damaged, or no tar at all.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A number that can't be read.
    #[error("the header's {field} is no number")]
    Number {
        /// Which.
        field: &'static str,
    },
    /// A name in bytes that are no text.
    #[error("the entry's name is no text")]
    Name,
    /// A kind the kubelet does not write.
    #[error("an entry of kind {kind:?} is not understood")]
    Kind {
        /// The type flag.
        kind: char,
    },
    /// Attributes that don't follow their own format.
    #[error("a pax record is malformed")]
    Pax,
}

impl Header {
    /// Understands one block.
    pub fn parse(block: &[u8]) -> Result<Self, HeaderError> {
        assert_eq!(block.len(), BLOCK, "callers collect a whole block");
        let stated = number(&block[CHECKSUM]).ok_or(HeaderError::Number { field: "checksum" })?;
        if stated != checksum(block) {
            return Err(HeaderError::Checksum);
        }
        let kind = match block[156] {
            b'0' | 0 => Kind::File,
            b'1'..=b'6' => Kind::Bodiless,
            b'x' => Kind::Pax,
            other => {
                return Err(HeaderError::Kind {
                    kind: char::from(other),
                });
            }
        };
        let size = number(&block[SIZE]).ok_or(HeaderError::Number { field: "size" })?;
        let name = text(&block[..100])?;
        let ustar = &block[257..263] == b"ustar\0";
        let prefix = if ustar {
            text(&block[345..500])?
        } else {
            String::new()
        };
        let name = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        Ok(Self {
            block: block.to_vec(),
            name,
            size,
            kind,
        })
    }

    /// The same header for another size; without a change of size the same bytes.
    pub fn with_size(&self, size: u64) -> Vec<u8> {
        assert!(size <= OCTAL_MAX, "only small files are edited");
        let mut block = self.block.clone();
        if size != self.size {
            block[SIZE].copy_from_slice(format!("{size:011o}\0").as_bytes());
            let sum = checksum(&block);
            block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        block
    }
}

/// A key and its value.
pub type Record<'a> = (&'a [u8], &'a [u8]);

/// Records are `LENGTH KEY=VALUE\n`, the length in decimal and counting itself.
pub fn pax_records(mut content: &[u8]) -> Result<Vec<Record<'_>>, HeaderError> {
    let mut records = Vec::new();
    while !content.is_empty() {
        let space = content
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or(HeaderError::Pax)?;
        let length = std::str::from_utf8(&content[..space])
            .ok()
            .and_then(|digits| digits.parse::<usize>().ok());
        let length = length
            .filter(|length| *length > space + 1 && *length <= content.len())
            .ok_or(HeaderError::Pax)?;
        let (record, rest) = content.split_at(length);
        let record = record[space + 1..]
            .strip_suffix(b"\n")
            .ok_or(HeaderError::Pax)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or(HeaderError::Pax)?;
        records.push((&record[..equals], &record[equals + 1..]));
        content = rest;
    }
    Ok(records)
}

/// The sum of the header's bytes, its own field taken as blanks.
fn checksum(block: &[u8]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(&block[..CHECKSUM.start])
        + sum(&block[CHECKSUM.end..])
        + CHECKSUM.len() as u64 * u64::from(b' ')
}

/// Octal digits between blanks, or, with the topmost bit set, GNU's big-endian binary.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let first = field[0] & 0x7f;
        let mut value = u64::from(first);
        for byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
        }
        // Bit 6 of the first byte is the sign: a negative size makes no sense.
        return (first & 0x40 == 0).then_some(value);
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() {
        Some(0)
    } else {
        u64::from_str_radix(digits, 8)
            .ok()
            .filter(|_| !digits.starts_with('+'))
    }
}

fn text(field: &[u8]) -> Result<String, HeaderError> {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec()).map_err(|_| HeaderError::Name)
}
