//! The statements of a batch of changes: one for each table, whatever the number of changes.

use std::collections::{HashMap, HashSet};

use contracts::{CustomerId, DeliveryId, Stage, api::StepEntry, events::StageEntry};
use serde::Serialize;
use sqlx::SqliteConnection;

use crate::{
    domain::Delivery,
    store::{Change, LeaseChange, StoreError},
};

/// A row as it goes to SQL.
#[derive(Serialize)]
struct RowJson<'a> {
    id: DeliveryId,
    customer: &'a CustomerId,
    expected: u64,
    version: u64,
    stage: Stage,
    requested: i64,
    updated: i64,
    finished: Option<i64>,
    due: Option<i64>,
    lease: &'static str,
    owner: Option<&'a str>,
    until: i64,
    fence: Option<u64>,
    /// The delivery as JSON text: SQLite then carries it as it is, and parses and renders none of it.
    doc: String,
}

impl<'a> RowJson<'a> {
    fn new(change: &'a Change) -> Result<Self, sqlx::Error> {
        let record = &change.delivery.record;
        let (lease, owner, until, fence) = match &change.lease {
            LeaseChange::Keep => ("keep", None, 0, None),
            LeaseChange::Hold { fence, owner, until } => {
                ("hold", Some(&**owner), until.timestamp_millis(), Some(*fence))
            }
            LeaseChange::Release { fence } => ("release", None, 0, Some(*fence)),
        };
        Ok(Self {
            id: record.delivery_id,
            customer: &record.customer_id,
            expected: change.expected_version,
            version: record.version,
            stage: record.stage,
            requested: record.requested_at.timestamp_millis(),
            updated: record.updated_at.timestamp_millis(),
            finished: record.finished_at.map(|at| at.timestamp_millis()),
            due: change.due.map(|at| at.timestamp_millis()),
            lease,
            owner,
            until,
            fence,
            doc: json(&change.delivery)?,
        })
    }
}

pub(super) fn json(rows: &impl Serialize) -> Result<String, sqlx::Error> {
    serde_json::to_string(rows).map_err(|error| sqlx::Error::Encode(error.into()))
}

pub(super) fn parse(doc: &str) -> Result<Delivery, sqlx::Error> {
    serde_json::from_str(doc).map_err(|error| sqlx::Error::Decode(error.into()))
}

pub(super) fn id_of(text: &str) -> Result<DeliveryId, sqlx::Error> {
    text.parse().map_err(|error: contracts::ids::InvalidId| sqlx::Error::Decode(error.into()))
}

/// Of several changes of one delivery in a batch only the first can be based on the row as it is.
pub(super) fn refuse_repeated(changes: &[Change], results: &mut [Result<(), StoreError>]) {
    let mut seen = HashSet::new();
    for (change, result) in changes.iter().zip(results) {
        if !seen.insert(change.delivery.record.delivery_id) {
            *result = Err(StoreError::Conflict);
        }
    }
}

#[derive(Serialize)]
struct KeyJson<'a> {
    customer: &'a CustomerId,
    key: &'a str,
    hash: &'a str,
    id: DeliveryId,
    used: i64,
}

