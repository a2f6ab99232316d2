//! The store of deliveries in SQL, on SQLite and on PostgreSQL: a batch per transaction, a statement per table.

mod news;
mod write;

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use contracts::{
    CustomerId, DeliveryId, Stage, Timestamp,
    api::StepEntry,
    events::{CloudEvent, StageEntry},
};
use messaging::{
    abort_point,
    outbox::{OutboxSignal, OutboxSource, chain},
    postgres,
    sql::{Bind, Engine, Migrations, OpenError, Raw, json},
};

use self::{
    news::News,
    write::{
        LOCK, append_logs, claim_keys, delivery_of, id_of, insert_new, refuse_repeated, update_known, withdraw_keys,
    },
};
use super::{AuditDelivery, Change, Claimed, Elsewhere, Store, StoreError, Summary, Unreadable};
use crate::domain::Delivery;

const SQLITE_TABLES: &str = "
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
";

const POSTGRES_TABLES: &str = "
create table deliveries (
    delivery_id text collate \"C\" primary key,
    customer_id text collate \"C\" not null,
    version bigint not null,
    stage text collate \"C\" not null,
    requested_ms bigint not null,
    updated_ms bigint not null,
    finished_ms bigint,
    -- When somebody must look: a timer, or the end of the lease while somebody works on it.
    due_ms bigint,
    lease_owner text collate \"C\",
    lease_until_ms bigint not null,
    fence bigint not null,
    doc text collate \"C\" not null
);
create index deliveries_by_customer on deliveries (customer_id, delivery_id desc);
create index deliveries_due on deliveries (due_ms) where due_ms is not null;
create index deliveries_finished on deliveries (finished_ms) where finished_ms is not null;
create table stage_log (
    delivery_id text collate \"C\" not null, number bigint not null, stage text collate \"C\" not null,
    attempt bigint not null, at text collate \"C\" not null,
    primary key (delivery_id, number)
);
create table saga_log (
    delivery_id text collate \"C\" not null, version bigint not null, number bigint not null,
    step text collate \"C\" not null, attempt bigint not null, outcome text collate \"C\" not null,
    at text collate \"C\" not null, tries bigint not null,
    primary key (delivery_id, version, number)
);
create table idempotency_keys (
    customer_id text collate \"C\" not null, key text collate \"C\" not null, body_hash text collate \"C\" not null,
    delivery_id text collate \"C\" not null, used_ms bigint not null,
    primary key (customer_id, key)
);
create index idempotency_keys_by_age on idempotency_keys (used_ms);
";

pub(super) const MIGRATIONS: Migrations = Migrations { sqlite: &[SQLITE_TABLES], postgres: &[POSTGRES_TABLES] };

/// The store on either engine.
pub(super) struct SqlStore {
    engine: Engine,
    outbox: Arc<dyn OutboxSource>,
    signal: OutboxSignal,
    news: News,
}

impl SqlStore {
    /// Opens the store that a URL names and brings it up to date.
    pub(super) async fn open(url: &str) -> Result<Self, OpenError> {
        let (engine, outbox) = Engine::open(url, MIGRATIONS).await?;
        let news = News::new(&engine);
        Ok(Self { engine, outbox, signal: OutboxSignal::default(), news })
    }

