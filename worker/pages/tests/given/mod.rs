//! Archives as a kubelet makes them, small: a tar with CRIU's page images in it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use pages::{
    PAGE, PAGE_BYTES,
    capture::{Base, Captured, capture},
    keys::DataKey,
    rebuild::{Known, Rebuild, RebuildError, WriteAt, open_recipe},
    sealed::Sealed,
    source::{Origin, ReadAt, View},
    tarblock::BLOCK,
    varint,
};

/// A run of memory: address and pages.
pub type Memory = Vec<(u64, Vec<u8>)>;

/// An archive with one process and other files.
pub fn archive(memory: &Memory, files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Vec::new();
    entry(&mut tar, "checkpoint/pagemap-1.img", &pagemap(memory));
    let pages: Vec<u8> = memory.iter().flat_map(|(_, pages)| pages.clone()).collect();
    entry(&mut tar, "checkpoint/pages-1.img", &pages);
    for (name, content) in files {
        entry(&mut tar, name, content);
    }
    tar.extend_from_slice(&[0; 2 * BLOCK]);
    tar
}

fn pagemap(memory: &Memory) -> Vec<u8> {
    let mut image = 0x5456_4319_u32.to_le_bytes().to_vec();
    image.extend_from_slice(&0x5608_4025_u32.to_le_bytes());
    let mut message = |fields: &[(u64, u64)]| {
        let mut body = Vec::new();
        for (number, value) in fields {
            varint::put(&mut body, number << 3);
            varint::put(&mut body, *value);
        }
        image.extend_from_slice(&(body.len() as u32).to_le_bytes());
        image.extend_from_slice(&body);
    };
    message(&[(1, 1)]);
    for (vaddr, pages) in memory {
        message(&[(1, *vaddr), (2, pages.len() as u64 / PAGE_BYTES), (4, 4)]);
    }
    image
}

fn entry(tar: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000600");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend_from_slice(&header);
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}

/// Pages of noise from a seed.
pub fn pages(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * PAGE];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    // Half of it compresses.
    for page in bytes.chunks_exact_mut(PAGE) {
        page[PAGE / 2..].fill(7);
    }
    bytes
}

pub fn key() -> DataKey {
    DataKey::from_bytes([9; 32])
}

/// A checkpoint as a store would hold it.
pub struct Stored {
    pub captured: Captured,
    pub packs: Vec<Sealed>,
}

/// Takes an archive apart.
pub fn store(archive: &Vec<u8>, base: Option<(&Vec<u8>, &Stored)>) -> Stored {
    let mut packs = Vec::new();
    let base = base.map(|(source, stored)| Base {
        source,
        root: stored.captured.root,
    });
    let captured = capture(archive, base, &key(), 2, |pack, _| {
        packs.push(pack);
        true
    });
    Stored {
        captured: captured.expect("memory can be read"),
        packs,
    }
}

/// Puts it together again; packs arrive in the order given.
pub fn put_together(
    stored: &Stored,
    base: Option<Known>,
    order: impl Iterator<Item = usize>,
) -> Result<Known, RebuildError> {
    let sealed = &stored.captured.sealed_recipe;
    let recipe = open_recipe(&key(), &sealed.name, &sealed.bytes)?;
    let rebuild = Rebuild::new(&recipe, base)?;
    assert_eq!(rebuild.packs(), stored.packs.len());
    let new = Written(Mutex::new(vec![0xee; rebuild.new_bytes() as usize]));
    for number in order {
        let pack = &stored.packs[number];
        rebuild.pack(&key(), number, &pack.name, &pack.bytes, &new)?;
    }
    let new = new.0.into_inner().expect("memory can be read");
    rebuild.prove(&new)?;
    Ok(Known {
        view: Arc::new(rebuild.view(Arc::new(new))?),
        root: rebuild.root(),
    })
}

/// All of a view's bytes.
pub fn bytes(view: &View) -> Vec<u8> {
    let mut bytes = vec![0; view.size() as usize];
    view.read_exact_at(&mut bytes, 0)
        .expect("memory can be read");
    bytes
}

/// An archive at hand, with the root its capture gave it.
pub fn known(archive: &[u8], stored: &Stored) -> Known {
    let mut view = View::default();
    view.push(
        archive.len() as u64,
        Origin::Source {
            source: Arc::new(archive.to_vec()),
            offset: 0,
        },
    );
    Known {
        view: Arc::new(view),
        root: stored.captured.root,
    }
}

struct Written(Mutex<Vec<u8>>);

impl WriteAt for Written {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = offset as usize;
        self.0.lock().expect("nobody panics with it")[offset..offset + bytes.len()]
            .copy_from_slice(bytes);
        Ok(())
    }
}
