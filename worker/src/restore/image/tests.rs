//! A delivery that is told to give way, in front of whatever it waits for, and what the withdrawal then leaves.

mod runtime;

use std::{collections::BTreeMap, fs, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use pages::keys::Identity;
use proto::worker::{Pod, Withdraw};
use tokio::sync::Notify;

use super::*;
use crate::{
    data::{Data, DataError, DataPath, Stores},
    store::{StoreError, Stored, memory::Memory},
};
use runtime::Runtime;

/// Giving way takes milliseconds; waiting for what never comes takes 20 s at the least.
const SOON: Duration = Duration::from_secs(5);

/// A store that may keep silent about packs.
#[derive(Default)]
struct Silent {
    memory: Memory,
    packs: std::sync::atomic::AtomicBool,
    asked: Notify,
}

#[async_trait]
impl Store for Silent {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.memory.put(key, bytes).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let silent = self.packs.load(std::sync::atomic::Ordering::SeqCst);
        if silent && key.contains("packs/") {
            self.asked.notify_one();
            std::future::pending::<()>().await;
        }
        self.memory.get(key).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.memory.delete(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.memory.list(prefix).await
    }

    async fn survey(&self, prefix: &str) -> Result<Vec<Stored>, StoreError> {
        self.memory.survey(prefix).await
    }

    async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        self.memory.exists(key).await
    }
}

/// A node to which a checkpoint of two containers is delivered.
struct Bench {
    folder: tempfile::TempDir,
    store: Arc<Silent>,
    runtime: Runtime,
    data: Arc<DataPath>,
    request: Deliver,
    give_way: CancellationToken,
}

