//! What the embedded log keeps in memory: ends, newest records, committed offsets, group members.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use contracts::events::{CloudEvent, PARTITIONS};
use tokio::sync::watch;

use crate::GroupLag;

/// Records of a partition kept in memory: some seconds of a busy system, about 3 MB.
const TAIL_RECORDS: usize = 2_048;

/// A partition of a topic.
pub(super) type TopicPartition = (Arc<str>, u32);

/// What the storage holds at the start.
#[derive(Default)]
pub(super) struct Loaded {
    /// Name, own id, storage id.
    pub topics: Vec<(String, String, i64)>,
    /// Storage id, partition, first offset kept, next offset.
    pub ends: Vec<(i64, u32, u64, u64)>,
    /// Group, storage id, partition, committed.
    pub committed: Vec<(String, i64, u32, u64)>,
}

/// Shared by the log's tasks and its subscriptions. Locked briefly, never across an await.
#[derive(Clone)]
pub(super) struct State {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    topics: BTreeMap<Arc<str>, Topic>,
    groups: HashMap<String, Group>,
    announce: watch::Sender<u64>,
    next_member: u64,
}

struct Topic {
    uid: String,
    storage_id: i64,
    partitions: Vec<Partition>,
}

#[derive(Default)]
struct Partition {
    start: u64,
    end: u64,
    /// The newest records, ending just before `end`.
    tail: VecDeque<Arc<CloudEvent>>,
}

#[derive(Default)]
struct Group {
    generation: u64,
    /// Members in order of joining, and what each listens to.
    members: Vec<(u64, Vec<Arc<str>>)>,
    committed: BTreeMap<TopicPartition, u64>,
}

/// Where a read finds its records.
pub(super) enum Found {
    /// In memory, from this offset on.
    Records(u64, Vec<Arc<CloudEvent>>),
    /// On disk only, from this offset on.
    OnDisk(u64),
    /// Nothing yet.
    Nothing,
}

