//! Many small files of a date become one, in one commit: no version shows a row twice or not at all.

use std::{sync::Arc, time::Duration};

use arrow::{array::RecordBatch, compute::interleave_record_batch};
use bytes::Bytes;
use chrono::NaiveDate;
use object_store::{ObjectStoreExt, path::Path};

use super::{
    KeyCache, LakeError, Table,
    files::{DataFile, View},
    parquet_file,
    schema::TableKind,
    table::Change,
};
use crate::domain::{Key, is_outdated};

/// Commits lost in a row to other writers before a compaction waits for its next turn.
const MAX_CONFLICTS: usize = 5;
/// How long a file may wait for its commit. Half of the time after which a vacuum takes it for an orphan, so that none
/// has begun to delete a file that is committed.
const MAX_WAIT: Duration = Duration::from_secs(30 * 60);
/// Rows that are taken over at a time: bounds the memory of the copy.
const COPY_ROWS: usize = 8 * 1024;

/// When files are small and many, and how many rows are held in memory at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CompactionLimits {
    /// A date with more small files than this is compacted.
    pub(crate) max_small_files: usize,
    /// A file with fewer rows than this is small.
    pub(crate) small_rows: u64,
    /// A compacted file has at most about so many rows, and as many are in memory while it is made.
    pub(crate) target_rows: u64,
    /// Bytes of the files that are compacted at once: they are in memory, and about ten times as large unpacked.
    pub(crate) target_bytes: u64,
}

impl Default for CompactionLimits {
    /// A file every two seconds makes 32 a minute; a delivery's row takes about 2 kB in memory, so 64 Ki rows 130 MB.
    fn default() -> Self {
        Self { max_small_files: 32, small_rows: 32 * 1024, target_rows: 64 * 1024, target_bytes: 32 * 1024 * 1024 }
    }
}

/// Compacts every date that needs it; answers how many files were replaced. A date with a file that cannot be read keeps
/// no other waiting: the error is that of the first one, and the rest is done.
pub(crate) async fn compact(table: &Table, cache: &KeyCache, limits: CompactionLimits) -> Result<usize, LakeError> {
    let mut replaced = Ok(0);
    let view = table.lock().await?.view();
    let dates: Vec<NaiveDate> = view.iter().map(|(date, _)| date).collect();
    for date in dates {
        let outcome = compact_date(table, cache, date, limits).await;
        replaced = replaced.and_then(|before| Ok(before + outcome?));
    }
    replaced
}

async fn compact_date(
    table: &Table,
    cache: &KeyCache,
    date: NaiveDate,
    limits: CompactionLimits,
) -> Result<usize, LakeError> {
    let mut replaced = 0;
    loop {
        let sources = choose(&table.view(), date, limits);
        if sources.is_empty() || !replace(table, cache, date, &sources).await? {
            return Ok(replaced);
        }
        replaced += sources.len();
    }
}

/// The small files of a date to make one of, neighbours by id; none where they are few.
fn choose(view: &View, date: NaiveDate, limits: CompactionLimits) -> Vec<Arc<DataFile>> {
    let small = |file: &&Arc<DataFile>| file.stats.rows < limits.small_rows;
    let mut small: Vec<_> = view.of_date(date).iter().filter(small).cloned().collect();
    if small.len() <= limits.max_small_files {
        return Vec::new();
    }
    small.sort_by_key(|file| file.stats.ids.0);
    let (mut rows, mut bytes) = (0, 0);
    let mut chosen = Vec::new();
    for file in small {
        rows += file.stats.rows;
        bytes += file.bytes;
        if chosen.len() >= 2 && (rows > limits.target_rows || bytes > limits.target_bytes) {
            break;
        }
        chosen.push(file);
    }
    chosen
}

/// Replaces `sources` by one file; false where they were replaced by somebody else meanwhile, or the file has waited for
/// too long to be safe: then it is left to a vacuum, and the next turn makes another one.
async fn replace(
    table: &Table,
    cache: &KeyCache,
    date: NaiveDate,
    sources: &[Arc<DataFile>],
) -> Result<bool, LakeError> {
    let Some(first) = sources.first() else { return Ok(false) };
    let mut stats = first.stats.clone();
    let mut inputs = Vec::new();
    for (index, file) in sources.iter().enumerate() {
        if index > 0 {
            stats.merge(&file.stats);
        }
        let path = Path::parse(&file.path).map_err(LakeError::unavailable)?;
        inputs.push(table.store().get(&path).await?.bytes().await?);
    }
    let kind = table.kind();
    let (bytes, keys) = tokio::task::spawn_blocking(move || merge(kind, inputs)).await??;
    if keys.len() as u64 != stats.rows {
        return Err(LakeError::unavailable("files do not hold as many rows as their statistics say"));
    }
    let put_at = table.clock().now();
    let file = parquet_file::put(table.store().as_ref(), table.clock().new_id(), date, bytes, stats).await?;
    for _ in 0..MAX_CONFLICTS {
        let mut locked = table.lock().await?;
        let view = locked.view();
        let live = |source: &Arc<DataFile>| view.of_date(date).iter().any(|file| file.path == source.path);
        let now = table.clock().now();
        // Its sources go with this commit, so the file must stay. A vacuum that is to delete it commits first, and this
        // commit then conflicts; but not where that one is in the view already, and the file is still to be deleted: so
        // an old file is not committed, whether or not it is there. That it is there is asked for all the same, since
        // the clocks of replicas may differ.
        if !sources.iter().all(live) || is_outdated(put_at, MAX_WAIT, now) || !is_there(table, &file).await? {
            return Ok(false);
        }
        let change = Change {
            adds: vec![file.add(kind, false)],
            removes: sources.iter().map(|source| source.remove(now)).collect(),
            offsets: Vec::new(),
        };
        match locked.commit(change).await {
            Ok(_) => {}
            Err(LakeError::Conflict) => continue,
            Err(error) => return Err(error),
        }
        for source in sources {
            cache.remove(&source.path);
        }
        cache.insert(&file.path, keys);
        return Ok(true);
    }
    Ok(false)
}

async fn is_there(table: &Table, file: &DataFile) -> Result<bool, LakeError> {
    match table.store().head(&Path::parse(&file.path).map_err(LakeError::unavailable)?).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The rows of all inputs in the order of their keys, as one file, and those keys.
fn merge(kind: TableKind, inputs: Vec<Bytes>) -> Result<(Bytes, Arc<[Key]>), LakeError> {
    let mut batches: Vec<RecordBatch> = Vec::new();
    let mut order: Vec<(Key, usize, usize)> = Vec::new();
    for input in inputs {
        for batch in parquet_file::decode(input, None)? {
            let mut keys = Vec::with_capacity(batch.num_rows());
            parquet_file::keys_of(&batch, &mut keys)?;
            order.extend(keys.into_iter().enumerate().map(|(row, key)| (key, batches.len(), row)));
            batches.push(batch);
        }
    }
    order.sort_unstable();
    let sources: Vec<&RecordBatch> = batches.iter().collect();
    let mut sorted = Vec::new();
    for part in order.chunks(COPY_ROWS) {
        let rows: Vec<(usize, usize)> = part.iter().map(|&(_, batch, row)| (batch, row)).collect();
        sorted.push(interleave_record_batch(&sources, &rows)?);
    }
    let keys = order.iter().map(|&(key, ..)| key).collect();
    drop(sources);
    drop(batches);
    Ok((parquet_file::encode(kind, &sorted)?, keys))
}