fn archive(ran_from: &str) -> Vec<u8> {
    let config =
        serde_json::json!({"id": "c1", "rootfsImageRef": ran_from, "rootfsImageName": "web:1"});
    let config = config.to_string();
    let mut builder = tar::Builder::new(Vec::new());
    let pages = vec![7; 10_000];
    for (name, content) in [
        ("checkpoint/pages-1.img", pages.as_slice()),
        ("config.dump", config.as_bytes()),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (runtime, digest, _) = Runtime::start(&at("socket"));
        fs::create_dir_all(at("keys")).unwrap();
        fs::create_dir_all(at("state")).unwrap();
        fs::write(at("keys/identity"), Identity::generate().reveal()).unwrap();
        let images = Images::new(at("socket"));
        let registry = Registry::open(&at("state"), 5717, images.clone()).unwrap();
        let store = Arc::new(Silent::default());
        let data = DataPath::new(store.clone(), images, registry, at("state"), at("keys"));
        let data = data.unwrap();
        fs::write(at("archive"), archive(&format!("web@{digest}"))).unwrap();
        let archives = ["web", "side"].map(|name| (name.to_owned(), at("archive")));
        let what = Stores {
            migration: "m",
            prefix: "checkpoints/m/1/",
            archives: &archives,
            base: None,
        };
        let saved = data.save(what, &|_, _, _| {}).await.unwrap();
        let containers = ["web", "side"].map(|name| Container {
            name: name.to_owned(),
            image: "web:1".to_owned(),
            image_digest: digest.clone(),
            ..Container::default()
        });
        let request = Deliver {
            pod: Some(Pod {
                uid: "uid".to_owned(),
                containers: containers.into(),
                ..Pod::default()
            }),
            manifest_key: saved.manifest_key,
            manifest_blake3: saved.manifest_blake3,
        };
        Self {
            folder,
            store,
            runtime,
            data: Arc::new(data),
            request,
            give_way: CancellationToken::new(),
        }
    }

    fn deliver(&self) -> tokio::task::JoinHandle<Result<(Delivered, Vec<Span>), DataError>> {
        let (data, request) = (self.data.clone(), self.request.clone());
        let give_way = self.give_way.clone();
        tokio::spawn(async move {
            data.deliver("m", 7, &request, &|_, _, _| {}, &give_way)
                .await
        })
    }

    /// Returns when so many checkpoints are being pulled.
    async fn pulls(&self, checkpoints: usize) {
        let pulled = || {
            let asked = &self.runtime.state().asked;
            let checkpoint = |name: &&String| name.contains("/checkpoint/");
            asked.iter().filter(checkpoint).count()
        };
        while pulled() < checkpoints {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What the step after it finds, and removes.
    async fn withdrawn(&self) {
        let withdraw = Withdraw {
            pod: self.request.pod.clone(),
            images: Vec::new(),
        };
        let withdrawn = self.data.withdraw("m", &withdraw);
        tokio::time::timeout(SOON, withdrawn)
            .await
            .unwrap()
            .unwrap();
        let left = self.folder.path().join("state/layers/m");
        assert!(!left.exists());
        assert_eq!(self.runtime.state().names, BTreeMap::new());
        let registry = fs::read_to_string(self.folder.path().join("state/registry.json")).unwrap();
        assert!(!registry.contains("m/web"), "{registry}");
    }
}

async fn gave_way<T: std::fmt::Debug>(delivery: tokio::task::JoinHandle<Result<T, DataError>>) {
    let ended = tokio::time::timeout(SOON, delivery).await.unwrap().unwrap();
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("given up"), "{error}");
}

#[tokio::test]
async fn a_delivery_whose_pull_never_answers_gives_way_and_its_withdrawal_leaves_nothing() {
    let bench = Bench::new().await;
    let delivery = bench.deliver();
    bench.pulls(1).await;
    assert!(!delivery.is_finished());
    bench.give_way.cancel();
    gave_way(delivery).await;
    bench.withdrawn().await;
}

#[tokio::test]
async fn a_delivery_whose_store_is_silent_gives_way_and_so_does_who_waits_for_a_turn() {
    let bench = Bench::new().await;
    bench
        .store
        .packs
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let delivery = bench.deliver();
    bench.store.asked.notified().await;
    bench.give_way.cancel();
    gave_way(delivery).await;
    bench.withdrawn().await;
}

#[tokio::test]
async fn a_part_that_fails_ends_the_others_and_is_the_reason_given() {
    let bench = Bench::new().await;
    bench.runtime.state().refuses_bases = true;
    let ended = tokio::time::timeout(SOON, bench.deliver()).await;
    let error = ended.unwrap().unwrap().unwrap_err().to_string();
    assert!(error.contains("the disk of images is broken"), "{error}");
    bench.withdrawn().await;
}

#[tokio::test]
async fn what_a_pull_left_behind_its_withdrawal_is_swept_away_and_what_is_in_use_or_known_is_not() {
    let bench = Bench::new().await;
    let delivery = bench.deliver();
    bench.pulls(2).await;
    let checkpoint = |rest: &str| format!("localhost:5717/longshore/checkpoint/{rest}");
    let known = bench.runtime.state().names.clone();
    let kept = [
        (checkpoint("used/web:r3"), "sha256:1"),
        ("sha256:c1".to_owned(), "sha256:1"),
        ("sha256:c3".to_owned(), "sha256:3"),
        ("registry/web:1".to_owned(), "sha256:3"),
    ];
    let swept = [
        (checkpoint("late/web:r3"), "sha256:2"),
        (checkpoint("late/web@sha256:2"), "sha256:2"),
        ("sha256:c2".to_owned(), "sha256:2"),
        (checkpoint("disarmed/web:r3"), "sha256:3"),
    ];
    {
        let mut state = bench.runtime.state();
        state.used = vec![checkpoint("used/web:r3")];
        let all = kept.clone().into_iter().chain(swept);
        state
            .names
            .extend(all.map(|(name, digest)| (name, digest.to_owned())));
    }
    bench.data.sweep().await.unwrap();
    let mut expected = known;
    expected.extend(kept.map(|(name, digest)| (name, digest.to_owned())));
    assert_eq!(bench.runtime.state().names, expected);
    delivery.abort();
}

#[test]
fn the_failure_is_told_and_not_who_gave_way_to_it() {
    let failed = || RestoreError::Rebuild(RebuildError::Stopped);
    let told = |parts: Vec<Result<(), RestoreError>>| all(parts).unwrap_err().gave_way();
    assert!(!told(vec![
        Err(RestoreError::GaveWay),
        Ok(()),
        Err(failed())
    ]));
    assert!(!told(vec![
        Err(failed()),
        Err(RestoreError::Rebuild(RebuildError::GaveWay))
    ]));
    assert!(told(vec![Ok(()), Err(RestoreError::GaveWay)]));
    assert_eq!(all(vec![Ok(1), Ok(2)]).unwrap(), [1, 2]);
}
