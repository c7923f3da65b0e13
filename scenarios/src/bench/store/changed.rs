//! What any program must send at least that knows nothing but which pages changed: exactly those, under zstd.
//!
//! A page is known by its pagemap's name and its address; it is changed when the earlier round has another one there,
//! or none. Only CRIU's pages are looked at, so the figure is on the low side: everything else of a checkpoint is not in it.

use crate::process;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

const PAGE: u64 = 4096;
/// At the beginning of every pagemap: an image of CRIU, and which.
const MAGIC: [u8; 8] = [0x19, 0x43, 0x56, 0x54, 0x25, 0x40, 0x08, 0x56];
/// Of an entry's flags: its pages are in an earlier checkpoint.
const IN_PARENT: u64 = 1;

/// What changed between two rounds.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// Pages of the later round.
    pub pages: u64,
    /// Those that are new or other.
    pub changed: u64,
    /// Their bytes under `zstd -1`.
    pub packed_bytes: u64,
}

/// Compares two archives of checkpoints.
pub fn between(base: &Path, last: &Path) -> Result<Changed> {
    let (base, last) = (Pages::open(base)?, Pages::open(last)?);
    let mut zstd = Command::new("zstd")
        .args(["-1", "--stdout", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start zstd")?;
    let mut pages = zstd.stdin.take().context("write to zstd")?;
    let mut packed = zstd.stdout.take().context("read from zstd")?;
    let count = thread::spawn(move || std::io::copy(&mut packed, &mut std::io::sink()));
    let mut found = Changed {
        pages: last.at.len() as u64,
        changed: 0,
        packed_bytes: 0,
    };
    let (mut now, mut before) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
    for (key, at) in &last.at {
        last.file
            .read_exact_at(&mut now, *at)
            .context("read a page")?;
        if let Some(at) = base.at.get(key) {
            base.file
                .read_exact_at(&mut before, *at)
                .context("read a page")?;
            if now == before {
                continue;
            }
        }
        found.changed += 1;
        pages.write_all(&now).context("compress a page")?;
    }
    drop(pages);
    let Ok(counted) = count.join() else {
        bail!("counting what zstd wrote panicked")
    };
    found.packed_bytes = counted.context("read from zstd")?;
    ensure!(
        zstd.wait().context("wait for zstd")?.success(),
        "zstd failed"
    );
    Ok(found)
}

/// Where an archive has the pages of the checkpoint's memory.
struct Pages {
    file: File,
    at: BTreeMap<(String, u64), u64>,
}

impl Pages {
    fn open(archive: &Path) -> Result<Self> {
        let open = || File::open(archive).with_context(|| format!("open {}", archive.display()));
        let (file, mut members) = (open()?, BTreeMap::new());
        let mut tar = tar::Archive::new(open()?);
        for entry in tar.entries_with_seek().context("read the archive")? {
            let entry = entry.context("read the archive")?;
            let path = entry.path().context("read a member's name")?;
            let name = path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            if let Some(name) = name.filter(|_| {
                path.parent()
                    .is_some_and(|folder| folder.ends_with("checkpoint"))
            }) {
                members.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        let mut at = BTreeMap::new();
        for (name, (start, size)) in &members {
            if !name.starts_with("pagemap-") {
                continue;
            }
            let mut bytes = vec![0; usize::try_from(*size).context("a pagemap fits the memory")?];
            file.read_exact_at(&mut bytes, *start)
                .context("read a pagemap")?;
            let map = parse(&bytes).with_context(|| format!("understand {name}"))?;
            let pages = format!("pages-{}.img", map.pages);
            let Some((mut place, _)) = members.get(&pages).copied() else {
                ensure!(
                    map.runs.is_empty(),
                    "{name} speaks of {pages}, which is not there"
                );
                continue;
            };
            for (address, count) in map.runs {
                for n in 0..count {
                    at.insert((name.clone(), address + n * PAGE), place);
                    place += PAGE;
                }
            }
        }
        Ok(Self { file, at })
    }
}

/// A pagemap: which pages file it is about, and the runs of pages in it, by address.
#[derive(Debug, PartialEq, Eq)]
struct Pagemap {
    pages: u64,
    runs: Vec<(u64, u64)>,
}

/// A head and entries, each behind its length: protobuf messages of numbers only.
fn parse(bytes: &[u8]) -> Result<Pagemap> {
    let Some(mut rest) = bytes.strip_prefix(&MAGIC) else {
        bail!("it does not begin as a pagemap")
    };
    let (mut pages, mut runs) = (None, Vec::new());
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk().context("a length is cut off")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (message, behind) = behind
            .split_at_checked(length)
            .context("a message is cut off")?;
        rest = behind;
        let fields = numbers(message)?;
        let field = |number| fields.get(&number).copied();
        if pages.is_none() {
            pages = Some(field(1).context("the head names no pages")?);
            continue;
        }
        // A count of 32 bits, and since CRIU 4 one of 64 beside it.
        let count = field(5).or(field(2)).context("an entry has no count")?;
        if field(4).unwrap_or(0) & IN_PARENT == 0 && field(3).unwrap_or(0) == 0 {
            runs.push((field(1).context("an entry has no address")?, count));
        }
    }
    Ok(Pagemap {
        pages: pages.context("it is empty")?,
        runs,
    })
}

fn numbers(mut message: &[u8]) -> Result<BTreeMap<u64, u64>> {
    let mut found = BTreeMap::new();
    while !message.is_empty() {
        let key = number(&mut message)?;
        ensure!(key & 7 == 0, "a field is no number");
        found.insert(key >> 3, number(&mut message)?);
    }
    Ok(found)
}

fn number(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().context("a number is cut off")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number is too long")
}

/// Fails when two files differ.
pub fn prove_equal(one: &Path, other: &Path) -> Result<()> {
    let mut compare = Command::new("cmp");
    compare.arg(one).arg(other);
    process::succeed(&mut compare, super::STEP_WITHIN).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn message(fields: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in fields
            .iter()
            .flat_map(|(field, value)| [field << 3, *value])
        {
            let mut left = number;
            while left >= 0x80 {
                bytes.push(left as u8 | 0x80);
                left >>= 7;
            }
            bytes.push(left as u8);
        }
        let mut whole = (bytes.len() as u32).to_le_bytes().to_vec();
        whole.extend(bytes);
        whole
    }

    fn pagemap(runs: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(message(&[(1, 7)]));
        for (address, count) in runs {
            bytes.extend(message(&[(1, *address), (2, *count), (4, 4)]));
        }
        // Pages that are in a parent are not in this archive.
        bytes.extend(message(&[(1, 0x7000_0000), (2, 9), (4, 1)]));
        bytes
    }

    fn archive(folder: &Path, name: &str, runs: &[(u64, u64)], pages: &[u8]) -> std::path::PathBuf {
        let path = folder.join(name);
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        let content: Vec<u8> = pages
            .iter()
            .flat_map(|byte| vec![*byte; PAGE as usize])
            .collect();
        for (member, bytes) in [("pagemap-1.img", pagemap(runs)), ("pages-7.img", content)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, format!("checkpoint/{member}"), &bytes[..])
                .unwrap();
        }
        tar.finish().unwrap();
        path
    }

    #[test]
    fn a_page_is_changed_when_it_is_other_or_new_and_not_when_it_only_lies_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let base = archive(folder.path(), "base", &[(0x1_0000, 3)], &[1, 2, 3]);
        // One run more in front moves all others in the file.
        let last = archive(
            folder.path(),
            "last",
            &[(0x8000, 1), (0x1_0000, 3)],
            &[9, 1, 8, 3],
        );
        let found = between(&base, &last).unwrap();
        assert_eq!((found.pages, found.changed), (4, 2));
        assert!(found.packed_bytes > 0);
        assert_eq!(between(&last, &last).unwrap().changed, 0);
    }

    #[test]
    fn what_is_no_pagemap_or_cut_off_is_refused() {
        let whole = pagemap(&[(0x1_0000, 300)]);
        assert_eq!(parse(&whole).unwrap().runs, [(0x1_0000, 300)]);
        for end in MAGIC.len() + 1..whole.len() {
            // Between two messages it is one of fewer runs.
            assert!(parse(&whole[..end]).is_err() || parse(&whole[..end]).unwrap().runs.len() <= 1);
        }
        assert!(parse(&whole[..MAGIC.len() + 3]).is_err());
        assert!(parse(&fs::read("/bin/sh").unwrap()).is_err());
    }
}