impl State {
    pub(super) fn new(loaded: Loaded, announce: watch::Sender<u64>) -> Self {
        let mut inner = Inner { topics: BTreeMap::new(), groups: HashMap::new(), announce, next_member: 0 };
        let mut names: HashMap<i64, Arc<str>> = HashMap::new();
        for (name, uid, storage_id) in loaded.topics {
            names.insert(storage_id, inner.add_topic(&name, uid, storage_id));
        }
        for (storage_id, number, start, end) in loaded.ends {
            let Some(partition) = names.get(&storage_id).and_then(|name| inner.partition(name, number)) else {
                continue;
            };
            partition.start = start;
            partition.end = end;
        }
        for (group, storage_id, number, committed) in loaded.committed {
            let Some(name) = names.get(&storage_id) else { continue };
            inner.groups.entry(group).or_default().committed.insert((name.clone(), number), committed);
        }
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_topic(&self, name: &str, uid: String, storage_id: i64) {
        self.lock().add_topic(name, uid, storage_id);
    }

    pub(super) fn topic_uid(&self, name: &str) -> Option<String> {
        self.lock().topics.get(name).map(|topic| topic.uid.clone())
    }

    pub(super) fn storage_id(&self, name: &str) -> Option<i64> {
        self.lock().topics.get(name).map(|topic| topic.storage_id)
    }

    /// The next offset of a partition.
    pub(super) fn end(&self, topic: &str, partition: u32) -> u64 {
        self.lock().partition(topic, partition).map_or(0, |partition| partition.end)
    }

    /// Makes records that are on disk visible.
    pub(super) fn append(&self, topic: &str, partition: u32, records: &[Arc<CloudEvent>]) {
        let mut inner = self.lock();
        let Some(partition) = inner.partition(topic, partition) else { return };
        partition.end += records.len() as u64;
        partition.tail.extend(records.iter().cloned());
        let surplus = partition.tail.len().saturating_sub(TAIL_RECORDS);
        partition.tail.drain(..surplus);
        inner.announce();
    }

    /// Records before `start` are gone.
    pub(super) fn forget_before(&self, storage_id: i64, number: u32, start: u64) {
        let mut inner = self.lock();
        let Some(topic) = inner.topics.values_mut().find(|topic| topic.storage_id == storage_id) else { return };
        let Some(partition) = topic.partitions.get_mut(number as usize) else { return };
        partition.start = partition.start.max(start);
        // A member that looked on disk for what had just gone finds what is left.
        inner.announce();
    }

    /// Whether the group has ever joined to hear of the topic.
    pub(super) fn knows(&self, group: &str, topic: &str) -> bool {
        self.lock().groups.get(group).is_some_and(|group| group.committed.contains_key(&(topic.into(), 0)))
    }

    /// The group hears of the topic from now on: what it has not committed counts from the start.
    pub(super) fn know(&self, group: &str, topic: &str) {
        let mut inner = self.lock();
        let group = inner.groups.entry(group.to_owned()).or_default();
        for number in 0..PARTITIONS {
            group.committed.entry((topic.into(), number)).or_insert(0);
        }
    }

    pub(super) fn set_committed(&self, group: &str, at: TopicPartition, next: u64) {
        self.lock().groups.entry(group.to_owned()).or_default().committed.insert(at, next);
    }

    /// The records of a partition from `offset` on, at most `max`.
    pub(super) fn read(&self, topic: &str, partition: u32, offset: u64, max: usize) -> Found {
        let mut inner = self.lock();
        let Some(partition) = inner.partition(topic, partition) else { return Found::Nothing };
        let offset = offset.max(partition.start);
        if offset >= partition.end {
            return Found::Nothing;
        }
        let tail_start = partition.end - partition.tail.len() as u64;
        if offset < tail_start {
            return Found::OnDisk(offset);
        }
        let skip = usize::try_from(offset - tail_start).unwrap_or(usize::MAX);
        Found::Records(offset, partition.tail.iter().skip(skip).take(max).cloned().collect())
    }

    /// A new member of a group that is known for these topics.
    pub(super) fn join(&self, group: &str, topics: &[&str]) -> u64 {
        let mut inner = self.lock();
        inner.next_member += 1;
        let member = inner.next_member;
        let names: Vec<Arc<str>> =
            topics.iter().filter_map(|name| inner.topics.get_key_value(*name)).map(|(name, _)| name.clone()).collect();
        let group = inner.groups.entry(group.to_owned()).or_default();
        group.members.push((member, names));
        group.generation += 1;
        inner.announce();
        member
    }

    pub(super) fn leave(&self, group: &str, member: u64) {
        let mut inner = self.lock();
        if let Some(group) = inner.groups.get_mut(group) {
            group.members.retain(|(id, _)| *id != member);
            group.generation += 1;
        }
        inner.announce();
    }

    pub(super) fn generation(&self, group: &str) -> u64 {
        self.lock().groups.get(group).map_or(0, |group| group.generation)
    }

    /// The partitions of a member, each with its committed offset, and the generation that they belong to.
    pub(super) fn assignment(&self, group: &str, member: u64) -> (u64, Vec<(TopicPartition, u64)>) {
        let inner = self.lock();
        let Some(group) = inner.groups.get(group) else { return (0, Vec::new()) };
        let mut mine = Vec::new();
        for name in inner.topics.keys() {
            let listeners: Vec<u64> =
                group.members.iter().filter(|(_, topics)| topics.contains(name)).map(|(id, _)| *id).collect();
            let Some(index) = listeners.iter().position(|id| *id == member) else { continue };
            for number in (0..PARTITIONS).filter(|number| *number as usize % listeners.len() == index) {
                let at = (name.clone(), number);
                let committed = group.committed.get(&at).copied().unwrap_or(0);
                mine.push((at, committed));
            }
        }
        (group.generation, mine)
    }

    pub(super) fn lag(&self) -> Vec<GroupLag> {
        let inner = self.lock();
        let mut lags = Vec::new();
        for (name, group) in &inner.groups {
            for ((topic, number), committed) in &group.committed {
                let partition = inner.topics.get(topic).and_then(|topic| topic.partitions.get(*number as usize));
                let Some(partition) = partition else { continue };
                lags.push(GroupLag {
                    group: name.clone(),
                    topic: topic.to_string(),
                    partition: *number,
                    committed: (*committed).max(partition.start),
                    end: partition.end,
                });
            }
        }
        lags
    }
}

impl Inner {
    fn add_topic(&mut self, name: &str, uid: String, storage_id: i64) -> Arc<str> {
        let name: Arc<str> = name.into();
        let partitions = (0..PARTITIONS).map(|_| Partition::default()).collect();
        self.topics.entry(name.clone()).or_insert(Topic { uid, storage_id, partitions });
        name
    }

    fn partition(&mut self, topic: &str, number: u32) -> Option<&mut Partition> {
        self.topics.get_mut(topic)?.partitions.get_mut(number as usize)
    }

    fn announce(&self) {
        self.announce.send_modify(|count| *count += 1);
    }
}
