//! Flights in SQLite: a batch is one transaction with one statement for each table that it touches.
//!
//! What changes with every report (`fixes`) lies apart from what changes four times in a flight (`flights`): a second of
//! 24,000 flights then rewrites a few hundred pages instead of thousands. A flight's version is in `fixes`, and every
//! write of either half goes through it.

use std::collections::HashSet;

use async_trait::async_trait;
use contracts::{DeliveryId, Timestamp, events::CloudEvent};
use messaging::{
    outbox::{self, SqliteOutbox},
    sqlite::{self, Sqlite},
};
use serde::Serialize;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    Audience, Change, LogPage, LogPosition, Look, QuietFlight, SaveError, Store, Unavailable,
    rows::{self, AuditRow, FixJson, FlightJson, MissionJson},
};
use crate::domain::{Flight, MissionNote, Version};

const TABLES: &str = "
create table flights (
    delivery_id text primary key,
    attempt integer not null,
    fence integer not null,
    stage text not null,
    stages text not null,
    changed_us integer not null,
    closed_us integer,
    drone_id text,
    base_id text,
    customer_id text,
    home_region text,
    start_latitude real,
    start_longitude real,
    pickup_latitude real,
    pickup_longitude real,
    dropoff_latitude real,
    dropoff_longitude real,
    weight_kg real,
    confirmation text,
    deadline_us integer,
    speed_mps real,
    opened_us integer
) without rowid;
create index open_flights_of_base on flights (base_id) where closed_us is null;
create index open_flights_of_drone on flights (drone_id) where closed_us is null;
create index open_flights on flights (delivery_id, changed_us) where closed_us is null;
create index closed_flights on flights (closed_us) where closed_us is not null;

create table fixes (
    delivery_id text primary key,
    version integer not null,
    latitude real,
    longitude real,
    battery real,
    at_us integer,
    sequence integer,
    sampled_us integer
) without rowid;

create table mission_log (
    number integer primary key autoincrement,
    delivery_id text not null,
    attempt integer not null,
    drone_id text not null,
    base_id text not null,
    assigned integer not null,
    logged_us integer not null
);
";

const MIGRATIONS: &[&str] = &[outbox::SQLITE_SCHEMA, TABLES];

/// Moves flights that are still at the version before; names those that were.
const UPDATE_FIXES: &str = "
update fixes set version = new.version, latitude = new.latitude, longitude = new.longitude, battery = new.battery,
    at_us = new.at_us, sequence = new.sequence, sampled_us = new.sampled_us
from (
    select value ->> 0 as id, value ->> 1 as version, value ->> 2 as latitude, value ->> 3 as longitude,
        value ->> 4 as battery, value ->> 5 as at_us, value ->> 6 as sequence, value ->> 7 as sampled_us,
        value ->> 8 as replaces
    from json_each(?)
) as new
where fixes.delivery_id = new.id and fixes.version = new.replaces
returning delivery_id";

/// Flights by id. The cross joins keep the order: what is asked for leads, and the rest is looked up.
const LOAD: &str = "
select flights.*, fixes.* from json_each(?) as asked
cross join flights on flights.delivery_id = asked.value
cross join fixes on fixes.delivery_id = asked.value";

/// The embedded store of flights.
#[derive(Debug, Clone)]
pub(crate) struct SqliteStore {
    db: Sqlite,
}

impl SqliteStore {
    /// Opens (and makes) the file.
    pub(crate) async fn open(path: &str) -> Result<Self, sqlx::Error> {
        Ok(Self { db: sqlite::open(path, MIGRATIONS).await? })
    }

    /// The outbox in the same file.
    pub(crate) fn outbox(&self) -> SqliteOutbox {
        SqliteOutbox::new(self.db.clone())
    }