pub(super) async fn claim_keys(
    connection: &mut SqliteConnection,
    changes: &[Change],
    results: &mut [Result<(), StoreError>],
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for (change, result) in changes.iter().zip(results.iter()) {
        let record = &change.delivery.record;
        if let (Some(key), Ok(())) = (&change.key, result) {
            let used = record.requested_at.timestamp_millis();
            let (customer, id) = (&record.customer_id, record.delivery_id);
            rows.push(KeyJson { customer, key: &key.key, hash: &key.body_hash, id, used });
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let rows = json(&rows)?;
    sqlx::query(
        "insert into idempotency_keys (customer_id, key, body_hash, delivery_id, used_ms)
         select value ->> 'customer', value ->> 'key', value ->> 'hash', value ->> 'id', value ->> 'used'
         from json_each(?)
         -- A change that will be refused must not leave its key behind.
         where not exists (select 1 from deliveries where delivery_id = value ->> 'id')
         on conflict do nothing",
    )
    .bind(&rows)
    .execute(&mut *connection)
    .await?;
    let owners: Vec<(String, String, String, String)> = sqlx::query_as(
        "select k.customer_id, k.key, k.body_hash, k.delivery_id from json_each(?) j
         join idempotency_keys k on k.customer_id = j.value ->> 'customer' and k.key = j.value ->> 'key'",
    )
    .bind(&rows)
    .fetch_all(&mut *connection)
    .await?;
    let mut by_key = HashMap::new();
    for (customer, key, hash, id) in &owners {
        by_key.insert((customer.as_str(), key.as_str()), (hash.as_str(), id_of(id)?));
    }
    for (change, result) in changes.iter().zip(results) {
        let record = &change.delivery.record;
        let Some(key) = &change.key else { continue };
        let Some((hash, owner)) = by_key.get(&(record.customer_id.as_str(), key.key.as_str())) else { continue };
        if result.is_ok() && *owner != record.delivery_id {
            *result = Err(StoreError::KeyUsed { delivery_id: *owner, same_body: *hash == key.body_hash });
        }
    }
    Ok(())
}

pub(super) async fn insert_new(
    connection: &mut SqliteConnection,
    changes: &[Change],
    results: &mut [Result<(), StoreError>],
) -> Result<(), sqlx::Error> {
    let fresh = |(change, result): (&Change, &Result<(), StoreError>)| change.expected_version == 0 && result.is_ok();
    let rows: Vec<RowJson<'_>> = changes
        .iter()
        .zip(results.iter())
        .filter(|(change, result)| fresh((change, result)))
        .map(|(change, _)| RowJson::new(change))
        .collect::<Result<_, _>>()?;
    if rows.is_empty() {
        return Ok(());
    }
    let inserted: Vec<(String,)> = sqlx::query_as(
        "with rows as materialized (select value as v from json_each(?))
         insert into deliveries (delivery_id, customer_id, version, stage, requested_ms, updated_ms, finished_ms,
            due_ms, lease_owner, lease_until_ms, fence, doc)
         select v ->> 'id', v ->> 'customer', v ->> 'version', v ->> 'stage', v ->> 'requested',
            v ->> 'updated', v ->> 'finished', v ->> 'due', v ->> 'owner', v ->> 'until',
            coalesce(v ->> 'fence', 0), v ->> 'doc'
         from rows where true on conflict do nothing returning delivery_id",
    )
    .bind(json(&rows)?)
    .fetch_all(&mut *connection)
    .await?;
    mark_missing(changes, results, &inserted, true)
}

pub(super) async fn update_known(
    connection: &mut SqliteConnection,
    changes: &[Change],
    results: &mut [Result<(), StoreError>],
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for (change, result) in changes.iter().zip(results.iter()) {
        if change.expected_version > 0 && result.is_ok() {
            rows.push(RowJson::new(change)?);
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    let updated: Vec<(String,)> = sqlx::query_as(
        "with rows as materialized (select value as v from json_each(?))
         update deliveries set version = j.version, stage = j.stage, updated_ms = j.updated, finished_ms = j.finished,
            due_ms = j.due, doc = j.doc,
            lease_owner = case j.lease when 'keep' then lease_owner else j.owner end,
            lease_until_ms = case j.lease when 'keep' then lease_until_ms else j.until end
         from (select v ->> 'id' as id, v ->> 'expected' as expected, v ->> 'version' as version,
                v ->> 'stage' as stage, v ->> 'updated' as updated, v ->> 'finished' as finished,
                v ->> 'due' as due, v ->> 'lease' as lease, v ->> 'owner' as owner,
                v ->> 'until' as until, v ->> 'fence' as fence, v ->> 'doc' as doc
              from rows) j
         where deliveries.delivery_id = j.id and deliveries.version = j.expected
            and (j.fence is null or deliveries.fence = j.fence)
         returning delivery_id",
    )
    .bind(json(&rows)?)
    .fetch_all(&mut *connection)
    .await?;
    mark_missing(changes, results, &updated, false)
}

/// What the statement did not write has met a row that is not as expected.
fn mark_missing(
    changes: &[Change],
    results: &mut [Result<(), StoreError>],
    written: &[(String,)],
    fresh: bool,
) -> Result<(), sqlx::Error> {
    let mut ids = HashSet::new();
    for (id,) in written {
        ids.insert(id_of(id)?);
    }
    for (change, result) in changes.iter().zip(results) {
        let concerned = (change.expected_version == 0) == fresh && result.is_ok();
        if concerned && !ids.contains(&change.delivery.record.delivery_id) {
            *result = Err(StoreError::Conflict);
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct StageJson<'a> {
    id: DeliveryId,
    number: usize,
    #[serde(flatten)]
    entry: &'a StageEntry,
}

#[derive(Serialize)]
struct StepJson<'a> {
    id: DeliveryId,
    version: u64,
    number: usize,
    #[serde(flatten)]
    entry: &'a StepEntry,
}

pub(super) async fn append_logs(connection: &mut SqliteConnection, written: &[&Change]) -> Result<(), sqlx::Error> {
    let (mut stages, mut steps) = (Vec::new(), Vec::new());
    for change in written {
        let record = &change.delivery.record;
        let first = record.stages.len() - change.stages.len();
        let numbered = change.stages.iter().enumerate();
        stages.extend(numbered.map(|(n, entry)| StageJson { id: record.delivery_id, number: first + n, entry }));
        let numbered = change.steps.iter().enumerate();
        let (id, version) = (record.delivery_id, record.version);
        steps.extend(numbered.map(|(number, entry)| StepJson { id, version, number, entry }));
    }
    if !stages.is_empty() {
        sqlx::query(
            "insert into stage_log (delivery_id, number, stage, attempt, at)
             select value ->> 'id', value ->> 'number', value ->> 'stage', value ->> 'attempt', value ->> 'at'
             from json_each(?)",
        )
        .bind(json(&stages)?)
        .execute(&mut *connection)
        .await?;
    }
    if !steps.is_empty() {
        sqlx::query(
            "insert into saga_log (delivery_id, version, number, step, attempt, outcome, at, tries)
             select value ->> 'id', value ->> 'version', value ->> 'number', value ->> 'step', value ->> 'attempt',
                value ->> 'outcome', value ->> 'at', value ->> 'tries'
             from json_each(?)",
        )
        .bind(json(&steps)?)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
