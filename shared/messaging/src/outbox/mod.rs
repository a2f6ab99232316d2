//! The transactional outbox: events written with the state that they are about, relayed to the log afterwards.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use contracts::{Clock, Timestamp, events::CloudEvent};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use self::share::{Lease, fair_share};
use crate::{EventLog, Pace, abort_point};

mod postgres;
mod share;
mod sqlite;

pub use postgres::{BUCKETS as POSTGRES_BUCKETS, PostgresOutbox, SCHEMA as POSTGRES_SCHEMA, insert_postgres};
pub use share::Leases;
pub use sqlite::{SCHEMA as SQLITE_SCHEMA, SqliteOutbox, insert_sqlite};

/// Events published in one go: two megabytes or so, and one fsync of the log for all of them.
const RELAY_BATCH: usize = 2_000;

/// Events read in one go: some batches, so that the store forgets one while the log takes the next.
const READ_AHEAD: usize = 4 * RELAY_BATCH;

/// How long a relay owns the outbox before it must say so again: short, since a killed relay's successor waits it out.
const LEASE: chrono::Duration = chrono::Duration::seconds(5);

/// How often an idle relay looks, though nothing woke it: the wake-up is in memory and may be lost with its process.
const IDLE_POLL: Duration = Duration::from_millis(500);

/// The least time between two batches: at a thousand events a second a batch holds ten of them.
const PACE: Duration = Duration::from_millis(10);

/// How long to wait after the log or the store failed: doubles from here, so that a short outage costs no time ...
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// ... to here, so that a long one is not made longer by its relays, and its end is noticed within seconds.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// Why an outbox could not be read or trimmed.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The store failed.
    #[error("the outbox is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<sqlx::Error> for OutboxError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

/// A part of an outbox that has one reader at a time: all events of a key lie in the same one.
pub type Bucket = u16;

/// Where an event lies in its outbox: the source's own business, handed back to it to delete the event.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A row of a table.
    Row(i64),
    /// An entry of a bucket's stream.
    Entry {
        /// The bucket.
        bucket: Bucket,
        /// The entry's id in its stream.
        id: String,
    },
    /// A part of the document that it is about.
    Part {
        /// The document's id.
        document: Uuid,
        /// The event's id.
        event: Uuid,
    },
}

/// An event in an outbox.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// Where it lies.
    pub place: Place,
    /// The event.
    pub event: CloudEvent,
}

/// Where a relay finds events that were committed.
///
/// An outbox is divided into buckets by the events' keys, and a relay reads only those that it has leased: so any number
/// of replicas share the work, and the order within a key is kept. A relay that was paused past its lease may still
/// publish what it had read: that doubles or reorders, and never loses.
#[async_trait]
pub trait OutboxSource: Send + Sync + 'static {
    /// Becomes, or stays, the only reader of a fair share of the buckets until `until`: which. None where others have
    /// them all. An `until` in the past gives all of them up.
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, OutboxError>;

    /// The oldest events of these buckets, in order of commit within each key.
    async fn read(&self, buckets: &[Bucket], limit: usize) -> Result<Vec<OutboxRow>, OutboxError>;

    /// Forgets events that the log has acknowledged: the places of rows that one [`Self::read`] answered, without a gap
    /// between them or before the first that is left.
    async fn delete(&self, places: &[Place]) -> Result<(), OutboxError>;

    /// Events not yet relayed.
    async fn backlog(&self) -> Result<u64, OutboxError>;

    /// Returns once another process may have committed something; never where none can. It may miss a commit (a relay
    /// also looks by itself) and must be cancel-safe.
    async fn woken(&self) -> Result<(), OutboxError> {
        std::future::pending().await
    }
}

/// Wakes the relay of a store in the same process.
#[derive(Debug, Clone, Default)]
pub struct OutboxSignal(Arc<Notify>);

impl OutboxSignal {
    /// Something was committed.
    pub fn wake(&self) {
        self.0.notify_one();
    }
}

