//! The exactly-once writer: rows and the offsets they came from become visible in the same commit, or not at all.
//!
//! Invariants, each checked in the very version that the commit builds on:
//! - a buffer is committed only if the table's offset is the one that the buffer was read from;
//! - a row is committed only if neither its date nor the commit already holds its key.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::NaiveDate;
use contracts::Timestamp;
use messaging::{Offset, abort_point};

use super::{
    KeyCache, LakeError, Row, Table,
    files::DataFile,
    keys, parquet_file,
    schema::stats_of,
    table::{Change, LockedTable},
};
use crate::domain::{Key, is_outdated};

/// Commits lost in a row to other writers before the caller is told: each loss means that another one succeeded.
const MAX_CONFLICTS: usize = 20;
/// How long consumed offsets without rows wait for a commit: they cost only reading again, a commit costs a version.
const OFFSETS_ONLY_INTERVAL: Duration = Duration::from_secs(60);

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The topic.
    pub(crate) topic: Arc<str>,
    /// The partition.
    pub(crate) partition: u32,
}

impl Place {
    /// The partition of an offset.
    pub(crate) fn of(at: &Offset) -> Self {
        Self { topic: at.topic.as_str().into(), partition: at.partition }
    }

    /// An offset in it.
    pub(crate) fn at(&self, offset: u64) -> Offset {
        Offset { topic: self.topic.to_string(), partition: self.partition, offset }
    }
}

/// What the writer says to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is the next one of its partition.
    Yes,
    /// The writer stands elsewhere: align it, and seek.
    Misplaced,
}

/// What has been read of a partition since the table's offset.
struct Buffer<R> {
    app_id: String,
    start: u64,
    next: u64,
    rows: Vec<Arc<R>>,
}

/// What a flush did.
#[derive(Debug, Default)]
pub(crate) struct Flushed {
    /// Now in the table: the next offset of each partition.
    pub(crate) committed: Vec<Offset>,
    /// Partitions whose buffer was discarded, because the table stands elsewhere: where to read on.
    pub(crate) moved: Vec<Offset>,
    /// Rows that became visible.
    pub(crate) rows: usize,
}

/// Files that are written and wait for the commit that makes them visible.
pub(crate) struct Prepared {
    files: Vec<(DataFile, Arc<[Key]>)>,
    offsets: Vec<(Place, String, u64)>,
    moved: Vec<Offset>,
    rows: usize,
}

/// Writes the rows of one table.
pub(crate) struct Writer<R> {
    table: Arc<Table>,
    cache: Arc<KeyCache>,
    buffers: BTreeMap<Place, Buffer<R>>,
    committed_at: Timestamp,
}

impl<R: Row> Writer<R> {
    /// A writer that has read nothing yet.
    pub(crate) fn new(table: Arc<Table>, cache: Arc<KeyCache>) -> Self {
        let committed_at = table.clock().now();
        Self { table, cache, buffers: BTreeMap::new(), committed_at }
    }

    /// Takes the table's word for where a partition is read from, whatever was read before.
    pub(crate) async fn align(&mut self, place: Place, topic_id: &str) -> Result<u64, LakeError> {
        let app_id = format!("{topic_id}/{}/{}", place.topic, place.partition);
        let start = self.table.lock().await?.offset(&app_id).await?;
        self.buffers.insert(place, Buffer { app_id, start, next: start, rows: Vec::new() });
        Ok(start)
    }

    /// Forgets what was read of partitions that now belong to others.
    pub(crate) fn keep_only(&mut self, assigned: &HashSet<Place>) {
        self.buffers.retain(|place, _| assigned.contains(place));
    }

    /// Whether a partition has been aligned.
    pub(crate) fn knows(&self, place: &Place) -> bool {
        self.buffers.contains_key(place)
    }

    /// Whether the record at `offset` is the next one of its partition. Right after an alignment a later one is, too:
    /// the log no longer has those before it.
    pub(crate) fn expects(&self, place: &Place, offset: u64) -> Taken {
        let Some(buffer) = self.buffers.get(place) else { return Taken::Misplaced };
        let untouched = buffer.next == buffer.start && buffer.rows.is_empty();
        if offset == buffer.next || (untouched && offset > buffer.next) { Taken::Yes } else { Taken::Misplaced }
    }

    /// Takes the record at `offset`, which the writer expects, and its row if the lake keeps it.
    pub(crate) fn take(&mut self, place: &Place, offset: u64, row: Option<R>) {
        let Some(buffer) = self.buffers.get_mut(place) else { return };
        buffer.next = offset + 1;
        buffer.rows.extend(row.map(Arc::new));
    }

    /// Rows that wait for a commit.
    pub(crate) fn rows(&self) -> usize {
        self.buffers.values().map(|buffer| buffer.rows.len()).sum()
    }

    /// Whether it is time to commit what was read, although nothing of it is a row.
    pub(crate) fn offsets_are_due(&self) -> bool {
        let passed = || self.buffers.values().any(|buffer| buffer.next > buffer.start);
        self.rows() == 0 && self.offsets_are_old() && passed()
    }

