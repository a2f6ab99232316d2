//! The event log on Kafka: one topic each, consumer groups, and a producer whose answers come from all in-sync replicas.
//!
//! How safe an answer is, is the cluster's to say: with replication 3 and `min.insync.replicas` 2 it outlives any one
//! broker; a single broker must sync every append (`log.flush.interval.messages=1`).
//!
//! Invariants:
//! - a key's partition is ours to say ([`part_of`](crate::keys::part_of)), so topics have [`PARTITIONS`] partitions or
//!   are refused;
//! - nothing waits for the cluster on a thread of the runtime;
//! - a group has a committed offset for every partition from its joining on, so its lag counts from there.

mod groups;
mod member;
mod names;
mod producer;
mod reader;
mod record;
mod subscription;
mod topics;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use contracts::events::{CloudEvent, Topic};
use rdkafka::{ClientConfig, error::KafkaError};

pub use self::topics::RETENTION;
use self::{groups::Groups, names::Names, producer::Producer, subscription::KafkaSubscription, topics::Topics};
use crate::{EventLog, GroupLag, LogError, Offset, Subscription};
#[cfg(doc)]
use contracts::events::PARTITIONS;

/// How long the cluster may think about a question: a partition finds a new leader in a few seconds, and a caller that
/// waits for longer had better be told.
const ANSWER: Duration = Duration::from_secs(10);

/// How long it may take over a ping: who asks has no use for a later answer, and the thread that waits is free again.
const PING: Duration = Duration::from_secs(1);

/// An event log on a Kafka cluster.
pub struct KafkaLog {
    brokers: String,
    names: Names,
    producer: Producer,
    topics: Arc<Topics>,
    groups: Arc<Groups>,
}

impl KafkaLog {
    /// Opens the log at `HOST:PORT[,HOST:PORT][/TOPIC_PREFIX]`, and makes the topics that services publish to. All
    /// topics and groups are called `TOPIC_PREFIX.NAME` on the cluster.
    pub async fn open(address: &str) -> Result<Self, LogError> {
        let (brokers, names) = names::parse(address)?;
        let topics = Arc::new(Topics::new(brokers, names.clone())?);
        topics.ensure(Topic::ALL.map(Topic::name)).await?;
        Ok(Self {
            brokers: brokers.to_owned(),
            producer: Producer::new(brokers, names.clone())?,
            groups: Arc::new(Groups::new(brokers, names.clone())?),
            names,
            topics,
        })
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        let topics: BTreeSet<String> = events.iter().map(|event| event.topic.clone()).collect();
        self.topics.ensure(topics.iter().map(String::as_str)).await?;
        // One of them may have been deleted: the next call makes it anew.
        self.producer.publish(events).await.inspect_err(|_| self.topics.forget(topics.iter().map(String::as_str)))
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, LogError> {
        let joined = KafkaSubscription::join(&self.brokers, &self.names, &self.topics, group, topics).await?;
        Ok(Box::new(joined))
    }

    async fn record_at(&self, place: &Offset) -> Result<Option<CloudEvent>, LogError> {
        self.topics.ensure([&*place.topic]).await?;
        reader::record_at(&self.brokers, &self.names, place).await
    }

    async fn lag(&self) -> Result<Vec<GroupLag>, LogError> {
        self.groups.lag().await
    }

    async fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.topics.id(topic).await
    }

    async fn ping(&self) -> Result<(), LogError> {
        self.topics.ping().await
    }
}

/// What every client of the cluster has in common.
fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "drone-delivery")
        // Topics are made by us, with their partitions.
        .set("allow.auto.create.topics", "false")
        // A broker that comes back is found within seconds.
        .set("reconnect.backoff.max.ms", "2000");
    config
}

/// Asks the cluster where waiting is allowed.
async fn blocking<T: Send + 'static>(
    question: impl FnOnce() -> Result<T, KafkaError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(question).await.map_err(LogError::unavailable)?.map_err(LogError::unavailable)
}

/// Lets go of something whose end waits for the cluster. The runtime waits for it when it ends.
fn end(last: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(last)),
        Err(_) => last(),
    }
}
