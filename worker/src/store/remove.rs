//! Removing everything below a prefix, by a store that may lie.
//!
//! A list has no hash: an answer that was altered on its way may name what is not there, or what is not ours. So a key
//! outside of the prefix is never deleted, and the work is done only once the store lists nothing any more.

use futures::future::try_join_all;

use super::{Fault, Store, StoreError};

/// Deletes in flight: each is a few ms of waiting for the store.
const DELETES_IN_FLIGHT: usize = 16;
/// A list that is still not empty after this many rounds of deleting what it names is of a store that doesn't delete.
const ROUNDS_MAX: u32 = 5;

/// Removes every object whose key begins with `prefix`. Repeating it is fine.
///
/// # Errors
/// The store's own, or that it still lists something.
pub async fn remove_below(store: &dyn Store, prefix: &str) -> Result<(), StoreError> {
    for _ in 0..ROUNDS_MAX {
        let keys = store.list(prefix).await?;
        if keys.is_empty() {
            return Ok(());
        }
        if let Some(stranger) = keys.iter().find(|key| !key.starts_with(prefix)) {
            let detail = format!("it names {stranger:?}");
            return Err(error(prefix, detail));
        }
        for some in keys.chunks(DELETES_IN_FLIGHT) {
            try_join_all(some.iter().map(|key| store.delete(key))).await?;
        }
    }
    Err(error(
        prefix,
        format!("there is still something after {ROUNDS_MAX} rounds of deleting it"),
    ))
}

fn error(prefix: &str, detail: String) -> StoreError {
    StoreError {
        verb: "clear",
        key: prefix.to_owned(),
        bucket: String::new(),
        endpoint: String::new(),
        fault: Fault::Untrue { detail },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::store::{Stored, memory::Memory};

    /// A store whose lists are altered on their way: the first ones say this instead.
    struct Liar {
        store: Memory,
        lies: Mutex<Vec<Vec<String>>>,
    }

    #[async_trait]
    impl Store for Liar {
        async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
            self.store.put(key, bytes).await
        }

        async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
            self.store.get(key).await
        }

        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            self.store.delete(key).await
        }

        async fn list(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
            let lie = self.lies.lock().unwrap().pop();
            match lie {
                Some(lie) => Ok(lie),
                None => self.store.list(prefix).await,
            }
        }

        async fn survey(&self, prefix: &str) -> Result<Vec<Stored>, StoreError> {
            self.store.survey(prefix).await
        }

        async fn exists(&self, key: &str) -> Result<bool, StoreError> {
            self.store.exists(key).await
        }
    }

    async fn liar(lies: &[&str]) -> Liar {
        let store = Memory::default();
        for key in ["checkpoints/m/1", "checkpoints/m/2", "checkpoints/n/1"] {
            store.put(key, Bytes::new()).await.unwrap();
        }
        let lies = lies.iter().map(|lie| vec![(*lie).to_owned()]).collect();
        Liar {
            store,
            lies: Mutex::new(lies),
        }
    }

    #[tokio::test]
    async fn what_a_false_list_leaves_out_is_removed_in_the_next_round() {
        let liar = liar(&["checkpoints/m/x"]).await;
        remove_below(&liar, "checkpoints/m/").await.unwrap();
        assert_eq!(liar.list("").await.unwrap(), ["checkpoints/n/1"]);
    }

    #[tokio::test]
    async fn nothing_outside_of_the_prefix_is_ever_removed() {
        let liar = liar(&["checkpoints/n/1"]).await;
        let error = remove_below(&liar, "checkpoints/m/").await.unwrap_err();
        assert!(error.to_string().contains("checkpoints/n/1"), "{error}");
        assert_eq!(liar.list("").await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_store_that_never_deletes_is_an_error_and_not_an_endless_loop() {
        let liar = liar(&["checkpoints/m/9"; 9]).await;
        assert!(remove_below(&liar, "checkpoints/m/").await.is_err());
    }
}
