//! One Delta table: its files and consumed offsets, kept in memory and moved forward by its log, and its commits.
//!
//! Invariant: a commit takes exactly the version after the one that it was checked against, or fails with
//! [`LakeError::Conflict`]: delta-rs's own rebasing over commits that "do not conflict" would let a row in twice.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use contracts::{Clock, Timestamp};
use deltalake_core::{
    DeltaTable,
    kernel::{
        Action, Add, Remove, Transaction, Version,
        transaction::{CommitBuilder, CommitProperties, TransactionError},
    },
    logstore::{LogStoreRef, commit_uri_from_version, get_actions},
    operations::create::CreateBuilder,
    protocol::{DeltaOperation, SaveMode, checkpoints},
};
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use super::{
    LakeError, Location,
    files::{DataFile, View},
    schema::{DATE, TableKind},
};
use crate::domain::is_outdated;

/// How long a removed file stays for readers of an older version, in Delta's words. Longer than any query runs.
pub(crate) const TOMBSTONE_RETENTION: &str = "interval 1 hours";
/// How long old log entries stay, in Delta's words: a writer that was paused for less finds every entry it missed, and
/// a folder of a commit every two seconds stays small enough to be listed.
const LOG_RETENTION: &str = "interval 6 hours";
/// A view older than this is read anew from the newest checkpoint instead of entry by entry: well below the log's
/// retention, so that the entry after ours cannot have been cleaned up.
const MAX_STEPWISE_LAG: Duration = Duration::from_secs(30 * 60);
/// Commits between two checkpoints: bounds what a start or a foreign reader has to replay.
const CHECKPOINT_EVERY: Version = 50;

/// A change of the table: one commit.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// New files.
    pub(crate) adds: Vec<Add>,
    /// Files whose rows are in new files.
    pub(crate) removes: Vec<Remove>,
    /// Consumed: application id and next offset.
    pub(crate) offsets: Vec<(String, u64)>,
}

impl Change {
    fn operation(&self) -> DeltaOperation {
        if self.removes.is_empty() {
            let partition_by = Some(vec![DATE.to_owned()]);
            return DeltaOperation::Write { mode: SaveMode::Append, partition_by, predicate: None };
        }
        DeltaOperation::Optimize { predicate: None, target_size: 0 }
    }
}

/// A Delta table of the lake.
pub(crate) struct Table {
    kind: TableKind,
    log: LogStoreRef,
    clock: Arc<dyn Clock>,
    view: RwLock<Arc<View>>,
    state: Mutex<State>,
}

struct State {
    /// The table at an earlier version: tells the offsets that no later entry names, from the files of its log.
    base: DeltaTable,
    offsets: HashMap<String, Option<u64>>,
    refreshed_at: Timestamp,
    checkpoint: Version,
}

/// The table, held so that nobody else in this process changes it, at the newest version.
pub(crate) struct LockedTable<'a> {
    table: &'a Table,
    state: MutexGuard<'a, State>,
}

impl Table {
    /// Opens the table of the lake at a place, making it where there is none.
    pub(crate) async fn open(kind: TableKind, lake: &Location, clock: Arc<dyn Clock>) -> Result<Self, LakeError> {
        let log = lake.log_store(kind)?;
        if !log.is_delta_table_location().await? {
            let created = CreateBuilder::new()
                .with_log_store(log.clone())
                .with_table_name(kind.name())
                .with_columns(kind.delta_columns())
                .with_partition_columns([DATE])
                .with_configuration([
                    ("delta.deletedFileRetentionDuration", Some(TOMBSTONE_RETENTION)),
                    ("delta.logRetentionDuration", Some(LOG_RETENTION)),
                ])
                .with_save_mode(SaveMode::Ignore)
                .with_commit_properties(CommitProperties::default().with_max_retries(0))
                .await;
            if let Err(error) = created {
                // Another replica may have made it in the same moment: loading tells.
                tracing::info!(table = kind.name(), %error, "the table was not made here");
            }
        }
        Self::load(kind, log, clock).await
    }

