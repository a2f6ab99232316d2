//! Packages in SQLite: small hot rows apart from their bulky details, a batch in one transaction.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    sync::Arc,
};

use async_trait::async_trait;
use chrono::SubsecRound;
use contracts::{
    Clock, DeliveryId, Timestamp,
    api::{PackageSize, PackageSpec},
    commands::PackageOutcome,
    events::{CloudEvent, PackageRecord, PackageState},
};
use messaging::{
    outbox::{self, OutboxSignal, SqliteOutbox},
    sqlite::{self, Sqlite},
};
use serde::Serialize;
use sqlx::{FromRow, SqliteConnection};

use super::{Applied, AuditPackage, Opened, Store, StoreError};
use crate::domain::{self, Command, Package};

const MIGRATIONS: &[&str] = &[
    outbox::SQLITE_SCHEMA,
    "
-- What every command reads and writes.
create table packages (
    delivery_id text primary key,
    customer_id text not null,
    home_region text not null,
    attempt integer not null,
    fence integer not null,
    state text not null,
    size text not null,
    weight_kg real not null,
    registered_us integer, -- null: a tombstone
    updated_us integer not null
) without rowid;
-- Only the ended: registering does not touch it.
create index packages_ended on packages (updated_us) where state <> 'Registered';
-- What is written once and read when somebody asks.
create table package_details (
    delivery_id text primary key,
    tag text,
    description text
) without rowid;
",
];

pub(super) async fn open(path: &str, clock: Arc<dyn Clock>) -> Result<Opened, StoreError> {
    let sqlite = sqlite::open(path, MIGRATIONS).await?;
    let signal = OutboxSignal::default();
    let store = Arc::new(SqliteStore { sqlite: sqlite.clone(), clock, signal: signal.clone() });
    Ok(Opened { store, outbox: Arc::new(SqliteOutbox::new(sqlite)), signal, writers: 1 })
}