    async fn write(&self, changes: &[Change], now: Timestamp) -> Result<Vec<Result<(), SaveError>>, sqlx::Error> {
        let mut transaction = self.db.writer.begin_with("BEGIN IMMEDIATE").await?;
        let mut won = HashSet::with_capacity(changes.len());
        let (fresh, known): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.replaces == Version::default());
        insert_fixes(&mut transaction, &fresh, &mut won).await?;
        update_fixes(&mut transaction, &known, &mut won).await?;
        let winners = || changes.iter().filter(|change| won.contains(&change.flight.delivery_id));
        let whole: Vec<_> =
            winners().filter(|change| change.whole).map(|change| FlightJson::of(&change.flight)).collect();
        put_flights(&mut transaction, &whole).await?;
        let missions: Vec<_> =
            winners().flat_map(|change| &change.missions).map(|note| MissionJson::of(note, now)).collect();
        log_missions(&mut transaction, &missions).await?;
        let events: Vec<CloudEvent> = winners().flat_map(|change| change.events.iter().cloned()).collect();
        outbox::insert_sqlite(&mut transaction, &events).await?;
        transaction.commit().await?;
        let outcome = |change: &Change| {
            if won.contains(&change.flight.delivery_id) { Ok(()) } else { Err(SaveError::Conflict) }
        };
        Ok(changes.iter().map(outcome).collect())
    }
}

fn json(rows: &impl Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

fn fixes(changes: &[&Change]) -> Result<String, sqlx::Error> {
    json(&changes.iter().map(|change| FixJson::of(change)).collect::<Vec<_>>())
}

fn note_winners(rows: &[SqliteRow], won: &mut HashSet<DeliveryId>) -> Result<(), sqlx::Error> {
    for row in rows {
        let id: DeliveryId =
            row.try_get::<&str, _>(0)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        won.insert(id);
    }
    Ok(())
}

async fn insert_fixes(
    connection: &mut SqliteConnection,
    changes: &[&Change],
    won: &mut HashSet<DeliveryId>,
) -> Result<(), sqlx::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let rows = sqlx::query(
        "insert into fixes (delivery_id, version, latitude, longitude, battery, at_us, sequence, sampled_us)
         select value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
         from json_each(?) where true
         on conflict (delivery_id) do nothing returning delivery_id",
    )
    .bind(fixes(changes)?)
    .fetch_all(connection)
    .await?;
    note_winners(&rows, won)
}

async fn update_fixes(
    connection: &mut SqliteConnection,
    changes: &[&Change],
    won: &mut HashSet<DeliveryId>,
) -> Result<(), sqlx::Error> {
    if changes.is_empty() {
        return Ok(());
    }
    let rows = sqlx::query(UPDATE_FIXES).bind(fixes(changes)?).fetch_all(connection).await?;
    note_winners(&rows, won)
}

async fn put_flights(connection: &mut SqliteConnection, flights: &[FlightJson<'_>]) -> Result<(), sqlx::Error> {
    if flights.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert or replace into flights (delivery_id, attempt, fence, stage, stages, changed_us, closed_us, drone_id,
                base_id, customer_id, home_region, start_latitude, start_longitude, pickup_latitude, pickup_longitude,
                dropoff_latitude, dropoff_longitude, weight_kg, confirmation, deadline_us, speed_mps, opened_us)
         select value ->> 'delivery_id', value ->> 'attempt', value ->> 'fence', value ->> 'stage', value -> 'stages',
                value ->> 'changed_us', value ->> 'closed_us', value ->> 'drone_id', value ->> 'base_id',
                value ->> 'customer_id', value ->> 'home_region', value ->> 'start_latitude',
                value ->> 'start_longitude', value ->> 'pickup_latitude', value ->> 'pickup_longitude',
                value ->> 'dropoff_latitude', value ->> 'dropoff_longitude', value ->> 'weight_kg',
                value ->> 'confirmation', value ->> 'deadline_us', value ->> 'speed_mps', value ->> 'opened_us'
         from json_each(?)",
    )
    .bind(json(&flights)?)
    .execute(connection)
    .await?;
    Ok(())
}

async fn log_missions(connection: &mut SqliteConnection, missions: &[MissionJson<'_>]) -> Result<(), sqlx::Error> {
    if missions.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into mission_log (delivery_id, attempt, drone_id, base_id, assigned, logged_us)
         select value ->> 'delivery_id', value ->> 'attempt', value ->> 'drone_id', value ->> 'base_id',
                value ->> 'assigned', value ->> 'logged_us'
         from json_each(?) order by key",
    )
    .bind(json(&missions)?)
    .execute(connection)
    .await?;
    Ok(())
}

