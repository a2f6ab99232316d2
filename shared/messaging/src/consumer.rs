//! Runs a handler over the records of a consumer group: effects first, then the offset.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use contracts::{
    Clock,
    events::{CloudEvent, DecodeError, Topic, UNDECODABLE},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    Delivered, EventLog, LogError, Offset, Pace, Subscription, abort_point,
    dead_letters::{self, dead_letter},
    outbox::chain,
};

/// Records handled at once: enough for set-based statements, few enough to repeat without regret.
const MAX_BATCH: usize = 512;

/// The least time between two batches: at a thousand events a second a batch holds a score of them, and nobody sees the
/// difference in a system whose events are seconds apart.
const PACE: Duration = Duration::from_millis(20);

/// Tries of an event that is itself at fault before it goes to the dead letters: the handler may have a passing fault.
const POISON_TRIES: u32 = 3;

/// The pause after a failure doubles from here ...
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// ... to here: a store that comes back is noticed within seconds.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// Why an event had no effect.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// Something the handler needs is away. The partition waits, and the event is tried again without end.
    #[error("not now")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The event itself is at fault. After some tries it goes to the dead letters.
    #[error("the event is at fault")]
    Poison(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl HandleError {
    /// Not the event's fault.
    pub fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }

    /// The event's fault.
    pub fn poison(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Poison(cause.into())
    }
}

impl From<DecodeError> for HandleError {
    fn from(error: DecodeError) -> Self {
        Self::Poison(error.into())
    }
}

/// What a service does about events. The effect of an event must be the same whatever the order and however often.
#[async_trait]
pub trait Handler: Send + 'static {
    /// Handles a batch: one result for each record, in order. An effect is durable before its `Ok`.
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>>;
}

/// A consumer group's member.
pub struct Consumer {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The group: the service's name.
    pub group: &'static str,
    /// What it listens to.
    pub topics: &'static [Topic],
}

impl Consumer {
    /// Handles records until `shutdown`; what was handled by then is committed.
    pub async fn run(self, handler: impl Handler, shutdown: CancellationToken) {
        tokio::select! {
            () = self.follow(handler, &shutdown) => {}
            () = dead_letters::remember(&*self.log, &*self.clock, self.group) => {}
        }
    }

    async fn follow(&self, mut handler: impl Handler, shutdown: &CancellationToken) {
        let names: Vec<_> = self.topics.iter().map(|topic| topic.name()).collect();
        let mut pause = FIRST_RETRY;
        while !shutdown.is_cancelled() {
            let joined = tokio::select! {
                joined = self.log.subscribe(self.group, &names) => joined,
                () = shutdown.cancelled() => return,
            };
            let result = match joined {
                Ok(mut subscription) => self.consume(&mut *subscription, &mut handler, shutdown, &mut pause).await,
                Err(error) => Err(error),
            };
            let Err(error) = result else { return };
            warn!(group = self.group, error = %chain(&error), "the consumer joins again");
            self.wait(&mut pause, shutdown).await;
        }
    }

    async fn consume(
        &self,
        subscription: &mut dyn Subscription,
        handler: &mut impl Handler,
        shutdown: &CancellationToken,
        pause: &mut Duration,
    ) -> Result<(), LogError> {
        let mut pace = Pace::new(PACE);
        loop {
            let batch = tokio::select! {
                batch = async {
                    pace.next().await;
                    subscription.next(MAX_BATCH).await
                } => batch?,
                () = shutdown.cancelled() => return Ok(()),
            };
            *pause = FIRST_RETRY;
            if !self.settle(&batch, handler, shutdown).await? {
                return Ok(());
            }
            abort_point("consumer.handled");
            match subscription.commit(&next_offsets(&batch)).await {
                Ok(()) | Err(LogError::Rebalanced) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Handles a batch until every record has had its effect or is a dead letter; false when shut down before. What
    /// follows a record that has to wait is handled again after it: the last effects are in the partition's order.
    async fn settle(
        &self,
        batch: &[Delivered],
        handler: &mut impl Handler,
        shutdown: &CancellationToken,
    ) -> Result<bool, LogError> {
        let (undecodable, events): (Vec<_>, Vec<_>) = batch.iter().partition(|record| record.event.kind == UNDECODABLE);
        // No second try makes an event of them, and a handler would skip a kind that it does not know.
        let dead = undecodable.into_iter().map(|record| self.bury(record, "its record is no CloudEvent".to_owned()));
        self.publish_dead(dead.collect()).await?;
        let mut pending: Vec<(Delivered, u32)> = events.into_iter().map(|record| (record.clone(), 0)).collect();
        let mut pause = FIRST_RETRY;
        while !pending.is_empty() {
            let records: Vec<_> = pending.iter().map(|(record, _)| record.clone()).collect();
            let results = handler.handle(&records).await;
            debug_assert_eq!(results.len(), records.len(), "one result for each record");
            let mut left: Vec<(Delivered, u32)> = Vec::new();
            let mut dead = Vec::new();
            for ((record, tries), result) in pending.into_iter().zip(results) {
                let waits =
                    left.iter().any(|(first, _)| first.partition == record.partition && first.topic == record.topic);
                match result {
                    Ok(()) if waits => left.push((record, tries)),
                    Ok(()) => {}
                    Err(HandleError::Poison(cause)) if tries + 1 >= POISON_TRIES => {
                        dead.push(self.bury(&record, chain(&*cause)));
                    }
                    Err(HandleError::Poison(_)) => left.push((record, tries + 1)),
                    Err(HandleError::Unavailable(cause)) => {
                        warn!(group = self.group, error = %chain(&*cause), "an event is tried again");
                        left.push((record, tries));
                    }
                }
            }
            self.publish_dead(dead).await?;
            pending = left;
            if !pending.is_empty() {
                self.wait(&mut pause, shutdown).await;
                if shutdown.is_cancelled() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The dead letter of a record.
    fn bury(&self, record: &Delivered, cause: String) -> CloudEvent {
        error!(group = self.group, topic = %record.topic, partition = record.partition, offset = record.offset, cause,
            "an event goes to the dead letters");
        dead_letter(self.group, record, cause, &*self.clock)
    }

    async fn publish_dead(&self, letters: Vec<CloudEvent>) -> Result<(), LogError> {
        if letters.is_empty() {
            return Ok(());
        }
        dead_letters::publish(&*self.log, letters).await?;
        abort_point("consumer.buried");
        Ok(())
    }

    async fn wait(&self, pause: &mut Duration, shutdown: &CancellationToken) {
        tokio::select! {
            () = self.clock.sleep(*pause) => {}
            () = shutdown.cancelled() => {}
        }
        *pause = (*pause * 2).min(LONGEST_RETRY);
    }
}

/// The offsets after a batch, one for each of its partitions.
pub fn next_offsets(batch: &[Delivered]) -> Vec<Offset> {
    let mut offsets: Vec<Offset> = Vec::new();
    for record in batch {
        let known = offsets.iter_mut().find(|o| o.partition == record.partition && *o.topic == *record.topic);
        match known {
            Some(offset) => offset.offset = offset.offset.max(record.offset + 1),
            None => offsets.push(Offset {
                topic: record.topic.to_string(),
                partition: record.partition,
                offset: record.offset + 1,
            }),
        }
    }
    offsets
}
