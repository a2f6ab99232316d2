//! Kafka as the event log: topics made when they are first named, an idempotent producer, consumer groups.
//!
//! What `publish` answered is on every in-sync replica. Durability is the brokers': a production cluster has
//! `default.replication.factor=3` and `min.insync.replicas=2`, a single broker must flush every message.

mod lag;
mod member;
mod names;
mod producer;
mod record;
mod topics;

use std::time::{Duration, Instant};

use async_trait::async_trait;
use contracts::events::{CloudEvent, Topic};
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
};

use self::{lag::Lags, member::Member, names::Names, producer::Producer, topics::Topics};
use crate::{EventLog, GroupLag, LogError, Subscription};

/// An event log on a Kafka cluster.
pub struct KafkaLog {
    brokers: String,
    names: Names,
    producer: Producer,
    topics: Topics,
    lags: Lags,
}

impl KafkaLog {
    /// Connects to `HOST:PORT[,HOST:PORT][/PREFIX]` and makes the topics that are missing. With a prefix, all topics and
    /// groups bear it, so that several logs share a cluster.
    pub async fn open(place: &str) -> Result<Self, LogError> {
        let place = place.trim_start_matches("//");
        let (brokers, prefix) = place.split_once('/').unwrap_or((place, ""));
        let names = Names::new(prefix.trim_end_matches('/'));
        let log = Self {
            brokers: brokers.to_owned(),
            producer: Producer::new(brokers, names.clone())?,
            topics: Topics::new(brokers, names.clone())?,
            lags: Lags::new(brokers, names.clone())?,
            names,
        };
        log.topics.ensure(Topic::ALL.iter().map(|topic| topic.name())).await?;
        Ok(log)
    }
}

#[async_trait]
impl EventLog for KafkaLog {
    async fn publish(&self, events: Vec<CloudEvent>) -> Result<(), LogError> {
        self.topics.ensure(events.iter().map(|event| event.topic.as_str())).await?;
        self.producer.publish(events).await
    }

    async fn subscribe(&self, group: &str, topics: &[&str]) -> Result<Box<dyn Subscription>, LogError> {
        self.topics.ensure(topics.iter().copied()).await?;
        self.lags.begin(group, topics).await?;
        Ok(Box::new(Member::join(&self.brokers, self.names.clone(), group, topics).await?))
    }

    async fn lag(&self) -> Result<Vec<GroupLag>, LogError> {
        self.lags.read().await
    }

    async fn topic_id(&self, topic: &str) -> Result<String, LogError> {
        self.topics.ensure([topic].into_iter()).await?;
        self.topics.id(topic, &self.producer).await
    }
}

/// How long a partition that has just been made may take until all brokers know who leads it.
const SETTLE: Duration = Duration::from_secs(10);

/// The pause before the brokers are asked again about it.
const SETTLE_PAUSE: Duration = Duration::from_millis(50);

/// The first and the next offset of a partition. Blocks. One that has just been made is asked for until it is known.
fn watermarks(client: &BaseConsumer, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
    let until = Instant::now() + SETTLE;
    loop {
        match client.fetch_watermarks(topic, partition, SETTLE) {
            Err(error) if is_settling(&error) && Instant::now() < until => pause(),
            result => return result,
        }
    }
}

fn is_settling(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}

#[expect(clippy::disallowed_methods, reason = "only ever on a thread for blocking work")]
fn pause() {
    std::thread::sleep(SETTLE_PAUSE);
}

/// Does work that blocks, off the runtime's workers.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work).await.map_err(LogError::unavailable)?
}
