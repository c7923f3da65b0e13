//! Rounds between two nodes and a third one: what the source keeps, what the target receives, and what the store alone
//! gives back.

use std::fs;

use pages::{keys::Identity, source::ReadAt};

mod crash;

use super::*;
use crate::{
    gather::{Archive, Checkpoint},
    rebuild::{Recipe, build, layer::Layer, sha256},
    store::memory::Memory,
};

const MIGRATION: &str = "m";
const CONTAINER: &str = "web";
const BASE_IMAGE: &str = "sha256:ba5e";

/// Nodes around a store.
struct Bench {
    folder: tempfile::TempDir,
    store: Arc<Memory>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        fs::create_dir(&keys).unwrap();
        fs::write(keys.join("identity"), Identity::generate().reveal()).unwrap();
        Self {
            folder,
            store: Arc::default(),
        }
    }

    /// A worker of this node, which has just been started.
    fn node(&self, name: &str) -> DataPath {
        self.node_with(name, self.store.clone())
    }

    /// The same, whose way to the store is this.
    fn node_with(&self, name: &str, store: Arc<dyn Store>) -> DataPath {
        let state = self.folder.path().join(name);
        fs::create_dir_all(&state).unwrap();
        let images = Images::new(state.join("no-runtime"));
        let registry = Registry::open(&state, 0, images.clone()).unwrap();
        let keys = self.folder.path().join("keys");
        DataPath::new(store, images, registry, state, keys).unwrap()
    }

    /// An archive in a file, as the kubelet leaves it.
    fn archive(&self, name: &str, bytes: &[u8]) -> Vec<(String, PathBuf)> {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        vec![(CONTAINER.to_owned(), path)]
    }

    /// What its manifest says.
    async fn checkpoint(&self, node: &DataPath, saved: &Saved) -> Checkpoint {
        let bytes = self.store.get(&saved.manifest_key).await.unwrap();
        let trust = Trust::load(&node.keys_dir).unwrap();
        let (key, hash) = (&saved.manifest_key, &saved.manifest_blake3);
        crate::gather::open_manifest(key, &bytes, hash, &trust).unwrap()
    }
}

/// Noise, so that nothing of it is smaller than it is.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut noise = blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof();
    noise.fill(&mut bytes);
    bytes
}

/// An archive that a layer can be made of, with 2 MiB of memory of which `changed` bytes in the middle are others.
fn archive_with(changed: &[u8]) -> Vec<u8> {
    let mut pages = noise(1, 2 << 20);
    pages[1 << 20..][..changed.len()].copy_from_slice(changed);
    archive_of(&pages)
}

/// An archive that a layer can be made of, with this memory.
fn archive_of(pages: &[u8]) -> Vec<u8> {
    let config = serde_json::json!({
        "id": "c1", "rootfsImageRef": format!("registry/web@{BASE_IMAGE}"),
    });
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("checkpoint/pages-1.img", pages),
        ("config.dump", config.to_string().as_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn stores<'a>(
    prefix: &'a str,
    archives: &'a [(String, PathBuf)],
    base: Option<&'a Base>,
) -> Stores<'a> {
    Stores {
        migration: MIGRATION,
        prefix,
        archives,
        base,
    }
}

fn base_of(saved: &Saved) -> Base {
    Base {
        manifest_key: saved.manifest_key.clone(),
        manifest_blake3: saved.manifest_blake3.clone(),
    }
}

async fn receive(node: &DataPath, saved: &Saved) -> Result<Vec<Span>, DataError> {
    receive_for(MIGRATION, node, saved).await
}

async fn receive_for(
    migration: &str,
    node: &DataPath,
    saved: &Saved,
) -> Result<Vec<Span>, DataError> {
    let request = Receive {
        round: Some(base_of(saved)),
    };
    let give_way = CancellationToken::new();
    node.receive(migration, &request, &|_, _, _| {}, &give_way)
        .await
}

/// The bytes of a round as a node has them.
fn kept(node: &DataPath, saved: &Saved) -> Vec<u8> {
    kept_for(MIGRATION, node, saved)
}

