//! The embedded log's file: batches of records, committed offsets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use contracts::{
    Timestamp,
    events::{CloudEvent, PARTITIONS},
};
use serde::{Deserialize, Serialize};
use sqlx::{QueryBuilder, Sqlite as Db, SqliteConnection};
use uuid::Uuid;

use super::state::{Loaded, State};
use crate::{
    LogError, Offset,
    dead_letters::{REDRIVE_SUFFIX, TOPIC_SUFFIX},
    keys::part_of,
    sqlite::{self, Sqlite},
};

const MIGRATIONS: &[&str] = &[
    "
create table topics (id integer primary key, name text not null unique, uid text not null);
create table batches (
    topic integer not null,
    partition integer not null,
    base integer not null,
    count integer not null,
    at_ms integer not null,
    records blob not null,
    primary key (topic, partition, base)
);
create index batches_by_age on batches (at_ms);
-- Survives retention: an emptied partition goes on counting where it was.
create table ends (topic integer not null, partition integer not null, next integer not null,
    primary key (topic, partition)) without rowid;
create table committed (grp text not null, topic integer not null, partition integer not null, next integer not null,
    primary key (grp, topic, partition)) without rowid;
",
    "
-- A group has a row for each of a topic's eight partitions from its joining on, so that retention knows what it wants.
with recursive partitions (number) as (select 0 union all select number + 1 from partitions where number < 7)
insert or ignore into committed (grp, topic, partition, next)
    select distinct grp, topic, number, 0 from committed, partitions;
create index committed_by_partition on committed (topic, partition, next);
",
];

/// One durable write.
pub(super) enum Write {
    Publish(Vec<Arc<CloudEvent>>),
    Commit { group: String, next: Vec<Offset> },
    Join { group: String, topics: Vec<String> },
    EnsureTopic(String),
}

pub(super) type WriteResult = Result<(), LogError>;

#[derive(Clone)]
pub(super) struct Storage {
    store: Sqlite,
}

/// A record as it lies in a batch; topic and offset are the batch's.
#[derive(Deserialize)]
struct Stored {
    id: Uuid,
    key: String,
    kind: String,
    source: String,
    time_us: i64,
    traceparent: Option<String>,
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

/// The same as [`Stored`], field for field, on its way to the disk: borrowed, since data can be large.
#[derive(Serialize)]
struct Storing<'a> {
    id: Uuid,
    key: &'a str,
    kind: &'a str,
    source: &'a str,
    time_us: i64,
    traceparent: Option<&'a str>,
    #[serde(with = "serde_bytes")]
    data: &'a [u8],
}

impl<'a> Storing<'a> {
    fn new(event: &'a CloudEvent) -> Self {
        Self {
            id: event.id,
            key: &event.key,
            kind: &event.kind,
            source: &event.source,
            time_us: event.time.timestamp_micros(),
            traceparent: event.traceparent.as_deref(),
            data: &event.data,
        }
    }
}

impl Stored {
    fn event(self, topic: &str) -> CloudEvent {
        CloudEvent {
            id: self.id,
            topic: topic.to_owned(),
            key: self.key,
            kind: self.kind,
            source: self.source,
            time: Timestamp::from_timestamp_micros(self.time_us).unwrap_or_default(),
            traceparent: self.traceparent,
            data: self.data,
        }
    }
}

/// The partition of a key.
pub(super) fn partition_of(key: &str) -> u32 {
    part_of(key, PARTITIONS)
}

type Appends = BTreeMap<(String, u32), Vec<Arc<CloudEvent>>>;

/// Does all writes in one transaction; on failure none of them happened.
pub(super) async fn write(storage: &Storage, state: &State, writes: Vec<Write>, now: Timestamp) -> Vec<WriteResult> {
    match storage.try_write(state, &writes, now).await {
        Ok(()) => writes.iter().map(|_| Ok(())).collect(),
        Err(error) => {
            let cause = Arc::new(error);
            writes.iter().map(|_| Err(LogError::unavailable(Shared(cause.clone())))).collect()
        }
    }
}

