//! The embedded event log: Kafka's semantics on one SQLite file, for one process.
//!
//! Appends of concurrent callers share one transaction and one fsync. A partition's records are stored as batches,
//! as Kafka stores them; the newest are also kept in memory, so that a consumer that keeps up reads no disk.
//!
//! Invariants:
//! - one process a file: a lock says so;
//! - what a known group has not committed is never dropped, however old. This differs from Kafka on purpose: nobody
//!   watches the retention of an embedded log, and a consumer that was stuck for a day must not lose what it missed. A
//!   group is known from its first joining on, for ever, so groups are named after services, never after instances;
//! - a dead letter is never dropped before its redrive;
//! - a log whose tasks have panicked answers nobody: the process ends.

mod lock;
mod state;
mod storage;
mod subscription;

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_trait::async_trait;
use contracts::{Clock, events::CloudEvent};
use futures::FutureExt;
use tokio::{sync::watch, task::JoinSet};

use self::{
    lock::FileLock,
    state::{Found, State},
    storage::{Storage, Write, WriteResult},
    subscription::EmbeddedSubscription,
};
use crate::{Batcher, EventLog, GroupLag, LogError, Offset, Subscription, batch::Limits, outbox::chain};

/// Publishes and commits that share a transaction.
const WRITE_LIMITS: Limits = Limits {
    // All services and groups together have a few dozen calls under way.
    max_batch: 256,
    // Callers past that wait.
    queue: 1_024,
    // One writer: offsets are handed out in order.
    concurrency: 1,
    // Those who write are paced themselves.
    pace: Duration::ZERO,
};

/// How long records are kept at least: a new group finds that much, and a known group whatever it has not committed.
/// Inbox entries must outlive it.
pub const RETENTION: chrono::Duration = chrono::Duration::hours(24);

/// How often old records are dropped.
const RETENTION_CHECK: Duration = Duration::from_secs(60);

/// An event log in one SQLite file. Dropping it ends its tasks.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

pub(crate) struct Shared {
    state: State,
    storage: Storage,
    writer: Batcher<Write, WriteResult>,
    /// Counts appends and rebalances; a waiting member looks again when it changes.
    changed: watch::Receiver<u64>,
}

impl EmbeddedLog {
    /// Opens (and makes) the log in the file at `path`. Fails where another process has it open.
    pub async fn open(path: &str, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        let lock = Arc::new(FileLock::take(path).await.map_err(LogError::unavailable)?);
        let storage = Storage::open(path).await.map_err(LogError::unavailable)?;
        let (announce, changed) = watch::channel(0);
        let state = State::new(storage.load().await.map_err(LogError::unavailable)?, announce);
        let (writing_storage, writing_state, writing_clock) = (storage.clone(), state.clone(), clock.clone());
        let (writer, worker) = Batcher::new(WRITE_LIMITS, move |writes| {
            let (storage, state, now) = (writing_storage.clone(), writing_state.clone(), writing_clock.now());
            async move { storage::write(&storage, &state, writes, now).await }
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(or_abort("writer", worker, lock.clone()));
        tasks.spawn(or_abort("janitor", drop_old_records(storage.clone(), state.clone(), clock), lock));
        Ok(Self { shared: Arc::new(Shared { state, storage, writer, changed }), _tasks: tasks })
    }
}

/// Runs one of the log's tasks, and ends the process where it panics: memory and disk may differ from then on, and a
/// process that lived on without its log would answer "shutting down" for ever. The lock goes after the task.
async fn or_abort(name: &'static str, task: impl Future<Output = ()>, _lock: Arc<FileLock>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        tracing::error!(task = name, "a task of the event log has panicked: aborting the process");
        std::process::abort();
    }
}

async fn drop_old_records(storage: Storage, state: State, clock: Arc<dyn Clock>) {
    loop {
        clock.sleep(RETENTION_CHECK).await;
        if let Err(error) = storage.drop_before(clock.now() - RETENTION, &state).await {
            tracing::warn!(error = %chain(&error), "old records could not be dropped");
        }
    }
}

impl Shared {
    async fn write(&self, write: Write) -> WriteResult {
        self.writer.call(write).await.map_err(LogError::unavailable)?
    }
}

#[async_trait]
impl EventLog for EmbeddedLog {
    async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        if events.is_empty() {
            return Ok(());
        }
        let events = events.into_iter().map(Arc::new).collect();
        self.shared.write(Write::Publish(events)).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, LogError> {
        let joined = topics.iter().map(|topic| (*topic).to_owned()).collect();
        self.shared.write(Write::Join { group: group.to_owned(), topics: joined }).await?;
        Ok(Box::new(EmbeddedSubscription::join(self.shared.clone(), group, topics)))
    }

    async fn record_at(&self, place: &Offset) -> Result<Option<CloudEvent>, LogError> {
        let Shared { state, storage, .. } = &*self.shared;
        let found = match state.read(&place.topic, place.partition, place.offset, 1) {
            Found::Nothing => None,
            Found::Records(from, events) => events.into_iter().next().map(|event| (from, event)),
            Found::OnDisk(from) => {
                let read = storage.read(state, &place.topic, place.partition, from, 1).await;
                read.map_err(LogError::unavailable)?.into_iter().next()
            }
        };
        // Where it was dropped, the first one that is left has been found.
        Ok(found.filter(|(offset, _)| *offset == place.offset).map(|(_, event)| CloudEvent::clone(&event)))
    }

    async fn lag(&self) -> Result<Vec<GroupLag>, LogError> {
        Ok(self.shared.state.lag())
    }

    async fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.shared.write(Write::EnsureTopic(topic.to_owned())).await?;
        self.shared.state.topic_uid(topic).ok_or_else(|| LogError::unavailable(format!("no topic '{topic}'")))
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.shared.storage.ping().await
    }
}

impl Shared {
    async fn commit(&self, group: &str, next: &[Offset]) -> Result<(), LogError> {
        self.write(Write::Commit { group: group.to_owned(), next: next.to_vec() }).await
    }
}
