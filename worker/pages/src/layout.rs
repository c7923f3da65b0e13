//! Where what lies in an archive, and what of an earlier archive to compare it with.
//!
//! A checkpoint archive is a tar with CRIU's images in it. Here it becomes [`Span`]s that cover it from its first byte to
//! its last, in order, each with the place in the base that most likely holds the same bytes: memory by its address,
//! larger files by their name, everything small together. **Hints only**: a wrong one costs bytes, never truth, because
//! whoever follows it compares. So a doubt is answered by "one long file", not by an error.

use std::{collections::HashMap, io, ops::Range};

use crate::{
    PAGE_BYTES,
    criu::Pagemap,
    source::ReadAt,
    tarblock::{BLOCK, Header, Kind, pax_records},
};

/// Files from this size on are cut into chunks and looked for in the base; below it, finding costs more than sending.
const CHUNKED_FROM: u64 = 64 << 10;
/// A pagemap has some 20 bytes a run: this is a million runs.
const PAGEMAP_BYTES_MAX: u64 = 32 << 20;
/// A pax header holds names and times.
const PAX_BYTES_MAX: u64 = 1 << 20;

/// A run of an archive's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub at: u64,
    /// Its length; whole pages for memory.
    pub len: u64,
    /// What it is.
    pub what: What,
}

/// What a span holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Memory; the same addresses in the base begin at `base`.
    Pages {
        /// Nothing: the base has no such addresses.
        base: Option<u64>,
    },
    /// A file to be cut into chunks; the base has one of its name there.
    Chunks {
        /// Nothing: the base has no such file.
        base: Option<(u64, u64)>,
    },
    /// Headers and small files, together.
    Loose,
}

/// An archive's files and its memory.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    files: Vec<File>,
    /// By the pagemap's name; where the pages image begins.
    memory: HashMap<String, (Pagemap, u64)>,
    /// The pagemap whose pages lie in the file that begins there.
    pages_at: HashMap<u64, String>,
}

#[derive(Clone, Debug)]
struct File {
    name: String,
    at: u64,
    len: u64,
}

impl Layout {
    /// Looks through an archive; one that is not understood has no files. Errors are the source's alone.
    pub fn of(archive: &dyn ReadAt) -> io::Result<Self> {
        let Some(files) = files(archive)? else {
            return Ok(Self::default());
        };
        let mut layout = Self {
            files,
            ..Self::default()
        };
        layout.find_memory(archive)?;
        Ok(layout)
    }

    /// Pairs pagemaps with their pages images; a pair that doesn't fit is left alone.
    fn find_memory(&mut self, archive: &dyn ReadAt) -> io::Result<()> {
        let by_name: HashMap<&str, &File> = self
            .files
            .iter()
            .map(|file| (file.name.as_str(), file))
            .collect();
        for file in &self.files {
            let (folder, plain) = file.name.rsplit_once('/').unwrap_or(("", &file.name));
            let is_map = plain.starts_with("pagemap-") && plain.ends_with(".img");
            if !is_map || file.len > PAGEMAP_BYTES_MAX {
                continue;
            }
            let mut image = vec![0; file.len as usize];
            archive.read_exact_at(&mut image, file.at)?;
            let Some(pagemap) = Pagemap::parse(&image) else {
                continue;
            };
            let pages = format!("{folder}/pages-{}.img", pagemap.pages_id);
            let Some(pages) = by_name.get(pages.trim_start_matches('/')) else {
                continue;
            };
            if pages.len != pagemap.bytes() || self.pages_at.contains_key(&pages.at) {
                continue;
            }
            self.pages_at.insert(pages.at, file.name.clone());
            self.memory.insert(file.name.clone(), (pagemap, pages.at));
        }
        Ok(())
    }

    /// Pages that are memory.
    pub fn pages(&self) -> u64 {
        let maps = self.memory.values();
        maps.map(|(pagemap, _)| pagemap.bytes() / PAGE_BYTES).sum()
    }

    /// Where the base's memory lies that has no counterpart here: what moved must have come from there.
    pub fn orphans_of(&self, base: &Layout) -> Vec<Range<u64>> {
        let mut orphans = Vec::new();
        for (name, (theirs, at)) in &base.memory {
            let ours = self.memory.get(name).map(|(pagemap, _)| pagemap);
            for (range, counterpart) in counterparts(theirs, ours) {
                if counterpart.is_none() {
                    orphans.push(at + range.start..at + range.end);
                }
            }
        }
        orphans.sort_by_key(|range| range.start);
        orphans
    }
}

