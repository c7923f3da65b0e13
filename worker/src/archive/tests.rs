//! The rewriter against the `tar` crate as oracle.

use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;

fn edits(replacement: Option<Vec<u8>>) -> Vec<Edit<'static>> {
    vec![
        Edit {
            name: "config.dump",
            need: Need::Required,
            change: Box::new(move |_| Ok(replacement.clone())),
        },
        Edit {
            name: "checkpoint/timerfd.img",
            need: Need::Optional,
            change: Box::new(|_| Ok(None)),
        },
    ]
}

/// An archive as the kubelet's runtime writes it: pax where a name is long.
fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        if name.len() > 99 {
            builder
                .append_pax_extensions([("path", name.as_bytes())])
                .unwrap();
        }
        let mut header = tar::Header::new_ustar();
        header
            .set_path(if name.len() > 99 { "long" } else { name })
            .unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_cksum();
        builder.append(&header, content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (name, content)
    };
    archive.entries().unwrap().map(read).collect()
}

/// Rewrites an archive fed in pieces of the given sizes, over and over.
fn rewrite(
    archive: &[u8],
    replacement: Option<Vec<u8>>,
    cuts: &[usize],
) -> Result<Vec<u8>, ArchiveError> {
    let mut rewriter = Rewriter::new(Vec::new(), edits(replacement));
    let mut cuts = cuts.iter().cycle();
    let mut rest = archive;
    while !rest.is_empty() {
        let (piece, next) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
        rewriter.feed(piece)?;
        rest = next;
    }
    rewriter.finish()
}

/// The same by a plan, put into bytes.
fn planned(archive: &[u8], replacement: Option<Vec<u8>>) -> Result<Vec<u8>, ArchiveError> {
    let parts = layer::plan(&archive.to_vec(), edits(replacement))?;
    let bytes = parts.into_iter().flat_map(|part| match part {
        layer::Part::Archive(range) => archive[range.start as usize..range.end as usize].to_vec(),
        layer::Part::Ours(bytes) => bytes,
    });
    Ok(bytes.collect())
}

fn files() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let name = prop_oneof!["checkpoint/[a-z]{1,8}-[0-9]\\.img", "[a-z]{120}/[a-z]{60}"];
    let file = (name, prop::collection::vec(any::<u8>(), 0..2000));
    let config = prop::collection::vec(any::<u8>(), 0..1200);
    (prop::collection::vec(file, 0..5), config, 0..6usize).prop_map(|(mut files, config, at)| {
        files.insert(at.min(files.len()), ("config.dump".to_owned(), config));
        files
    })
}

proptest! {
    #[test]
    fn an_archive_without_a_change_stays_the_same_bytes(files in files(), cuts in prop::collection::vec(1usize..1500, 1..4)) {
        let archive = archive(&files);
        prop_assert_eq!(rewrite(&archive, None, &cuts).unwrap(), archive);
    }

    #[test]
    fn only_the_edited_file_differs(files in files(), new in prop::collection::vec(any::<u8>(), 0..1500), cuts in prop::collection::vec(1usize..1500, 1..4)) {
        let rewritten = rewrite(&archive(&files), Some(new.clone()), &cuts).unwrap();
        let expected: Vec<_> = files
            .into_iter()
            .map(|(name, content)| if name == "config.dump" { (name, new.clone()) } else { (name, content) })
            .collect();
        prop_assert_eq!(entries(&rewritten), expected);
    }

    #[test]
    fn a_plan_gives_the_bytes_that_rewriting_gives(files in files(), new in prop::collection::vec(any::<u8>(), 0..1500)) {
        let archive = archive(&files);
        let rewritten = rewrite(&archive, Some(new.clone()), &[512]).unwrap();
        prop_assert_eq!(planned(&archive, Some(new)).unwrap(), rewritten);
    }

    #[test]
    fn an_archive_cut_short_is_refused(files in files(), lost in 1usize..5000) {
        let archive = archive(&files);
        // The end mark is two blocks; a lost second one is not noticed here, but by the hash of the whole.
        let end = archive.len().saturating_sub(lost.max(BLOCK * 2));
        prop_assert!(rewrite(&archive[..end], None, &[700]).is_err());
        prop_assert!(planned(&archive[..end], None).is_err());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let rewritten = rewrite(&bytes, None, &[512]).ok();
        prop_assert_eq!(planned(&bytes, None).ok(), rewritten);
    }
}

fn config() -> (String, Vec<u8>) {
    ("config.dump".to_owned(), b"{}".to_vec())
}

fn refusal(archive: &[u8]) -> String {
    let error = rewrite(archive, None, &[512]).unwrap_err();
    let cause = std::error::Error::source(&error)
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    format!("{error}{cause}")
}

