//! The outbox as a table of a SQLite store.

use async_trait::async_trait;
use contracts::{Timestamp, events::CloudEvent};
use serde::Serialize;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{Bucket, OutboxError, OutboxRow, OutboxSource, Place};
use crate::sqlite::Sqlite;

/// The tables of an outbox in SQLite; part of a store's first migration.
pub const SCHEMA: &str = "
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
    /// The outbox in `store`, whose schema holds [`SCHEMA`].
    pub fn new(store: Sqlite) -> Self {
        Self { store }
    }
}

fn row_from(row: &SqliteRow) -> Result<OutboxRow, sqlx::Error> {
    let id: String = row.try_get("id")?;
    let time: String = row.try_get("time")?;
    let decode = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    Ok(OutboxRow {
        place: Place::Row(row.try_get("seq")?),
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
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, OutboxError> {
        let done = sqlx::query(
            "insert into relay_lease (bucket, owner, until_ms) values (0, ?1, ?2)
             on conflict (bucket) do update set owner = ?1, until_ms = ?2 where owner = ?1 or until_ms < ?3",
        )
        .bind(owner)
        .bind(until.timestamp_millis())
        .bind(now.timestamp_millis())
        .execute(&self.store.writer)
        .await?;
        // One bucket: a file has one writer, and its relay is rarely another process.
        Ok(if done.rows_affected() == 1 && until >= now { vec![0] } else { Vec::new() })
    }

    async fn read(&self, _: &[Bucket], limit: usize) -> Result<Vec<OutboxRow>, OutboxError> {
        let rows = sqlx::query("select * from outbox order by seq limit ?")
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .fetch_all(&self.store.reader)
            .await?;
        Ok(rows.iter().map(row_from).collect::<Result<_, _>>()?)
    }

    async fn delete(&self, places: &[Place]) -> Result<(), OutboxError> {
        let seq = |place: Option<&Place>| if let Some(Place::Row(seq)) = place { Some(*seq) } else { None };
        let (Some(first), Some(last)) = (seq(places.first()), seq(places.last())) else { return Ok(()) };
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