/// Covers an archive of `size` bytes with spans; `base` is an earlier archive's layout and size.
pub fn spans(layout: &Layout, size: u64, base: Option<(&Layout, u64)>) -> Vec<Span> {
    if layout.files.is_empty() {
        let base = base.map(|(_, size)| (0, size));
        return vec![Span {
            at: 0,
            len: size,
            what: What::Chunks { base },
        }];
    }
    let base_files: HashMap<&str, (u64, u64)> = base
        .iter()
        .flat_map(|(base, _)| &base.files)
        .map(|file| (file.name.as_str(), (file.at, file.len)))
        .collect();
    let mut spans = Vec::new();
    let mut at = 0;
    for file in &layout.files {
        let memory = layout.pages_at.get(&file.at);
        if memory.is_none() && file.len < CHUNKED_FROM {
            continue;
        }
        push(&mut spans, at..file.at, What::Loose);
        at = file.at + file.len;
        match memory {
            Some(name) => {
                let theirs = base.and_then(|(base, _)| base.memory.get(name));
                let ours = &layout.memory[name].0;
                for (range, counterpart) in counterparts(ours, theirs.map(|(map, _)| map)) {
                    let base = theirs.and_then(|(_, start)| Some(start + counterpart?));
                    let range = file.at + range.start..file.at + range.end;
                    push(&mut spans, range, What::Pages { base });
                }
            }
            None => {
                let base = base_files.get(file.name.as_str()).copied();
                push(&mut spans, file.at..at, What::Chunks { base });
            }
        }
    }
    push(&mut spans, at..size, What::Loose);
    spans
}

fn push(spans: &mut Vec<Span>, range: Range<u64>, what: What) {
    if !range.is_empty() {
        spans.push(Span {
            at: range.start,
            len: range.end - range.start,
            what,
        });
    }
}

/// Cuts one pagemap's image into runs, each with the place of the same addresses in the other's image.
fn counterparts(ours: &Pagemap, theirs: Option<&Pagemap>) -> Vec<(Range<u64>, Option<u64>)> {
    let theirs = theirs.map_or(&[][..], |map| &map.runs);
    let mut found = Vec::new();
    let mut next = 0;
    for run in &ours.runs {
        let end = run.vaddr + run.pages * PAGE_BYTES;
        let mut vaddr = run.vaddr;
        let offset = |vaddr: u64| run.offset + (vaddr - run.vaddr);
        while vaddr < end {
            while theirs
                .get(next)
                .is_some_and(|run| run.vaddr + run.pages * PAGE_BYTES <= vaddr)
            {
                next += 1;
            }
            let (stop, counterpart) = match theirs.get(next) {
                None => (end, None),
                Some(their) if their.vaddr > vaddr => (end.min(their.vaddr), None),
                Some(their) => (
                    end.min(their.vaddr + their.pages * PAGE_BYTES),
                    Some(their.offset + (vaddr - their.vaddr)),
                ),
            };
            found.push((offset(vaddr)..offset(stop), counterpart));
            vaddr = stop;
        }
    }
    found
}

/// The files of a tar in order, or nothing when there is a doubt about any.
fn files(archive: &dyn ReadAt) -> io::Result<Option<Vec<File>>> {
    let size = archive.size();
    let mut files = Vec::new();
    let (mut at, mut path, mut pax_size) = (0u64, None, None);
    let mut block = [0; BLOCK];
    loop {
        let content = at + BLOCK as u64;
        if content > size {
            return Ok(None);
        }
        archive.read_exact_at(&mut block, at)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Some(files));
        }
        let Ok(header) = Header::parse(&block) else {
            return Ok(None);
        };
        let len = match header.kind {
            Kind::Bodiless => 0,
            Kind::Pax => header.size,
            Kind::File => pax_size.take().unwrap_or(header.size),
        };
        let Some(end) = content.checked_add(len).filter(|end| *end <= size) else {
            return Ok(None);
        };
        match header.kind {
            Kind::Pax if len > PAX_BYTES_MAX => return Ok(None),
            Kind::Pax => {
                let mut records = vec![0; len as usize];
                archive.read_exact_at(&mut records, content)?;
                let Ok(records) = pax_records(&records) else {
                    return Ok(None);
                };
                for (key, value) in records {
                    let text = String::from_utf8_lossy(value);
                    match key {
                        b"path" => path = Some(text.into_owned()),
                        b"size" => pax_size = text.parse().ok(),
                        _ => {}
                    }
                }
            }
            Kind::Bodiless => path = None,
            Kind::File => {
                let name = path.take().unwrap_or(header.name);
                let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
                files.push(File {
                    name,
                    at: content,
                    len,
                });
            }
        }
        at = end.next_multiple_of(BLOCK as u64);
    }
}