#[test]
fn a_required_file_that_is_missing_or_there_twice_is_refused() {
    assert!(refusal(&archive(&[("other".to_owned(), vec![])])).contains("it has no config.dump"));
    assert!(refusal(&archive(&[config(), config()])).contains("twice"));
    let dotted = ("./config.dump".to_owned(), b"{}".to_vec());
    let mut bytes = archive(&[config()]);
    bytes.truncate(BLOCK * 2);
    bytes.extend(archive(&[dotted]));
    assert!(
        refusal(&bytes).contains("twice"),
        "the same file under another spelling"
    );
}

#[test]
fn a_header_with_a_flipped_bit_is_refused() {
    let good = archive(&[config()]);
    for bit in (0..BLOCK * 8).step_by(37) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(rewrite(&bad, None, &[512]).is_err(), "bit {bit}");
    }
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let mut bytes = archive(&[config()]);
    bytes.push(1);
    assert!(refusal(&bytes).contains("behind its end mark"));
}

#[test]
fn kinds_that_are_not_understood_are_refused_by_name() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_path("pages").unwrap();
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, &[][..]).unwrap();
    assert!(refusal(&builder.into_inner().unwrap()).contains("kind 'S'"));
}

#[test]
fn a_size_in_base_256_is_read_like_the_oracle_reads_it() {
    let content = vec![7; 1000];
    let mut header = tar::Header::new_gnu();
    header.set_path("checkpoint/pages-1.img").unwrap();
    header.set_size(content.len() as u64);
    header.as_mut_bytes()[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 232]);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.write_all(&content).unwrap();
    bytes.resize(BLOCK * 3, 0);
    bytes.extend(archive(&[config()]));
    assert_eq!(entries(&bytes).len(), 2);
    assert_eq!(rewrite(&bytes, None, &[100]).unwrap(), bytes);
}

#[test]
fn a_pax_size_replaces_the_headers() {
    let content = vec![7; 1000];
    let mut builder = tar::Builder::new(Vec::new());
    builder
        .append_pax_extensions([("size", b"1000".as_slice())])
        .unwrap();
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(BLOCK * 2);
    let mut header = tar::Header::new_ustar();
    header.set_path("checkpoint/pages-1.img").unwrap();
    header.set_size(0);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    bytes.extend(&content);
    bytes.resize(BLOCK * 5, 0);
    bytes.extend(archive(&[config()]));
    assert_eq!(rewrite(&bytes, None, &[512]).unwrap(), bytes);
}

mod timers {
    use super::super::timerfd::{repair_files, repair_timers};

    /// `timerfd_entry` with value and interval in seconds and nanoseconds.
    fn timer(value: [u64; 2], interval: [u64; 2]) -> Vec<u8> {
        let mut message = vec![
            0x08, 5, 0x10, 0x82, 0x10, 0x1a, 2, 0x08, 0, 0x20, 1, 0x28, 0, 0x30, 0,
        ];
        for (field, number) in (7u8..).zip(value.into_iter().chain(interval)) {
            message.push(field << 3);
            let mut number = number;
            while number >= 0x80 {
                message.push((number & 0x7f) as u8 | 0x80);
                number >>= 7;
            }
            message.push(number as u8);
        }
        message
    }

    fn image(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut image = vec![0x19, 0x43, 0x56, 0x54, 1, 2, 3, 4];
        for entry in entries {
            image.extend((entry.len() as u32).to_le_bytes());
            image.extend(entry);
        }
        image
    }

    #[test]
    fn an_expired_periodic_timer_gets_one_interval_and_the_others_stay() {
        let running = timer([3, 7], [5, 0]);
        let once = timer([0, 0], [0, 0]);
        let lost = image(&[
            running.clone(),
            timer([0, 0], [0, 250_000_000]),
            once.clone(),
        ]);
        let repaired = image(&[running, timer([0, 250_000_000], [0, 250_000_000]), once]);
        assert_eq!(repair_timers(&lost).unwrap(), repaired);
        assert_eq!(
            repair_timers(&repaired),
            None,
            "a second repair finds nothing"
        );
    }

    #[test]
    fn timers_among_other_files_are_repaired_too() {
        let file = |timer: &[u8]| {
            let mut message = vec![0x08, 17, 0x10, 5, 0x62, timer.len() as u8];
            message.extend(timer);
            message
        };
        let other = vec![0x08, 1, 0x10, 9, 0x1a, 1, 0];
        let lost = image(&[other.clone(), file(&timer([0, 0], [300, 0]))]);
        assert_eq!(
            repair_files(&lost).unwrap(),
            image(&[other, file(&timer([300, 0], [300, 0]))])
        );
    }

    #[test]
    fn what_is_not_understood_stays_as_it_is() {
        let lost = image(&[timer([0, 0], [5, 0])]);
        for cut in 0..lost.len() {
            assert_eq!(repair_timers(&lost[..cut]), None, "cut at {cut}");
        }
        let mut strange = lost.clone();
        strange[0] ^= 1;
        assert_eq!(repair_timers(&strange), None);
        assert_eq!(
            repair_timers(&image(&[vec![0x08, 5]])),
            None,
            "an entry without the fields of a timer"
        );
    }
}
