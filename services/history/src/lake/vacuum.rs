//! Deletes data files that no reader can need: replaced long ago, or written and never committed.

use std::{collections::HashSet, time::Duration};

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};

use super::{LakeError, Table, parquet_file::made_at_ms, table::Change};

/// Deletes unused files that are older than `retention`; answers how many.
///
/// A writer that was paused between writing its files and committing them must not succeed after they are gone: so,
/// before an orphan is deleted, an empty commit takes the version that such a writer would take. It then looks again
/// and writes new files.
pub(crate) async fn vacuum(table: &Table, retention: Duration) -> Result<usize, LakeError> {
    let now = table.clock().now();
    let retention = chrono::Duration::from_std(retention).unwrap_or(chrono::Duration::MAX);
    let cutoff_ms = now.checked_sub_signed(retention).map_or(i64::MIN, |cutoff| cutoff.timestamp_millis());
    // In this order: what another replica removes between the two looks is still live in the first one. Else it would be
    // in neither, and pass for an orphan as old as it is, though readers may need it for a while.
    let live = table.lock().await?.view();
    let removed = table.tombstones().await?;
    let live: HashSet<&str> = live.files().map(|file| file.path.as_str()).collect();
    let mut unused = Vec::new();
    let mut fence = false;
    let store = table.store();
    let mut listed = store.list(None);
    while let Some(meta) = listed.try_next().await? {
        let path = meta.location.to_string();
        // Only files that this service names are its to delete.
        let Some(made_ms) = made_at_ms(&path) else { continue };
        if live.contains(path.as_str()) {
            continue;
        }
        let unused_since_ms = removed.get(&path).copied().unwrap_or(made_ms);
        if unused_since_ms < cutoff_ms {
            fence |= !removed.contains_key(&path);
            unused.push(path);
        }
    }
    if unused.is_empty() {
        return Ok(0);
    }
    let mut locked = table.lock().await?;
    if fence {
        match locked.commit(Change::default()).await {
            Ok(_) => {}
            // Others are at work: the next turn will do.
            Err(LakeError::Conflict) => return Ok(0),
            Err(error) => return Err(error),
        }
    }
    let live = locked.view();
    let live: HashSet<&str> = live.files().map(|file| file.path.as_str()).collect();
    let mut deleted = 0;
    for path in unused.iter().filter(|path| !live.contains(path.as_str())) {
        match store.delete(&Path::parse(path).map_err(LakeError::unavailable)?).await {
            Ok(()) => deleted += 1,
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(deleted)
}
