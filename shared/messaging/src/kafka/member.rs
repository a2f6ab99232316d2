//! A member of a consumer group.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::time::{Instant, timeout};

use super::{blocking, names::Names, record};
use crate::{Delivered, LogError, Offset, Subscription};

/// How long a member may be silent before its partitions move on: the least that brokers allow by default.
const SESSION_TIMEOUT_MS: &str = "6000";

/// How often it says that it is there: three times in a session.
const HEARTBEAT_MS: &str = "2000";

/// Kilobytes read ahead of the handler, over all partitions: seconds of work, and no more memory than that.
const READ_AHEAD_KB: &str = "16384";

/// How long joining may take until the first assignment; a group whose members are slow to answer goes on later.
const JOIN: Duration = Duration::from_secs(10);

/// How long a call that must find things as they are lets the client work.
const TURN: Duration = Duration::from_millis(10);

/// How long the brokers may take over a commit, and the client over a seek.
const DEADLINE: Duration = Duration::from_secs(5);

type Place = (String, i32);

/// Hears of rebalances.
#[derive(Default)]
struct Context {
    joined: AtomicBool,
}

impl ClientContext for Context {}

impl ConsumerContext for Context {
    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if matches!(rebalance, Rebalance::Assign(_)) {
            self.joined.store(true, Ordering::SeqCst);
        }
    }
}

/// One member. It leaves its group when it is dropped.
pub(super) struct Member {
    /// Taken out only to be dropped.
    consumer: Option<Arc<StreamConsumer<Context>>>,
    names: Names,
    /// Read while something else was asked.
    buffered: VecDeque<Delivered>,
    /// Where the next record of a partition is, for those that were read or sought.
    positions: BTreeMap<Place, u64>,
}

impl Member {
    pub(super) async fn join(brokers: &str, names: Names, group: &str, topics: &[&str]) -> Result<Self, LogError> {
        let consumer: StreamConsumer<Context> = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", names.full(group))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", SESSION_TIMEOUT_MS)
            .set("heartbeat.interval.ms", HEARTBEAT_MS)
            .set("queued.max.messages.kbytes", READ_AHEAD_KB)
            .create_with_context(Context::default())
            .map_err(LogError::unavailable)?;
        let full: Vec<String> = topics.iter().map(|topic| names.full(topic)).collect();
        consumer.subscribe(&full.iter().map(String::as_str).collect::<Vec<_>>()).map_err(LogError::unavailable)?;
        let mut member =
            Self { consumer: Some(Arc::new(consumer)), names, buffered: VecDeque::new(), positions: BTreeMap::new() };
        let until = Instant::now() + JOIN;
        while !member.consumer()?.context().joined.load(Ordering::SeqCst) && Instant::now() < until {
            member.turn().await?;
        }
        Ok(member)
    }

    fn consumer(&self) -> Result<&Arc<StreamConsumer<Context>>, LogError> {
        self.consumer.as_ref().ok_or_else(|| LogError::unavailable("the member has left"))
    }

    /// Lets the client work: rebalances happen only while it is polled.
    async fn turn(&mut self) -> Result<(), LogError> {
        let read = timeout(TURN, self.receive()).await;
        if let Ok(record) = read {
            self.buffered.push_back(record?);
        }
        Ok(())
    }

    /// The next record from the client. Cancel-safe, as the client's stream is.
    async fn receive(&self) -> Result<Delivered, LogError> {
        match self.consumer()?.stream().next().await {
            Some(read) => Ok(self.delivered(&read.map_err(LogError::unavailable)?)),
            None => Err(LogError::unavailable("the client has ended")),
        }
    }

    fn delivered(&self, read: &impl Message) -> Delivered {
        Delivered {
            topic: self.names.short(read.topic()).into(),
            partition: read.partition().unsigned_abs(),
            offset: read.offset().unsigned_abs(),
            event: Arc::new(record::event(read, &self.names)),
        }
    }

    fn assigned(&self) -> Result<BTreeSet<Place>, LogError> {
        let assigned = self.consumer()?.assignment().map_err(LogError::unavailable)?;
        Ok(assigned.elements().iter().map(|place| (place.topic().to_owned(), place.partition())).collect())
    }

    fn place(&self, topic: &str, partition: u32) -> Place {
        (self.names.full(topic), partition.cast_signed())
    }

    /// Forgets what was read of partitions that have moved on: their new owner reads it again.
    fn forget_lost(&mut self, assigned: &BTreeSet<Place>) {
        let names = self.names.clone();
        self.buffered.retain(|record| assigned.contains(&(names.full(&record.topic), record.partition.cast_signed())));
        self.positions.retain(|place, _| assigned.contains(place));
    }

    /// Hands records on and remembers how far they go.
    fn hand_on(&mut self, records: Vec<Delivered>) -> Vec<Delivered> {
        for record in &records {
            self.positions.insert(self.place(&record.topic, record.partition), record.offset + 1);
        }
        records
    }
}

