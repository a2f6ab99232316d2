//! The embedded store of deliveries: one SQLite file, a batch per transaction, a statement per table.

mod write;

use std::{collections::HashMap, sync::Arc};

use self::write::{append_logs, claim_keys, id_of, insert_new, json, parse, refuse_repeated, update_known};
use super::{AuditDelivery, Change, Claimed, Store, StoreError, Summary};
use crate::domain::Delivery;
use async_trait::async_trait;
use contracts::{
    CustomerId, DeliveryId, Stage, Timestamp,
    api::StepEntry,
    events::{CloudEvent, StageEntry},
};
use messaging::{
    abort_point,
    outbox::{self, OutboxSignal, OutboxSource, SqliteOutbox},
    sqlite::{self, Sqlite},
};

const MIGRATIONS: &[&str] = &[
    outbox::SQLITE_SCHEMA,
    "
create table deliveries (
    delivery_id text primary key,
    customer_id text not null,
    version integer not null,
    stage text not null,
    requested_ms integer not null,
    updated_ms integer not null,
    finished_ms integer,
    -- When somebody must look: a timer, or the end of the lease while somebody works on it.
    due_ms integer,
    lease_owner text,
    lease_until_ms integer not null,
    fence integer not null,
    doc text not null
);
create index deliveries_by_customer on deliveries (customer_id, delivery_id desc);
create index deliveries_due on deliveries (due_ms) where due_ms is not null;
create index deliveries_finished on deliveries (finished_ms) where finished_ms is not null;
create table stage_log (
    delivery_id text not null, number integer not null, stage text not null, attempt integer not null, at text not null,
    primary key (delivery_id, number)
) without rowid;
create table saga_log (
    delivery_id text not null, version integer not null, number integer not null, step text not null,
    attempt integer not null, outcome text not null, at text not null, tries integer not null,
    primary key (delivery_id, version, number)
) without rowid;
create table idempotency_keys (
    customer_id text not null, key text not null, body_hash text not null, delivery_id text not null,
    used_ms integer not null,
    primary key (customer_id, key)
) without rowid;
create index idempotency_keys_by_age on idempotency_keys (used_ms);
",
];

/// The embedded store.
pub(super) struct SqliteStore {
    store: Sqlite,
    signal: OutboxSignal,
}

impl SqliteStore {
    /// Opens (and makes) the file at `path`.
    pub(super) async fn open(path: &str) -> Result<Self, sqlx::Error> {
        Ok(Self { store: sqlite::open(path, MIGRATIONS).await?, signal: OutboxSignal::default() })
    }

    async fn try_save(&self, changes: &[Change]) -> Result<Vec<Result<(), StoreError>>, sqlx::Error> {
        let mut results: Vec<Result<(), StoreError>> = vec![Ok(()); changes.len()];
        let mut transaction = self.store.writer.begin_with("BEGIN IMMEDIATE").await?;
        refuse_repeated(changes, &mut results);
        claim_keys(&mut transaction, changes, &mut results).await?;
        insert_new(&mut transaction, changes, &mut results).await?;
        update_known(&mut transaction, changes, &mut results).await?;
        let written: Vec<&Change> =
            changes.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(change, _)| change).collect();
        append_logs(&mut transaction, &written).await?;
        let events: Vec<CloudEvent> = written.iter().flat_map(|change| change.events.iter().cloned()).collect();
        outbox::insert_sqlite(&mut transaction, &events).await?;
        abort_point("delivery.before_commit");
        transaction.commit().await?;
        abort_point("delivery.committed");
        if !events.is_empty() {
            self.signal.wake();
        }
        Ok(results)
    }
}