    /// Opens the table of the lake at a place; `None` where there is none.
    pub(crate) async fn existing(
        kind: TableKind,
        lake: &Location,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, LakeError> {
        let log = lake.log_store(kind)?;
        if !log.is_delta_table_location().await? {
            return Ok(None);
        }
        Ok(Some(Self::load(kind, log, clock).await?))
    }

    async fn load(kind: TableKind, log: LogStoreRef, clock: Arc<dyn Clock>) -> Result<Self, LakeError> {
        let refreshed_at = clock.now();
        let (base, view) = load_view(kind, &log, None).await?;
        let state = Mutex::new(State { base, offsets: HashMap::new(), refreshed_at, checkpoint: 0 });
        Ok(Self { kind, log, clock, view: RwLock::new(Arc::new(view)), state })
    }

    /// Which table.
    pub(crate) fn kind(&self) -> TableKind {
        self.kind
    }

    /// Time and ids.
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The store, rooted at the table's folder.
    pub(crate) fn store(&self) -> Arc<dyn ObjectStore> {
        self.log.object_store(None)
    }

    /// The files as last seen.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its store answers: has the entry of the last commit that was seen, which is never cleaned up.
    pub(crate) async fn ping(&self) -> Result<(), LakeError> {
        self.log.object_store(None).head(&commit_uri_from_version(Some(self.view().version))).await?;
        Ok(())
    }

    /// The files as of at most `age` ago, or as last seen while somebody is committing.
    pub(crate) async fn recent_view(&self, age: Duration) -> Result<Arc<View>, LakeError> {
        if let Ok(mut state) = self.state.try_lock()
            && is_outdated(state.refreshed_at, age, self.clock.now())
        {
            self.refresh(&mut state).await?;
        }
        Ok(self.view())
    }

    /// The files of an older version that is still in the log.
    #[cfg(test)]
    pub(crate) async fn view_at(&self, version: Version) -> Result<View, LakeError> {
        Ok(load_view(self.kind, &self.log, Some(version)).await?.1)
    }

    /// Waits for other users in this process and brings the table to its newest version.
    pub(crate) async fn lock(&self) -> Result<LockedTable<'_>, LakeError> {
        let mut state = self.state.lock().await;
        self.refresh(&mut state).await?;
        Ok(LockedTable { table: self, state })
    }

    /// The table as a writer sees it that was held up: not at its newest version.
    #[cfg(test)]
    pub(crate) async fn lock_stale(&self) -> LockedTable<'_> {
        LockedTable { table: self, state: self.state.lock().await }
    }

    async fn refresh(&self, state: &mut State) -> Result<(), LakeError> {
        let now = self.clock.now();
        if self.lags(state) {
            let (base, view) = load_view(self.kind, &self.log, None).await?;
            state.base = base;
            state.offsets.clear();
            state.refreshed_at = now;
            self.publish(view);
            return Ok(());
        }
        let mut view = None;
        let mut version = self.view().version + 1;
        while let Some(entry) = self.log.read_commit_entry(version).await? {
            let view = view.get_or_insert_with(|| View::clone(&self.view()));
            for action in get_actions(version, &entry)? {
                match action {
                    Action::Add(add) => view.add(readable(self.kind, &add)?),
                    Action::Remove(remove) => view.remove(&remove.path),
                    Action::Txn(txn) => {
                        state.offsets.insert(txn.app_id, u64::try_from(txn.version).ok());
                    }
                    _ => {}
                }
            }
            view.version = version;
            version += 1;
        }
        if let Some(view) = view {
            self.publish(view);
        }
        state.refreshed_at = now;
        Ok(())
    }

    fn lags(&self, state: &State) -> bool {
        is_outdated(state.refreshed_at, MAX_STEPWISE_LAG, self.clock.now())
    }

    fn publish(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    /// Writes a checkpoint where the last one is old, and cleans up log entries behind it.
    pub(crate) async fn checkpoint(&self) -> Result<(), LakeError> {
        let mut state = self.state.lock().await;
        self.refresh(&mut state).await?;
        if self.view().version < state.checkpoint + CHECKPOINT_EVERY {
            return Ok(());
        }
        drop(state);
        let mut table = DeltaTable::new(self.log.clone());
        table.load().await?;
        checkpoints::create_checkpoint(&table, None).await?;
        let cleaned = checkpoints::cleanup_metadata(&table, None).await?;
        tracing::debug!(table = self.kind.name(), version = table.version(), cleaned, "checkpoint written");
        self.state.lock().await.checkpoint = table.version().unwrap_or_default();
        Ok(())
    }

    /// When each file that was removed lately was removed, in milliseconds since 1970.
    pub(crate) async fn tombstones(&self) -> Result<HashMap<String, i64>, LakeError> {
        use futures::TryStreamExt;
        let mut table = DeltaTable::new(self.log.clone());
        table.load().await?;
        let mut removed = HashMap::new();
        let mut tombstones = table.snapshot()?.all_tombstones(&self.log);
        while let Some(tombstone) = tombstones.try_next().await? {
            removed.insert(tombstone.path().into_owned(), tombstone.deletion_timestamp().unwrap_or(0));
        }
        Ok(removed)
    }
}