    async fn try_save(&self, changes: &[Change]) -> Result<Vec<Result<(), StoreError>>, sqlx::Error> {
        let mut results: Vec<Result<(), StoreError>> = vec![Ok(()); changes.len()];
        let mut tx = self.engine.begin().await?;
        refuse_repeated(changes, &mut results);
        let keys = claim_keys(&mut tx, changes, &mut results).await?;
        insert_new(&mut tx, changes, &mut results).await?;
        withdraw_keys(&mut tx, &keys, changes, &results).await?;
        update_known(&mut tx, changes, &mut results).await?;
        let written: Vec<&Change> =
            changes.iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(change, _)| change).collect();
        append_logs(&mut tx, &written).await?;
        self.engine.say(&mut tx, news::CHANNEL, &self.news.words(&written)).await?;
        let events: Vec<CloudEvent> = written.iter().flat_map(|change| change.events.iter().cloned()).collect();
        abort_point("delivery.before_commit");
        let committed = self.engine.commit(tx, &events).await;
        if committed.is_err() {
            self.news.doubt(changes);
        }
        committed?;
        abort_point("delivery.committed");
        if !events.is_empty() {
            self.signal.wake();
        }
        Ok(results)
    }

    /// Does one statement that leases rows.
    async fn leased(&self, sql: &'static str, binds: &[Bind<'_>]) -> Result<Vec<Claimed>, StoreError> {
        let rows = postgres::retried(async || {
            let mut tx = self.engine.begin().await?;
            let rows = tx.rows(sql, binds).await?;
            self.engine.commit(tx, &[]).await?;
            Ok(rows)
        })
        .await?;
        let mut claimed = Vec::with_capacity(rows.len());
        for row in &rows {
            let fence = u64::try_from(row.int(2)?).unwrap_or(0);
            match delivery_of(row)? {
                Ok(delivery) => claimed.push(Claimed { delivery, fence }),
                // The version that wrote it claims it when this lease ends, or the next.
                Err(error) => tracing::error!(error = %chain(&error), "passed over, though it is due"),
            }
        }
        Ok(claimed)
    }

    /// Does statements in a transaction of their own; how many rows the last one changed.
    async fn written(&self, statements: &[&'static str], binds: &[Bind<'_>]) -> Result<u64, StoreError> {
        let done = postgres::retried(async || {
            let mut tx = self.engine.begin().await?;
            let mut done = 0;
            for sql in statements {
                done = tx.done(sql, binds).await?;
            }
            self.engine.commit(tx, &[]).await?;
            Ok(done)
        });
        Ok(done.await?)
    }

    /// Reads deliveries: the documents in the first column, the ids in the second.
    async fn documents(
        &self,
        sql: &'static str,
        binds: &[Bind<'_>],
    ) -> Result<Vec<Result<Delivery, Unreadable>>, StoreError> {
        let rows = self.engine.read(sql, binds).await?;
        Ok(rows.iter().map(delivery_of).collect::<Result<_, _>>()?)
    }
}

fn limit_of(limit: usize) -> Bind<'static> {
    Bind::Int(i64::try_from(limit).unwrap_or(i64::MAX))
}

fn ms(at: Timestamp) -> Bind<'static> {
    Bind::Int(at.timestamp_millis())
}

#[async_trait]
impl Store for SqlStore {
    async fn save(&self, changes: &[Change]) -> Vec<Result<(), StoreError>> {
        match postgres::retried(|| self.try_save(changes)).await {
            Ok(results) => results,
            Err(error) => {
                let failed = StoreError::from(error);
                changes.iter().map(|_| Err(failed.clone())).collect()
            }
        }
    }

    async fn key_use(&self, customer: &CustomerId, key: &str) -> Result<Option<(DeliveryId, String)>, StoreError> {
        let sql = "select delivery_id, body_hash from idempotency_keys where customer_id = $1 and key = $2";
        let used = self.engine.read(sql, &[Bind::Text(customer.as_str()), Bind::Text(key)]).await?;
        let Some(row) = used.first() else { return Ok(None) };
        Ok(Some((id_of(row.text(0)?)?, row.text(1)?.to_owned())))
    }

    async fn load(&self, ids: &[DeliveryId]) -> Result<Vec<Result<Delivery, Unreadable>>, StoreError> {
        let sql = "select doc, delivery_id from deliveries where delivery_id in (select value from json_each($1))";
        self.documents(sql, &[Bind::Text(&json(&ids)?)]).await
    }

