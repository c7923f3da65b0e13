//! From bytes through the store to a layer, and what happens when anything on the way is not as it was.

use std::{collections::HashMap, io::Read, path::PathBuf};

use proptest::prelude::*;

use super::*;
use pages::{keys::DataKey, manifest::Container};

use crate::{
    capture::capture,
    fetch::FetchError,
    manifest::Packed,
    save::{pieces_of_file, save},
    store::memory::Memory,
};

const BASE: &str = "sha256:ba5e";

fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn checkpoint(pages: &[u8], ran_from: &str) -> Vec<u8> {
    let config =
        json!({"id": "c1", "rootfsImageRef": ran_from, "rootfsImageName": "registry/web:1"})
            .to_string();
    tar_of(&[
        ("checkpoint/pages-1.img", pages),
        ("config.dump", config.as_bytes()),
        ("spec.dump", b"{}"),
    ])
}

fn files_in(layer: &[u8]) -> HashMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(layer);
    let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), content)
    };
    archive.entries().unwrap().map(read).collect()
}

/// A store with one archive in it, and a folder to build in.
struct Bench {
    memory: Arc<Memory>,
    folder: tempfile::TempDir,
    recipe: Recipe,
}

impl Bench {
    async fn new(archive: &[u8]) -> Self {
        Self::with(archive, async |store, path| {
            let key = DataKey::random().unwrap();
            let prefix = "checkpoints/m/1/";
            let sent = capture(store, prefix, "web", path, None, &key, &|_| {});
            let container = Box::new(sent.await.unwrap().container);
            Archive::Paged { container, key }
        })
        .await
    }

    /// As a worker of the first version stored it.
    async fn of_version_1(archive: &[u8]) -> Self {
        Self::with(archive, async |store, path| {
            let pieces = vec![pieces_of_file(path)];
            let stored = save(store, "checkpoints/m/1/", pieces, 0, &|_, _, _| {}).await;
            let packed = stored.unwrap().sources.into_iter().next().unwrap();
            assert_eq!(packed.check("archive"), Ok(()));
            Archive::Plain(packed)
        })
        .await
    }

    async fn with(
        archive: &[u8],
        store: impl AsyncFnOnce(&Arc<dyn Store>, PathBuf) -> Archive,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.tar");
        fs::write(&path, archive).unwrap();
        let memory = Arc::new(Memory::default());
        let shared: Arc<dyn Store> = memory.clone();
        let recipe = Recipe {
            migration: "m".to_owned(),
            revision: 1,
            container: "web".to_owned(),
            archive: store(&shared, path).await,
            base: None,
            base_reference: format!("localhost:5717/longshore/base/web@{BASE}"),
            base_digest: BASE.to_owned(),
            base_image_id: "sha256:1d".to_owned(),
        };
        Self {
            memory,
            folder,
            recipe,
        }
    }

    fn paged(&mut self) -> &mut Container {
        match &mut self.recipe.archive {
            Archive::Paged { container, .. } => container,
            Archive::Plain(_) => panic!("not of this version"),
        }
    }

