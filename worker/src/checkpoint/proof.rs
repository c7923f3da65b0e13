//! What an archive says about itself: of which container it is, and what CRIU measured.
//!
//! Only two small entries are read; the memory between them is skipped by seeking.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// CRIU's mark at the head of its statistics, after the mark of service files.
const STATS_MAGIC: u32 = 0x5709_3306;
/// Entries that are read whole are small; a larger one is not what we think it is.
const ENTRY_BYTES_MAX: u64 = 1 << 20;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// The runtime's id of the container.
    pub container_id: String,
    /// Bytes of the archive.
    pub bytes: u64,
    /// CRIU's own statistics by name; times in microseconds.
    pub statistics: BTreeMap<String, String>,
}

/// The archive can't be trusted.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It can't be read.
    #[error("read the archive {}", path.display())]
    Io {
        /// Where it lies.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not complete.
    #[error("the archive {} holds no readable config.dump: it is not complete", path.display())]
    NoConfig {
        /// Where it lies.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
struct ConfigDump {
    id: String,
}

/// Reads an archive's own words. Blocks on the disk.
pub fn read(path: &Path) -> Result<Proof, ProofError> {
    let io = |source| ProofError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let mut proof = Proof {
        bytes: file.metadata().map_err(io)?.len(),
        ..Proof::default()
    };
    for entry in tar::Archive::new(file).entries_with_seek().map_err(io)? {
        let mut entry = entry.map_err(io)?;
        let name = entry.path().map_err(io)?.into_owned();
        let wanted = name == Path::new("config.dump") || name == Path::new("stats-dump");
        if !wanted || entry.size() > ENTRY_BYTES_MAX {
            continue;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(io)?;
        if name == Path::new("config.dump") {
            proof.container_id = serde_json::from_slice(&bytes)
                .map(|ConfigDump { id }| id)
                .unwrap_or_default();
        } else {
            proof.statistics = statistics(&bytes);
        }
    }
    if proof.container_id.is_empty() {
        return Err(ProofError::NoConfig {
            path: path.to_owned(),
        });
    }
    Ok(proof)
}

/// CRIU's statistics of a dump; empty when they are not what we know. They explain and decide nothing.
fn statistics(image: &[u8]) -> BTreeMap<String, String> {
    let word = |at: usize| {
        image
            .get(at..at + 4)
            .map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]))
    };
    if word(4) != Some(STATS_MAGIC) {
        return BTreeMap::new();
    }
    let Some(size) = word(8).and_then(|size| usize::try_from(size).ok()) else {
        return BTreeMap::new();
    };
    let message = image.get(12..12 + size).unwrap_or_default();
    // The outer message has the dump's statistics as its field 1.
    match message.split_first() {
        Some((&0x0a, rest)) => varint(rest)
            .map(|(_, rest)| numbers(rest))
            .unwrap_or_default(),
        Some(_) | None => BTreeMap::new(),
    }
}

/// Fields of the inner message: numbers all.
fn numbers(mut bytes: &[u8]) -> BTreeMap<String, String> {
    const NAMES: [(u64, &str); 7] = [
        (1, "criu.freezing_us"),
        (2, "criu.frozen_us"),
        (3, "criu.memdump_us"),
        (4, "criu.memwrite_us"),
        (5, "criu.pages_scanned"),
        (7, "criu.pages_written"),
        (8, "criu.irmap_resolve_us"),
    ];
    let mut found = BTreeMap::new();
    while let Some((tag, rest)) = varint(bytes) {
        // Wire type 0 is a number; anything else ends what we know.
        let Some((value, rest)) = (tag & 7 == 0).then(|| varint(rest)).flatten() else {
            break;
        };
        if let Some((_, name)) = NAMES.iter().find(|(number, _)| *number == tag >> 3) {
            found.insert((*name).to_owned(), value.to_string());
        }
        bytes = rest;
    }
    found
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (place, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(place).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(file.reopen().unwrap());
        for (name, bytes) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.finish().unwrap();
        file
    }

    #[test]
    fn an_archive_says_of_which_container_it_is_and_what_criu_measured() {
        let mut stats = vec![0x40, 0x59, 0x10, 0x55];
        stats.extend(STATS_MAGIC.to_le_bytes());
        stats.extend(7_u32.to_le_bytes());
        stats.extend([0x0a, 5, 0x08, 3, 0x10, 0x96, 0x01]);
        let file = archive(&[
            ("checkpoint/pages-1.img", &[7; 9000]),
            ("config.dump", br#"{"id":"abc","name":"x"}"#),
            ("stats-dump", &stats),
        ]);
        let proof = read(file.path()).unwrap();
        assert_eq!(proof.container_id, "abc");
        assert_eq!(proof.statistics["criu.frozen_us"], "150");
        assert_eq!(proof.bytes, file.path().metadata().unwrap().len());
    }

    #[test]
    fn an_archive_cut_short_is_no_proof() {
        let file = archive(&[
            ("checkpoint/pages-1.img", &[7; 9000]),
            ("config.dump", br#"{"id":"abc"}"#),
        ]);
        file.as_file().set_len(9000).unwrap();
        assert!(read(file.path()).is_err());
        let empty = archive(&[("dump.log", b"")]);
        assert!(matches!(
            read(empty.path()),
            Err(ProofError::NoConfig { .. })
        ));
    }

    #[test]
    fn strange_statistics_are_left_out() {
        for bytes in [&b""[..], b"1234", &[0; 40], &[0xff; 40]] {
            assert!(statistics(bytes).is_empty());
        }
    }
}