fn read<T>(rows: &[SqliteRow], one: fn(&SqliteRow) -> Result<T, sqlx::Error>) -> Result<Vec<T>, Unavailable> {
    Ok(rows.iter().map(one).collect::<Result<_, _>>()?)
}

#[async_trait]
impl Store for SqliteStore {
    async fn ping(&self) -> Result<(), Unavailable> {
        sqlx::query("select 1").execute(&self.db.reader).await?;
        Ok(())
    }

    async fn load(&self, ids: &[DeliveryId]) -> Result<Vec<Flight>, Unavailable> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(LOAD).bind(json(&ids)?).fetch_all(&self.db.reader).await?;
        read(&rows, rows::flight)
    }

    async fn moved(&self, known: &[(DeliveryId, Version)]) -> Result<Vec<Flight>, Unavailable> {
        if known.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "select flights.*, fixes.* from json_each(?) as asked
             cross join fixes on fixes.delivery_id = asked.value ->> 0 and fixes.version <> asked.value ->> 1
             cross join flights on flights.delivery_id = asked.value ->> 0",
        )
        .bind(json(&known)?)
        .fetch_all(&self.db.reader)
        .await?;
        read(&rows, rows::flight)
    }

    async fn save(&self, changes: &[Change], now: Timestamp) -> Vec<Result<(), SaveError>> {
        if changes.is_empty() {
            return Vec::new();
        }
        match self.write(changes, now).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let unavailable = Unavailable::from(error);
                changes.iter().map(|_| Err(unavailable.clone().into())).collect()
            }
        }
    }

    async fn missions(&self, audience: &Audience) -> Result<Vec<Flight>, Unavailable> {
        let query = match audience {
            Audience::Base(base_id) => sqlx::query(
                "select * from flights join fixes using (delivery_id) where base_id = ? and closed_us is null",
            )
            .bind(base_id.as_str()),
            Audience::Drone(drone_id) => sqlx::query(
                "select * from flights join fixes using (delivery_id) where drone_id = ? and closed_us is null",
            )
            .bind(drone_id.to_string()),
        };
        read(&query.fetch_all(&self.db.reader).await?, rows::flight)
    }

    async fn mission_log_end(&self) -> Result<LogPosition, Unavailable> {
        // Not the largest number in the table: the log is trimmed, its count goes on.
        let (end,): (i64,) =
            sqlx::query_as("select coalesce(max(seq), 0) from sqlite_sequence where name = 'mission_log'")
                .fetch_one(&self.db.reader)
                .await?;
        Ok(LogPosition(vec![u64::try_from(end).unwrap_or(0)]))
    }

    async fn mission_log(&self, after: &LogPosition, limit: u32, _: Look) -> Result<LogPage, Unavailable> {
        let after = after.0.first().copied().unwrap_or(0);
        // Before the lines: one that comes between the two looks is no gap.
        let position = self.mission_log_end().await?;
        let rows = sqlx::query("select * from mission_log where number > ? order by number limit ?")
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(&self.db.reader)
            .await?;
        let (numbers, lines): (Vec<u64>, Vec<MissionNote>) = read(&rows, rows::logged_mission)?.into_iter().unzip();
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            return Ok(LogPage { lines, gap: position.0 != [after], position, more: false });
        };
        let position = LogPosition(vec![*last]);
        Ok(LogPage { more: lines.len() == limit as usize, gap: *first != after + 1, lines, position })
    }

    async fn quiet(
        &self,
        changed_before: Timestamp,
        after: Option<DeliveryId>,
        limit: u32,
    ) -> Result<Vec<QuietFlight>, Unavailable> {
        let rows = sqlx::query(
            "select delivery_id, attempt, changed_us from flights indexed by open_flights
             where closed_us is null and changed_us < ? and delivery_id > ? order by delivery_id limit ?",
        )
        .bind(changed_before.timestamp_micros())
        .bind(after.map(|id| id.key()).unwrap_or_default())
        .bind(limit)
        .fetch_all(&self.db.reader)
        .await?;
        read(&rows, rows::quiet_flight)
    }

    async fn forget(&self, closed_before: Timestamp, limit: u32) -> Result<u64, Unavailable> {
        let mut transaction = self.db.writer.begin_with("BEGIN IMMEDIATE").await?;
        let gone: Vec<(String,)> = sqlx::query_as(
            "delete from flights where delivery_id in
                 (select delivery_id from flights where closed_us < ? order by closed_us limit ?)
             returning delivery_id",
        )
        .bind(closed_before.timestamp_micros())
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await?;
        sqlx::query("delete from fixes where delivery_id in (select value from json_each(?))")
            .bind(json(&gone.iter().map(|(id,)| id).collect::<Vec<_>>())?)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(gone.len() as u64)
    }

    async fn trim_mission_log(&self, logged_before: Timestamp, limit: u32) -> Result<u64, Unavailable> {
        let done = sqlx::query(
            "delete from mission_log where number in
                 (select number from mission_log where logged_us < ? order by number limit ?)",
        )
        .bind(logged_before.timestamp_micros())
        .bind(limit)
        .execute(&self.db.writer)
        .await?;
        Ok(done.rows_affected())
    }
}

