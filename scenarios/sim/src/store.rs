//! The object store: durable once acknowledged, refusing and slow in between.
//!
//! Packs stand for bytes; a manifest says of which memory it is. What it names must all be there, or it is no
//! checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use crate::{life::Life, sim::Sim, truth::Memory};

/// How late an object may come after its put was given up: a cut network holds its last bytes back.
const LATE_MS: RangeInclusive<u64> = 500..=8_000;

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Of which migration.
    pub migration: String,
    /// Of which pod.
    pub pod: String,
    /// What its containers remember.
    pub memories: BTreeMap<String, Memory>,
    /// Keys of the packs it needs.
    pub packs: Vec<String>,
    /// What it is a difference to: the key of another manifest, and its hash.
    pub base: Option<(String, String)>,
    /// Its own hash.
    pub blake3: String,
}

/// The objects.
#[derive(Debug, Default)]
pub struct Stored {
    packs: BTreeSet<String>,
    manifests: BTreeMap<String, Manifest>,
}

impl Stored {
    /// Is there a whole checkpoint of this memory?
    #[must_use]
    pub fn has(&self, pod: &str, container: &str, memory: Memory) -> bool {
        self.manifests.values().any(|manifest| {
            manifest.pod == pod
                && manifest.memories.get(container) == Some(&memory)
                && self.has_all_of(manifest)
        })
    }

    /// Is there this manifest, and everything that it names, also what it is a difference to?
    #[must_use]
    pub fn is_whole(&self, key: &str) -> bool {
        let manifest = self.manifests.get(key);
        manifest.is_some_and(|manifest| self.has_all_of(manifest))
    }

    fn has_all_of(&self, manifest: &Manifest) -> bool {
        let mut packs = manifest.packs.iter();
        let base = manifest.base.as_ref();
        packs.all(|pack| self.packs.contains(pack))
            && base.is_none_or(|(key, _)| self.is_whole(key))
    }

    /// Whose memories these keys are part of.
    #[must_use]
    pub fn of(&self, keys: &[String]) -> Vec<(String, String, Memory)> {
        self.manifests
            .iter()
            .filter(|(key, manifest)| self.needs(key, manifest, keys))
            .flat_map(|(_, manifest)| {
                let pod = manifest.pod.clone();
                manifest
                    .memories
                    .iter()
                    .map(move |(name, memory)| (pod.clone(), name.clone(), *memory))
            })
            .collect()
    }

    fn needs(&self, key: &String, manifest: &Manifest, keys: &[String]) -> bool {
        let base = manifest.base.as_ref();
        let below = base.and_then(|(key, _)| self.manifests.get_key_value(key));
        keys.contains(key)
            || manifest.packs.iter().any(|pack| keys.contains(pack))
            || below.is_some_and(|(key, manifest)| self.needs(key, manifest, keys))
    }

    /// Every key.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.packs.iter().chain(self.manifests.keys())
    }
}

/// The store as one worker reaches it.
#[derive(Clone)]
pub struct Store {
    /// The world.
    pub sim: Sim,
    /// Whose calls.
    pub life: Life,
}

impl Store {
    async fn call<T>(
        &self,
        what: &str,
        key: &str,
        effect: impl FnOnce(&Sim) -> T,
    ) -> Result<T, String> {
        self.life.edge(what).await;
        self.sim.rest(2..=15).await;
        let refuses = self.sim.look(|inner| inner.faults.store_per_mille);
        if self.sim.hits(refuses) {
            self.sim
                .event(self.life.name(), format_args!("store refuses {what} {key}"));
            self.life.edge(what).await;
            return Err(format!("{what} {key}: the store can't be reached"));
        }
        let result = effect(&self.sim);
        self.sim
            .event(self.life.name(), format_args!("store {what} {key}"));
        // The answer may be lost where the request was not.
        let lost = self.sim.hits(refuses / 4);
        self.life.edge(what).await;
        if lost {
            return Err(format!("{what} {key}: the connection broke"));
        }
        Ok(result)
    }

    /// Stores a pack.
    ///
    /// # Errors
    /// It may be stored all the same.
    pub async fn put_pack(&self, key: &str) -> Result<(), String> {
        let own = key.to_owned();
        let insert = |stored: &mut Stored| {
            stored.packs.insert(own);
        };
        self.put(key, insert).await
    }

    /// Its bytes may be on their way still when the worker has given it up, and so may they when it has died.
    async fn put(
        &self,
        key: &str,
        store: impl FnOnce(&mut Stored) + Send + 'static,
    ) -> Result<(), String> {
        let fails = self.sim.look(|inner| inner.faults.store_per_mille);
        if !self.sim.hits(fails / 4) {
            let at_once = |sim: &Sim| sim.with(|inner| store(&mut inner.truth.stored));
            return self.call("put", key, at_once).await;
        }
        self.life.edge("put").await;
        let (sim, late) = (self.sim.clone(), key.to_owned());
        tokio::spawn(async move {
            sim.rest(LATE_MS).await;
            sim.event("store", format_args!("put {late}, late"));
            sim.with(|inner| store(&mut inner.truth.stored));
        });
        self.sim.rest(2..=15).await;
        self.life.edge("put").await;
        Err(format!("put {key}: the connection broke"))
    }

    /// Stores a manifest.
    ///
    /// # Errors
    /// It may be stored all the same.
    pub async fn put_manifest(&self, key: &str, manifest: Manifest) -> Result<(), String> {
        let own = key.to_owned();
        let insert = |stored: &mut Stored| {
            stored.manifests.insert(own, manifest);
        };
        self.put(key, insert).await
    }

    /// The manifest with this hash.
    ///
    /// # Errors
    /// There is none, or nobody answers.
    pub async fn manifest(&self, key: &str, blake3: &str) -> Result<Manifest, String> {
        let found = self
            .call("get", key, |sim| {
                sim.look(|inner| inner.truth.stored.manifests.get(key).cloned())
            })
            .await?;
        found
            .filter(|manifest| manifest.blake3 == blake3)
            .ok_or_else(|| format!("get {key}: there is no such object, or another one"))
    }

    /// A pack's bytes.
    ///
    /// # Errors
    /// There is none, or nobody answers.
    pub async fn pack(&self, key: &str) -> Result<(), String> {
        let there = self
            .call("get", key, |sim| {
                sim.look(|inner| inner.truth.stored.packs.contains(key))
            })
            .await?;
        if there {
            Ok(())
        } else {
            Err(format!("get {key}: there is no such object"))
        }
    }

    /// Removes everything below a prefix.
    ///
    /// # Errors
    /// Some of it may be gone.
    pub async fn remove(&self, prefix: &str) -> Result<(), String> {
        self.call("delete", prefix, |sim| {
            let now_ms = sim.now_ms();
            sim.with(|inner| {
                let stored = &inner.truth.stored;
                let keys: Vec<String> = stored
                    .keys()
                    .filter(|key| key.starts_with(prefix))
                    .cloned()
                    .collect();
                let violations = inner.truth.unstored(now_ms, &keys);
                inner.violations.extend(violations);
                for key in &keys {
                    inner.truth.stored.packs.remove(key);
                    inner.truth.stored.manifests.remove(key);
                }
            });
        })
        .await
    }
}
