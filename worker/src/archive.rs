//! The kubelet's checkpoint archive on its way to become an image layer: a tar stream is passed on byte for byte,
//! except for the few small files that have to differ on the target.
//!
//! ```text
//!  archive ─► header? ─► not ours: header, content, padding verbatim
//!                  └───► ours: content collected, changed, written under a header with the new size
//! ```
//! Only as much of tar is understood as finding the files takes: ustar headers, a pax size or path, sizes in base 256.
//! Whatever is unclear (a checksum that is wrong, a file that is there twice, sparse files) is refused with its reason:
//! an archive misread would be restored wrong, an archive refused is rolled back.
//!
//! This module proves nothing about the bytes that come in: the reader compares the hash of the whole archive before
//! it lets anybody use what came out.

use std::io::{self, Write};

pub mod layer;
pub mod timerfd;

use pages::tarblock::{self, BLOCK, Header, HeaderError, Kind};

/// A file to be changed is held in memory: config.dump has 1 kB, timerfd.img 60 bytes for each timer.
pub const EDITED_BYTES_MAX: u64 = 16 << 20;
/// A pax header holds names and times.
const PAX_BYTES_MAX: u64 = 1 << 20;

/// What to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// An archive without it is refused.
    Required,
    /// It may be missing.
    Optional,
}

/// Changes one file of an archive. `None` leaves it as it is.
pub struct Edit<'a> {
    /// Its name in the archive, without `./`.
    pub name: &'static str,
    /// Must it be there?
    pub need: Need,
    /// Content in, content out.
    pub change: Change<'a>,
}

/// Content in; new content, none, or a reason to refuse the archive out.
pub type Change<'a> = Box<dyn FnMut(&[u8]) -> Result<Option<Vec<u8>>, String> + Send + 'a>;

/// Why an archive is not rewritten.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive can't be read.
    #[error("read the archive")]
    Read(#[source] io::Error),
    /// The result can't be written.
    #[error("write the image layer")]
    Write(#[source] io::Error),
    /// A header is not understood.
    #[error("read the archive at byte {at}")]
    Header {
        /// Where it stands.
        at: u64,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// Well-formed, but not what the kubelet writes.
    #[error("archive: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
}

/// A rewriter in the middle of an archive.
pub struct Rewriter<'a, W> {
    out: W,
    edits: Vec<Edit<'a>>,
    seen: Vec<bool>,
    at: u64,
    state: State,
    pax: Pax,
}

/// What the next entry's pax header said about it.
#[derive(Default)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
}

enum State {
    Header(Vec<u8>),
    /// Content and padding that pass through.
    Pass {
        left: u64,
    },
    /// A pax header's content: passes through, and is read.
    Pax {
        left: u64,
        padding: u64,
        content: Vec<u8>,
    },
    /// A file to change; nothing of it has been written yet.
    Edit {
        edit: usize,
        header: Box<Header>,
        left: u64,
        padding: u64,
        content: Vec<u8>,
    },
    /// Behind the last entry: zeros.
    Trailer,
}

impl<'a, W: Write> Rewriter<'a, W> {
    /// Writes to `out`.
    pub fn new(out: W, edits: Vec<Edit<'a>>) -> Self {
        let seen = vec![false; edits.len()];
        Self {
            out,
            edits,
            seen,
            at: 0,
            state: State::Header(Vec::new()),
            pax: Pax::default(),
        }
    }

    /// The next bytes of the archive, cut anywhere.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        while !bytes.is_empty() {
            let taken = self.step(bytes)?;
            self.at += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Bytes that come next and would be passed on unseen.
    fn unseen(&self) -> u64 {
        match self.state {
            State::Pass { left } => left,
            State::Header(_) | State::Pax { .. } | State::Edit { .. } | State::Trailer => 0,
        }
    }

    /// They were passed on by somebody else.
    fn skip_unseen(&mut self) {
        self.at += self.unseen();
        self.state = State::Header(Vec::new());
    }

    /// The archive is over: was it whole, and did it have every file it must have?
    pub fn finish(self) -> Result<W, ArchiveError> {
        if !matches!(self.state, State::Trailer) {
            return Err(refused("it ends within an entry or without its end mark"));
        }
        for (edit, seen) in self.edits.iter().zip(&self.seen) {
            if edit.need == Need::Required && !seen {
                return Err(refused(format!(
                    "it has no {}: the kubelet's checkpoint archives have one",
                    edit.name
                )));
            }
        }
        Ok(self.out)
    }

