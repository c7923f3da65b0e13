//! What happened, in order: always as a hash, which two runs of one seed must share; as text when somebody wants to
//! read it.

use std::fmt::{Arguments, Write};

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// The events of one schedule.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
    events: u64,
}

struct Hasher<'a>(&'a mut u64);

impl Write for Hasher<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for byte in text.bytes() {
            *self.0 = (*self.0 ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        }
        Ok(())
    }
}

impl Trace {
    /// Keeps the text too when asked.
    #[must_use]
    pub fn new(keep: bool) -> Self {
        Self {
            hash: FNV_OFFSET,
            lines: keep.then(Vec::new),
            events: 0,
        }
    }

    /// One more event.
    pub fn event(&mut self, at_ms: u64, who: &str, what: Arguments<'_>) {
        self.events += 1;
        match &mut self.lines {
            None => {
                // Writing into a number does not fail.
                let _ = Hasher(&mut self.hash).write_fmt(format_args!("{at_ms} {who} {what}\n"));
            }
            Some(lines) => {
                let line = format!("{at_ms} {who} {what}\n");
                let _ = Hasher(&mut self.hash).write_str(&line);
                lines.push(format!(
                    "{:>4}.{:03}  {who:<14} {what}",
                    at_ms / 1_000,
                    at_ms % 1_000
                ));
            }
        }
    }

    /// All events in one number.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The text, if it was kept.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().flatten().map(String::as_str)
    }
}
