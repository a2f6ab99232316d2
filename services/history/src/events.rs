//! The subscriber: feeds a table's writer from its topic, and lets the table decide where it reads.

use std::{collections::HashSet, sync::Arc, time::Duration};

use contracts::{Clock, Timestamp, events::Topic};
use messaging::{
    Delivered, EventLog, LogError, Offset, Subscription,
    dead_letters::{self, dead_letter},
    outbox::chain,
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{RowFault, at_most_after},
    lake::{Flushed, LakeError, Place, Row, Taken, Writer},
};

/// The name under which events at fault are kept.
pub(crate) const DEAD_LETTER_GROUP: &str = "history";
/// Records read at once: a few milliseconds of decoding between two looks at the clock.
const MAX_READ: usize = 1_024;
/// Pause before something that failed is tried again: a store that comes back is noticed within a second.
const RETRY: Duration = Duration::from_secs(1);
/// How often an idle member looks whether it was given other partitions, or has passed records that it did not commit
/// because they are no rows.
const IDLE: Duration = Duration::from_secs(5);

/// When what was read is committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlushLimits {
    /// At the latest after this.
    pub(crate) interval: Duration,
    /// Or with this many rows.
    pub(crate) rows: usize,
}

/// Why a round ended without success; the next one starts from what the table says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoundError {
    #[error("the log failed")]
    Log(#[from] LogError),
    #[error("the lake failed")]
    Lake(#[from] LakeError),
}

/// Reads one topic into one table.
pub(crate) struct Subscriber<R> {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) topic: Topic,
    pub(crate) group: &'static str,
    pub(crate) limits: FlushLimits,
    pub(crate) writer: Writer<R>,
    pub(crate) shutdown: CancellationToken,
}

impl<R: Row> Subscriber<R> {
    /// Runs until shutdown; nothing that fails ends it.
    pub(crate) async fn run(mut self) {
        while !self.shutdown.is_cancelled() {
            if let Err(error) = self.subscribed().await {
                tracing::warn!(topic = self.topic.name(), error = %chain(&error), "the lake's writer tries again");
                self.pause().await;
            }
        }
    }

    async fn pause(&self) {
        tokio::select! {
            () = self.clock.sleep(RETRY) => {}
            () = self.shutdown.cancelled() => {}
        }
    }

    async fn subscribed(&mut self) -> Result<(), RoundError> {
        let mut subscription = self.log.subscribe(self.group, &[self.topic.name()]).await?;
        // A subscription reads from the group's offset, which is only informational.
        self.writer.keep_only(&HashSet::new());
        let mut flush_at: Option<Timestamp> = None;
        loop {
            self.follow_assignment(subscription.as_mut()).await?;
            let now = self.clock.now();
            // What was read waits for one interval at most, also where the clock was set back.
            flush_at = flush_at.map(|at| at_most_after(at, self.limits.interval, now));
            let idle_at = now + IDLE;
            let records = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => {
                    return self.flush(subscription.as_mut()).await;
                }
                () = self.clock.sleep_until(flush_at.unwrap_or(idle_at)) => Vec::new(),
                records = subscription.next(MAX_READ) => records?,
            };
            if !records.is_empty() {
                flush_at.get_or_insert(self.clock.now() + self.limits.interval);
                self.take(subscription.as_mut(), &records).await?;
            }
            let is_time = flush_at.is_some_and(|at| self.clock.now() >= at);
            if is_time || self.writer.rows() >= self.limits.rows || self.writer.offsets_are_due() {
                self.flush(subscription.as_mut()).await?;
                flush_at = None;
            }
        }
    }

    /// Aligns partitions that are new to this member, and forgets those that are not its any more.
    pub(crate) async fn follow_assignment(&mut self, subscription: &mut dyn Subscription) -> Result<(), RoundError> {
        let assigned = subscription.assignment().await?;
        let (mut mine, mut further) = (HashSet::new(), Vec::new());
        for at in assigned {
            let place = Place::of(&at);
            if !self.writer.knows(&place) {
                self.align(subscription, &place, at.offset, &mut further).await?;
            }
            mine.insert(place);
        }
        self.writer.keep_only(&mine);
        self.tell(subscription, &further).await
    }

    /// Lets a partition be read from where the table stands, which the log would read from `from`: whether that is
    /// elsewhere. Where it is `further`, the group is to be told.
    async fn align(
        &mut self,
        subscription: &mut dyn Subscription,
        place: &Place,
        from: u64,
        further: &mut Vec<Offset>,
    ) -> Result<bool, RoundError> {
        let topic_id = self.log.topic_id(&place.topic).await?;
        let start = self.writer.align(place.clone(), &topic_id).await?;
        if start != from {
            seek(subscription, &place.at(start)).await?;
        }
        if start > from {
            further.push(place.at(start));
        }
        Ok(start != from)
    }

    /// Takes records that were read, each for its row; what another member has passed is read past.
    pub(crate) async fn take(
        &mut self,
        subscription: &mut dyn Subscription,
        records: &[Delivered],
    ) -> Result<(), RoundError> {
        // Partitions that were sent elsewhere: the rest of their records in this batch comes again.
        let (mut moved, mut further) = (HashSet::new(), Vec::new());
        for record in records {
            let place = Place { topic: record.topic.clone(), partition: record.partition };
            if moved.contains(&place) {
                continue;
            }
            if self.writer.expects(&place, record.offset) == Taken::Misplaced
                && self.align(subscription, &place, record.offset, &mut further).await?
            {
                moved.insert(place);
                continue;
            }
            let row = match R::from_event(&record.event) {
                Ok(row) => row,
                Err(fault) => {
                    self.bury(record, &fault).await?;
                    None
                }
            };
            self.writer.take(&place, record.offset, row);
        }
        self.tell(subscription, &further).await
    }

    /// Keeps an event at fault where an operator finds it, before its offset is passed.
    async fn bury(&self, record: &Delivered, fault: &RowFault) -> Result<(), LogError> {
        let cause = chain(fault);
        tracing::error!(topic = %record.topic, partition = record.partition, offset = record.offset, cause,
            "an event at fault goes to the dead letters");
        let letter = dead_letter(DEAD_LETTER_GROUP, record, cause, self.clock.as_ref());
        dead_letters::publish(&*self.log, vec![letter]).await
    }

    /// Commits what was taken.
    pub(crate) async fn flush(&mut self, subscription: &mut dyn Subscription) -> Result<(), RoundError> {
        let Flushed { mut committed, moved, rows } = self.writer.flush().await?;
        for to in &moved {
            seek(subscription, to).await?;
        }
        if !committed.is_empty() {
            tracing::debug!(topic = self.topic.name(), rows, "committed to the lake");
        }
        committed.extend(moved);
        self.tell(subscription, &committed).await
    }

    /// Tells the group how far the table is, also by what another member has committed: that one may have lost the
    /// partition before it could say so, and without a further record nobody would. The table's offset is the one that
    /// counts; the group's only informs.
    async fn tell(&self, subscription: &mut dyn Subscription, next: &[Offset]) -> Result<(), RoundError> {
        if next.is_empty() {
            return Ok(());
        }
        match subscription.commit(next).await {
            Ok(()) | Err(LogError::Rebalanced) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A partition that is no longer this member's needs no seek: its new owner asks the table itself.
async fn seek(subscription: &mut dyn Subscription, to: &Offset) -> Result<(), LogError> {
    match subscription.seek(to).await {
        Ok(()) | Err(LogError::Rebalanced) => Ok(()),
        Err(error) => Err(error),
    }
}