/// One cause of many failures.
#[derive(Debug, Clone)]
struct Shared(Arc<sqlx::Error>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the log's file could not be written")
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

impl Storage {
    pub(super) async fn open(path: &str) -> Result<Self, sqlx::Error> {
        Ok(Self { store: sqlite::open(path, MIGRATIONS).await? })
    }

    pub(super) async fn ping(&self) -> WriteResult {
        let asked = sqlx::query("select 1 from topics limit 1").fetch_optional(&self.store.reader).await;
        asked.map(|_| ()).map_err(LogError::unavailable)
    }

    pub(super) async fn load(&self) -> Result<Loaded, sqlx::Error> {
        // Behind the last commit of a log that was dropped just now, which may still be under way.
        let mut transaction = self.store.writer.begin_with("BEGIN IMMEDIATE").await?;
        let topics: Vec<(String, String, i64)> =
            sqlx::query_as("select name, uid, id from topics").fetch_all(&mut *transaction).await?;
        let ends: Vec<(i64, u32, i64, i64)> = sqlx::query_as(
            "select e.topic, e.partition,
                coalesce((select min(base) from batches b where b.topic = e.topic and b.partition = e.partition),
                    e.next), e.next
             from ends e",
        )
        .fetch_all(&mut *transaction)
        .await?;
        let committed: Vec<(String, i64, u32, i64)> =
            sqlx::query_as("select grp, topic, partition, next from committed").fetch_all(&mut *transaction).await?;
        transaction.rollback().await?;
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Loaded {
            topics,
            ends: ends.into_iter().map(|(t, p, start, end)| (t, p, unsigned(start), unsigned(end))).collect(),
            committed: committed.into_iter().map(|(g, t, p, next)| (g, t, p, unsigned(next))).collect(),
        })
    }

    async fn try_write(&self, state: &State, writes: &[Write], now: Timestamp) -> Result<(), sqlx::Error> {
        let Plan { appends, commits, joins, missing } = plan(state, writes);
        if appends.is_empty() && commits.is_empty() && joins.is_empty() && missing.is_empty() {
            return Ok(());
        }
        let mut transaction = self.store.writer.begin_with("BEGIN IMMEDIATE").await?;
        let mut made = Vec::new();
        for name in missing {
            // Different for every making of the topic, since time goes on.
            let uid = format!("{:x}", now.timestamp_micros());
            let done = sqlx::query("insert into topics (name, uid) values (?, ?)")
                .bind(&name)
                .bind(&uid)
                .execute(&mut *transaction)
                .await?;
            made.push((name, uid, done.last_insert_rowid()));
        }
        let storage_id = |name: &str| {
            let fresh = made.iter().find(|(made, _, _)| made == name).map(|(_, _, id)| *id);
            fresh.or_else(|| state.storage_id(name)).unwrap_or(0)
        };
        insert_batches(&mut transaction, state, &appends, &storage_id, now).await?;
        insert_joins(&mut transaction, &joins, &storage_id).await?;
        upsert_commits(&mut transaction, &commits, &storage_id).await?;
        transaction.commit().await?;
        for (name, uid, id) in made {
            state.add_topic(&name, uid, id);
        }
        for ((topic, partition), records) in &appends {
            state.append(topic, *partition, records);
        }
        for (group, topic) in joins {
            state.know(&group, &topic);
        }
        for ((group, topic, partition), next) in commits {
            state.set_committed(&group, (topic.as_str().into(), partition), next);
        }
        Ok(())
    }

    /// The records from `offset` on, at most about `max`: whole batches are read.
    pub(super) async fn read(
        &self,
        state: &State,
        topic: &str,
        partition: u32,
        offset: u64,
        max: usize,
    ) -> Result<Vec<(u64, Arc<CloudEvent>)>, sqlx::Error> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "select base, records from batches
             where topic = ?1 and partition = ?2 and base + count > ?3 and base >= coalesce(
                (select max(base) from batches where topic = ?1 and partition = ?2 and base <= ?3), 0)
             order by base limit ?4",
        )
        .bind(state.storage_id(topic))
        .bind(partition)
        .bind(i64::try_from(offset).unwrap_or(i64::MAX))
        .bind(i64::try_from(max.min(64)).unwrap_or(64))
        .fetch_all(&self.store.reader)
        .await?;
        let mut records = Vec::new();
        for (base, blob) in rows {
            if records.len() >= max {
                break;
            }
            let batch: Vec<Stored> =
                postcard::from_bytes(&blob).map_err(|error| sqlx::Error::Decode(error.to_string().into()))?;
            for (number, stored) in (u64::try_from(base).unwrap_or(0)..).zip(batch) {
                if number >= offset && records.len() < max {
                    records.push((number, Arc::new(stored.event(topic))));
                }
            }
        }
        Ok(records)
    }

    /// Drops the batches that were written before `horizon` and that every group of their topic has committed. Dead
    /// letters also wait for their redrive, whether or not it has ever been asked for.
    pub(super) async fn drop_before(&self, horizon: Timestamp, state: &State) -> Result<(), sqlx::Error> {
        let mut transaction = self.store.writer.begin_with("BEGIN IMMEDIATE").await?;
        let dropped: Vec<(i64, u32, i64)> = sqlx::query_as(
            "delete from batches as b
             where at_ms < ?1
             and not exists (select 1 from committed c
                where c.topic = b.topic and c.partition = b.partition and c.next < b.base + b.count)
             and not exists (select 1 from topics t
                where t.id = b.topic and t.name like '%' || ?2
                and not exists (select 1 from committed c
                    where c.grp = substr(t.name, 1, length(t.name) - length(?2)) || ?3
                    and c.topic = b.topic and c.partition = b.partition))
             returning topic, partition, base + count",
        )
        .bind(horizon.timestamp_millis())
        .bind(TOPIC_SUFFIX)
        .bind(REDRIVE_SUFFIX)
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        for (topic, partition, next) in dropped {
            state.forget_before(topic, partition, u64::try_from(next).unwrap_or(0));
        }
        Ok(())
    }
}

type Commits = BTreeMap<(String, String, u32), u64>;

