//! Reads the raw tables when nothing is running, for the audit: every row, with nothing taken for granted.

use std::{collections::HashSet, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Int64Type, TimestampMicrosecondType},
};
use chrono::NaiveDate;
use contracts::{DeliveryId, Stage, SystemClock, Timestamp, events::DeliveryRecord};
use object_store::{ObjectStoreExt, path::Path};

use super::{
    Location, Table, parquet_file,
    parquet_file::text_column,
    schema::{DELIVERY_ID, FINISHED_AT, RECORD, TableKind},
};
use crate::domain::Key;

/// A row of the deliveries table, as it lies there.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRow {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The stage in the stage column.
    pub stage: Stage,
    /// The partition that it lies in.
    pub date: NaiveDate,
    /// The time in the finished_at column.
    pub finished_at: Timestamp,
    /// The row's version at its owner.
    pub version: u64,
    /// The record column, with the whole stage log.
    pub record: DeliveryRecord,
}

/// What the positions table holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PositionKeys {
    /// Rows.
    pub rows: usize,
    /// Rows whose delivery, attempt and sequence another row has, too.
    pub doubled: usize,
}

/// Every row of the deliveries table; none where there is no lake yet.
pub async fn scan_deliveries(lake_url: &str) -> anyhow::Result<Vec<AuditRow>> {
    let mut rows = Vec::new();
    let columns = [DELIVERY_ID, "stage", FINISHED_AT, "version", RECORD];
    for (date, batch) in scan(lake_url, TableKind::Deliveries, &columns).await? {
        let (ids, stages, records) =
            (text_column(&batch, DELIVERY_ID)?, text_column(&batch, "stage")?, text_column(&batch, RECORD)?);
        let finished = batch
            .column_by_name(FINISHED_AT)
            .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
            .ok_or_else(|| anyhow::anyhow!("no column 'finished_at'"))?;
        let versions = batch
            .column_by_name("version")
            .and_then(|column| column.as_primitive_opt::<Int64Type>())
            .ok_or_else(|| anyhow::anyhow!("no column 'version'"))?;
        for row in 0..batch.num_rows() {
            let stage = Stage::parse(stages.value(row));
            let finished_at = Timestamp::from_timestamp_micros(finished.value(row));
            rows.push(AuditRow {
                delivery_id: ids.value(row).parse()?,
                stage: stage.ok_or_else(|| anyhow::anyhow!("'{}' is not a stage", stages.value(row)))?,
                date,
                finished_at: finished_at.ok_or_else(|| anyhow::anyhow!("finished_at is out of range"))?,
                version: u64::try_from(versions.value(row))?,
                record: serde_json::from_str(records.value(row))?,
            });
        }
    }
    Ok(rows)
}

/// Counts the rows of the positions table and those that are there twice.
pub async fn scan_positions_keys(lake_url: &str) -> anyhow::Result<PositionKeys> {
    let mut seen: HashSet<Key> = HashSet::new();
    let mut counted = PositionKeys::default();
    for (_, batch) in scan(lake_url, TableKind::Positions, TableKind::Positions.key_columns()).await? {
        let mut keys = Vec::new();
        parquet_file::keys_of(&batch, &mut keys)?;
        for key in keys {
            counted.rows += 1;
            counted.doubled += usize::from(!seen.insert(key));
        }
    }
    Ok(counted)
}

async fn scan(url: &str, kind: TableKind, columns: &[&str]) -> anyhow::Result<Vec<(NaiveDate, RecordBatch)>> {
    let Some(table) = Table::existing(kind, &Location::open(url)?, Arc::new(SystemClock)).await? else {
        return Ok(Vec::new());
    };
    let mut batches = Vec::new();
    for file in table.view().files() {
        let bytes = table.store().get(&Path::parse(&file.path)?).await?.bytes().await?;
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        let decoded = tokio::task::spawn_blocking(move || {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            parquet_file::decode(bytes, Some(&columns))
        });
        batches.extend(decoded.await??.into_iter().map(|batch| (file.date, batch)));
    }
    Ok(batches)
}
