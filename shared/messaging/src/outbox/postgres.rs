//! The outbox as a table of a PostgreSQL store.

use async_trait::async_trait;
use contracts::{Timestamp, events::CloudEvent};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Bucket, Lease, OutboxError, OutboxRow, OutboxSource, Place, fair_share};
use crate::{
    keys::part_of,
    postgres::{Hearing, Postgres, answered, retried},
};

/// Buckets of an outbox: a few for each of the replicas that one would run. Fixed, since rows carry theirs.
pub const BUCKETS: Bucket = 16;

/// The notification channel that a commit rings.
const CHANNEL: &str = "outbox";

/// The tables of an outbox; part of a store's first migration. Rows are inserted and deleted, never updated, so that
/// change data capture can read the same table; vacuum comes early, since the table is all churn. The time is kept to
/// the microsecond.
pub const SCHEMA: &str = "
create table outbox (
    seq bigint generated always as identity primary key,
    bucket smallint not null,
    id uuid not null,
    topic text not null,
    key text not null,
    kind text not null,
    source text not null,
    time timestamptz not null,
    traceparent text,
    data bytea not null
) with (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0);
create table relay_leases (bucket smallint primary key, owner text not null, until_ms bigint not null);
insert into relay_leases select bucket, '', 0 from generate_series(0, 15) bucket;
create table relay_members (owner text primary key, until_ms bigint not null);
";

/// Adds events to the outbox and rings its relay, in the caller's transaction: one statement, whatever their number.
/// What the events are about must have been written before, so that its row's lock orders them within their key.
pub async fn insert_postgres(
    connection: &mut PgConnection,
    store: &Postgres,
    events: &[CloudEvent],
) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    let column = |of: fn(&CloudEvent) -> &str| events.iter().map(of).collect::<Vec<_>>();
    let buckets: Vec<i16> = events.iter().map(|event| part_of(&event.key, u32::from(BUCKETS)) as i16).collect();
    sqlx::query(
        "with added as (
             insert into outbox (bucket, id, topic, key, kind, source, time, traceparent, data)
             select bucket, id, topic, key, kind, source, time, traceparent, data
             from unnest($1::smallint[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
                         $8::text[], $9::bytea[])
                 with ordinality as t (bucket, id, topic, key, kind, source, time, traceparent, data, n)
             order by n)
         select pg_notify($10, '')",
    )
    .bind(buckets)
    .bind(events.iter().map(|event| event.id).collect::<Vec<Uuid>>())
    .bind(column(|event| &event.topic))
    .bind(column(|event| &event.key))
    .bind(column(|event| &event.kind))
    .bind(column(|event| &event.source))
    .bind(events.iter().map(|event| event.time).collect::<Vec<Timestamp>>())
    .bind(events.iter().map(|event| event.traceparent.as_deref()).collect::<Vec<Option<&str>>>())
    .bind(events.iter().map(|event| event.data.as_slice()).collect::<Vec<&[u8]>>())
    .bind(store.channel(CHANNEL))
    .execute(connection)
    .await?;
    Ok(())
}

/// The outbox of a PostgreSQL store.
pub struct PostgresOutbox {
    store: Postgres,
    hearing: Hearing,
}

impl PostgresOutbox {
    /// The outbox in `store`, whose schema holds [`SCHEMA`].
    pub fn new(store: Postgres) -> Self {
        let hearing = store.hearing(CHANNEL);
        Self { store, hearing }
    }

