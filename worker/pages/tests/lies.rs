//! What was altered, cut short or mixed up is refused, never restored.

mod given;

use given::{archive, bytes, key, known, pages, put_together, store};
use pages::{
    keys::{DataKey, Identity},
    manifest::{Container, Manifest, ManifestError, Object, VERSION, wrap},
    rebuild::{Rebuild, RebuildError, open_recipe},
    recipe::Recipe,
    sealed::Sealed,
};
use proptest::prelude::*;

fn renamed(mut sealed: Sealed, change: impl FnOnce(&mut Vec<u8>)) -> Sealed {
    change(&mut sealed.bytes);
    sealed.name = blake3::hash(&sealed.bytes).to_hex().to_string();
    sealed
}

#[test]
fn every_bit_and_every_truncation_of_a_stored_checkpoint_is_refused() {
    let first = archive(&vec![(0x1000, pages(1, 1))], &[]);
    let whole = || store(&first, None);
    let length = whole().packs[0].bytes.len();
    for bit in 0..length * 8 {
        let mut stored = whole();
        stored.packs[0] = renamed(stored.packs[0].clone(), |bytes| {
            bytes[bit / 8] ^= 1 << (bit % 8)
        });
        assert!(
            put_together(&stored, None, 0..1).is_err(),
            "bit {bit} of the pack"
        );
    }
    for cut in 0..length {
        let mut stored = whole();
        stored.packs[0] = renamed(stored.packs[0].clone(), |bytes| bytes.truncate(cut));
        assert!(
            put_together(&stored, None, 0..1).is_err(),
            "pack of {cut} bytes"
        );
    }
    let recipe = whole().captured.sealed_recipe;
    for bit in 0..recipe.bytes.len() * 8 {
        let altered = renamed(recipe.clone(), |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        assert!(
            open_recipe(&key(), &altered.name, &altered.bytes).is_err(),
            "bit {bit} of the recipe"
        );
    }
}

#[test]
fn packs_that_changed_places_are_refused() {
    let first = archive(&vec![(0x1000, pages(1, 4000))], &[]);
    let mut stored = store(&first, None);
    assert!(stored.packs.len() > 1);
    stored.packs.swap(0, 1);
    assert!(put_together(&stored, None, 0..2).is_err());
}

#[test]
fn a_difference_is_not_applied_to_another_base() {
    let first = archive(&vec![(0x1000, pages(1, 100))], &[]);
    let other = archive(&vec![(0x1000, pages(2, 100))], &[]);
    let (one, two) = (store(&first, None), store(&other, None));
    let mut memory = pages(1, 100);
    memory[5] ^= 1;
    let later = archive(&vec![(0x1000, memory)], &[]);
    let difference = store(&later, Some((&first, &one)));
    let wrong = put_together(
        &difference,
        Some(known(&other, &two)),
        0..difference.packs.len(),
    );
    assert!(matches!(wrong, Err(RebuildError::OtherBase { .. })));
    assert!(matches!(
        put_together(&difference, None, 0..0),
        Err(RebuildError::OtherBase { .. })
    ));
    // A base that says it is the right one and is not: what depends on its bytes is noticed.
    let lying = known(&other, &one);
    let wrong = put_together(&difference, Some(lying), 0..difference.packs.len());
    assert!(matches!(wrong, Err(RebuildError::Frame { .. })));
}

#[test]
fn kept_bytes_that_rotted_are_noticed_before_they_are_used() {
    let first = archive(&vec![(0x1000, pages(1, 100))], &[]);
    let one = store(&first, None);
    let rebuild = Rebuild::new(&one.captured.recipe, None).unwrap();
    let base = put_together(&one, None, 0..one.packs.len()).unwrap();
    let mut kept = bytes(&base.view);
    // Everything is new in a first round and nothing has an earlier version: the kept file is the archive.
    rebuild.prove(&kept).unwrap();
    kept[70_000] ^= 0x10;
    assert!(rebuild.prove(&kept).is_err());
    kept.truncate(50_000);
    assert!(rebuild.prove(&kept).is_err());
}

fn manifest(key: &DataKey, identity: &Identity) -> Manifest {
    let object = |name: &str| Object {
        key: format!("checkpoints/m/r7/{name}"),
        blake3: "ab".repeat(32),
        bytes: 12,
    };
    Manifest {
        version: VERSION,
        migration: "0b7ee2c5-6f02-4a2b-8f36-7b1d0f6f3a11".to_owned(),
        created_unix_ns: 1_764_000_000_123_456_789,
        wrapped_key: wrap(key, &[identity.recipient()]).expect("one recipient"),
        base: None,
        containers: vec![Container {
            name: "kuard".to_owned(),
            size: 8_389_120,
            root: "ef".repeat(32),
            base: None,
            recipe: object("recipe"),
            packs: vec![object("pack")],
        }],
    }
}

#[test]
fn a_manifest_is_believed_only_with_its_seal() {
    let (identity, key) = (Identity::generate(), DataKey::random().unwrap());
    let manifest = manifest(&key, &identity);
    let bytes = manifest.to_bytes(&key);
    let (read, _) = Manifest::open(&bytes, std::slice::from_ref(&identity)).unwrap();
    assert_eq!(read, manifest);
    for at in 0..bytes.len() {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        // The seal's hex digits may change case without changing their meaning; nothing else may change.
        if altered.to_ascii_lowercase() != bytes {
            assert!(
                Manifest::open(&altered, std::slice::from_ref(&identity)).is_err(),
                "byte {at}"
            );
        }
        assert!(
            Manifest::open(&bytes[..at], std::slice::from_ref(&identity)).is_err(),
            "{at} bytes"
        );
    }
    let forged = manifest.to_bytes(&DataKey::random().unwrap());
    assert!(matches!(
        Manifest::open(&forged, &[identity]),
        Err(ManifestError::Seal)
    ));
    assert!(matches!(
        Manifest::open(&bytes, &[Identity::generate()]),
        Err(ManifestError::Key(_))
    ));
}

#[test]
fn no_key_is_in_a_manifest_in_clear() {
    let (identity, key) = (
        Identity::generate(),
        DataKey::from_bytes(*b"0123456789abcdef0123456789abcdef"),
    );
    let bytes = manifest(&key, &identity).to_bytes(&key);
    let text = String::from_utf8(bytes).unwrap();
    assert!(!text.contains("0123456789abcdef") && !text.contains("MDEyMzQ1Njc4OWFiY2RlZg"));
    assert!(!text.contains(&identity.reveal()));
}

proptest! {
    #[test]
    fn no_bytes_make_the_recipe_reader_panic_or_contradict_itself(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut recipe = b"LSRC\x01".to_vec();
        recipe.extend_from_slice(&bytes);
        if let Ok(read) = Recipe::from_bytes(&recipe) {
            prop_assert_eq!(Recipe::from_bytes(&read.to_bytes()).unwrap(), read);
        }
    }

    #[test]
    fn a_recipe_with_one_byte_altered_is_refused_or_covers_its_archive(at in 0..10_000usize, value in any::<u8>()) {
        let first = archive(&vec![(0x1000, pages(1, 20))], &[]);
        let mut recipe = store(&first, None).captured.recipe;
        let at = at % recipe.len();
        recipe[at] = value;
        if let Ok(read) = Recipe::from_bytes(&recipe) {
            prop_assert_eq!(read.ops.iter().map(|op| op.len).sum::<u64>(), read.size);
        }
    }
}