/// Moves events from one store's outbox to the log.
pub struct Relay {
    /// Where from.
    pub source: Arc<dyn OutboxSource>,
    /// Where to.
    pub log: Arc<dyn EventLog>,
    /// Wakes it early.
    pub signal: OutboxSignal,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// This instance, unique among all.
    pub owner: String,
}

impl Relay {
    /// Relays until `shutdown`. Whatever fails is tried again without end: the events are safe where they are.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut leased = Leased::default();
        let mut retry = FIRST_RETRY;
        let mut pace = Pace::new(PACE);
        while !shutdown.is_cancelled() {
            pace.next().await;
            match self.turn(&mut leased).await {
                Ok(more) => {
                    retry = FIRST_RETRY;
                    if !more {
                        self.idle(&shutdown).await;
                    }
                }
                Err(error) => {
                    warn!(error = %chain(&*error), "the relay tries again");
                    // Not the signal: a busy store would have the log that fails asked at every commit.
                    tokio::select! {
                        () = self.clock.sleep(retry) => {}
                        () = shutdown.cancelled() => {}
                    }
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
        // Leases that have ended already: the successor need not wait them out.
        if let Err(error) = self.source.lease(&self.owner, self.clock.now(), Timestamp::UNIX_EPOCH).await {
            warn!(error = %chain(&error), "the relay's leases were not given up");
        }
    }

    /// Waits until there may be something to relay.
    async fn idle(&self, shutdown: &CancellationToken) {
        tokio::select! {
            () = self.signal.0.notified() => {}
            result = self.source.woken() => {
                if let Err(error) = result {
                    warn!(error = %chain(&error), "the relay hears nothing of other processes, and looks by itself");
                    self.clock.sleep(IDLE_POLL).await;
                }
            }
            () = self.clock.sleep(IDLE_POLL) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// One batch; true where there is surely more.
    async fn turn(&self, leased: &mut Leased) -> Result<bool, Failure> {
        let now = self.clock.now();
        let left = leased.until - now;
        // More than a lease is left only to a clock that was set back. The others' clocks were not: they may have the
        // buckets by now.
        if left < LEASE / 2 || left > LEASE {
            let until = now + LEASE;
            *leased = Leased { buckets: self.source.lease(&self.owner, now, until).await?, until };
        }
        if leased.buckets.is_empty() {
            // Asks again the next time: somebody may have given up or gone.
            *leased = Leased::default();
            return Ok(false);
        }
        let rows = self.source.read(&leased.buckets, READ_AHEAD).await?;
        if rows.is_empty() {
            return Ok(false);
        }
        abort_point("relay.read");
        let full = rows.len() >= READ_AHEAD;
        let all = self.relay(rows, leased.until).await?;
        Ok(full || !all)
    }

    /// Publishes rows in order, a batch at a time, and has each batch forgotten while the next is published; false where
    /// the lease did not last for all of them.
    async fn relay(&self, rows: Vec<OutboxRow>, until: Timestamp) -> Result<bool, Failure> {
        let mut rows = rows.into_iter().peekable();
        let mut acknowledged: Vec<Place> = Vec::new();
        while rows.peek().is_some() && self.clock.now() < until {
            let (places, events): (Vec<Place>, Vec<CloudEvent>) =
                rows.by_ref().take(RELAY_BATCH).map(|row| (row.place, row.event)).unzip();
            let (published, forgotten) = futures::join!(self.log.publish(events), self.forget(&acknowledged));
            published?;
            forgotten?;
            abort_point("relay.published");
            acknowledged = places;
        }
        self.forget(&acknowledged).await?;
        Ok(rows.peek().is_none())
    }

    async fn forget(&self, places: &[Place]) -> Result<(), OutboxError> {
        if !places.is_empty() {
            self.source.delete(places).await?;
            abort_point("relay.deleted");
        }
        Ok(())
    }
}

/// Why a turn did not end.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a relay may read, and until when.
struct Leased {
    buckets: Vec<Bucket>,
    until: Timestamp,
}

impl Default for Leased {
    fn default() -> Self {
        Self { buckets: Vec::new(), until: Timestamp::UNIX_EPOCH }
    }
}

/// An error with all its causes, for one line of a log.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
