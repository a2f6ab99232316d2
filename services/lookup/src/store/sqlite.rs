//! Finished deliveries in SQLite: the whole record beside the columns that it is found by.

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use contracts::{CustomerId, DeliveryId, Stage, Timestamp, events::DeliveryRecord};
use messaging::sqlite::{self, Sqlite};
use serde::{Serialize, de::DeserializeOwned};

use super::{AuditLookup, Store, StoreError};
use crate::domain::{FinishedDelivery, Place};

const MIGRATIONS: &[&str] = &["
create table deliveries (
    delivery_id text primary key,
    customer_id text not null,
    finished_us integer not null,
    version integer not null,
    stage text not null,
    record text not null
);
-- A page of a customer's history is one range of this index.
create index deliveries_by_customer on deliveries (customer_id, finished_us desc, delivery_id desc);
create index deliveries_by_age on deliveries (finished_us);
"];

pub(super) async fn open(path: &str) -> Result<Arc<dyn Store>, StoreError> {
    Ok(Arc::new(SqliteStore { sqlite: sqlite::open(path, MIGRATIONS).await? }))
}

struct SqliteStore {
    sqlite: Sqlite,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

#[derive(Serialize)]
struct RowJson<'a> {
    delivery_id: DeliveryId,
    customer_id: &'a str,
    finished_us: i64,
    version: u64,
    stage: &'static str,
    record: &'a str,
}

#[async_trait]
impl Store for SqliteStore {
    async fn upsert(&self, deliveries: &[FinishedDelivery]) -> Result<(), StoreError> {
        let mut rows = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            rows.push(RowJson {
                delivery_id: delivery.record.delivery_id,
                customer_id: delivery.record.customer_id.as_str(),
                finished_us: delivery.finished_at.timestamp_micros(),
                version: delivery.record.version,
                stage: delivery.record.stage.as_str(),
                record: &delivery.json,
            });
        }
        // One statement is its own transaction.
        sqlx::query(
            "with rows as materialized (select value as v from json_each(?))
             insert into deliveries (delivery_id, customer_id, finished_us, version, stage, record)
             select v ->> 'delivery_id', v ->> 'customer_id', v ->> 'finished_us', v ->> 'version',
                v ->> 'stage', v ->> 'record'
             from rows where true
             on conflict (delivery_id) do update set customer_id = excluded.customer_id,
                finished_us = excluded.finished_us, version = excluded.version, stage = excluded.stage,
                record = excluded.record
             where excluded.version > deliveries.version",
        )
        .bind(serde_json::to_string(&rows).map_err(unwritable)?)
        .execute(&self.sqlite.writer)
        .await?;
        Ok(())
    }

    async fn list(
        &self,
        customer: &CustomerId,
        from: Timestamp,
        start: Place,
        limit: usize,
    ) -> Result<Vec<DeliveryRecord>, StoreError> {
        // No id sorts before the empty text, so that a start without one lies before all of its time.
        let start_id = start.delivery_id.map(|id| id.to_string()).unwrap_or_default();
        let records: Vec<String> = sqlx::query_scalar(
            "select record from deliveries
             where customer_id = ?1 and finished_us >= ?2 and (finished_us, delivery_id) < (?3, ?4)
             order by finished_us desc, delivery_id desc limit ?5",
        )
        .bind(customer.as_str())
        .bind(from.timestamp_micros())
        .bind(start.finished_us)
        .bind(start_id)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.sqlite.reader)
        .await?;
        Ok(records.iter().map(|record| parse(record)).collect::<Result<_, _>>()?)
    }

    async fn find(
        &self,
        customer: Option<&CustomerId>,
        delivery: DeliveryId,
    ) -> Result<Option<DeliveryRecord>, StoreError> {
        let record: Option<String> = sqlx::query_scalar(
            "select record from deliveries where delivery_id = ?1 and (?2 is null or customer_id = ?2)",
        )
        .bind(delivery.to_string())
        .bind(customer.map(CustomerId::as_str))
        .fetch_optional(&self.sqlite.reader)
        .await?;
        Ok(record.map(|record| parse(&record)).transpose()?)
    }

    async fn contains(&self, ids: &[DeliveryId]) -> Result<Vec<DeliveryId>, StoreError> {
        let found: Vec<String> = sqlx::query_scalar(
            "select d.delivery_id from json_each(?) ids cross join deliveries d on d.delivery_id = ids.value
             order by ids.key",
        )
        .bind(serde_json::to_string(ids).map_err(unwritable)?)
        .fetch_all(&self.sqlite.reader)
        .await?;
        Ok(found.iter().map(|id| id.parse().map_err(unreadable)).collect::<Result<_, _>>()?)
    }

    async fn sweep(&self, finished_before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "delete from deliveries where rowid in (
                select rowid from deliveries where finished_us < ? order by finished_us limit ?)",
        )
        .bind(finished_before.timestamp_micros())
        .bind(limit)
        .execute(&self.sqlite.writer)
        .await?;
        Ok(done.rows_affected())
    }

    async fn ready(&self) -> Result<(), StoreError> {
        sqlx::query("select 1 from deliveries limit 1").fetch_optional(&self.sqlite.reader).await?;
        Ok(())
    }
}