    async fn renew(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, sqlx::Error> {
        let mut transaction = self.store.pool.begin().await?;
        // One after the other: each sees what the one before it has left.
        let rows: Vec<(i16, String, i64)> =
            sqlx::query_as("select bucket, owner, until_ms from relay_leases order by bucket for update")
                .fetch_all(&mut *transaction)
                .await?;
        sqlx::query(
            "insert into relay_members (owner, until_ms) values ($1, $2)
             on conflict (owner) do update set until_ms = excluded.until_ms",
        )
        .bind(owner)
        .bind(until.timestamp_millis())
        .execute(&mut *transaction)
        .await?;
        sqlx::query("delete from relay_members where until_ms < $1")
            .bind(now.timestamp_millis())
            .execute(&mut *transaction)
            .await?;
        let (members,): (i64,) =
            sqlx::query_as("select count(*) from relay_members").fetch_one(&mut *transaction).await?;
        let mut leases = Vec::with_capacity(rows.len());
        for (bucket, owner, until_ms) in rows {
            let bucket = Bucket::try_from(bucket).map_err(|error| sqlx::Error::Decode(error.into()))?;
            let until = Timestamp::from_timestamp_millis(until_ms).unwrap_or(Timestamp::UNIX_EPOCH);
            leases.push(Lease { bucket, owner, until });
        }
        let leaves = until < now;
        let members = usize::try_from(members).unwrap_or(usize::MAX);
        let held = if leaves { Vec::new() } else { fair_share(&leases, owner, members, now) };
        sqlx::query(
            "update relay_leases set
                 owner = case when bucket = any($1) then $2 else '' end,
                 until_ms = case when bucket = any($1) then $3 else 0 end
             where bucket = any($1) or owner = $2",
        )
        .bind(signed(&held))
        .bind(owner)
        .bind(until.timestamp_millis())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(held)
    }
}

fn signed(buckets: &[Bucket]) -> Vec<i16> {
    buckets.iter().map(|bucket| *bucket as i16).collect()
}

fn row_from(row: &PgRow) -> Result<OutboxRow, sqlx::Error> {
    Ok(OutboxRow {
        place: Place::Row(row.try_get("seq")?),
        event: CloudEvent {
            id: row.try_get("id")?,
            topic: row.try_get("topic")?,
            key: row.try_get("key")?,
            kind: row.try_get("kind")?,
            source: row.try_get("source")?,
            time: row.try_get("time")?,
            traceparent: row.try_get("traceparent")?,
            data: row.try_get("data")?,
        },
    })
}

#[async_trait]
impl OutboxSource for PostgresOutbox {
    async fn lease(&self, owner: &str, now: Timestamp, until: Timestamp) -> Result<Vec<Bucket>, OutboxError> {
        Ok(retried(|| answered(self.renew(owner, now, until))).await?)
    }

    async fn read(&self, buckets: &[Bucket], limit: usize) -> Result<Vec<OutboxRow>, OutboxError> {
        // No cursor is kept: a sequence is drawn before the commit, so a lower number may still appear. Within a key it
        // cannot, since whoever writes next waits for the lock of the row that the events are about.
        let found = sqlx::query(
            "select seq, id, topic, key, kind, source, time, traceparent, data from outbox
             where bucket = any($1) order by seq limit $2",
        )
        .bind(signed(buckets))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.store.pool);
        let rows = answered(found).await?;
        Ok(rows.iter().map(row_from).collect::<Result<_, _>>()?)
    }

    async fn delete(&self, places: &[Place]) -> Result<(), OutboxError> {
        let seqs: Vec<i64> =
            places.iter().filter_map(|place| if let Place::Row(seq) = place { Some(*seq) } else { None }).collect();
        answered(sqlx::query("delete from outbox where seq = any($1)").bind(seqs).execute(&self.store.pool)).await?;
        Ok(())
    }

    async fn backlog(&self) -> Result<u64, OutboxError> {
        let counted = sqlx::query_as("select count(*) from outbox").fetch_one(&self.store.pool);
        let (count,): (i64,) = answered(counted).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn woken(&self) -> Result<(), OutboxError> {
        // All that was said meanwhile, and a connection made anew, is one reason to look.
        self.hearing.next().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_a_lease_for_every_bucket() {
        assert!(SCHEMA.contains(&format!("generate_series(0, {}) bucket", BUCKETS - 1)));
    }
}