/// What a transaction has to do.
struct Plan {
    appends: Appends,
    commits: Commits,
    /// Groups and the topics that they join for the first time.
    joins: BTreeSet<(String, String)>,
    /// Topics that have to be made.
    missing: Vec<String>,
}

fn plan(state: &State, writes: &[Write]) -> Plan {
    let (mut appends, mut commits, mut joins, mut missing) =
        (Appends::new(), Commits::new(), BTreeSet::new(), Vec::new());
    let mut need = |topic: &str| {
        if state.storage_id(topic).is_none() && !missing.iter().any(|name| name == topic) {
            missing.push(topic.to_owned());
        }
    };
    for write in writes {
        match write {
            Write::EnsureTopic(topic) => need(topic),
            Write::Publish(events) => {
                for event in events {
                    need(&event.topic);
                    let at = (event.topic.clone(), partition_of(&event.key));
                    appends.entry(at).or_default().push(event.clone());
                }
            }
            Write::Join { group, topics } => {
                for topic in topics {
                    need(topic);
                    if !state.knows(group, topic) {
                        joins.insert((group.clone(), topic.clone()));
                    }
                }
            }
            Write::Commit { group, next } => {
                for offset in next {
                    commits.insert((group.clone(), offset.topic.clone(), offset.partition), offset.offset);
                }
            }
        }
    }
    Plan { appends, commits, joins, missing }
}

async fn insert_batches(
    connection: &mut SqliteConnection,
    state: &State,
    appends: &Appends,
    storage_id: &impl Fn(&str) -> i64,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::with_capacity(appends.len());
    for ((topic, partition), events) in appends {
        let stored: Vec<_> = events.iter().map(|event| Storing::new(event)).collect();
        let blob = postcard::to_stdvec(&stored).map_err(|error| sqlx::Error::Encode(error.to_string().into()))?;
        let base = i64::try_from(state.end(topic, *partition)).unwrap_or(i64::MAX);
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        rows.push((storage_id(topic), *partition, base, count, blob));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let ends: Vec<_> =
        rows.iter().map(|(topic, partition, base, count, _)| (*topic, *partition, base + count)).collect();
    let mut insert = QueryBuilder::<Db>::new("insert into batches (topic, partition, base, count, at_ms, records) ");
    insert.push_values(rows, |mut row, (topic, partition, base, count, blob)| {
        row.push_bind(topic).push_bind(partition).push_bind(base).push_bind(count);
        row.push_bind(now.timestamp_millis()).push_bind(blob);
    });
    insert.build().execute(&mut *connection).await?;
    let mut upsert = QueryBuilder::<Db>::new("insert into ends (topic, partition, next) ");
    upsert.push_values(ends, |mut row, (topic, partition, next)| {
        row.push_bind(topic).push_bind(partition).push_bind(next);
    });
    upsert.push(" on conflict (topic, partition) do update set next = excluded.next");
    upsert.build().execute(&mut *connection).await?;
    Ok(())
}

async fn insert_joins(
    connection: &mut SqliteConnection,
    joins: &BTreeSet<(String, String)>,
    storage_id: &impl Fn(&str) -> i64,
) -> Result<(), sqlx::Error> {
    if joins.is_empty() {
        return Ok(());
    }
    let rows = joins.iter().flat_map(|join| (0..PARTITIONS).map(move |partition| (join, partition)));
    let mut insert = QueryBuilder::<Db>::new("insert into committed (grp, topic, partition, next) ");
    insert.push_values(rows, |mut row, ((group, topic), partition)| {
        row.push_bind(group).push_bind(storage_id(topic)).push_bind(partition).push_bind(0);
    });
    insert.push(" on conflict (grp, topic, partition) do nothing");
    insert.build().execute(&mut *connection).await?;
    Ok(())
}

async fn upsert_commits(
    connection: &mut SqliteConnection,
    commits: &Commits,
    storage_id: &impl Fn(&str) -> i64,
) -> Result<(), sqlx::Error> {
    if commits.is_empty() {
        return Ok(());
    }
    let mut upsert = QueryBuilder::<Db>::new("insert into committed (grp, topic, partition, next) ");
    upsert.push_values(commits, |mut row, ((group, topic, partition), next)| {
        row.push_bind(group).push_bind(storage_id(topic)).push_bind(*partition);
        row.push_bind(i64::try_from(*next).unwrap_or(i64::MAX));
    });
    upsert.push(" on conflict (grp, topic, partition) do update set next = excluded.next");
    upsert.build().execute(&mut *connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_of_the_first_version_gets_the_rows_that_its_groups_lack() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.db").display().to_string();
        let old = sqlite::open(&path, &MIGRATIONS[..1]).await.unwrap();
        sqlx::raw_sql("insert into topics values (1, 'a', 'x'); insert into committed values ('group', 1, 3, 7);")
            .execute(&old.writer)
            .await
            .unwrap();
        let mut committed = Storage::open(&path).await.unwrap().load().await.unwrap().committed;
        committed.sort();
        let expected = (0..PARTITIONS).map(|number| ("group".to_owned(), 1, number, if number == 3 { 7 } else { 0 }));
        assert_eq!(committed, expected.collect::<Vec<_>>());
    }
}