/// Every flight of a file, read for the audit.
pub(crate) async fn audit_rows(path: &str) -> Result<Vec<AuditRow>, sqlx::Error> {
    let file = sqlite::open_read_only(path).await?;
    let rows = sqlx::query("select delivery_id, attempt, closed_us, stages from flights order by delivery_id")
        .fetch_all(&file)
        .await?;
    let flights = rows.iter().map(rows::audit_row).collect();
    file.close().await;
    flights
}

#[cfg(test)]
mod tests {
    use contracts::commands::{OpenOutcome, ReportOutcome};

    use super::*;
    use crate::fixtures::{Bench, open, report, sqlite};

    async fn plan(store: &SqliteStore, sql: &'static str) -> String {
        let sql = sqlx::AssertSqlSafe(format!("explain query plan {sql}"));
        let rows = sqlx::query(sql).fetch_all(&store.db.reader).await.unwrap();
        rows.iter().map(|row| row.get::<String, _>("detail")).collect::<Vec<_>>().join("; ")
    }

    #[tokio::test]
    async fn a_batch_looks_its_rows_up_and_never_scans_the_flights() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("t.db").to_str().unwrap()).await.unwrap();
        let update = plan(&store, UPDATE_FIXES).await;
        assert!(update.contains("SEARCH fixes USING PRIMARY KEY") && !update.contains("SCAN fixes"), "{update}");
        let load = plan(&store, LOAD).await;
        assert!(load.contains("SEARCH flights USING PRIMARY KEY") && !load.contains("SCAN f"), "{load}");
    }

    #[tokio::test]
    async fn what_could_not_be_saved_is_answered_so_and_counts_when_it_is_sent_again() {
        let (folder, opened) = sqlite().await;
        let bench = Bench::over(&opened);
        assert_eq!(bench.open(open(1, 1, 1)).await, OpenOutcome::Opened);
        assert_eq!(bench.report(vec![report(1, 1, None)]).await, [ReportOutcome::Accepted]);
        let path = folder.path().join("tracking.db");
        let other = sqlite::open(path.to_str().unwrap(), MIGRATIONS).await.unwrap();
        let rename = |sql: &'static str| sqlx::query(sql).execute(&other.writer);
        rename("alter table outbox rename to away").await.unwrap();
        let reports = vec![report(1, 6, None)];
        assert_eq!(bench.report(reports.clone()).await, [ReportOutcome::Unavailable]);
        assert_eq!(bench.open(open(2, 1, 1)).await, OpenOutcome::Opened, "needs no outbox");
        rename("alter table away rename to outbox").await.unwrap();
        assert_eq!(bench.stored(1).await.unwrap().last.unwrap().sequence, 1);
        assert_eq!(bench.report(reports).await, [ReportOutcome::Accepted]);
        assert_eq!(bench.events("PositionSampled").await.len(), 2);
    }
}