    async fn claim_due(
        &self,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Claimed>, StoreError> {
        // Looking first keeps an idle instance from writing.
        let sql = "select delivery_id from deliveries where due_ms <= $1
             and (lease_owner is null or lease_owner = $2 or lease_until_ms <= $1) limit 1";
        if self.engine.read(sql, &[ms(now), Bind::Text(owner)]).await?.is_empty() {
            return Ok(Vec::new());
        }
        // What another replica is just claiming or changing is passed over: it will be due again, if it still is.
        self.leased(
            "with picked as materialized (
                 select delivery_id from deliveries where due_ms <= $3
                     and (lease_owner is null or lease_owner = $1 or lease_until_ms <= $3)
                 order by due_ms limit $4 for update skip locked)
             update deliveries set lease_owner = $1, lease_until_ms = $2, due_ms = $2, fence = fence + 1
             where delivery_id in (select delivery_id from picked)
             returning doc, delivery_id, fence",
            &[Bind::Text(owner), ms(until), ms(now), limit_of(limit)],
        )
        .await
    }

    async fn claim(
        &self,
        ids: &[DeliveryId],
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.leased(
            "with picked as materialized (
                 select delivery_id from deliveries
                 where delivery_id in (select value from json_each($1)) and finished_ms is null
                     and (lease_owner is null or lease_owner = $2 or lease_until_ms <= $4)
                 order by delivery_id for update)
             update deliveries set lease_owner = $2, lease_until_ms = $3, due_ms = $3, fence = fence + 1
             where delivery_id in (select delivery_id from picked)
             returning doc, delivery_id, fence",
            &[Bind::Text(&json(&ids)?), Bind::Text(owner), ms(until), ms(now)],
        )
        .await
    }

    async fn release_all(&self, owner: &str, now: Timestamp) -> Result<u64, StoreError> {
        self.written(
            &["with picked as materialized (
                   select delivery_id from deliveries where lease_owner = $1 and finished_ms is null
                   order by delivery_id for update)
               update deliveries set lease_owner = null, lease_until_ms = 0, due_ms = $2, fence = fence + 1
               where delivery_id in (select delivery_id from picked)"],
            &[Bind::Text(owner), ms(now)],
        )
        .await
    }

    async fn list(
        &self,
        customer: &CustomerId,
        before: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        // Texts are compared byte by byte, and '~' is past every id.
        let sql = "select doc, delivery_id from deliveries where customer_id = $1 and delivery_id < coalesce($2, '~')
             order by delivery_id desc limit $3";
        let before = before.map(|id| id.to_string());
        let binds = [Bind::Text(customer.as_str()), Bind::OptionalText(before.as_deref()), limit_of(limit)];
        Ok(self.documents(sql, &binds).await?.into_iter().collect::<Result<_, _>>()?)
    }

    async fn steps(&self, id: DeliveryId) -> Result<Vec<StepEntry>, StoreError> {
        let sql = "select step, attempt, outcome, at, tries from saga_log where delivery_id = $1
             order by version, number";
        let rows = self.engine.read(sql, &[Bind::Text(&id.to_string())]).await?;
        let mut steps = Vec::with_capacity(rows.len());
        for row in &rows {
            steps.push(StepEntry {
                step: row.text(0)?.to_owned(),
                attempt: small(row.int(1)?)?,
                outcome: row.text(2)?.to_owned(),
                at: time_of(row.text(3)?)?,
                tries: small(row.int(4)?)?,
            });
        }
        Ok(steps)
    }

    async fn quiet(
        &self,
        quiet_since: Timestamp,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Result<Delivery, Unreadable>>, StoreError> {
        let sql = "select doc, delivery_id from deliveries
             where due_ms is not null and finished_ms is null and updated_ms < $1 and delivery_id > coalesce($2, '') order by delivery_id limit $3";
        let after = after.map(|id| id.to_string());
        let binds = [ms(quiet_since), Bind::OptionalText(after.as_deref()), limit_of(limit)];
        self.documents(sql, &binds).await
    }

    async fn finished(
        &self,
        finished_before: Timestamp,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeliveryId>, StoreError> {
        let sql = "select delivery_id from deliveries where finished_ms < $1 and delivery_id > coalesce($2, '')
             order by delivery_id limit $3";
        let after = after.map(|id| id.to_string());
        let binds = [ms(finished_before), Bind::OptionalText(after.as_deref()), limit_of(limit)];
        let rows = self.engine.read(sql, &binds).await?;
        Ok(rows.iter().map(|row| id_of(row.text(0)?)).collect::<Result<_, _>>()?)
    }

    async fn forget(&self, ids: &[DeliveryId]) -> Result<(), StoreError> {
        self.written(
            &[
                LOCK,
                "delete from saga_log where delivery_id in (select value from json_each($1))",
                "delete from stage_log where delivery_id in (select value from json_each($1))",
                "delete from deliveries where delivery_id in (select value from json_each($1))",
            ],
            &[Bind::Text(&json(&ids)?)],
        )
        .await?;
        Ok(())
    }

    async fn forget_keys(&self, horizon: Timestamp, limit: usize) -> Result<u64, StoreError> {
        let sql = "delete from idempotency_keys where (customer_id, key) in
             (select customer_id, key from idempotency_keys where used_ms < $1 order by used_ms limit $2)";
        self.written(&[sql], &[ms(horizon), limit_of(limit)]).await
    }

    async fn changed_elsewhere(&self) -> Result<Elsewhere, StoreError> {
        Ok(self.news.next().await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.engine.ping().await?)
    }

    async fn summary(&self, now: Timestamp) -> Result<Summary, StoreError> {
        let sql = "select count(*), count(*) filter (where due_ms <= $1) from deliveries where due_ms is not null";
        let rows = self.engine.read(sql, &[ms(now)]).await?;
        let Some(row) = rows.first() else { return Ok(Summary::default()) };
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        Ok(Summary { open: count(row.int(0)?), due: count(row.int(1)?) })
    }

    fn outbox(&self) -> Arc<dyn OutboxSource> {
        self.outbox.clone()
    }

    fn outbox_signal(&self) -> OutboxSignal {
        self.signal.clone()
    }
}

fn small(number: i64) -> Result<u32, sqlx::Error> {
    u32::try_from(number).map_err(|error| sqlx::Error::Decode(error.into()))
}

fn time_of(text: &str) -> Result<Timestamp, sqlx::Error> {
    text.parse().map_err(|error: chrono::ParseError| sqlx::Error::Decode(error.into()))
}

/// Reads the raw tables for the audit.
pub(super) async fn audit_scan(url: &str) -> anyhow::Result<(Vec<AuditDelivery>, u64)> {
    let store = Raw::open(url).await?;
    let counted = store.read("select count(*) from outbox").await?;
    let unrelayed = counted.first().map(|row| row.int(0)).transpose()?.unwrap_or(0);
    let log = store.read("select delivery_id, stage, attempt, at from stage_log order by delivery_id, number").await?;
    let mut stages: HashMap<String, Vec<StageEntry>> = HashMap::new();
    for row in &log {
        let stage = row.text(1)?;
        let stage = Stage::parse(stage).ok_or_else(|| anyhow::anyhow!("stage_log: '{stage}' is not a stage"))?;
        let entry = StageEntry { stage, attempt: small(row.int(2)?)?, at: time_of(row.text(3)?)? };
        stages.entry(row.text(0)?.to_owned()).or_default().push(entry);
    }
    let rows = store.read("select doc, delivery_id from deliveries order by delivery_id").await?;
    let mut deliveries = Vec::with_capacity(rows.len());
    for row in &rows {
        let stages = stages.remove(row.text(1)?).unwrap_or_default();
        deliveries.push(AuditDelivery { delivery: delivery_of(row)??, stages });
    }
    Ok((deliveries, u64::try_from(unrelayed).unwrap_or(0)))
}
