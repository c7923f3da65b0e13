//! What lies in the store, and whether it is whole. What is to be removed is decided by who has the log.
//!
//! ```text
//!  list:  every key below checkpoints/ and images/ ─► by migration: objects, bytes, complete checkpoints
//!  check: each manifest ─► seal ─► every object it names: there, and of this hash ─► what is wrong, by name
//! ```
//! A checkpoint without a manifest is none: what lies there is of a capture that is under way or ended early. So a crash
//! of a capture at any point leaves loose objects and nothing that is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{StreamExt, stream};
use proto::worker::{StoreChecked, StoreListing, StoredMigration};

use crate::{
    data::DataError,
    gather::{Archive, open_manifest},
    store::{Fault, Store, StoreError, Stored, remove::remove_below},
    trust::Trust,
};

/// Where checkpoints and the images that were sent with them are.
const FOLDERS: [&str; 2] = ["checkpoints/", "images/"];
const MANIFEST: &str = "manifest";
/// Objects of at most 8 MiB that are read at once: 64 MiB.
const GETS_IN_FLIGHT: usize = 8;
/// What is wrong is told this often; whoever has more has a store to throw away.
const PROBLEMS_MAX: usize = 100;

/// By migration.
pub async fn list(store: &dyn Store) -> Result<StoreListing, StoreError> {
    let mut migrations = BTreeMap::new();
    for folder in FOLDERS {
        for object in store.survey(folder).await? {
            count(&mut migrations, folder, &object);
        }
    }
    Ok(StoreListing {
        migrations: migrations.into_values().collect(),
    })
}

fn count(migrations: &mut BTreeMap<String, StoredMigration>, folder: &str, object: &Stored) {
    let Stored { key, bytes, unix_s } = object;
    let Some((id, rest)) = key.strip_prefix(folder).and_then(|key| key.split_once('/')) else {
        return;
    };
    let seen = migrations
        .entry(id.to_owned())
        .or_insert_with(|| StoredMigration {
            migration_id: id.to_owned(),
            ..StoredMigration::default()
        });
    seen.objects += 1;
    seen.bytes += bytes;
    seen.youngest_unix_s = seen.youngest_unix_s.max(*unix_s);
    if folder == FOLDERS[0] && rest.rsplit('/').next() == Some(MANIFEST) {
        seen.checkpoints += 1;
    }
}

/// Proves every checkpoint of a migration.
pub async fn check(
    store: &Arc<dyn Store>,
    trust: &Trust,
    migration: &str,
) -> Result<StoreChecked, StoreError> {
    let prefix = format!("{}{migration}/", FOLDERS[0]);
    let keys = store.list(&prefix).await?;
    let mut checked = StoreChecked::default();
    let (mut named, mut proved) = (BTreeSet::new(), BTreeSet::new());
    let is_manifest = |key: &&String| key.rsplit('/').next() == Some(MANIFEST);
    for key in keys.iter().filter(is_manifest) {
        named.insert(key.clone());
        checked.checkpoints += 1;
        match manifest(store.as_ref(), trust, key).await? {
            Ok(objects) => {
                named.extend(objects.iter().map(|(key, _)| key.clone()));
                let new = objects
                    .into_iter()
                    .filter(|object| proved.insert(object.clone()));
                prove(store, new.collect(), &mut checked).await?;
            }
            Err(problem) => tell(&mut checked, problem),
        }
    }
    checked.loose = keys.iter().filter(|key| !named.contains(*key)).count() as u64;
    Ok(checked)
}

/// Removes everything of a migration. Repeating it is fine.
pub async fn clear(store: &dyn Store, migration: &str) -> Result<(), StoreError> {
    for folder in FOLDERS {
        remove_below(store, &format!("{folder}{migration}/")).await?;
    }
    Ok(())
}

/// The objects that a manifest names, by key and hash, or what is wrong with it.
async fn manifest(
    store: &dyn Store,
    trust: &Trust,
    key: &str,
) -> Result<Result<Vec<(String, String)>, String>, StoreError> {
    let bytes = store.get(key).await?;
    let hash = blake3::hash(&bytes).to_hex();
    let checkpoint = match open_manifest(key, &bytes, hash.as_str(), trust) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return Ok(Err(DataError::of(error).0)),
    };
    let mut objects = Vec::new();
    objects.extend(checkpoint.base.map(|base| (base.key, base.blake3)));
    for (_, archive) in checkpoint.archives {
        match archive {
            Archive::Plain(packed) => {
                let packs = packed.packs.into_iter();
                objects.extend(packs.map(|pack| (pack.key, pack.blake3)));
            }
            Archive::Paged { container, .. } => {
                let parts = container.packs.into_iter().chain([container.recipe]);
                objects.extend(parts.map(|object| (object.key, object.blake3)));
            }
        }
    }
    Ok(Ok(objects))
}

async fn prove(
    store: &Arc<dyn Store>,
    objects: Vec<(String, String)>,
    checked: &mut StoreChecked,
) -> Result<(), StoreError> {
    let mut read = stream::iter(objects)
        .map(|(key, hash)| async move { (store.get(&key).await, key, hash) })
        .buffer_unordered(GETS_IN_FLIGHT);
    while let Some((got, key, hash)) = read.next().await {
        match got {
            Ok(bytes) if blake3::hash(&bytes).to_hex().as_str() == hash => {
                checked.objects += 1;
                checked.bytes += bytes.len() as u64;
            }
            Ok(_) => tell(
                checked,
                format!("{key}: its bytes are not those that were stored"),
            ),
            Err(error) if matches!(error.fault, Fault::Missing) => {
                tell(checked, format!("{key}: it is not there"))
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn tell(checked: &mut StoreChecked, problem: String) {
    if checked.problems.len() < PROBLEMS_MAX {
        checked.problems.push(problem);
    }
}
