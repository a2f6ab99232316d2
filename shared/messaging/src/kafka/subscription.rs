//! Reading by groups on Kafka: positions, commits and seeks of one member.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context as Task, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use rdkafka::{
    Message, Offset as At, TopicPartitionList,
    consumer::{CommitMode, Consumer},
    error::KafkaError,
    message::BorrowedMessage,
};
use tokio::{task::JoinSet, time::timeout};

use super::{
    ANSWER,
    member::{self, Change, Member, Queue, is_moving, is_rebalancing},
    names::Names,
    record,
    topics::Topics,
};
use crate::{Delivered, LogError, Offset, Subscription};

/// How long a member waits for its place in the group before it goes on without: a group that is just made waits three
/// seconds for more members, the others answer with their next heartbeat.
const JOIN: Duration = Duration::from_secs(10);

/// The pause before a group that rebalances, or a partition that is just starting, is asked again ...
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// ... and how often: ten seconds, in which a group settles unless one of its members is stuck.
const RETRIES: u32 = 100;

/// A partition of this member.
struct Partition {
    /// Which time it was given: one that comes back is another one, since somebody else may have gone on with it.
    tenure: u64,
    topic: Arc<str>,
    number: u32,
    /// None where the client would not give it: then the records come mixed with what happens to the group.
    queue: Option<Queue>,
    /// The next record to hand out; none until it has been looked up.
    position: Option<u64>,
}

/// What comes next.
enum Happened {
    Record(usize, Delivered),
    Rebalanced,
    Failed(KafkaError),
    /// A record outside of its partition's queue.
    Stray,
}

type Job = Result<TopicPartitionList, KafkaError>;

pub(super) struct KafkaSubscription {
    /// Taken when it ends.
    member: Option<Arc<Member>>,
    topics: Arc<Topics>,
    names: Names,
    partitions: Vec<Partition>,
    /// Tenures so far.
    tenures: u64,
    /// Whether the group has given it its part, perhaps none.
    joined: bool,
    /// Where the next read starts, so that no partition waits behind a busy one.
    turn: usize,
    /// What came instead of a record, and has not been judged yet.
    failed: Option<KafkaError>,
    /// What waits for an answer of the cluster, at most one: a call that was dropped leaves its job to the next.
    jobs: JoinSet<Job>,
}

impl KafkaSubscription {
    /// Becomes a member; waits, within a bound, until the group has its place for it.
    pub(super) async fn join(
        brokers: &str,
        names: &Names,
        topics: &Arc<Topics>,
        group: &str,
        listened: &[&str],
    ) -> Result<Self, LogError> {
        topics.ensure(listened.iter().copied()).await?;
        let full: Vec<String> = listened.iter().map(|topic| names.full(topic)).collect();
        let full: Vec<&str> = full.iter().map(String::as_str).collect();
        let member = member::join(brokers, &names.full(group), &full).map_err(LogError::unavailable)?;
        let mut subscription = Self {
            member: Some(member),
            topics: topics.clone(),
            names: names.clone(),
            partitions: Vec::new(),
            tenures: 0,
            joined: false,
            turn: 0,
            failed: None,
            jobs: JoinSet::new(),
        };
        if let Ok(joined) = timeout(JOIN, subscription.until_joined()).await {
            joined?;
        }
        Ok(subscription)
    }

    async fn until_joined(&mut self) -> Result<(), LogError> {
        while !self.joined {
            self.event().await?;
        }
        self.settle().await
    }

    fn member(&self) -> Result<&Arc<Member>, LogError> {
        self.member.as_ref().ok_or_else(|| LogError::unavailable("the subscription has ended"))
    }

