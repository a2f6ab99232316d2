//! The statements of a batch of changes: one for each table, whatever the number of changes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use contracts::{CustomerId, DeliveryId, Stage, api::StepEntry, events::StageEntry};
use messaging::sql::{Bind, Tx, Values, json};
use serde::Serialize;

use crate::{
    domain::Delivery,
    store::{Change, LeaseChange, StoreError, Unreadable},
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
    /// The delivery as JSON text: the engine then carries it as it is, and parses and renders none of it.
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

/// A row's document and id, in its first two columns.
pub(super) fn delivery_of(row: &Values) -> Result<Result<Delivery, Unreadable>, sqlx::Error> {
    let (doc, id) = (row.text(0)?, id_of(row.text(1)?)?);
    Ok(serde_json::from_str(doc).map_err(|cause| Unreadable { id, cause: Arc::new(cause) }))
}

pub(super) fn id_of(text: &str) -> Result<DeliveryId, sqlx::Error> {
    text.parse().map_err(|error: contracts::ids::InvalidId| sqlx::Error::Decode(error.into()))
}

fn ids_of(rows: &[Values]) -> Result<HashSet<DeliveryId>, sqlx::Error> {
    rows.iter().map(|row| id_of(row.text(0)?)).collect()
}

/// Locks the rows of a list of ids, in the one order in which everybody does.
pub(super) const LOCK: &str =
    "select delivery_id from deliveries where delivery_id in (select value from json_each($1))
     order by delivery_id for update";

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

/// Claims the changes' idempotency keys; for which deliveries a key was new.
pub(super) async fn claim_keys(
    tx: &mut Tx,
    changes: &[Change],
    results: &mut [Result<(), StoreError>],
) -> Result<HashSet<DeliveryId>, sqlx::Error> {
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
        return Ok(HashSet::new());
    }
    // One order for all batches: two of them never wait for each other.
    rows.sort_by(|one, other| (one.customer.as_str(), one.key).cmp(&(other.customer.as_str(), other.key)));
    let rows = json(&rows)?;
    let inserted = tx
        .rows(
            "insert into idempotency_keys (customer_id, key, body_hash, delivery_id, used_ms)
             select value ->> 'customer', value ->> 'key', value ->> 'hash', value ->> 'id',
                 cast(value ->> 'used' as bigint)
             from json_each($1)
             -- A change that will be refused must not leave its key behind.
             where not exists (select 1 from deliveries where delivery_id = value ->> 'id')
             on conflict do nothing returning delivery_id",
            &[Bind::Text(&rows)],
        )
        .await?;
    let owners = tx
        .rows(
            "select k.customer_id, k.key, k.body_hash, k.delivery_id
             from (select value ->> 'customer' as j_customer, value ->> 'key' as j_key from json_each($1)) as j
             join idempotency_keys as k on k.customer_id = j_customer and k.key = j_key",
            &[Bind::Text(&rows)],
        )
        .await?;
    let mut by_key = HashMap::new();
    for row in &owners {
        by_key.insert((row.text(0)?, row.text(1)?), (row.text(2)?, id_of(row.text(3)?)?));
    }
    for (change, result) in changes.iter().zip(results) {
        let record = &change.delivery.record;
        let (Some(key), Ok(())) = (&change.key, &*result) else { continue };
        match by_key.get(&(record.customer_id.as_str(), key.key.as_str())) {
            Some((_, owner)) if *owner == record.delivery_id => {}
            Some((hash, owner)) => {
                *result = Err(StoreError::KeyUsed { delivery_id: *owner, same_body: *hash == key.body_hash });
            }
            // The delivery is there already, or the key's former use was forgotten between the two statements.
            None => *result = Err(StoreError::Conflict),
        }
    }
    ids_of(&inserted)
}

/// Takes back the keys that this transaction has inserted for deliveries that it then could not: another replica was
/// quicker with the same id.
pub(super) async fn withdraw_keys(
    tx: &mut Tx,
    inserted: &HashSet<DeliveryId>,
    changes: &[Change],
    results: &[Result<(), StoreError>],
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    for (change, result) in changes.iter().zip(results) {
        let record = &change.delivery.record;
        if let (Some(key), Err(_)) = (&change.key, result)
            && inserted.contains(&record.delivery_id)
        {
            rows.push((&record.customer_id, &key.key, record.delivery_id));
        }
    }
    if rows.is_empty() {
        return Ok(());
    }
    tx.done(
        "delete from idempotency_keys where (customer_id, key, delivery_id) in
             (select value ->> 0, value ->> 1, value ->> 2 from json_each($1))",
        &[Bind::Text(&json(&rows)?)],
    )
    .await?;
    Ok(())
}

