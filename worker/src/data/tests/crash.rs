//! The worker dies at any operation of the store, in a capture and in a rebuild: what is stored is whole or is nothing,
//! and the next worker does it all again.

use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

use super::*;
use crate::{
    rebuild::Built,
    store::{StoreError, Stored, memory::Memory},
};

/// The worker that uses this store dies at one operation.
struct Mortal {
    store: Arc<Memory>,
    /// Operations until then.
    left: AtomicI64,
    /// The one it dies of is still carried out, and only the answer is lost.
    takes_effect: bool,
    died: Notify,
}

impl Mortal {
    /// Immortal until [`Mortal::dies_in`].
    fn new(store: &Arc<Memory>, takes_effect: bool) -> Arc<Self> {
        Arc::new(Self {
            store: store.clone(),
            left: AtomicI64::new(i64::MAX),
            takes_effect,
            died: Notify::new(),
        })
    }

    fn dies_in(&self, operations: i64) {
        self.left.store(operations, Ordering::SeqCst);
    }

    async fn answer<T>(&self, operation: impl Future<Output = T>) -> T {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            return operation.await;
        }
        if left == 0 && self.takes_effect {
            operation.await;
        }
        self.died.notify_one();
        std::future::pending().await
    }

    /// What came of it; none when the worker died in the middle, with everything it was at.
    async fn until_death<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.died.notified() => None,
        }
    }

    /// The same, and nothing is tidied up on the way out.
    async fn until_killed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = Box::pin(work);
        let done = self.until_death(&mut work).await;
        if done.is_none() {
            std::mem::forget(work);
        }
        done
    }
}

#[async_trait]
impl Store for Mortal {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.answer(self.store.put(key, bytes)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.answer(self.store.get(key)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.answer(self.store.delete(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.answer(self.store.list(prefix)).await
    }

    async fn survey(&self, prefix: &str) -> Result<Vec<Stored>, StoreError> {
        self.answer(self.store.survey(prefix)).await
    }

    async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        self.answer(self.store.exists(key)).await
    }
}

/// 12 MiB of memory, of which 20 000 bytes in the middle are those of a later time.
fn large(later: bool) -> Vec<u8> {
    let mut pages = noise(1, 12 << 20);
    if later {
        pages[6 << 20..][..20_000].copy_from_slice(&noise(5, 20_000));
    }
    archive_of(&pages)
}

const ROUND: &str = "checkpoints/m/1/";
const FINAL: &str = "checkpoints/m/2/";

/// Insists that everything that is called a checkpoint is one.
async fn whole(bench: &Bench) -> u32 {
    let checked = bench.node("checks").check_store(MIGRATION).await.unwrap();
    assert_eq!(checked.problems, Vec::<String>::new());
    checked.checkpoints
}

/// A capture of the whole and one of a difference; how many of them had to be died in. Operations are counted from the
/// first of the one that is died in.
async fn captures(in_difference: bool, takes_effect: bool) -> i64 {
    let quiet = &|_: &str, _: u64, _: u64| {};
    let (before, after) = (large(false), large(true));
    for operations in 0.. {
        let bench = Bench::new();
        let (first, last) = (
            bench.archive("first", &before),
            bench.archive("last", &after),
        );
        let mortal = Mortal::new(&bench.store, takes_effect);
        let node = bench.node_with("source", mortal.clone());
        let base = match in_difference {
            true => Some(base_of(
                &node.copy(stores(ROUND, &first, None), quiet).await.unwrap(),
            )),
            false => None,
        };
        mortal.dies_in(operations);
        let saved = node.save(stores(FINAL, &last, base.as_ref()), quiet);
        let died = mortal.until_death(saved).await.is_none();
        drop(node);
        let complete = u32::from(in_difference);
        let stands = whole(&bench).await;
        assert!(stands == complete || stands == complete + 1, "{stands}");
        // The next worker is asked the same, and has kept nothing.
        let node = bench.node("source");
        let saved = node.save(stores(FINAL, &last, None), quiet).await.unwrap();
        assert_eq!(whole(&bench).await, complete + 1);
        let target = bench.node("target");
        receive(&target, &saved).await.unwrap();
        assert!(kept(&target, &saved) == after, "other bytes came back");
        if !died {
            return operations;
        }
    }
    unreachable!("there are not that many operations")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_dies_anywhere_leaves_whole_checkpoints_only() {
    for takes_effect in [false, true] {
        // Four packs, recipe and manifest; of a difference, one pack of what changed.
        assert_eq!(captures(false, takes_effect).await, 6);
        assert_eq!(captures(true, takes_effect).await, 3);
    }
}

/// A round, and a difference to it.
async fn two(bench: &Bench) -> (Saved, Saved) {
    let quiet = &|_: &str, _: u64, _: u64| {};
    let source = bench.node("source");
    let first = bench.archive("first", &large(false));
    let round = source.copy(stores(ROUND, &first, None), quiet).await;
    let round = round.unwrap();
    let (last, base) = (bench.archive("last", &large(true)), base_of(&round));
    let saved = source.save(stores(FINAL, &last, Some(&base)), quiet).await;
    (round, saved.unwrap())
}

async fn rebuilt(bench: &Bench, node: &DataPath, store: Arc<dyn Store>, saved: &Saved) -> Built {
    let folder = bench.folder.path().join("target/layers/m/r3/web");
    let checkpoint = bench.checkpoint(node, saved).await;
    let base = checkpoint.base.clone().unwrap();
    let below = node.rounds.get(MIGRATION, &base.blake3).unwrap();
    let recipe = layer_of(checkpoint, below.archive(CONTAINER).cloned());
    let (traffic, give_way) = (Arc::default(), CancellationToken::new());
    let built = build(store, recipe, folder, traffic, &|_| {}, &give_way).await;
    built.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_dies_anywhere_is_made_again_from_a_whole_store() {
    let bench = Bench::new();
    let (round, saved) = two(&bench).await;
    let mut reached = 0;
    for operations in 0.. {
        let mortal = Mortal::new(&bench.store, true);
        let node = bench.node_with("target", mortal.clone());
        mortal.dies_in(operations);
        let received = async {
            receive(&node, &round).await.unwrap();
            receive(&node, &saved).await.unwrap();
        };
        let died = mortal.until_killed(received).await.is_none();
        drop(node);
        assert_eq!(whole(&bench).await, 2);
        let node = bench.node("target");
        receive(&node, &saved).await.unwrap();
        assert!(kept(&node, &saved) == large(true), "other bytes came back");
        node.rounds.forget(MIGRATION).unwrap();
        if !died {
            reached = operations;
            break;
        }
    }
    assert!(reached > 6, "{reached} operations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_not_finished_is_made_again() {
    let bench = Bench::new();
    let (round, saved) = two(&bench).await;
    let node = bench.node("target");
    receive(&node, &round).await.unwrap();
    let whole_layer = rebuilt(&bench, &node, bench.store.clone(), &saved).await;
    let mut reached = 0;
    for operations in 0.. {
        fs::remove_dir_all(bench.folder.path().join("target/layers")).unwrap();
        let mortal = Mortal::new(&bench.store, true);
        mortal.dies_in(operations);
        let building = rebuilt(&bench, &node, mortal.clone(), &saved);
        let died = mortal.until_killed(building).await.is_none();
        assert_eq!(whole(&bench).await, 2);
        let again = rebuilt(&bench, &node, bench.store.clone(), &saved).await;
        assert_eq!(again.layer_digest, whole_layer.layer_digest);
        if !died {
            reached = operations;
            break;
        }
    }
    assert_eq!(reached, 2, "recipe and pack");
}