    /// Consumes some bytes, at least one.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, ArchiveError> {
        match &mut self.state {
            State::Header(block) => {
                let taken = (BLOCK - block.len()).min(bytes.len());
                block.extend_from_slice(&bytes[..taken]);
                if block.len() == BLOCK {
                    let block = std::mem::take(block);
                    self.state = self.header(block)?;
                }
                Ok(taken)
            }
            State::Pass { left } => {
                let taken = part(*left, bytes);
                self.out
                    .write_all(&bytes[..taken])
                    .map_err(ArchiveError::Write)?;
                *left -= taken as u64;
                if *left == 0 {
                    self.state = State::Header(Vec::new());
                }
                Ok(taken)
            }
            State::Pax {
                left,
                padding,
                content,
            } => {
                let taken = part(*left + *padding, bytes);
                let of_content = part(*left, &bytes[..taken]);
                content.extend_from_slice(&bytes[..of_content]);
                *left -= of_content as u64;
                *padding -= (taken - of_content) as u64;
                self.out
                    .write_all(&bytes[..taken])
                    .map_err(ArchiveError::Write)?;
                if *left + *padding == 0 {
                    let content = std::mem::take(content);
                    self.read_pax(&content)?;
                    self.state = State::Header(Vec::new());
                }
                Ok(taken)
            }
            State::Edit {
                left,
                padding,
                content,
                ..
            } => {
                let taken = part(*left + *padding, bytes);
                let of_content = part(*left, &bytes[..taken]);
                content.extend_from_slice(&bytes[..of_content]);
                *left -= of_content as u64;
                *padding -= (taken - of_content) as u64;
                if *left + *padding == 0 {
                    self.write_edited()?;
                }
                Ok(taken)
            }
            State::Trailer => {
                if bytes.iter().any(|byte| *byte != 0) {
                    return Err(refused("there is something behind its end mark"));
                }
                self.out.write_all(bytes).map_err(ArchiveError::Write)?;
                Ok(bytes.len())
            }
        }
    }

    /// Decides what happens with the entry a header begins.
    fn header(&mut self, block: Vec<u8>) -> Result<State, ArchiveError> {
        let at = self.at;
        if block.iter().all(|byte| *byte == 0) {
            if self.pax.path.is_some() || self.pax.size.is_some() {
                return Err(refused("it ends behind a pax header that no entry follows"));
            }
            self.out.write_all(&block).map_err(ArchiveError::Write)?;
            return Ok(State::Trailer);
        }
        let header = Header::parse(&block).map_err(|source| ArchiveError::Header { at, source })?;
        let pax = if header.kind == Kind::Pax {
            Pax::default()
        } else {
            std::mem::take(&mut self.pax)
        };
        let size = match (header.kind, pax.size) {
            (Kind::Bodiless, _) => 0,
            (Kind::File | Kind::Pax, size) => size.unwrap_or(header.size),
        };
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        let name = pax.path.as_deref().unwrap_or(&header.name);
        let edit = self.edits.iter().position(|edit| edit.name == plain(name));
        if let Some(edit) = edit {
            if std::mem::replace(&mut self.seen[edit], true) {
                return Err(refused(format!("it has {name:?} twice")));
            }
            if header.kind != Kind::File || pax.size.is_some() || size > EDITED_BYTES_MAX {
                return Err(refused(format!(
                    "{name:?} is no ordinary small file ({size} bytes)"
                )));
            }
            let state = State::Edit {
                edit,
                header: Box::new(header),
                left: size,
                padding,
                content: Vec::new(),
            };
            if size > 0 {
                return Ok(state);
            }
            self.state = state;
            self.write_edited()?;
            return Ok(State::Header(Vec::new()));
        }
        self.out.write_all(&block).map_err(ArchiveError::Write)?;
        match header.kind {
            Kind::Pax if size > PAX_BYTES_MAX => {
                Err(refused(format!("a pax header of {size} bytes")))
            }
            Kind::Pax if size > 0 => Ok(State::Pax {
                left: size,
                padding,
                content: Vec::new(),
            }),
            Kind::Pax | Kind::File | Kind::Bodiless if size == 0 => Ok(State::Header(Vec::new())),
            Kind::Pax | Kind::File | Kind::Bodiless => Ok(State::Pass {
                left: size + padding,
            }),
        }
    }

    fn write_edited(&mut self) -> Result<(), ArchiveError> {
        let state = std::mem::replace(&mut self.state, State::Header(Vec::new()));
        let State::Edit {
            edit,
            header,
            content,
            ..
        } = state
        else {
            return Ok(());
        };
        let edit = &mut self.edits[edit];
        let changed = (edit.change)(&content)
            .map_err(|reason| refused(format!("{}: {reason}", edit.name)))?;
        let content = changed.unwrap_or(content);
        let padding = content.len().next_multiple_of(BLOCK) - content.len();
        let write = |out: &mut W| {
            out.write_all(&header.with_size(content.len() as u64))?;
            out.write_all(&content)?;
            out.write_all(&[0; BLOCK][..padding])
        };
        write(&mut self.out).map_err(ArchiveError::Write)
    }

    fn read_pax(&mut self, content: &[u8]) -> Result<(), ArchiveError> {
        for (key, value) in
            tarblock::pax_records(content).map_err(|source| ArchiveError::Header {
                at: self.at,
                source,
            })?
        {
            if key == b"path" {
                let path = String::from_utf8(value.to_vec())
                    .map_err(|_| refused("a path that is no text"))?;
                self.pax.path = Some(path);
            } else if key == b"size" {
                let text = std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse().ok());
                self.pax.size = Some(text.ok_or_else(|| refused("a pax size that is no number"))?);
            } else if key.starts_with(b"GNU.sparse") {
                return Err(refused("it holds a sparse file"));
            }
        }
        Ok(())
    }
}

fn part(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

fn plain(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}

fn refused(reason: impl Into<String>) -> ArchiveError {
    ArchiveError::Refused {
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests;
