//! The transactional outbox: events written with the state that they are about, relayed to the log afterwards.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use contracts::{Clock, Timestamp, events::CloudEvent};
use serde::Serialize;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{EventLog, Pace, abort_point, sqlite::Sqlite};

/// Events relayed in one go: a megabyte or so, and one fsync of the log for all of them.
const RELAY_BATCH: i64 = 1_000;

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

/// The tables of an outbox in SQLite; part of a store's first migration.
pub const SQLITE_SCHEMA: &str = "
create table outbox (
    seq integer primary key autoincrement,
    id text not null,
    topic text not null,
    key text not null,
    kind text not null,
    source text not null,
    time text not null,
    traceparent text,
    data text not null
);
create table relay_lease (bucket integer primary key, owner text not null, until_ms integer not null);
";

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

/// A row of an outbox.
#[derive(Debug, Clone)]
pub struct OutboxRow {
    /// The row's number: order of commit.
    pub seq: i64,
    /// The event.
    pub event: CloudEvent,
}

/// Where a relay finds events that were committed.
#[async_trait]
pub trait OutboxSource: Send + Sync + 'static {
    /// Becomes, or stays, the only reader until `until`; false where another is. An `until` in the past gives it up.
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<bool, OutboxError>;

    /// The oldest events, in order of commit.
    async fn read(&self, limit: i64) -> Result<Vec<OutboxRow>, OutboxError>;

    /// Forgets events that the log has acknowledged: the numbers of all rows that one [`Self::read`] answered.
    async fn delete(&self, seqs: &[i64]) -> Result<(), OutboxError>;

    /// Events not yet relayed.
    async fn backlog(&self) -> Result<u64, OutboxError>;
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

#[derive(Serialize)]
struct RowJson<'a> {
    id: String,
    topic: &'a str,
    key: &'a str,
    kind: &'a str,
    source: &'a str,
    time: Timestamp,
    traceparent: Option<&'a str>,
    /// JSON text: SQLite then carries it as it is, and parses and renders none of it.
    data: &'a str,
}

/// Adds events to the outbox, in the caller's transaction: one statement, whatever their number.
pub async fn insert_sqlite(connection: &mut SqliteConnection, events: &[CloudEvent]) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    let mut rows = Vec::with_capacity(events.len());
    for event in events {
        rows.push(RowJson {
            id: event.id.to_string(),
            topic: &event.topic,
            key: &event.key,
            kind: &event.kind,
            source: &event.source,
            time: event.time,
            traceparent: event.traceparent.as_deref(),
            data: std::str::from_utf8(&event.data).map_err(|error| sqlx::Error::Encode(error.into()))?,
        });
    }
    let json = serde_json::to_string(&rows).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        // Materialized: `value` of json_each is rendered anew wherever it is named.
        "with rows as materialized (select key as n, value as v from json_each(?))
         insert into outbox (id, topic, key, kind, source, time, traceparent, data)
         select v ->> 'id', v ->> 'topic', v ->> 'key', v ->> 'kind', v ->> 'source', v ->> 'time',
                v ->> 'traceparent', v ->> 'data'
         from rows order by n",
    )
    .bind(json)
    .execute(connection)
    .await?;
    Ok(())
}

/// The outbox of a SQLite store.
pub struct SqliteOutbox {
    store: Sqlite,
}

impl SqliteOutbox {
    /// The outbox in `store`, whose schema holds [`SQLITE_SCHEMA`].
    pub fn new(store: Sqlite) -> Self {
        Self { store }
    }
}

fn row_from(row: &SqliteRow) -> Result<OutboxRow, sqlx::Error> {
    let id: String = row.try_get("id")?;
    let time: String = row.try_get("time")?;
    let decode = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    Ok(OutboxRow {
        seq: row.try_get("seq")?,
        event: CloudEvent {
            id: id.parse().map_err(|error: uuid::Error| decode(error.into()))?,
            topic: row.try_get("topic")?,
            key: row.try_get("key")?,
            kind: row.try_get("kind")?,
            source: row.try_get("source")?,
            time: time.parse().map_err(|error: chrono::ParseError| decode(error.into()))?,
            traceparent: row.try_get("traceparent")?,
            data: row.try_get::<String, _>("data")?.into_bytes(),
        },
    })
}

#[async_trait]
impl OutboxSource for SqliteOutbox {
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<bool, OutboxError> {
        let done = sqlx::query(
            "insert into relay_lease (bucket, owner, until_ms) values (0, ?1, ?2)
             on conflict (bucket) do update set owner = ?1, until_ms = ?2 where owner = ?1 or until_ms < ?3",
        )
        .bind(owner)
        .bind(until.timestamp_millis())
        .bind(now.timestamp_millis())
        .execute(&self.store.writer)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    async fn read(&self, limit: i64) -> Result<Vec<OutboxRow>, OutboxError> {
        let rows =
            sqlx::query("select * from outbox order by seq limit ?").bind(limit).fetch_all(&self.store.reader).await?;
        Ok(rows.iter().map(row_from).collect::<Result<_, _>>()?)
    }

    async fn delete(&self, seqs: &[i64]) -> Result<(), OutboxError> {
        let (Some(first), Some(last)) = (seqs.first(), seqs.last()) else { return Ok(()) };
        // One writer: the order of seq is the order of commit, so nothing can have come in between.
        sqlx::query("delete from outbox where seq between ? and ?")
            .bind(first)
            .bind(last)
            .execute(&self.store.writer)
            .await?;
        Ok(())
    }

    async fn backlog(&self) -> Result<u64, OutboxError> {
        let (count,): (i64,) = sqlx::query_as("select count(*) from outbox").fetch_one(&self.store.reader).await?;
        Ok(u64::try_from(count).unwrap_or(0))
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
        let mut leased_until = Timestamp::UNIX_EPOCH;
        let mut retry = FIRST_RETRY;
        let mut pace = Pace::new(PACE);
        while !shutdown.is_cancelled() {
            pace.next().await;
            match self.turn(&mut leased_until).await {
                Ok(more) => {
                    retry = FIRST_RETRY;
                    if more {
                        continue;
                    }
                    tokio::select! {
                        () = self.signal.0.notified() => {}
                        () = self.clock.sleep(IDLE_POLL) => {}
                        () = shutdown.cancelled() => {}
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
        // A lease that has ended already: the successor need not wait it out.
        if let Err(error) = self.source.lease(&self.owner, self.clock.now(), Timestamp::UNIX_EPOCH).await {
            warn!(error = %chain(&error), "the relay's lease was not given up");
        }
    }

    /// One batch; true where there is surely more.
    async fn turn(&self, leased_until: &mut Timestamp) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        let now = self.clock.now();
        if *leased_until - now < LEASE / 2 {
            let until = now + LEASE;
            if !self.source.lease(&self.owner, now, until).await? {
                return Ok(false);
            }
            *leased_until = until;
        }
        let rows = self.source.read(RELAY_BATCH).await?;
        if rows.is_empty() {
            return Ok(false);
        }
        let (seqs, events): (Vec<i64>, Vec<CloudEvent>) = rows.into_iter().map(|row| (row.seq, row.event)).unzip();
        abort_point("relay.read");
        self.log.publish(events).await?;
        abort_point("relay.published");
        self.source.delete(&seqs).await?;
        abort_point("relay.deleted");
        Ok(i64::try_from(seqs.len()).is_ok_and(|relayed| relayed == RELAY_BATCH))
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
