//! The topics of the log: made when they are first named, each with an id of its own.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use contracts::events::{CloudEvent, PARTITIONS};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
};
use uuid::Uuid;

use super::{blocking, names::Names, producer::Producer, record, watermarks};
use crate::{LogError, dead_letters::TOPIC_SUFFIX, embedded::RETENTION};

/// How long the brokers may take to make topics, and to answer about them.
const DEADLINE: Duration = Duration::from_secs(10);

/// Keeps the id of every topic, by its name; compacted, so that it stays small and nothing of it expires.
const IDS: &str = "log.topics";

/// How a topic is made.
enum Kind {
    /// Events, for as long as the retention says.
    Events,
    /// Dead letters wait for a redrive, however long.
    DeadLetters,
    /// [`IDS`].
    Ids,
}

impl Kind {
    fn of(topic: &str) -> Self {
        match topic {
            IDS => Self::Ids,
            _ if topic.ends_with(TOPIC_SUFFIX) => Self::DeadLetters,
            _ => Self::Events,
        }
    }
}

/// Makes topics and knows their ids.
pub(super) struct Topics {
    brokers: String,
    names: Names,
    admin: AdminClient<DefaultClientContext>,
    /// Those that are known to be there.
    known: Mutex<BTreeSet<String>>,
}

impl Topics {
    pub(super) fn new(brokers: &str, names: Names) -> Result<Self, LogError> {
        let admin = ClientConfig::new().set("bootstrap.servers", brokers).create().map_err(LogError::unavailable)?;
        Ok(Self { brokers: brokers.to_owned(), names, admin, known: Mutex::default() })
    }

    /// Makes those of the topics that are not there yet. Replication is the brokers' default.
    pub(super) async fn ensure(&self, topics: impl Iterator<Item = &str>) -> Result<(), LogError> {
        let missing: BTreeSet<String> = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            topics.filter(|topic| !known.contains(*topic)).map(str::to_owned).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let retention = RETENTION.num_milliseconds().to_string();
        let full: Vec<(String, Kind)> = missing.iter().map(|topic| (self.names.full(topic), Kind::of(topic))).collect();
        let mut new = Vec::with_capacity(full.len());
        for (name, kind) in &full {
            let partitions = if matches!(kind, Kind::Ids) { 1 } else { PARTITIONS.cast_signed() };
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
            new.push(match kind {
                Kind::Events => topic.set("retention.ms", &retention),
                Kind::DeadLetters => topic.set("retention.ms", "-1"),
                Kind::Ids => topic.set("cleanup.policy", "compact"),
            });
        }
        let options = AdminOptions::new().operation_timeout(Some(DEADLINE)).request_timeout(Some(DEADLINE));
        for made in self.admin.create_topics(&new, &options).await.map_err(LogError::unavailable)? {
            match made {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(LogError::unavailable(format!("{topic} cannot be made: {code}"))),
            }
        }
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(missing);
        Ok(())
    }

    /// The id of a topic that is there: drawn when somebody first asks, and kept in [`IDS`]. Kafka has ids of its own,
    /// which its client does not show; so a topic that was deleted and made again by hand keeps the id that it had,
    /// unless its record in [`IDS`] is deleted with it.
    pub(super) async fn id(&self, topic: &str, producer: &Producer) -> Result<String, LogError> {
        self.ensure([IDS].into_iter()).await?;
        if let Some(id) = self.ids().await?.remove(topic) {
            return Ok(id);
        }
        let id = Uuid::from_u128(rand::random());
        let record = CloudEvent {
            id,
            topic: IDS.to_owned(),
            key: topic.to_owned(),
            kind: "TopicNamed".to_owned(),
            source: "messaging".to_owned(),
            time: contracts::Timestamp::UNIX_EPOCH,
            traceparent: None,
            data: Vec::new(),
        };
        producer.publish(vec![record]).await?;
        // Of two that draw at once, the record that came last counts for both.
        self.ids().await?.remove(topic).ok_or_else(|| LogError::unavailable(format!("{topic} has no id yet")))
    }

    async fn ids(&self) -> Result<HashMap<String, String>, LogError> {
        let (brokers, names) = (self.brokers.clone(), self.names.clone());
        blocking(move || read_ids(&brokers, &names)).await
    }
}

/// Reads all of [`IDS`].
fn read_ids(brokers: &str, names: &Names) -> Result<HashMap<String, String>, LogError> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        // A consumer must name a group, though it joins none and commits nothing.
        .set("group.id", names.full("log.topics"))
        .set("enable.auto.commit", "false")
        .create()
        .map_err(LogError::unavailable)?;
    let topic = names.full(IDS);
    let (begin, end) = watermarks(&consumer, &topic, 0).map_err(LogError::unavailable)?;
    let mut ids = HashMap::new();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(&topic, 0, Offset::Offset(begin)).map_err(LogError::unavailable)?;
    consumer.assign(&from).map_err(LogError::unavailable)?;
    let mut next = begin;
    while next < end {
        let Some(read) = consumer.poll(DEADLINE) else {
            return Err(LogError::unavailable("the topics' ids are missing"));
        };
        let read = read.map_err(LogError::unavailable)?;
        next = read.offset() + 1;
        let event = record::event(&read, names);
        ids.insert(event.key, event.id.to_string());
    }
    Ok(ids)
}