    /// Keys of everything the archive consists of.
    fn objects(&self) -> Vec<String> {
        match &self.recipe.archive {
            Archive::Paged { container, .. } => {
                let objects = container.packs.iter().chain([&container.recipe]);
                objects.map(|object| object.key.clone()).collect()
            }
            Archive::Plain(Packed { packs, .. }) => {
                packs.iter().map(|pack| pack.key.clone()).collect()
            }
        }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    async fn build(&self) -> Result<Built, RebuildError> {
        let store: Arc<dyn Store> = self.memory.clone();
        build(
            store,
            self.recipe.clone(),
            self.target(),
            Arc::default(),
            &|_| {},
            &CancellationToken::new(),
        )
        .await
    }

    fn layer(&self) -> Vec<u8> {
        let layer = Layer::open(&self.target()).unwrap();
        let mut bytes = vec![0; layer.view().size() as usize];
        layer.view().read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Neither a layer nor a part of one.
    fn is_clean(&self) -> bool {
        fs::read_dir(self.target()).map_or(true, |mut entries| entries.next().is_none())
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap()
        .block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_layer_holds_what_was_captured_and_names_this_nodes_base(pages in prop::collection::vec(any::<u8>(), 0..40_000)) {
        run(async {
            let archive = checkpoint(&pages, &format!("registry/web@{BASE}"));
            for bench in [Bench::new(&archive).await, Bench::of_version_1(&archive).await] {
            let built = bench.build().await.unwrap();
            let layer = bench.layer();
            assert_eq!(built.layer_digest, sha256(&layer));
            assert_eq!(built.layer_size, layer.len() as u64);
            let (mut before, mut after) = (files_in(&archive), files_in(&layer));
            let config: serde_json::Value = serde_json::from_slice(&after.remove("config.dump").unwrap()).unwrap();
            assert_eq!(config["rootfsImageRef"], bench.recipe.base_reference);
            assert_eq!(config["rootfsImageName"], "registry/web:1");
            before.remove("config.dump");
            assert_eq!(before, after);
            }
        });
    }

    #[test]
    fn a_flipped_bit_in_any_stored_object_is_refused(pages in prop::collection::vec(any::<u8>(), 0..4_000), which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        run(async {
            let archive = checkpoint(&pages, &format!("registry/web@{BASE}"));
            for bench in [Bench::new(&archive).await, Bench::of_version_1(&archive).await] {
                let objects = bench.objects();
                let key = &objects[which.index(objects.len())];
                assert!(bench.memory.spoil(key, |bytes| { let at = at.index(bytes.len()); bytes[at] ^= 1u8 << bit; }));
                assert_refused(&bench).await;
            }
        });
    }

    #[test]
    fn a_truncated_object_is_refused(pages in prop::collection::vec(any::<u8>(), 0..4_000), which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        run(async {
            let archive = checkpoint(&pages, &format!("registry/web@{BASE}"));
            for bench in [Bench::new(&archive).await, Bench::of_version_1(&archive).await] {
                let objects = bench.objects();
                let key = &objects[which.index(objects.len())];
                assert!(bench.memory.spoil(key, |bytes| bytes.truncate(at.index(bytes.len()))));
                assert_refused(&bench).await;
            }
        });
    }
}

/// The archive is refused for what it is, and nothing of it is left.
async fn assert_refused(bench: &Bench) {
    let error = bench.build().await.unwrap_err();
    let RebuildError::Gather { source, .. } = &error else {
        panic!("{error:?}");
    };
    let damaged = matches!(
        **source,
        GatherError::Object { .. }
            | GatherError::Fetch(FetchError::Damaged { .. })
            | GatherError::NotTheArchive { .. }
    );
    assert!(damaged, "{error:?}");
    assert!(bench.is_clean());
}

#[test]
fn packs_in_another_order_are_not_the_archive() {
    run(async {
        let mut pages = vec![0; 10 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut pages);
        let mut bench = Bench::new(&checkpoint(&pages, &format!("registry/web@{BASE}"))).await;
        assert!(bench.paged().packs.len() > 1);
        bench.paged().packs.swap(0, 1);
        assert_refused(&bench).await;
        bench.paged().packs.swap(0, 1);
        bench.build().await.unwrap();
    });
}

#[test]
fn a_manifest_and_a_recipe_of_different_archives_are_refused() {
    run(async {
        let archive = checkpoint(b"pages", &format!("registry/web@{BASE}"));
        let mut bench = Bench::new(&archive).await;
        bench.paged().root = "00".repeat(32);
        assert_refused(&bench).await;
        let mut bench = Bench::of_version_1(&archive).await;
        if let Archive::Plain(packed) = &mut bench.recipe.archive {
            packed.blake3 = "00".repeat(32);
        }
        assert_refused(&bench).await;
    });
}

#[test]
fn another_base_image_than_the_container_ran_from_is_refused() {
    run(async {
        for (ran_from, fits) in [
            ("registry/web@sha256:ba5e", true),
            ("sha256:1d", true),
            ("registry/web@sha256:07", false),
            ("sha256:02", false),
        ] {
            let bench = Bench::new(&checkpoint(b"pages", ran_from)).await;
            let built = bench.build().await;
            assert_eq!(built.is_ok(), fits, "{ran_from}: {built:?}");
            assert_eq!(bench.is_clean(), !fits);
        }
    });
}

#[test]
fn asked_twice_gives_the_same_image_without_the_store() {
    run(async {
        let bench = Bench::new(&checkpoint(b"pages", &format!("registry/web@{BASE}"))).await;
        let first = bench.build().await.unwrap();
        for key in bench.objects() {
            bench.memory.delete(&key).await.unwrap();
        }
        assert_eq!(bench.build().await.unwrap(), first);
    });
}

#[test]
fn a_layer_that_lost_bytes_in_a_crash_is_built_anew() {
    run(async {
        let bench = Bench::new(&checkpoint(b"pages", &format!("registry/web@{BASE}"))).await;
        let first = bench.build().await.unwrap();
        let path = layer::new_path(&bench.target());
        for spoil in [
            |bytes: &mut Vec<u8>| bytes.truncate(100),
            |bytes: &mut Vec<u8>| bytes[600] ^= 1,
        ] {
            let mut bytes = fs::read(&path).unwrap();
            spoil(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert_eq!(bench.build().await.unwrap(), first);
            assert_eq!(sha256(&bench.layer()), first.layer_digest);
        }
        // A crash between the effects leaves some of the files: whichever are missing, the image is whole again.
        for lost in ["new", "edits", "layer.json", "image.json"] {
            fs::remove_file(bench.target().join(lost)).unwrap();
            assert_eq!(bench.build().await.unwrap(), first, "without {lost}");
            assert_eq!(sha256(&bench.layer()), first.layer_digest);
        }
    });
}

#[test]
fn a_layer_that_an_older_worker_wrote_is_read() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("layer.tar"), b"whole").unwrap();
    let layer = Layer::open(folder.path()).unwrap();
    let mut bytes = vec![0; 5];
    layer.view().read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, b"whole");
}

#[test]
fn another_revision_gets_another_image_id() {
    run(async {
        let mut bench = Bench::new(&checkpoint(b"pages", &format!("registry/web@{BASE}"))).await;
        let first = bench.build().await.unwrap();
        bench.recipe.revision = 2;
        let second = bench.build().await.unwrap();
        assert_eq!(first.layer_digest, second.layer_digest);
        assert_ne!(
            sha256(first.config.as_bytes()),
            sha256(second.config.as_bytes())
        );
    });
}

#[test]
fn the_manifest_carries_what_both_runtimes_look_for() {
    run(async {
        let bench = Bench::new(&checkpoint(b"pages", &format!("registry/web@{BASE}"))).await;
        let built = bench.build().await.unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&built.manifest).unwrap();
        assert_eq!(
            manifest["annotations"]["org.criu.checkpoint.container.name"],
            "web"
        );
        assert_eq!(
            manifest["annotations"]["io.kubernetes.cri-o.annotations.checkpoint.name"],
            "web"
        );
        assert_eq!(
            manifest["config"]["digest"],
            sha256(built.config.as_bytes())
        );
        let config: serde_json::Value = serde_json::from_str(&built.config).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], built.layer_digest);
    });
}