fn kept_for(migration: &str, node: &DataPath, saved: &Saved) -> Vec<u8> {
    let round = node.rounds.get(migration, &saved.manifest_blake3).unwrap();
    let view = &round.archive(CONTAINER).unwrap().view;
    let mut bytes = vec![0; view.size() as usize];
    view.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Two rounds and the final one, the last two being differences.
async fn three(bench: &Bench, source: &DataPath) -> [(Saved, Vec<u8>); 3] {
    let quiet = &|_: &str, _: u64, _: u64| {};
    let first = archive_with(&[]);
    let archives = bench.archive("first", &first);
    let one = source.copy(stores("c/1/", &archives, None), quiet).await;
    let one = one.unwrap();
    let second = archive_with(&noise(2, 9_000));
    let archives = bench.archive("second", &second);
    let base = base_of(&one);
    let two = source.copy(stores("c/2/", &archives, Some(&base)), quiet);
    let two = two.await.unwrap();
    let last = archive_with(&noise(3, 20_000));
    let archives = bench.archive("last", &last);
    let base = base_of(&two);
    let three = source.save(stores("c/3/", &archives, Some(&base)), quiet);
    let three = three.await.unwrap();
    [(one, first), (two, second), (three, last)]
}

/// How its container's layer is made, above a base that this node has.
fn layer_of(checkpoint: Checkpoint, base: Option<Kept>) -> Recipe {
    let (_, archive) = checkpoint.archives.into_iter().next().unwrap();
    Recipe {
        migration: MIGRATION.to_owned(),
        revision: 3,
        container: CONTAINER.to_owned(),
        archive,
        base,
        // As in the archive, so that the layer is the archive.
        base_reference: format!("registry/web@{BASE_IMAGE}"),
        base_digest: BASE_IMAGE.to_owned(),
        base_image_id: "sha256:1d".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_ahead_is_not_sent_again_and_the_target_reads_it_from_its_disk() {
    let bench = Bench::new();
    let (source, target) = (bench.node("source"), bench.node("target"));
    let [(one, first), (two, second), (three, last)] = three(&bench, &source).await;
    assert!(one.stored_bytes > 2 << 20);
    for round in [&two, &three] {
        assert!(round.stored_bytes < 128 << 10, "{}", round.stored_bytes);
    }
    receive(&target, &one).await.unwrap();
    receive(&target, &two).await.unwrap();
    assert_eq!(kept(&target, &one), first);
    assert_eq!(kept(&target, &two), second);
    // The rounds leave the store: what is delivered is put together from what is here.
    for prefix in ["c/1/", "c/2/"] {
        crate::store::remove::remove_below(bench.store.as_ref(), prefix)
            .await
            .unwrap();
    }
    let folder = bench.folder.path().join("target/layers/m/r3/web");
    let below = target.rounds.get(MIGRATION, &two.manifest_blake3).unwrap();
    let base = below.archive(CONTAINER).cloned();
    let recipe = layer_of(bench.checkpoint(&target, &three).await, base);
    let store: Arc<dyn Store> = bench.store.clone();
    let (traffic, give_way) = (Arc::default(), CancellationToken::new());
    let built = build(store, recipe, folder.clone(), traffic, &|_| {}, &give_way).await;
    // Bases may go once the layer stands: it has names of its own for their files.
    target.rounds.forget(MIGRATION).unwrap();
    let layer = Layer::open(&folder).unwrap();
    let mut bytes = vec![0; layer.view().size() as usize];
    layer.view().read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(sha256(&bytes), built.unwrap().layer_digest);
    let pages = 512..512 + (2 << 20);
    assert_eq!(bytes[pages.clone()], last[pages]);
    let new = fs::metadata(folder.join("new")).unwrap().len();
    assert!(new < 128 << 10, "only what changed is written: {new}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_rounds_has_them_from_the_store() {
    let bench = Bench::new();
    let source = bench.node("source");
    let [_, _, (last, bytes)] = three(&bench, &source).await;
    let rescue = bench.node("rescue");
    receive(&rescue, &last).await.unwrap();
    assert_eq!(kept(&rescue, &last), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_restarted_stores_the_whole() {
    let bench = Bench::new();
    let [(one, _), ..] = three(&bench, &bench.node("source")).await;
    let restarted = bench.node("source");
    let archives = bench.archive("later", &archive_with(&noise(4, 100)));
    let base = base_of(&one);
    let saved = restarted.save(stores("c/4/", &archives, Some(&base)), &|_, _, _| {});
    let saved = saved.await.unwrap();
    assert!(saved.stored_bytes > 2 << 20);
    assert_eq!(bench.checkpoint(&restarted, &saved).await.base, None);
}

/// A later migration of the pod, on the checkpoint that the earlier one has left in the store.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_migration_has_left_is_a_base_for_a_later_one() {
    const LATER: &str = "later";
    let bench = Bench::new();
    let quiet = &|_: &str, _: u64, _: u64| {};
    let source = bench.node("source");
    let archives = bench.archive("whole", &archive_with(&[]));
    let prefix = format!("checkpoints/{MIGRATION}/1/");
    let left = source.save(stores(&prefix, &archives, None), quiet).await;
    let left = left.unwrap();
    receive_for(LATER, &source, &left).await.unwrap();
    let changed = archive_with(&noise(2, 9_000));
    let archives = bench.archive("changed", &changed);
    let base = base_of(&left);
    let what = Stores {
        migration: LATER,
        ..stores("checkpoints/later/2/", &archives, Some(&base))
    };
    let saved = source.copy(what, quiet).await.unwrap();
    assert!(saved.stored_bytes < 128 << 10, "{}", saved.stored_bytes);
    // The target has neither.
    let target = bench.node("target");
    receive_for(LATER, &target, &saved).await.unwrap();
    assert_eq!(kept_for(LATER, &target, &saved), changed);
    // Proved with what it stands on; restored from by its own migration alone.
    let checked = source.check_store(LATER).await.unwrap();
    assert_eq!(checked.problems, Vec::<String>::new());
    let deliver = Deliver {
        manifest_key: left.manifest_key.clone(),
        manifest_blake3: left.manifest_blake3.clone(),
        ..Deliver::default()
    };
    let give_way = CancellationToken::new();
    let refused = target.deliver(LATER, 3, &deliver, quiet, &give_way).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("of migration m"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_that_is_missing_or_spoiled_in_the_store_is_named() {
    let bench = Bench::new();
    let [(one, _), _, (last, _)] = three(&bench, &bench.node("source")).await;
    let checkpoint = bench.checkpoint(&bench.node("x"), &one).await;
    let (_, Archive::Paged { container, .. }) = &checkpoint.archives[0] else {
        panic!("not of this version");
    };
    let pack = container.packs[0].key.clone();
    assert!(bench.store.spoil(&pack, |bytes| bytes[100] ^= 1));
    let error = receive(&bench.node("rescue"), &last).await.unwrap_err();
    assert!(error.to_string().contains(&pack), "{error}");
    bench.store.delete(&one.manifest_key).await.unwrap();
    let error = receive(&bench.node("rescue"), &last).await.unwrap_err();
    assert!(error.to_string().contains(&one.manifest_key), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_is_listed_checked_and_cleared_by_migration() {
    let bench = Bench::new();
    let source = bench.node("source");
    let quiet = &|_: &str, _: u64, _: u64| {};
    let archives = bench.archive("one", &archive_with(&[]));
    let prefix = format!("checkpoints/{MIGRATION}/1/");
    let one = source
        .copy(stores(&prefix, &archives, None), quiet)
        .await
        .unwrap();
    let archives = bench.archive("two", &archive_with(&noise(2, 9_000)));
    let (prefix, base) = (format!("checkpoints/{MIGRATION}/2/"), base_of(&one));
    let two = source.save(stores(&prefix, &archives, Some(&base)), quiet);
    let two = two.await.unwrap();
    // A capture that ended before its manifest was written.
    for (key, bytes) in [
        ("checkpoints/m/3/packs/loose", "x"),
        ("images/n/1/blob", "yy"),
    ] {
        bench.store.put(key, bytes.into()).await.unwrap();
    }
    let listed = source.list_store().await.unwrap().migrations;
    let seen: Vec<_> = listed
        .iter()
        .map(|one| (one.migration_id.as_str(), one.checkpoints))
        .collect();
    assert_eq!(seen, [("m", 2), ("n", 0)]);
    assert_eq!(listed[0].bytes, one.stored_bytes + two.stored_bytes + 1);
    let checked = source.check_store(MIGRATION).await.unwrap();
    assert_eq!((checked.checkpoints, checked.loose), (2, 1));
    assert_eq!(checked.problems, Vec::<String>::new());
    assert_eq!(
        checked.objects,
        listed[0].objects - 2,
        "one manifest is a base and proved"
    );

    let checkpoint = bench.checkpoint(&source, &two).await;
    let (_, Archive::Paged { container, .. }) = &checkpoint.archives[0] else {
        panic!("not of this version");
    };
    let (pack, recipe) = (&container.packs[0].key, &container.recipe.key);
    assert!(bench.store.spoil(pack, |bytes| bytes[9] ^= 1));
    bench.store.delete(recipe).await.unwrap();
    assert!(bench.store.spoil(&one.manifest_key, |bytes| bytes[9] ^= 1));
    let problems = source.check_store(MIGRATION).await.unwrap().problems;
    for wrong in [pack, recipe, &one.manifest_key] {
        let named = problems
            .iter()
            .any(|problem| problem.contains(wrong.as_str()));
        assert!(named, "{wrong} in {problems:?}");
    }

    assert!(source.clear_store("").await.is_err(), "that is everybody");
    source.clear_store(MIGRATION).await.unwrap();
    let left = source.list_store().await.unwrap().migrations;
    assert_eq!(left.len(), 1, "{left:?}");
}