fn unwritable(error: serde_json::Error) -> sqlx::Error {
    sqlx::Error::Encode(error.into())
}

fn unreadable(cause: impl Into<Box<dyn Error + Send + Sync>>) -> sqlx::Error {
    sqlx::Error::Decode(cause.into())
}

fn parse<T: DeserializeOwned>(json: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(json).map_err(unreadable)
}

pub(super) async fn audit_scan(path: &str) -> Result<Vec<AuditLookup>, sqlx::Error> {
    let pool = sqlite::open_read_only(path).await?;
    let rows: Vec<(String, String, i64, String)> =
        sqlx::query_as("select delivery_id, stage, version, record from deliveries order by delivery_id")
            .fetch_all(&pool)
            .await?;
    pool.close().await;
    let mut deliveries = Vec::with_capacity(rows.len());
    for (delivery_id, stage, version, record) in rows {
        deliveries.push(AuditLookup {
            delivery_id: delivery_id.parse().map_err(unreadable)?,
            stage: Stage::parse(&stage).ok_or_else(|| unreadable(format!("'{stage}' is not a stage")))?,
            version: u64::try_from(version).map_err(unreadable)?,
            record: parse(&record)?,
        });
    }
    Ok(deliveries)
}

#[cfg(test)]
mod on_sqlite {
    use super::*;
    use crate::store::{
        contract::{Subject, store_contract},
        samples::{at, finished, row},
    };

    async fn subject() -> Subject {
        Subject::open(|folder| format!("sqlite:{}", folder.join("lookup.db").display())).await
    }

    async fn fresh() -> Option<Subject> {
        Some(subject().await)
    }

    store_contract!(fresh);

    #[tokio::test]
    async fn the_audit_reads_every_row_of_the_file() {
        let subject = subject().await;
        let (first, second) = (finished(1, "alice", at(1)), finished(2, "bob", at(2)));
        subject.store.upsert(&[row(&first), row(&second)]).await.unwrap();
        let rows = crate::store::audit_scan(&subject.url).await.unwrap();
        let audited = |record: &DeliveryRecord| AuditLookup {
            delivery_id: record.delivery_id,
            stage: record.stage,
            version: record.version,
            record: record.clone(),
        };
        assert_eq!(rows, [audited(&first), audited(&second)]);
        assert!(crate::store::audit_scan("redis:x").await.is_err());
    }

    #[tokio::test]
    async fn a_page_is_one_range_of_the_index_without_sorting() {
        let subject = subject().await;
        let pool = sqlite::open_read_only(&subject.path("lookup.db")).await.unwrap();
        let plan: Vec<(i64, i64, i64, String)> = sqlx::query_as(
            "explain query plan select record from deliveries
             where customer_id = 'a' and finished_us >= 1 and (finished_us, delivery_id) < (3, 'x')
             order by finished_us desc, delivery_id desc limit 5",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        let plan: Vec<_> = plan.into_iter().map(|(.., step)| step).collect();
        assert_eq!(plan.len(), 1, "{plan:?}");
        assert!(plan[0].contains("deliveries_by_customer (customer_id=? AND finished_us>? AND"), "{plan:?}");
    }
}