fn claimed(rows: Vec<(String, i64)>) -> Result<Vec<Claimed>, StoreError> {
    let mut claimed = Vec::with_capacity(rows.len());
    for (doc, fence) in rows {
        claimed.push(Claimed { delivery: parse(&doc)?, fence: u64::try_from(fence).unwrap_or(0) });
    }
    Ok(claimed)
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for SqliteStore {
    async fn save(&self, changes: &[Change]) -> Vec<Result<(), StoreError>> {
        match self.try_save(changes).await {
            Ok(results) => results,
            Err(error) => {
                let failed = StoreError::from(error);
                changes.iter().map(|_| Err(failed.clone())).collect()
            }
        }
    }

    async fn key_use(&self, customer: &CustomerId, key: &str) -> Result<Option<(DeliveryId, String)>, StoreError> {
        let used: Option<(String, String)> =
            sqlx::query_as("select delivery_id, body_hash from idempotency_keys where customer_id = ? and key = ?")
                .bind(customer.as_str())
                .bind(key)
                .fetch_optional(&self.store.reader)
                .await?;
        Ok(used.map(|(id, hash)| id_of(&id).map(|id| (id, hash))).transpose()?)
    }

    async fn load(&self, ids: &[DeliveryId]) -> Result<Vec<Delivery>, StoreError> {
        let rows: Vec<(String,)> =
            sqlx::query_as("select doc from deliveries where delivery_id in (select value from json_each(?))")
                .bind(json(&ids)?)
                .fetch_all(&self.store.reader)
                .await?;
        Ok(rows.iter().map(|(doc,)| parse(doc)).collect::<Result<_, _>>()?)
    }

    async fn claim_due(
        &self,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Claimed>, StoreError> {
        let (due,): (i64,) = sqlx::query_as(
            "select exists (select 1 from deliveries where due_ms <= ?1
                and (lease_owner is null or lease_owner = ?2 or lease_until_ms <= ?1))",
        )
        .bind(now.timestamp_millis())
        .bind(owner)
        .fetch_one(&self.store.reader)
        .await?;
        if due == 0 {
            return Ok(Vec::new());
        }
        let rows = sqlx::query_as(
            "update deliveries set lease_owner = ?1, lease_until_ms = ?2, due_ms = ?2, fence = fence + 1
             where delivery_id in (select delivery_id from deliveries where due_ms <= ?3
                and (lease_owner is null or lease_owner = ?1 or lease_until_ms <= ?3) order by due_ms limit ?4)
             returning doc, fence",
        )
        .bind(owner)
        .bind(until.timestamp_millis())
        .bind(now.timestamp_millis())
        .bind(limit_of(limit))
        .fetch_all(&self.store.writer)
        .await?;
        claimed(rows)
    }

    async fn claim(
        &self,
        ids: &[DeliveryId],
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Claimed>, StoreError> {
        let rows = sqlx::query_as(
            "update deliveries set lease_owner = ?1, lease_until_ms = ?2, due_ms = ?2, fence = fence + 1
             where delivery_id in (select value from json_each(?4)) and finished_ms is null
                and (lease_owner is null or lease_owner = ?1 or lease_until_ms <= ?3)
             returning doc, fence",
        )
        .bind(owner)
        .bind(until.timestamp_millis())
        .bind(now.timestamp_millis())
        .bind(json(&ids)?)
        .fetch_all(&self.store.writer)
        .await?;
        claimed(rows)
    }

    async fn release_all(&self, owner: &str, now: Timestamp) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "update deliveries set lease_owner = null, lease_until_ms = 0, due_ms = ?2, fence = fence + 1
             where lease_owner = ?1 and finished_ms is null",
        )
        .bind(owner)
        .bind(now.timestamp_millis())
        .execute(&self.store.writer)
        .await?;
        Ok(done.rows_affected())
    }

    async fn list(
        &self,
        customer: &CustomerId,
        before: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "select doc from deliveries where customer_id = ?1 and delivery_id < coalesce(?2, '~')
             order by delivery_id desc limit ?3",
        )
        .bind(customer.as_str())
        .bind(before.map(|id| id.to_string()))
        .bind(limit_of(limit))
        .fetch_all(&self.store.reader)
        .await?;
        Ok(rows.iter().map(|(doc,)| parse(doc)).collect::<Result<_, _>>()?)
    }

    async fn steps(&self, id: DeliveryId) -> Result<Vec<StepEntry>, StoreError> {
        let rows: Vec<(String, u32, String, String, u32)> = sqlx::query_as(
            "select step, attempt, outcome, at, tries from saga_log where delivery_id = ? order by version, number",
        )
        .bind(id.to_string())
        .fetch_all(&self.store.reader)
        .await?;
        let mut steps = Vec::with_capacity(rows.len());
        for (step, attempt, outcome, at, tries) in rows {
            steps.push(StepEntry { step, attempt, outcome, at: time_of(&at)?, tries });
        }
        Ok(steps)
    }

    async fn quiet(
        &self,
        quiet_since: Timestamp,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "select doc from deliveries where due_ms is not null and finished_ms is null and updated_ms < ?1
                and delivery_id > coalesce(?2, '') order by delivery_id limit ?3",
        )
        .bind(quiet_since.timestamp_millis())
        .bind(after.map(|id| id.to_string()))
        .bind(limit_of(limit))
        .fetch_all(&self.store.reader)
        .await?;
        Ok(rows.iter().map(|(doc,)| parse(doc)).collect::<Result<_, _>>()?)
    }

    async fn finished(
        &self,
        finished_before: Timestamp,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeliveryId>, StoreError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "select delivery_id from deliveries where finished_ms < ?1 and delivery_id > coalesce(?2, '')
             order by delivery_id limit ?3",
        )
        .bind(finished_before.timestamp_millis())
        .bind(after.map(|id| id.to_string()))
        .bind(limit_of(limit))
        .fetch_all(&self.store.reader)
        .await?;
        Ok(rows.iter().map(|(id,)| id_of(id)).collect::<Result<_, _>>()?)
    }

    async fn forget(&self, ids: &[DeliveryId]) -> Result<(), StoreError> {
        let ids = json(&ids)?;
        let mut transaction = self.store.writer.begin_with("BEGIN IMMEDIATE").await?;
        for statement in [
            "delete from saga_log where delivery_id in (select value from json_each(?))",
            "delete from stage_log where delivery_id in (select value from json_each(?))",
            "delete from deliveries where delivery_id in (select value from json_each(?))",
        ] {
            sqlx::query(statement).bind(&ids).execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn forget_keys(&self, horizon: Timestamp) -> Result<(), StoreError> {
        sqlx::query("delete from idempotency_keys where used_ms < ?")
            .bind(horizon.timestamp_millis())
            .execute(&self.store.writer)
            .await?;
        Ok(())
    }

    async fn summary(&self, now: Timestamp) -> Result<Summary, StoreError> {
        let (open, due): (i64, i64) = sqlx::query_as(
            "select count(*), count(*) filter (where due_ms <= ?) from deliveries where due_ms is not null",
        )
        .bind(now.timestamp_millis())
        .fetch_one(&self.store.reader)
        .await?;
        Ok(Summary { open: u64::try_from(open).unwrap_or(0), due: u64::try_from(due).unwrap_or(0) })
    }

    fn outbox(&self) -> Arc<dyn OutboxSource> {
        Arc::new(SqliteOutbox::new(self.store.clone()))
    }

    fn outbox_signal(&self) -> OutboxSignal {
        self.signal.clone()
    }
}

fn time_of(text: &str) -> Result<Timestamp, sqlx::Error> {
    text.parse().map_err(|error: chrono::ParseError| sqlx::Error::Decode(error.into()))
}

/// Reads the raw tables for the audit.
pub(super) async fn audit_scan(path: &str) -> anyhow::Result<(Vec<AuditDelivery>, u64)> {
    let pool = sqlite::open_read_only(path).await?;
    let (unrelayed,): (i64,) = sqlx::query_as("select count(*) from outbox").fetch_one(&pool).await?;
    let log: Vec<(String, String, u32, String)> =
        sqlx::query_as("select delivery_id, stage, attempt, at from stage_log order by delivery_id, number")
            .fetch_all(&pool)
            .await?;
    let mut stages: HashMap<String, Vec<StageEntry>> = HashMap::new();
    for (id, stage, attempt, at) in log {
        let stage = Stage::parse(&stage).ok_or_else(|| anyhow::anyhow!("stage_log: '{stage}' is not a stage"))?;
        stages.entry(id).or_default().push(StageEntry { stage, attempt, at: time_of(&at)? });
    }
    let rows: Vec<(String, String)> =
        sqlx::query_as("select delivery_id, doc from deliveries order by delivery_id").fetch_all(&pool).await?;
    let mut deliveries = Vec::with_capacity(rows.len());
    for (id, doc) in rows {
        deliveries.push(AuditDelivery { delivery: parse(&doc)?, stages: stages.remove(&id).unwrap_or_default() });
    }
    Ok((deliveries, u64::try_from(unrelayed).unwrap_or(0)))
}