pub(super) async fn insert_new(
    tx: &mut Tx,
    changes: &[Change],
    results: &mut [Result<(), StoreError>],
) -> Result<(), sqlx::Error> {
    let fresh = |(change, result): (&Change, &Result<(), StoreError>)| change.expected_version == 0 && result.is_ok();
    let mut rows: Vec<RowJson<'_>> = changes
        .iter()
        .zip(results.iter())
        .filter(|(change, result)| fresh((change, result)))
        .map(|(change, _)| RowJson::new(change))
        .collect::<Result<_, _>>()?;
    if rows.is_empty() {
        return Ok(());
    }
    rows.sort_by_key(|row| row.id);
    let inserted = tx
        .rows(
            "with rows as materialized (select value as v from json_each($1))
             insert into deliveries (delivery_id, customer_id, version, stage, requested_ms, updated_ms, finished_ms,
                 due_ms, lease_owner, lease_until_ms, fence, doc)
             select v ->> 'id', v ->> 'customer', cast(v ->> 'version' as bigint), v ->> 'stage',
                 cast(v ->> 'requested' as bigint), cast(v ->> 'updated' as bigint), cast(v ->> 'finished' as bigint),
                 cast(v ->> 'due' as bigint), v ->> 'owner', cast(v ->> 'until' as bigint),
                 coalesce(cast(v ->> 'fence' as bigint), 0), v ->> 'doc'
             from rows where true on conflict do nothing returning delivery_id",
            &[Bind::Text(&json(&rows)?)],
        )
        .await?;
    mark_missing(changes, results, &inserted, true)
}

pub(super) async fn update_known(
    tx: &mut Tx,
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
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    tx.lock(LOCK, &[Bind::Text(&json(&ids)?)]).await?;
    let updated = tx
        .rows(
            "with rows as materialized (select value as v from json_each($1))
             update deliveries set version = j_version, stage = j_stage, updated_ms = j_updated,
                 finished_ms = j_finished, due_ms = j_due, doc = j_doc,
                 lease_owner = case j_lease when 'keep' then lease_owner else j_owner end,
                 lease_until_ms = case j_lease when 'keep' then lease_until_ms else j_until end
             from (select v ->> 'id' as j_id, cast(v ->> 'expected' as bigint) as j_expected,
                       cast(v ->> 'version' as bigint) as j_version, v ->> 'stage' as j_stage,
                       cast(v ->> 'updated' as bigint) as j_updated, cast(v ->> 'finished' as bigint) as j_finished,
                       cast(v ->> 'due' as bigint) as j_due, v ->> 'lease' as j_lease, v ->> 'owner' as j_owner,
                       cast(v ->> 'until' as bigint) as j_until, cast(v ->> 'fence' as bigint) as j_fence,
                       v ->> 'doc' as j_doc
                   from rows) as j
             where deliveries.delivery_id = j_id and deliveries.version = j_expected
                 and (j_fence is null or deliveries.fence = j_fence)
             returning delivery_id",
            &[Bind::Text(&json(&rows)?)],
        )
        .await?;
    mark_missing(changes, results, &updated, false)
}

/// What the statement did not write has met a row that is not as expected.
fn mark_missing(
    changes: &[Change],
    results: &mut [Result<(), StoreError>],
    written: &[Values],
    fresh: bool,
) -> Result<(), sqlx::Error> {
    let ids = ids_of(written)?;
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

pub(super) async fn append_logs(tx: &mut Tx, written: &[&Change]) -> Result<(), sqlx::Error> {
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
        tx.done(
            "insert into stage_log (delivery_id, number, stage, attempt, at)
             select value ->> 'id', cast(value ->> 'number' as bigint), value ->> 'stage',
                 cast(value ->> 'attempt' as bigint), value ->> 'at'
             from json_each($1)",
            &[Bind::Text(&json(&stages)?)],
        )
        .await?;
    }
    if !steps.is_empty() {
        tx.done(
            "insert into saga_log (delivery_id, version, number, step, attempt, outcome, at, tries)
             select value ->> 'id', cast(value ->> 'version' as bigint), cast(value ->> 'number' as bigint),
                 value ->> 'step', cast(value ->> 'attempt' as bigint), value ->> 'outcome', value ->> 'at',
                 cast(value ->> 'tries' as bigint)
             from json_each($1)",
            &[Bind::Text(&json(&steps)?)],
        )
        .await?;
    }
    Ok(())
}