#[async_trait]
impl Subscription for Member {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        if !self.buffered.is_empty() {
            let assigned = self.assigned()?;
            self.forget_lost(&assigned);
        }
        if self.buffered.is_empty() {
            let first = self.receive().await?;
            self.buffered.push_back(first);
        }
        // Nothing waits from here on, so that a call that is dropped has taken nothing.
        let consumer = self.consumer()?.clone();
        let mut stream = consumer.stream();
        while self.buffered.len() < max {
            match stream.next().now_or_never() {
                Some(Some(Ok(read))) => self.buffered.push_back(self.delivered(&read)),
                // An error comes again with the next call.
                _ => break,
            }
        }
        let records = self.buffered.drain(..self.buffered.len().min(max)).collect();
        Ok(self.hand_on(records))
    }

    async fn commit(&mut self, next: &[Offset]) -> Result<(), LogError> {
        let assigned = self.assigned()?;
        let mut list = TopicPartitionList::new();
        let mut lost = false;
        for offset in next {
            let place = self.place(&offset.topic, offset.partition);
            if !assigned.contains(&place) {
                lost = true;
                continue;
            }
            let number = i64::try_from(offset.offset).map_err(LogError::unavailable)?;
            list.add_partition_offset(&place.0, place.1, KafkaOffset::Offset(number)).map_err(LogError::unavailable)?;
        }
        if list.count() > 0 {
            let consumer = self.consumer()?.clone();
            blocking(move || consumer.commit(&list, CommitMode::Sync).map_err(commit_error)).await?;
        }
        if lost { Err(LogError::Rebalanced) } else { Ok(()) }
    }

    async fn seek(&mut self, to: &Offset) -> Result<(), LogError> {
        let place = self.place(&to.topic, to.partition);
        if !self.assigned()?.contains(&place) {
            return Err(LogError::Rebalanced);
        }
        let number = i64::try_from(to.offset).map_err(LogError::unavailable)?;
        let until = Instant::now() + DEADLINE;
        loop {
            let (consumer, (topic, partition)) = (self.consumer()?.clone(), place.clone());
            let sought =
                blocking(move || Ok(consumer.seek(&topic, partition, KafkaOffset::Offset(number), DEADLINE))).await?;
            match sought {
                Ok(()) => break,
                // Just assigned: it cannot be sought before the client has begun to fetch it.
                Err(KafkaError::Seek(_)) if Instant::now() < until => self.turn().await?,
                Err(error) => return Err(LogError::unavailable(error)),
            }
        }
        self.buffered.retain(|record| (&*record.topic, record.partition) != (&*to.topic, to.partition));
        self.positions.insert(place, to.offset);
        Ok(())
    }

    async fn assignment(&mut self) -> Result<Vec<Offset>, LogError> {
        self.turn().await?;
        let assigned = self.assigned()?;
        self.forget_lost(&assigned);
        let mut unread = TopicPartitionList::new();
        for (topic, partition) in assigned.iter().filter(|place| !self.positions.contains_key(*place)) {
            unread.add_partition(topic, *partition);
        }
        if unread.count() > 0 {
            let consumer = self.consumer()?.clone();
            let committed =
                blocking(move || consumer.committed_offsets(unread, DEADLINE).map_err(LogError::unavailable)).await?;
            for place in committed.elements() {
                let next = if let KafkaOffset::Offset(next) = place.offset() { next.unsigned_abs() } else { 0 };
                self.positions.insert((place.topic().to_owned(), place.partition()), next);
            }
        }
        let mut offsets = Vec::with_capacity(assigned.len());
        for (topic, partition) in &assigned {
            offsets.push(Offset {
                topic: self.names.short(topic).to_owned(),
                partition: partition.unsigned_abs(),
                offset: self.positions.get(&(topic.clone(), *partition)).copied().unwrap_or(0),
            });
        }
        Ok(offsets)
    }
}

/// What a commit's failure means: where the group has moved on, somebody else has the partitions.
fn commit_error(error: KafkaError) -> LogError {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::RebalanceInProgress
            | RDKafkaErrorCode::AssignmentLost,
        ) => LogError::Rebalanced,
        _ => LogError::unavailable(error),
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Some(consumer) = self.consumer.take() else { return };
        // Leaving asks the brokers and waits for them: not on a worker of the runtime. The runtime waits for such work
        // when it ends, so that a member does not go without a word.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(consumer))),
            Err(_) => drop(consumer),
        }
    }
}