    /// Commits what was read.
    pub(crate) async fn flush(&mut self) -> Result<Flushed, LakeError> {
        let mut moved = Vec::new();
        for _ in 0..MAX_CONFLICTS {
            let table = self.table.clone();
            let mut locked = table.lock().await?;
            let mut prepared = self.prepare(&mut locked).await?;
            moved.append(&mut prepared.moved);
            match self.finish(&mut locked, prepared).await {
                Ok(mut flushed) => {
                    flushed.moved = moved;
                    return Ok(flushed);
                }
                // The files stay behind as orphans: what they lack or hold too much is decided anew.
                Err(LakeError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Err(LakeError::Conflict)
    }

    /// Checks what was read against the table's version, and writes the files of a commit.
    pub(crate) async fn prepare(&mut self, locked: &mut LockedTable<'_>) -> Result<Prepared, LakeError> {
        let moved = self.discard_stale(locked).await?;
        let mut offsets = Vec::new();
        let mut dates: BTreeMap<NaiveDate, Vec<Arc<R>>> = BTreeMap::new();
        for (place, buffer) in &self.buffers {
            if buffer.next > buffer.start {
                offsets.push((place.clone(), buffer.app_id.clone(), buffer.next));
            }
            for row in &buffer.rows {
                dates.entry(row.date()).or_default().push(row.clone());
            }
        }
        if dates.is_empty() && !self.offsets_are_old() {
            offsets.clear();
        }
        let mut files = Vec::new();
        let mut rows = 0;
        for (date, candidates) in dates {
            let new = self.without_held(locked, date, candidates).await?;
            if !new.is_empty() {
                rows += new.len();
                files.push(self.write_file(date, new).await?);
            }
        }
        abort_point("history.files_written");
        Ok(Prepared { files, offsets, moved, rows })
    }

    /// Makes prepared files visible, together with the offsets.
    pub(crate) async fn finish(
        &mut self,
        locked: &mut LockedTable<'_>,
        prepared: Prepared,
    ) -> Result<Flushed, LakeError> {
        if prepared.offsets.is_empty() {
            return Ok(Flushed { moved: prepared.moved, ..Flushed::default() });
        }
        let change = Change {
            adds: prepared.files.iter().map(|(file, _)| file.add(R::TABLE, true)).collect(),
            removes: Vec::new(),
            offsets: prepared.offsets.iter().map(|(_, app_id, next)| (app_id.clone(), *next)).collect(),
        };
        locked.commit(change).await?;
        abort_point("history.committed");
        for (file, keys) in prepared.files {
            self.cache.insert(&file.path, keys);
        }
        let mut committed = Vec::new();
        for (place, _, next) in prepared.offsets {
            committed.push(place.at(next));
            if let Some(buffer) = self.buffers.get_mut(&place) {
                buffer.start = next;
                buffer.rows.clear();
            }
        }
        self.committed_at = self.table.clock().now();
        Ok(Flushed { committed, moved: prepared.moved, rows: prepared.rows })
    }

    /// Drops the buffers that were not read from where the table stands.
    async fn discard_stale(&mut self, locked: &mut LockedTable<'_>) -> Result<Vec<Offset>, LakeError> {
        let mut moved = Vec::new();
        for (place, buffer) in &mut self.buffers {
            if buffer.next == buffer.start {
                continue;
            }
            let stored = locked.offset(&buffer.app_id).await?;
            if stored == buffer.start {
                continue;
            }
            tracing::info!(topic = %place.topic, partition = place.partition, read_from = buffer.start, stored,
                "the table has moved on: what was read is discarded");
            (buffer.start, buffer.next) = (stored, stored);
            buffer.rows.clear();
            moved.push(place.at(stored));
        }
        Ok(moved)
    }

    fn offsets_are_old(&self) -> bool {
        is_outdated(self.committed_at, OFFSETS_ONLY_INTERVAL, self.table.clock().now())
    }

    /// The rows of a date that it does not hold yet, each once, in the order of their keys.
    async fn without_held(
        &self,
        locked: &LockedTable<'_>,
        date: NaiveDate,
        mut rows: Vec<Arc<R>>,
    ) -> Result<Vec<Arc<R>>, LakeError> {
        let read = rows.len();
        rows.sort_by_key(|row| row.key());
        rows.dedup_by_key(|row| row.key());
        let wanted: Vec<Key> = rows.iter().map(|row| row.key()).collect();
        let view = locked.view();
        let held = keys::held(R::TABLE, &self.table.store(), view.of_date(date), &wanted, &self.cache, true).await?;
        rows.retain(|row| !held.contains(&row.key()));
        if rows.len() < read {
            tracing::debug!(table = R::TABLE.name(), %date, dropped = read - rows.len(), "rows seen before");
        }
        Ok(rows)
    }

    async fn write_file(&self, date: NaiveDate, rows: Vec<Arc<R>>) -> Result<(DataFile, Arc<[Key]>), LakeError> {
        let Some(stats) = stats_of(&rows) else { return Err(LakeError::unavailable("a file without rows")) };
        let keys: Arc<[Key]> = rows.iter().map(|row| row.key()).collect();
        let bytes = tokio::task::spawn_blocking(move || parquet_file::encode(R::TABLE, &[R::batch(&rows)?])).await??;
        let id = self.table.clock().new_id();
        let file = parquet_file::put(self.table.store().as_ref(), id, date, bytes, stats).await?;
        Ok((file, keys))
    }
}