impl LockedTable<'_> {
    /// The files at this version.
    pub(crate) fn view(&self) -> Arc<View> {
        self.table.view()
    }

    /// The next offset that the table wants of an application; 0 where it has none yet.
    pub(crate) async fn offset(&mut self, app_id: &str) -> Result<u64, LakeError> {
        if let Some(known) = self.state.offsets.get(app_id) {
            return Ok(known.unwrap_or(0));
        }
        let stored = match self.told_by_base(app_id).await {
            Ok(stored) => stored,
            Err(error) => {
                // Its files may have been cleaned up since. At the version that is known: what was checked against it holds.
                tracing::debug!(table = self.table.kind.name(), %error, "the table is read again for an offset");
                let known = Some(self.view().version);
                (self.state.base, _) = load_view(self.table.kind, &self.table.log, known).await?;
                self.told_by_base(app_id).await?
            }
        };
        let stored = stored.and_then(|version| u64::try_from(version).ok());
        self.state.offsets.insert(app_id.to_owned(), stored);
        Ok(stored.unwrap_or(0))
    }

    async fn told_by_base(&self, app_id: &str) -> Result<Option<i64>, LakeError> {
        Ok(self.state.base.snapshot()?.transaction_version(&self.table.log, app_id).await?)
    }

    /// Makes the change the next version, or none of it.
    pub(crate) async fn commit(&mut self, change: Change) -> Result<Version, LakeError> {
        if self.table.lags(&self.state) {
            // The entry after ours may have been cleaned up by now, so that its version looks free.
            return Err(LakeError::Conflict);
        }
        let mut view = View::clone(&self.view());
        let version = view.version + 1;
        let operation = change.operation();
        for remove in &change.removes {
            view.remove(&remove.path);
        }
        for add in &change.adds {
            view.add(readable(self.table.kind, add)?);
        }
        let now_ms = self.table.clock.now().timestamp_millis();
        let mut transactions = Vec::new();
        for (app_id, next) in &change.offsets {
            let next = i64::try_from(*next).map_err(LakeError::unavailable)?;
            transactions.push(Transaction::new_with_last_update(app_id, next, Some(now_ms)));
        }
        let mut actions: Vec<Action> = change.removes.into_iter().map(Action::Remove).collect();
        actions.extend(change.adds.into_iter().map(Action::Add));
        let properties = CommitProperties::default().with_application_transactions(transactions);
        let log = &self.table.log;
        let commit = CommitBuilder::from(properties).with_actions(actions).build(None, log.clone(), operation);
        let prepared = commit.into_prepared_commit_future().await?;
        match log.write_commit_entry(version, prepared.commit_or_bytes().clone(), Uuid::nil()).await {
            Ok(()) => {}
            Err(TransactionError::VersionAlreadyExists(_)) => return Err(LakeError::Conflict),
            // Whether it was written is not known now; the next refresh tells.
            Err(error) => return Err(LakeError::unavailable(error)),
        }
        view.version = version;
        for (app_id, next) in change.offsets {
            self.state.offsets.insert(app_id, Some(next));
        }
        self.table.publish(view);
        Ok(version)
    }
}

async fn load_view(
    kind: TableKind,
    log: &LogStoreRef,
    version: Option<Version>,
) -> Result<(DeltaTable, View), LakeError> {
    let mut table = DeltaTable::new(log.clone());
    match version {
        Some(version) => table.load_version(version).await?,
        None => table.load().await?,
    }
    let state = table.snapshot()?;
    let mut view = View::new(state.version());
    for file in state.log_data() {
        view.add(DataFile::from_snapshot(kind, &file).ok_or_else(|| no_date(&file.path()))?);
    }
    Ok((table, view))
}

/// A file without a date would silently be left out of every answer.
fn readable(kind: TableKind, add: &Add) -> Result<DataFile, LakeError> {
    DataFile::from_add(kind, add).ok_or_else(|| no_date(&add.path))
}

fn no_date(path: &str) -> LakeError {
    LakeError::unavailable(format!("file '{path}' has no date"))
}
