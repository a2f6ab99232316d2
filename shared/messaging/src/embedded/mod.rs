//! The embedded event log: Kafka's semantics on one SQLite file, for one process.
//!
//! Appends of concurrent callers share one transaction and one fsync. A partition's records are stored as batches,
//! as Kafka stores them; the newest are also kept in memory, so that a consumer that keeps up reads no disk.

mod state;
mod storage;
mod subscription;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use contracts::{Clock, events::CloudEvent};
use tokio::{sync::watch, task::JoinSet};

use self::{
    state::State,
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
};

/// How long records are kept. Inbox entries must outlive it.
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
    /// Opens (and makes) the log in the file at `path`.
    pub async fn open(path: &str, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        let storage = Storage::open(path).await.map_err(LogError::unavailable)?;
        let (announce, changed) = watch::channel(0);
        let state = State::new(storage.load().await.map_err(LogError::unavailable)?, announce);
        let (writing_storage, writing_state, writing_clock) = (storage.clone(), state.clone(), clock.clone());
        let (writer, worker) = Batcher::new(WRITE_LIMITS, move |writes| {
            let (storage, state, now) = (writing_storage.clone(), writing_state.clone(), writing_clock.now());
            async move { storage::write(&storage, &state, writes, now).await }
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(worker);
        tasks.spawn(drop_old_records(storage.clone(), state.clone(), clock));
        Ok(Self { shared: Arc::new(Shared { state, storage, writer, changed }), _tasks: tasks })
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
    async fn publish(&self, events: &[CloudEvent]) -> Result<(), LogError> {
        if events.is_empty() {
            return Ok(());
        }
        let events = events.iter().cloned().map(Arc::new).collect();
        self.shared.write(Write::Publish(events)).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, LogError> {
        for topic in topics {
            self.shared.write(Write::EnsureTopic((*topic).to_owned())).await?;
        }
        Ok(Box::new(EmbeddedSubscription::join(self.shared.clone(), group, topics)))
    }

    async fn lag(&self) -> Result<Vec<GroupLag>, LogError> {
        Ok(self.shared.state.lag())
    }

    async fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.shared.write(Write::EnsureTopic(topic.to_owned())).await?;
        self.shared.state.topic_uid(topic).ok_or_else(|| LogError::unavailable(format!("no topic '{topic}'")))
    }
}

impl Shared {
    async fn commit(&self, group: &str, next: &[Offset]) -> Result<(), LogError> {
        self.write(Write::Commit { group: group.to_owned(), next: next.to_vec() }).await
    }
}
