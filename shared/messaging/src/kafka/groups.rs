//! How far every consumer group of a system is behind, asked of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

use super::{ANSWER, blocking, client, member::is_moving, names::Names};
use crate::{GroupLag, LogError};

/// Groups whose committed offsets can be asked for without connecting anew: a dozen of services and their redrives, and
/// as many of others.
const KEPT_CLIENTS: usize = 32;

/// The pause before a question is asked again whose partition or group finds its leader ...
const PAUSE: Duration = Duration::from_millis(100);
/// ... and how often it is asked: two seconds, then whoever wants to know had better ask later.
const TRIES: u32 = 20;

/// Asks for what groups have committed. The client library answers a consumer only for its own group, so there is one
/// for each; none of them joins.
pub(super) struct Groups {
    brokers: String,
    names: Names,
    /// Asks what concerns no group.
    asker: Arc<BaseConsumer>,
    of: Mutex<HashMap<String, Arc<BaseConsumer>>>,
}

/// A partition of a topic, by its full name.
type Place = (String, i32);

impl Groups {
    pub(super) fn new(brokers: &str, names: Names) -> Result<Self, LogError> {
        let asker = Arc::new(client(brokers).create().map_err(LogError::unavailable)?);
        Ok(Self { brokers: brokers.to_owned(), names, asker, of: Mutex::default() })
    }

    pub(super) async fn lag(self: &Arc<Self>) -> Result<Vec<GroupLag>, LogError> {
        let groups = self.clone();
        blocking(move || groups.ask()).await
    }

    fn ask(&self) -> Result<Vec<GroupLag>, KafkaError> {
        let topics = self.partitions()?;
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        let mut lags = Vec::new();
        let mut ends = None;
        let groups = again(&self.asker, || self.asker.fetch_group_list(None, ANSWER))?;
        for group in groups.groups() {
            let Some(name) = self.names.ours(group.name()) else { continue };
            let committed = self.committed(group.name(), &topics)?;
            if committed.is_empty() {
                continue;
            }
            if ends.is_none() {
                ends = Some(self.offsets(&topics, Offset::End)?);
            }
            let Some(ends) = &ends else { continue };
            let listened: BTreeSet<&String> = committed.keys().map(|(topic, _)| topic).collect();
            let of_topics = |place: &&Place| listened.contains(&place.0);
            // What nobody has committed yet begins where the partition does.
            let silent: Vec<Place> =
                topics.iter().filter(of_topics).filter(|place| !committed.contains_key(*place)).cloned().collect();
            let starts = if silent.is_empty() { BTreeMap::new() } else { self.offsets(&silent, Offset::Beginning)? };
            for (place, next) in committed.iter().chain(&starts) {
                let Some(topic) = self.names.ours(&place.0) else { continue };
                lags.push(GroupLag {
                    group: name.to_owned(),
                    topic: topic.to_owned(),
                    partition: place.1.unsigned_abs(),
                    committed: *next,
                    end: ends.get(place).copied().unwrap_or(*next),
                });
            }
        }
        Ok(lags)
    }

    /// All partitions of our topics.
    fn partitions(&self) -> Result<Vec<Place>, KafkaError> {
        let metadata = self.asker.fetch_metadata(None, ANSWER)?;
        let ours = metadata.topics().iter().filter(|topic| self.names.ours(topic.name()).is_some());
        Ok(ours.flat_map(|topic| topic.partitions().iter().map(|at| (topic.name().to_owned(), at.id()))).collect())
    }

    fn committed(&self, group: &str, places: &[Place]) -> Result<BTreeMap<Place, u64>, KafkaError> {
        let client = self.client_of(group)?;
        // What was reported to it in the meantime: nobody else takes it.
        while client.poll(Duration::ZERO).is_some() {}
        again(&client, || numbers(&client.committed_offsets(list(places, Offset::Invalid)?, ANSWER)?))
    }

    fn offsets(&self, places: &[Place], at: Offset) -> Result<BTreeMap<Place, u64>, KafkaError> {
        again(&self.asker, || numbers(&self.asker.offsets_for_times(list(places, at)?, ANSWER)?))
    }

    fn client_of(&self, group: &str) -> Result<Arc<BaseConsumer>, KafkaError> {
        let mut clients = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(group) {
            return Ok(client.clone());
        }
        let made: Arc<BaseConsumer> = Arc::new(client(&self.brokers).set("group.id", group).create()?);
        if clients.len() < KEPT_CLIENTS {
            clients.insert(group.to_owned(), made.clone());
        }
        Ok(made)
    }
}

/// Asks, and asks again while a partition or a group finds its leader, or that one is still loading.
fn again<T>(client: &BaseConsumer, question: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let mut tries = 1;
    loop {
        match question() {
            Ok(answer) => return Ok(answer),
            Err(error) if tries < TRIES && is_moving(&error) => {
                // It reads nothing: this is the pause.
                drop(client.poll(PAUSE));
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn list(places: &[Place], at: Offset) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for (topic, partition) in places {
        list.add_partition_offset(topic, *partition, at)?;
    }
    Ok(list)
}

/// The partitions of a list that have an offset.
fn numbers(list: &TopicPartitionList) -> Result<BTreeMap<Place, u64>, KafkaError> {
    let mut numbers = BTreeMap::new();
    for element in list.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            numbers.insert((element.topic().to_owned(), element.partition()), offset.unsigned_abs());
        }
    }
    Ok(numbers)
}
