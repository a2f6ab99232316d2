//! A member of a consumer group of the embedded log.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    Shared,
    state::{Found, TopicPartition},
};
use crate::{Delivered, LogError, Offset, Subscription};

pub(super) struct EmbeddedSubscription {
    shared: Arc<Shared>,
    group: String,
    member: u64,
    generation: u64,
    positions: Vec<(TopicPartition, u64)>,
    /// Where the next read starts, so that no partition waits behind a busy one.
    turn: usize,
    changed: watch::Receiver<u64>,
}

impl EmbeddedSubscription {
    pub(super) fn join(shared: Arc<Shared>, group: &str, topics: &[&str]) -> Self {
        let member = shared.state.join(group, topics);
        let changed = shared.changed.clone();
        let (generation, positions) = shared.state.assignment(group, member);
        Self { shared, group: group.to_owned(), member, generation, positions, turn: 0, changed }
    }

    /// Takes up what a rebalance has changed: partitions that stay keep their position.
    fn follow_rebalance(&mut self) {
        if self.shared.state.generation(&self.group) == self.generation {
            return;
        }
        let (generation, mut positions) = self.shared.state.assignment(&self.group, self.member);
        for (at, position) in &mut positions {
            if let Some((_, kept)) = self.positions.iter().find(|(known, _)| known == at) {
                *position = *kept;
            }
        }
        self.generation = generation;
        self.positions = positions;
    }

    async fn read_some(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        let count = self.positions.len();
        let mut records: Vec<Delivered> = Vec::new();
        let mut moved = Vec::new();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let room = max - records.len();
            if room == 0 {
                break;
            }
            let ((topic, partition), position) = &self.positions[index];
            let found = match self.shared.state.read(topic, *partition, *position, room) {
                Found::Nothing => continue,
                Found::Records(from, events) => (from..).zip(events).collect::<Vec<_>>(),
                Found::OnDisk(from) => {
                    let read = self.shared.storage.read(&self.shared.state, topic, *partition, from, room).await;
                    read.map_err(LogError::unavailable)?
                }
            };
            let Some((last, _)) = found.last() else { continue };
            moved.push((index, last + 1));
            records.extend(found.into_iter().map(|(offset, event)| Delivered {
                topic: topic.clone(),
                partition: *partition,
                offset,
                event,
            }));
        }
        // No await from here on: a caller that gives up before has consumed nothing.
        for (index, next) in moved {
            self.positions[index].1 = next;
        }
        self.turn = self.turn.wrapping_add(1);
        Ok(records)
    }
}

#[async_trait]
impl Subscription for EmbeddedSubscription {
    async fn next(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        loop {
            self.changed.mark_unchanged();
            self.follow_rebalance();
            let records = self.read_some(max).await?;
            if !records.is_empty() {
                return Ok(records);
            }
            self.changed.changed().await.map_err(LogError::unavailable)?;
        }
    }

    async fn commit(&mut self, next: &[Offset]) -> Result<(), LogError> {
        let (_, assigned) = self.shared.state.assignment(&self.group, self.member);
        let mine = |offset: &Offset| {
            assigned.iter().any(|((topic, partition), _)| **topic == *offset.topic && *partition == offset.partition)
        };
        let (kept, lost): (Vec<Offset>, Vec<Offset>) = next.iter().cloned().partition(mine);
        if !kept.is_empty() {
            self.shared.commit(&self.group, &kept).await?;
        }
        if lost.is_empty() { Ok(()) } else { Err(LogError::Rebalanced) }
    }

    async fn seek(&mut self, to: &Offset) -> Result<(), LogError> {
        self.follow_rebalance();
        for ((topic, partition), position) in &mut self.positions {
            if **topic == *to.topic && *partition == to.partition {
                *position = to.offset;
                return Ok(());
            }
        }
        Err(LogError::Rebalanced)
    }

    async fn assignment(&mut self) -> Result<Vec<Offset>, LogError> {
        self.follow_rebalance();
        let offset = |((topic, partition), offset): &(TopicPartition, u64)| Offset {
            topic: topic.to_string(),
            partition: *partition,
            offset: *offset,
        };
        Ok(self.positions.iter().map(offset).collect())
    }
}

impl Drop for EmbeddedSubscription {
    fn drop(&mut self) {
        self.shared.state.leave(&self.group, self.member);
    }
}
