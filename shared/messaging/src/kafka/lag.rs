//! How far consumer groups are behind, and where a new one begins.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contracts::events::PARTITIONS;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError,
};

use super::{blocking, names::Names, watermarks};
use crate::{GroupLag, LogError};

/// How long the brokers may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Reads and sets the offsets of groups without being a member.
pub(super) struct Lags {
    inner: Arc<Inner>,
}

struct Inner {
    brokers: String,
    names: Names,
    /// One client for each group that was asked for: a handful.
    clients: Mutex<HashMap<String, Arc<BaseConsumer>>>,
}

impl Lags {
    pub(super) fn new(brokers: &str, names: Names) -> Result<Self, LogError> {
        let (brokers, clients) = (brokers.to_owned(), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { brokers, names, clients }) })
    }

    /// Has a group that is new to a topic begin at its beginning, and be known from now on: its lag then counts from
    /// there, though it has committed nothing.
    pub(super) async fn begin(&self, group: &str, topics: &[&str]) -> Result<(), LogError> {
        let inner = self.inner.clone();
        let group = inner.names.full(group);
        let topics: Vec<String> = topics.iter().map(|topic| inner.names.full(topic)).collect();
        blocking(move || inner.begin(&group, &topics).map_err(LogError::unavailable)).await
    }

    /// The lag of every group of this log, of each topic that it listens to.
    pub(super) async fn read(&self) -> Result<Vec<GroupLag>, LogError> {
        let inner = self.inner.clone();
        blocking(move || inner.read().map_err(LogError::unavailable)).await
    }
}

impl Inner {
    fn client(&self, group: &str) -> Result<Arc<BaseConsumer>, KafkaError> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(group) {
            return Ok(client.clone());
        }
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .create()?;
        let client = Arc::new(client);
        clients.insert(group.to_owned(), client.clone());
        Ok(client)
    }

    fn begin(&self, group: &str, topics: &[String]) -> Result<(), KafkaError> {
        let client = self.client(group)?;
        let committed = client.committed_offsets(partitions_of(topics), DEADLINE)?;
        let mut fresh = TopicPartitionList::new();
        for place in committed.elements() {
            if place.offset() == Offset::Invalid {
                let (begin, _) = watermarks(&client, place.topic(), place.partition())?;
                fresh.add_partition_offset(place.topic(), place.partition(), Offset::Offset(begin))?;
            }
        }
        if fresh.count() > 0
            && let Err(error) = client.commit(&fresh, CommitMode::Sync)
        {
            // A group that has members already takes commits only from them: they have begun there, too.
            tracing::debug!(%error, group, "the beginning is not committed");
        }
        Ok(())
    }

    fn read(&self) -> Result<Vec<GroupLag>, KafkaError> {
        let any = self.client(&self.names.full("log.topics"))?;
        let mut topics = Vec::new();
        for topic in any.fetch_metadata(None, DEADLINE)?.topics() {
            if self.names.owns(topic.name()) && topic.partitions().len() == PARTITIONS as usize {
                topics.push(topic.name().to_owned());
            }
        }
        let mut ends: HashMap<(String, i32), u64> = HashMap::new();
        let mut lags = Vec::new();
        for group in any.fetch_group_list(None, DEADLINE)?.groups() {
            if !self.names.owns(group.name()) || topics.is_empty() {
                continue;
            }
            let client = self.client(group.name())?;
            for place in client.committed_offsets(partitions_of(&topics), DEADLINE)?.elements() {
                let Offset::Offset(committed) = place.offset() else { continue };
                let key = (place.topic().to_owned(), place.partition());
                let end = match ends.get(&key) {
                    Some(end) => *end,
                    None => watermarks(&any, &key.0, key.1)?.1.unsigned_abs(),
                };
                ends.insert(key, end);
                lags.push(GroupLag {
                    group: self.names.short(group.name()).to_owned(),
                    topic: self.names.short(place.topic()).to_owned(),
                    partition: place.partition().unsigned_abs(),
                    committed: committed.unsigned_abs(),
                    end,
                });
            }
        }
        Ok(lags)
    }
}

fn partitions_of(topics: &[String]) -> TopicPartitionList {
    let mut places = TopicPartitionList::new();
    for topic in topics {
        places.add_partition_range(topic, 0, PARTITIONS.cast_signed() - 1);
    }
    places
}
