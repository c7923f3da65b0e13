//! Any archive in, the same bytes out; whatever the base, whatever the order of arrival.

mod given;

use given::{Memory, archive, bytes, known, pages, put_together, store};
use pages::{PAGE, PAGE_BYTES};
use proptest::prelude::*;

/// What a program did to its memory between two rounds.
fn scribbled(memory: &Memory, writes: &[(usize, u8)]) -> Memory {
    let mut memory = memory.clone();
    let total: usize = memory.iter().map(|(_, pages)| pages.len()).sum();
    for (place, value) in writes {
        let mut place = place % total;
        for (_, pages) in &mut memory {
            match pages.get_mut(place) {
                Some(byte) => {
                    *byte = *value;
                    break;
                }
                None => place -= pages.len(),
            }
        }
    }
    memory
}

#[test]
fn only_what_changed_is_sent() {
    let memory: Memory = vec![(0x10000, pages(1, 3000)), (0x900_0000, pages(2, 1000))];
    let first = archive(&memory, &[("spec.dump", b"{}".to_vec())]);
    let one = store(&first, None);
    assert_eq!(one.captured.pages, 4000);
    let writes: Vec<_> = (0..100).map(|i| (i * 163_840, 3)).collect();
    let second = archive(
        &scribbled(&memory, &writes),
        &[("spec.dump", b"{ }".to_vec())],
    );
    let two = store(&second, Some((&first, &one)));
    assert_eq!(two.captured.changed_pages, 100);
    let sent: usize = two.packs.iter().map(|pack| pack.bytes.len()).sum();
    assert!(sent < 100 * PAGE / 10, "{sent} bytes for 100 changed bytes");
    let base = put_together(&one, None, 0..one.packs.len()).unwrap();
    assert_eq!(bytes(&base.view), first);
    let again = put_together(&two, Some(base), 0..two.packs.len()).unwrap();
    assert_eq!(bytes(&again.view), second);
}

#[test]
fn memory_that_moved_is_found_by_its_content() {
    let first = archive(&vec![(0x10000, pages(1, 500))], &[]);
    let second = archive(&vec![(0x7000_0000, pages(1, 500))], &[]);
    let one = store(&first, None);
    let two = store(&second, Some((&first, &one)));
    assert_eq!(two.captured.changed_pages, 0);
    let again = put_together(&two, Some(known(&first, &one)), 0..two.packs.len()).unwrap();
    assert_eq!(bytes(&again.view), second);
}

#[test]
fn a_file_that_grew_in_front_is_found_by_its_chunks() {
    let content = pages(5, 200);
    let mut longer = b"a line more".to_vec();
    longer.extend_from_slice(&content);
    let first = archive(&vec![], &[("rootfs-diff.tar", content)]);
    let second = archive(&vec![], &[("rootfs-diff.tar", longer)]);
    let one = store(&first, None);
    let two = store(&second, Some((&first, &one)));
    let sent: usize = two.packs.iter().map(|pack| pack.bytes.len()).sum();
    assert!(sent < 150_000, "{sent} bytes of {}", second.len());
    let again = put_together(&two, Some(known(&first, &one)), 0..two.packs.len()).unwrap();
    assert_eq!(bytes(&again.view), second);
}

#[test]
fn zeros_are_not_sent() {
    let first = archive(&vec![(0x10000, vec![0; 4000 * PAGE])], &[]);
    let one = store(&first, None);
    let sent: usize = one.packs.iter().map(|pack| pack.bytes.len()).sum();
    assert!(sent < 2 * PAGE, "{sent}");
    let again = put_together(&one, None, 0..one.packs.len()).unwrap();
    assert_eq!(bytes(&again.view), first);
}

#[test]
fn what_is_no_archive_goes_through_by_chunks() {
    let first = pages(3, 300);
    let mut second = b"moved".to_vec();
    second.extend_from_slice(&first);
    for (first, second) in [
        (first, second),
        (Vec::new(), pages(1, 1)),
        (pages(1, 1), Vec::new()),
    ] {
        let one = store(&first, None);
        let two = store(&second, Some((&first, &one)));
        let base = put_together(&one, None, 0..one.packs.len()).unwrap();
        let again = put_together(&two, Some(base), 0..two.packs.len()).unwrap();
        assert_eq!(bytes(&again.view), second);
    }
}

#[test]
fn the_same_archive_gives_the_same_objects() {
    let first = archive(&vec![(0x10000, pages(1, 5000))], &[]);
    let (one, again) = (store(&first, None), store(&first, None));
    assert_eq!(one.packs, again.packs);
    assert_eq!(one.captured.sealed_recipe, again.captured.sealed_recipe);
}

fn memory() -> impl Strategy<Value = Memory> {
    prop::collection::vec((1..40u64, 1..60usize, 0..4u64), 0..5).prop_map(|runs| {
        let mut vaddr = 0x1000;
        runs.into_iter()
            .map(|(gap, count, seed)| {
                let start = vaddr + gap * PAGE_BYTES;
                vaddr = start + count as u64 * PAGE_BYTES;
                let content = if seed == 0 {
                    vec![0; count * PAGE]
                } else {
                    pages(seed, count)
                };
                (start, content)
            })
            .collect()
    })
}

fn files() -> impl Strategy<Value = Vec<(&'static str, Vec<u8>)>> {
    let content = || prop::collection::vec(any::<u8>(), 0..3000);
    (content(), 0..60usize, any::<u64>()).prop_map(|(small, count, seed)| {
        vec![
            ("spec.dump", small),
            ("rootfs-diff.tar", pages(seed, count)),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_two_archives_give_back_the_second(
        one in memory(), other in memory(), related in any::<bool>(),
        writes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..200),
        first_files in files(), second_files in files(), shuffle in any::<u64>(),
    ) {
        let later = if related && !one.is_empty() { scribbled(&one, &writes) } else { other };
        let (first, second) = (archive(&one, &first_files), archive(&later, &second_files));
        let stored = store(&first, None);
        let difference = store(&second, Some((&first, &stored)));
        let base = put_together(&stored, None, (0..stored.packs.len()).rev()).unwrap();
        prop_assert_eq!(base.root, stored.captured.root);
        prop_assert_eq!(bytes(&base.view), first);
        let mut order: Vec<usize> = (0..difference.packs.len()).collect();
        order.sort_by_key(|number| (*number as u64).wrapping_mul(shuffle | 1));
        let again = put_together(&difference, Some(base), order.into_iter()).unwrap();
        prop_assert_eq!(bytes(&again.view), second);
    }

    #[test]
    fn any_bytes_give_back_themselves(
        first in prop::collection::vec(any::<u8>(), 0..5000), second in prop::collection::vec(any::<u8>(), 0..5000),
    ) {
        let stored = store(&first, None);
        let difference = store(&second, Some((&first, &stored)));
        let again = put_together(&difference, Some(known(&first, &stored)), 0..difference.packs.len()).unwrap();
        prop_assert_eq!(bytes(&again.view), second);
    }
}