struct SqliteStore {
    sqlite: Sqlite,
    clock: Arc<dyn Clock>,
    signal: OutboxSignal,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn apply(&self, commands: &[Command]) -> Vec<Applied> {
        match self.try_apply(commands).await {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(error) => {
                let error = StoreError::from(error);
                commands.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }

    async fn find(&self, delivery_id: DeliveryId) -> Result<Option<PackageRecord>, StoreError> {
        let row: Option<Row> = sqlx::query_as(
            "select p.*, d.tag, d.description from packages p left join package_details d using (delivery_id)
             where p.delivery_id = ?",
        )
        .bind(delivery_id.to_string())
        .fetch_optional(&self.sqlite.reader)
        .await?;
        Ok(row.map(Package::try_from).transpose()?.map(|package| package.record()))
    }

    async fn sweep(&self, ended_before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let mut transaction = self.sqlite.writer.begin_with("BEGIN IMMEDIATE").await?;
        let swept: Vec<String> = sqlx::query_scalar(
            "delete from packages where delivery_id in (
                select delivery_id from packages
                where state <> 'Registered' and updated_us < ? and delivery_id not in (select key from outbox)
                order by updated_us limit ?)
             returning delivery_id",
        )
        .bind(ended_before.timestamp_micros())
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await?;
        sqlx::query("delete from package_details where delivery_id in (select value from json_each(?))")
            .bind(json(&swept)?)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(swept.len() as u64)
    }

    async fn ready(&self) -> Result<(), StoreError> {
        sqlx::query("select 1 from packages limit 1").fetch_optional(&self.sqlite.reader).await?;
        Ok(())
    }
}

impl SqliteStore {
    async fn try_apply(&self, commands: &[Command]) -> Result<Vec<PackageOutcome>, sqlx::Error> {
        let mut transaction = self.sqlite.writer.begin_with("BEGIN IMMEDIATE").await?;
        let mut packages = load(&mut transaction, commands).await?;
        let known: HashSet<DeliveryId> = packages.keys().copied().collect();
        // As precise as the row: what is read back equals what was told.
        let now = self.clock.now().trunc_subsecs(6);
        let decided = domain::decide(&mut packages, commands, now, || self.clock.new_id());
        if decided.changed.is_empty() {
            transaction.rollback().await?;
            return Ok(decided.outcomes);
        }
        let changed: Vec<&Package> = decided.changed.iter().filter_map(|id| packages.get(id)).collect();
        upsert_packages(&mut transaction, &changed).await?;
        insert_details(&mut transaction, &changed, &known).await?;
        let events: Vec<CloudEvent> = decided.events.iter().map(contracts::events::Event::encode).collect();
        outbox::insert_sqlite(&mut transaction, &events).await?;
        transaction.commit().await?;
        if !events.is_empty() {
            self.signal.wake();
        }
        Ok(decided.outcomes)
    }
}

async fn load(
    connection: &mut SqliteConnection,
    commands: &[Command],
) -> Result<HashMap<DeliveryId, Package>, sqlx::Error> {
    let ids: Vec<DeliveryId> = commands.iter().map(Command::delivery_id).collect();
    let rows: Vec<Row> = sqlx::query_as(
        "select p.*, d.tag, d.description from json_each(?) ids
         cross join packages p on p.delivery_id = ids.value
         left join package_details d on d.delivery_id = p.delivery_id",
    )
    .bind(json(&ids)?)
    .fetch_all(connection)
    .await?;
    let mut packages = HashMap::with_capacity(commands.len());
    for row in rows {
        let package = Package::try_from(row)?;
        packages.insert(package.delivery_id, package);
    }
    Ok(packages)
}

async fn upsert_packages(connection: &mut SqliteConnection, packages: &[&Package]) -> Result<(), sqlx::Error> {
    let rows: Vec<HotJson<'_>> = packages.iter().map(|package| HotJson::new(package)).collect();
    sqlx::query(
        "with rows as materialized (select value as v from json_each(?))
         insert into packages (delivery_id, customer_id, home_region, attempt, fence, state, size, weight_kg,
            registered_us, updated_us)
         select v ->> 'delivery_id', v ->> 'customer_id', v ->> 'home_region', v ->> 'attempt',
            v ->> 'fence', v ->> 'state', v ->> 'size', v ->> 'weight_kg', v ->> 'registered_us',
            v ->> 'updated_us'
         from rows where true
         on conflict (delivery_id) do update set attempt = excluded.attempt, fence = excluded.fence,
            state = excluded.state, updated_us = excluded.updated_us",
    )
    .bind(json(&rows)?)
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_details(
    connection: &mut SqliteConnection,
    packages: &[&Package],
    known: &HashSet<DeliveryId>,
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for package in packages.iter().filter(|package| !known.contains(&package.delivery_id)) {
        let (tag, description) = (package.package.tag.as_deref(), package.package.description.as_deref());
        if tag.is_some() || description.is_some() {
            rows.push(DetailsJson { delivery_id: package.delivery_id, tag, description });
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into package_details (delivery_id, tag, description)
         select value ->> 'delivery_id', value ->> 'tag', value ->> 'description' from json_each(?)",
    )
    .bind(json(&rows)?)
    .execute(connection)
    .await?;
    Ok(())
}

#[derive(Serialize)]
struct HotJson<'a> {
    delivery_id: DeliveryId,
    customer_id: &'a str,
    home_region: &'a str,
    attempt: u32,
    fence: i64,
    state: &'static str,
    size: &'static str,
    weight_kg: f64,
    registered_us: Option<i64>,
    updated_us: i64,
}

impl<'a> HotJson<'a> {
    fn new(package: &'a Package) -> Self {
        Self {
            delivery_id: package.delivery_id,
            customer_id: package.customer_id.as_str(),
            home_region: package.home_region.as_str(),
            attempt: package.attempt,
            fence: i64::try_from(package.fence).unwrap_or(i64::MAX),
            state: package.state.as_str(),
            size: package.package.size.as_str(),
            weight_kg: package.package.weight_kg,
            registered_us: package.registered_at.map(|at| at.timestamp_micros()),
            updated_us: package.updated_at.timestamp_micros(),
        }
    }
}

#[derive(Serialize)]
struct DetailsJson<'a> {
    delivery_id: DeliveryId,
    tag: Option<&'a str>,
    description: Option<&'a str>,
}

fn json(value: &impl Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(value).map_err(|error| sqlx::Error::Encode(error.into()))
}

#[derive(FromRow)]
struct Row {
    delivery_id: String,
    customer_id: String,
    home_region: String,
    attempt: u32,
    fence: i64,
    state: String,
    size: String,
    weight_kg: f64,
    registered_us: Option<i64>,
    updated_us: i64,
    tag: Option<String>,
    description: Option<String>,
}

impl TryFrom<Row> for Package {
    type Error = sqlx::Error;

