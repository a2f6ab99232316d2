//! Which rows a table already holds: by ranges, then by keys in memory, then by bloom filters, then by reading keys.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use object_store::ObjectStore;

use super::{
    LakeError,
    files::DataFile,
    parquet_file,
    schema::{DELIVERY_ID, TableKind},
};
use crate::domain::Key;

/// Keys kept in memory per table, 32 bytes each: the files of the last half hour at 1,000 rows a second.
const MAX_CACHED_KEYS: usize = 2_000_000;
/// Up to so many ids a file's bloom filters are asked first; with more, some "maybe" is all but certain.
const MAX_BLOOM_IDS: usize = 64;

/// The keys of the files used last. Only a cache: whatever it forgets is read again from the files.
#[derive(Default)]
pub(crate) struct KeyCache {
    inner: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    files: HashMap<String, (Arc<[Key]>, u64)>,
    keys: usize,
    uses: u64,
}

impl KeyCache {
    /// The keys of a file, sorted.
    pub(crate) fn get(&self, path: &str) -> Option<Arc<[Key]>> {
        let mut cached = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        cached.uses += 1;
        let now = cached.uses;
        let (keys, used) = cached.files.get_mut(path)?;
        *used = now;
        Some(keys.clone())
    }

    /// Remembers the sorted keys of a file, and forgets those of files used longest ago.
    pub(crate) fn insert(&self, path: &str, keys: Arc<[Key]>) {
        let mut cached = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        cached.uses += 1;
        let now = cached.uses;
        cached.keys += keys.len();
        if let Some((old, _)) = cached.files.insert(path.to_owned(), (keys, now)) {
            cached.keys -= old.len();
        }
        while cached.keys > MAX_CACHED_KEYS {
            let oldest = cached.files.iter().min_by_key(|(_, (_, used))| *used).map(|(path, _)| path.clone());
            let Some((keys, _)) = oldest.and_then(|path| cached.files.remove(&path)) else { break };
            cached.keys -= keys.len();
        }
    }

    /// Forgets a file that is no longer in the table.
    pub(crate) fn remove(&self, path: &str) {
        let mut cached = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((keys, _)) = cached.files.remove(path) {
            cached.keys -= keys.len();
        }
    }
}

/// Those of the sorted `wanted` keys that the files hold. `remember`: keep the keys that had to be read.
pub(crate) async fn held(
    kind: TableKind,
    store: &Arc<dyn ObjectStore>,
    files: &[Arc<DataFile>],
    wanted: &[Key],
    cache: &KeyCache,
    remember: bool,
) -> Result<HashSet<Key>, LakeError> {
    let mut held = HashSet::new();
    // Newest first: what was committed last is what is published again.
    for file in files.iter().rev() {
        let first = wanted.partition_point(|key| key.delivery < file.stats.ids.0);
        let end = wanted.partition_point(|key| key.delivery <= file.stats.ids.1);
        let in_range = &wanted[first..end.max(first)];
        if in_range.is_empty() {
            continue;
        }
        let keys = match cache.get(&file.path) {
            Some(keys) => keys,
            None => match read_keys(kind, store, file, in_range).await? {
                Some(keys) if remember => {
                    cache.insert(&file.path, keys.clone());
                    keys
                }
                Some(keys) => keys,
                None => continue,
            },
        };
        held.extend(in_range.iter().filter(|key| keys.binary_search(key).is_ok()));
    }
    Ok(held)
}

/// The keys of a file; `None` if its bloom filters say that it holds none of these.
async fn read_keys(
    kind: TableKind,
    store: &Arc<dyn ObjectStore>,
    file: &DataFile,
    wanted: &[Key],
) -> Result<Option<Arc<[Key]>>, LakeError> {
    let mut open = parquet_file::open(store.clone(), file).await?;
    if wanted.len() <= MAX_BLOOM_IDS {
        let ids: Vec<String> = wanted.iter().map(|key| key.delivery.to_string()).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        if parquet_file::groups_with(&mut open, DELIVERY_ID, &ids).await?.is_empty() {
            return Ok(None);
        }
    }
    Ok(Some(parquet_file::read_keys(kind, open).await?.into()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn keys(from: u128, count: usize) -> Arc<[Key]> {
        (from..).take(count).map(|id| Key { delivery: Uuid::from_u128(id), attempt: 0, sequence: 0 }).collect()
    }

    #[test]
    fn the_cache_stays_bounded_and_keeps_what_was_used_last() {
        let cache = KeyCache::default();
        cache.insert("a", keys(0, MAX_CACHED_KEYS / 2));
        cache.insert("b", keys(0, MAX_CACHED_KEYS / 2));
        assert!(cache.get("a").is_some());
        cache.insert("c", keys(0, 10));
        assert!(cache.get("a").is_some() && cache.get("b").is_none() && cache.get("c").is_some());
        cache.remove("a");
        assert_eq!(cache.inner.lock().unwrap().keys, 10);
    }
}