    /// Waits for a record, or for something that happens to the group. Cancel-safe: what it takes, it answers at once.
    async fn happened(&self, member: &Arc<Member>, records: bool) -> Happened {
        let mut group = member.stream();
        let mut queues = if records { streams(&self.partitions) } else { Vec::new() };
        poll_fn(|task| {
            if let Poll::Ready(Some(came)) = group.poll_next_unpin(task) {
                return Poll::Ready(came.err().map_or(Happened::Stray, Happened::Failed));
            }
            if member.context().changed() {
                return Poll::Ready(Happened::Rebalanced);
            }
            let count = queues.len();
            for step in 0..count {
                let index = self.turn.wrapping_add(step) % count;
                let Some(queue) = &mut queues[index] else { continue };
                if let Poll::Ready(Some(came)) = queue.poll_next_unpin(task) {
                    return Poll::Ready(match came {
                        Ok(record) => Happened::Record(index, delivered(&self.partitions[index], &record)),
                        Err(error) => Happened::Failed(error),
                    });
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for something to happen to the group, and takes it up.
    async fn event(&mut self) -> Result<(), LogError> {
        let member = self.member()?.clone();
        let happened = self.happened(&member, false).await;
        self.take_up(&member, happened)
    }

    /// Takes up what has happened to the group, without waiting.
    fn events(&mut self) -> Result<(), LogError> {
        while let Some(event) = self.event().now_or_never() {
            event?;
        }
        Ok(())
    }

    fn take_up(&mut self, member: &Member, happened: Happened) -> Result<(), LogError> {
        match happened {
            // Whoever goes on would lose it.
            Happened::Record(..) | Happened::Stray => {
                Err(LogError::unavailable("a record came outside of its partition"))
            }
            Happened::Failed(error) => member::judge(error).inspect_err(|_| {
                // One of them may be gone; the next member makes it anew.
                self.topics.forget(self.partitions.iter().map(|partition| &*partition.topic));
            }),
            Happened::Rebalanced => {
                for change in member.context().changes() {
                    self.change(change);
                }
                Ok(())
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Given(given) => {
                self.joined = true;
                for (topic, number, queue) in given {
                    let Some(ours) = self.names.ours(&topic) else { continue };
                    let (topic, number) = (Arc::from(ours), number.unsigned_abs());
                    self.tenures += 1;
                    self.partitions.push(Partition { tenure: self.tenures, topic, number, queue, position: None });
                }
            }
            Change::Taken(taken) => {
                let names = self.names.clone();
                self.partitions.retain(|partition| {
                    let full = names.full(&partition.topic);
                    !taken.iter().any(|(topic, number)| *topic == full && number.unsigned_abs() == partition.number)
                });
            }
        }
    }

    /// Does something that blocks where it may, after what may still be under way.
    async fn job(&mut self, job: impl FnOnce(&Member) -> Job + Send + 'static) -> Result<Job, LogError> {
        while self.jobs.join_next().await.is_some() {}
        let member = self.member()?.clone();
        self.jobs.spawn_blocking(move || job(&member));
        match self.jobs.join_next().await {
            Some(done) => done.map_err(LogError::unavailable),
            None => Err(LogError::unavailable("a question to the cluster was dropped")),
        }
    }

    /// The offsets that the cluster answers to a question, which is asked again while a partition finds its leader.
    async fn ask(
        &mut self,
        places: &[(Arc<str>, u32, At)],
        question: fn(&Member, TopicPartitionList) -> Job,
    ) -> Result<Vec<Offset>, LogError> {
        let list = self.list(places).map_err(LogError::unavailable)?;
        for _ in 0..RETRIES {
            let list = list.clone();
            match self.job(move |member| question(member, list)).await?.and_then(|list| self.offsets(&list)) {
                Ok(offsets) => return Ok(offsets),
                Err(error) if is_moving(&error) => self.pause().await?,
                Err(error) => return Err(LogError::unavailable(error)),
            }
        }
        Err(LogError::unavailable("a partition has no leader"))
    }

    fn list(&self, offsets: &[(Arc<str>, u32, At)]) -> Job {
        let mut list = TopicPartitionList::new();
        for (topic, number, offset) in offsets {
            list.add_partition_offset(&self.names.full(topic), number.cast_signed(), *offset)?;
        }
        Ok(list)
    }

    /// Looks up where partitions that are new to this member start, and commits that where the group has not been: so
    /// that its lag counts from there, whether or not it ever commits.
    async fn settle(&mut self) -> Result<(), LogError> {
        self.events()?;
        while self.partitions.iter().any(|partition| partition.position.is_none()) {
            let new = self.partitions.iter().filter(|partition| partition.position.is_none());
            let new: Vec<_> = new.map(|new| (new.topic.clone(), new.number, At::Invalid)).collect();
            let mut starts = self.ask(&new, |member, list| member.committed_offsets(list, ANSWER)).await?;
            let unknown: Vec<_> = new
                .into_iter()
                .filter(|(topic, number, _)| !starts.iter().any(|at| *at.topic == **topic && at.partition == *number))
                .map(|(topic, number, _)| (topic, number, At::Beginning))
                .collect();
            if !unknown.is_empty() {
                let earliest = self.ask(&unknown, |member, list| member.offsets_for_times(list, ANSWER)).await?;
                if earliest.len() < unknown.len() {
                    return Err(LogError::unavailable("a partition does not say where it begins"));
                }
                match self.commit_mine(earliest.clone()).await {
                    Ok(()) | Err(LogError::Rebalanced) => {}
                    Err(error) => return Err(error),
                }
                starts.extend(earliest);
            }
            for start in starts {
                if let Some(partition) = self.mine(&start) {
                    partition.position.get_or_insert(start.offset);
                }
            }
            self.events()?;
        }
        Ok(())
    }

    /// The partitions of a list that have an offset.
    fn offsets(&self, list: &TopicPartitionList) -> Result<Vec<Offset>, KafkaError> {
        let mut offsets = Vec::new();
        for element in list.elements() {
            element.error()?;
            let (Some(topic), At::Offset(offset)) = (self.names.ours(element.topic()), element.offset()) else {
                continue;
            };
            offsets.push(Offset {
                topic: topic.to_owned(),
                partition: element.partition().unsigned_abs(),
                offset: offset.unsigned_abs(),
            });
        }
        Ok(offsets)
    }

    fn mine(&mut self, at: &Offset) -> Option<&mut Partition> {
        self.partitions.iter_mut().find(|mine| *mine.topic == *at.topic && mine.number == at.partition)
    }

    /// Commits those that are this member's; the broker asks only whether it is in the group.
    ///
    /// A commit that meets a rebalance is refused although its partitions may stay: it is tried again for those, or they
    /// would count as unread until their next record.
    async fn commit_mine(&mut self, next: Vec<Offset>) -> Result<(), LogError> {
        let mut pending = Vec::with_capacity(next.len());
        for offset in next {
            // Before anything that has happened to the group since the records were handed out.
            let tenure = self.mine(&offset).map(|mine| mine.tenure);
            pending.push((tenure, offset));
        }
        for _ in 0..RETRIES {
            self.events()?;
            let mine = |(tenure, _): &&(Option<u64>, Offset)| {
                self.partitions.iter().any(|partition| Some(partition.tenure) == *tenure)
            };
            let kept: Vec<_> = pending.iter().filter(mine).map(|(_, offset)| place(offset)).collect();
            let lost = kept.len() < pending.len();
            // Where all is lost, another member may have it before this one hears that it was taken.
            if kept.is_empty() && lost || self.member()?.assignment_lost() {
                return Err(LogError::Rebalanced);
            }
            if kept.is_empty() {
                return Ok(());
            }
            let list = self.list(&kept).map_err(LogError::unavailable)?;
            let job = move |member: &Member| member.commit(&list, CommitMode::Sync).map(|()| list);
            match self.job(job).await? {
                Ok(_) if lost => return Err(LogError::Rebalanced),
                Ok(_) => return Ok(()),
                Err(error) if is_rebalancing(&error) || is_moving(&error) => self.pause().await?,
                Err(error) => return Err(LogError::unavailable(error)),
            }
        }
        Err(LogError::unavailable("the group does not settle"))
    }

    /// A moment, in which the group goes on.
    async fn pause(&mut self) -> Result<(), LogError> {
        match timeout(RETRY_PAUSE, self.event()).await {
            Ok(event) => event,
            Err(_) => Ok(()),
        }
    }

    /// Takes more records that are there already, up to `room`; an error waits until these have been handed out.
    fn more(&mut self, first: usize, room: usize, records: &mut Vec<Delivered>) {
        let mut task = Task::from_waker(Waker::noop());
        let count = self.partitions.len();
        for step in 0..count {
            let index = (first + step) % count;
            let partition = &mut self.partitions[index];
            let Some(queue) = &partition.queue else { continue };
            let mut stream = queue.stream();
            while records.len() < room && self.failed.is_none() {
                let Poll::Ready(Some(came)) = stream.poll_next_unpin(&mut task) else { break };
                match came {
                    Ok(record) => records.push(delivered(partition, &record)),
                    Err(error) => self.failed = Some(error),
                }
            }
        }
        for record in records.iter() {
            let next = record.offset + 1;
            let read = self.partitions.iter_mut().find(|p| p.topic == record.topic && p.number == record.partition);
            if let Some(read) = read {
                read.position = Some(next);
            }
        }
        self.turn = first.wrapping_add(1);
    }
}

/// What is committed of a partition.
fn place(next: &Offset) -> (Arc<str>, u32, At) {
    (Arc::from(&*next.topic), next.partition, At::Offset(next.offset.cast_signed()))
}

fn streams(partitions: &[Partition]) -> Vec<Option<rdkafka::consumer::MessageStream<'_, member::Context>>> {
    partitions.iter().map(|partition| partition.queue.as_ref().map(Queue::stream)).collect()
}

fn delivered(partition: &Partition, record: &BorrowedMessage<'_>) -> Delivered {
    Delivered {
        topic: partition.topic.clone(),
        partition: partition.number,
        offset: record.offset().unsigned_abs(),
        event: Arc::new(record::event(record, &partition.topic)),
    }
}

#[async_trait]
impl Subscription for KafkaSubscription {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        loop {
            self.settle().await?;
            let member = self.member()?.clone();
            if let Some(error) = self.failed.take() {
                self.take_up(&member, Happened::Failed(error))?;
            }
            match self.happened(&member, true).await {
                // No await from here on: a caller that gives up before has consumed nothing.
                Happened::Record(index, record) => {
                    let mut records = vec![record];
                    self.more(index, max, &mut records);
                    return Ok(records);
                }
                other => self.take_up(&member, other)?,
            }
        }
    }

    async fn commit(&mut self, next: &[Offset]) -> Result<(), LogError> {
        self.commit_mine(next.to_vec()).await
    }

    async fn seek(&mut self, to: &Offset) -> Result<(), LogError> {
        self.settle().await?;
        let place = [(Arc::from(&*to.topic), to.partition, At::End)];
        let end = self.ask(&place, |member, list| member.offsets_for_times(list, ANSWER)).await?;
        // Kafka would go on from the beginning instead, and who seeks the same place again would do so for ever.
        if end.iter().any(|end| end.offset < to.offset) {
            return Err(LogError::unavailable(format!("{to:?} is beyond the end: was the topic made anew?")));
        }
        let mut failed = None;
        for _ in 0..RETRIES {
            self.events()?;
            if self.mine(to).is_none() {
                return Err(LogError::Rebalanced);
            }
            let (topic, partition) = (self.names.full(&to.topic), to.partition.cast_signed());
            let at = At::Offset(to.offset.cast_signed());
            let job =
                move |member: &Member| member.seek(&topic, partition, at, ANSWER).map(|()| TopicPartitionList::new());
            match self.job(job).await? {
                Ok(_) => {
                    if let Some(mine) = self.mine(to) {
                        mine.position = Some(to.offset);
                    }
                    return Ok(());
                }
                // It is just starting.
                Err(error) => failed = Some(error),
            }
            self.pause().await?;
        }
        Err(failed.map_or(LogError::Rebalanced, LogError::unavailable))
    }

    async fn assignment(&mut self) -> Result<Vec<Offset>, LogError> {
        if !self.joined
            && let Ok(joined) = timeout(JOIN, self.until_joined()).await
        {
            joined?;
        }
        self.settle().await?;
        let offset = |partition: &Partition| Offset {
            topic: partition.topic.to_string(),
            partition: partition.number,
            offset: partition.position.unwrap_or(0),
        };
        Ok(self.partitions.iter().map(offset).collect())
    }
}

impl Drop for KafkaSubscription {
    /// Leaves the group. That waits for the broker, so it happens where waiting is allowed.
    fn drop(&mut self) {
        let (member, partitions) = (self.member.take(), std::mem::take(&mut self.partitions));
        super::end(move || {
            // The queues first: the last holder of the member ends it.
            drop(partitions);
            drop(member);
        });
    }
}