    fn try_from(row: Row) -> Result<Self, sqlx::Error> {
        Ok(Self {
            delivery_id: row.delivery_id.parse().map_err(unreadable)?,
            customer_id: row.customer_id.parse().map_err(unreadable)?,
            home_region: row.home_region.parse().map_err(unreadable)?,
            attempt: row.attempt,
            fence: u64::try_from(row.fence).map_err(unreadable)?,
            state: parse_state(&row.state)?,
            package: PackageSpec {
                size: parse_size(&row.size)?,
                weight_kg: row.weight_kg,
                tag: row.tag,
                description: row.description,
            },
            registered_at: row.registered_us.map(parse_time).transpose()?,
            updated_at: parse_time(row.updated_us)?,
        })
    }
}

fn unreadable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(cause.into())
}

fn parse_state(name: &str) -> Result<PackageState, sqlx::Error> {
    super::state_named(name).ok_or_else(|| unreadable(format!("'{name}' is not a state of a package")))
}

fn parse_size(name: &str) -> Result<PackageSize, sqlx::Error> {
    super::size_named(name).ok_or_else(|| unreadable(format!("'{name}' is not a size of a package")))
}

fn parse_time(micros: i64) -> Result<Timestamp, sqlx::Error> {
    Timestamp::from_timestamp_micros(micros).ok_or_else(|| unreadable(format!("{micros} is not a time")))
}

pub(super) async fn audit_scan(path: &str) -> Result<Vec<AuditPackage>, sqlx::Error> {
    let pool = sqlite::open_read_only(path).await?;
    let rows: Vec<(String, String)> =
        sqlx::query_as("select delivery_id, state from packages order by delivery_id").fetch_all(&pool).await?;
    pool.close().await;
    let mut packages = Vec::with_capacity(rows.len());
    for (delivery_id, state) in rows {
        packages
            .push(AuditPackage { delivery_id: delivery_id.parse().map_err(unreadable)?, state: parse_state(&state)? });
    }
    Ok(packages)
}

#[cfg(test)]
mod on_sqlite {
    use super::*;
    use crate::store::{
        contract::{Subject, store_contract},
        samples::{described, id, register},
    };

    async fn subject() -> Subject {
        Subject::open(|folder| format!("sqlite:{}", folder.join("package.db").display())).await
    }

    async fn fresh() -> Option<Subject> {
        Some(subject().await)
    }

    store_contract!(fresh);

    #[tokio::test]
    async fn only_packages_that_say_something_have_a_row_of_details() {
        let subject = subject().await;
        subject.opened.store.apply(&[register(1, 1), described(2, "a vase"), described(2, "a vase")]).await;
        let pool = sqlite::open_read_only(&subject.path("package.db")).await.unwrap();
        let rows: Vec<(String, String)> =
            sqlx::query_as("select delivery_id, description from package_details").fetch_all(&pool).await.unwrap();
        assert_eq!(rows, [(id(2).to_string(), "a vase".to_owned())]);
    }

    #[tokio::test]
    async fn the_audit_reads_every_row_of_the_file() {
        let subject = subject().await;
        subject.opened.store.apply(&[register(1, 1), register(2, 1), crate::store::samples::withdraw(2, 1)]).await;
        let rows = crate::store::audit_scan(&subject.url).await.unwrap();
        let row = |n, state| AuditPackage { delivery_id: id(n), state };
        assert_eq!(rows, [row(1, PackageState::Registered), row(2, PackageState::Withdrawn)]);
        assert!(crate::store::audit_scan("redis:x").await.is_err());
    }
}
