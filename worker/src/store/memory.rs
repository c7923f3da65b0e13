//! A store in memory: for tests, which may also spoil what it holds.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Fault, Store, StoreError, Stored};

/// Objects by key.
#[derive(Default)]
pub struct Memory {
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl Memory {
    /// Changes an object in place, as a faulty disk or a liar would. False when there is none of this key.
    pub fn spoil(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut objects = self.objects();
        let Some(object) = objects.get_mut(key) else {
            return false;
        };
        let mut bytes = object.to_vec();
        change(&mut bytes);
        *object = bytes.into();
        true
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        // A test that panicked while it held the lock has failed anyway: the others may go on.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for Memory {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.objects().insert(key.to_owned(), bytes);
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.objects().get(key).cloned().ok_or_else(|| StoreError {
            verb: "get",
            key: key.to_owned(),
            bucket: "memory".to_owned(),
            endpoint: "memory".to_owned(),
            fault: Fault::Missing,
        })
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.objects().remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        Ok(self
            .objects()
            .keys()
            .filter(|key| key.starts_with(prefix))
            .cloned()
            .collect())
    }

    async fn survey(&self, prefix: &str) -> Result<Vec<Stored>, StoreError> {
        let objects = self.objects();
        let below = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(below
            .map(|(key, bytes)| Stored {
                key: key.clone(),
                bytes: bytes.len() as u64,
                unix_s: 0,
            })
            .collect())
    }

    async fn exists(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.objects().contains_key(key))
    }
}
