//! The event log: Kafka's semantics, behind which Kafka or the embedded log stands.

use std::sync::Arc;

use async_trait::async_trait;
use contracts::{Clock, events::CloudEvent};
use serde::Serialize;

/// Why the log did not do as asked. The caller tries again, unless it is told that this is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It cannot be reached, or its disk fails.
    #[error("the event log is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The partitions were given to another member of the group since they were read.
    #[error("the consumer group has rebalanced")]
    Rebalanced,
    /// It takes no record of that size, however often it is asked.
    #[error("the record is larger than the event log takes")]
    TooLarge(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LogError {
    /// Wraps a cause.
    pub fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

/// A place in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Offset {
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: u32,
    /// The number of the record, or of the next one to read.
    pub offset: u64,
}

/// A record as a consumer gets it.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// The event.
    pub event: Arc<CloudEvent>,
}

/// How far a consumer group is behind on one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupLag {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// Committed: the next record to process.
    pub committed: u64,
    /// The next record to be written.
    pub end: u64,
}

impl GroupLag {
    /// Records not yet processed.
    pub fn lag(&self) -> u64 {
        self.end.saturating_sub(self.committed)
    }
}

/// A partitioned, durable, ordered log.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Appends events, in order within each key. Answers once all are on disk; on an error any part of them may have
    /// been written, and the caller publishes all of them again. They are handed over, so that no copy is made of their
    /// data on the way to the disk and to the readers.
    async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError>;

    /// Joins a consumer group. A new group starts at the beginning of each topic.
    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, LogError>;

    /// The record at a place, for no group; none where the log does not have it, any more or yet.
    async fn record_at(&self, place: &Offset) -> Result<Option<CloudEvent>, LogError>;

    /// How far every group is behind.
    async fn lag(&self) -> Result<Vec<GroupLag>, LogError>;

    /// The topic's own id: another one after the topic was deleted and made again.
    async fn topic_id(&self, topic: &str) -> Result<String, LogError>;

    /// Whether it answers; asks it the least that there is.
    async fn ping(&self) -> Result<(), LogError>;
}

/// One member of a consumer group. Dropping it leaves the group.
#[async_trait]
pub trait Subscription: Send {
    /// The next records, at least one and at most `max`, in order within each partition; waits until there are some.
    /// Cancel-safe: a call that was dropped has consumed nothing.
    async fn next(&mut self, max: usize) -> Result<Vec<Delivered>, LogError>;

    /// Commits: `offset` is the next record that the group wants of each partition. [`LogError::Rebalanced`] where one
    /// of the partitions is no longer this member's; its new owner will see those records again.
    async fn commit(&mut self, next: &[Offset]) -> Result<(), LogError>;

    /// Reads on from `to` in a partition of this member, forwards or backwards.
    async fn seek(&mut self, to: &Offset) -> Result<(), LogError>;

    /// The partitions that this member has now, with the position of its next read.
    async fn assignment(&mut self) -> Result<Vec<Offset>, LogError>;
}

/// Opens the log that a URL names: `embedded:PATH` (a SQLite file), or `kafka://HOST:PORT[,HOST:PORT][/TOPIC_PREFIX]`.
pub async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Arc<dyn EventLog>, LogError> {
    match url.split_once(':') {
        Some(("embedded", path)) => Ok(Arc::new(crate::embedded::EmbeddedLog::open(path, clock).await?)),
        Some(("kafka", address)) if address.starts_with("//") => {
            Ok(Arc::new(crate::kafka::KafkaLog::open(&address[2..]).await?))
        }
        _ => Err(LogError::unavailable(format!(
            "'{url}' is not an event log: expected embedded:PATH or kafka://HOST:PORT[,HOST:PORT][/TOPIC_PREFIX]"
        ))),
    }
}
