//! The tables' columns, and rows as record batches of them.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};
use chrono::NaiveDate;
use contracts::{Timestamp, events::CloudEvent};
use deltalake_core::kernel::{DataType as DeltaType, StructField};

use super::files::FileStats;
use crate::domain::{DeliveryRow, Key, PositionRow, RowFault, date_of};

/// The partition column of both tables, which is in the folder's name and not in the files.
pub(crate) const DATE: &str = "date";
/// The delivery's id: the first column of both tables, and in the files' order.
pub(crate) const DELIVERY_ID: &str = "delivery_id";
/// Whose delivery.
pub(crate) const CUSTOMER_ID: &str = "customer_id";
/// When a delivery ended.
pub(crate) const FINISHED_AT: &str = "finished_at";
/// When a position was stored.
pub(crate) const RECORDED_AT: &str = "recorded_at";
/// The attempt that a position belongs to.
pub(crate) const ATTEMPT: &str = "attempt";
/// The number of a position's report.
pub(crate) const SEQUENCE: &str = "sequence";
/// A delivery's whole record, as JSON.
pub(crate) const RECORD: &str = "record";

/// One of the lake's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TableKind {
    /// Finished deliveries.
    Deliveries,
    /// Sampled positions.
    Positions,
}

/// A column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Text,
    Integer,
    Number,
    Flag,
    Time,
}

/// Name, type, and whether it may be null.
type ColumnSpec = (&'static str, Column, bool);

const DELIVERIES: &[ColumnSpec] = &[
    (DELIVERY_ID, Column::Text, false),
    (CUSTOMER_ID, Column::Text, false),
    ("home_region", Column::Text, false),
    ("version", Column::Integer, false),
    ("stage", Column::Text, false),
    (ATTEMPT, Column::Integer, false),
    ("pickup_latitude", Column::Number, false),
    ("pickup_longitude", Column::Number, false),
    ("dropoff_latitude", Column::Number, false),
    ("dropoff_longitude", Column::Number, false),
    ("size", Column::Text, false),
    ("weight_kg", Column::Number, false),
    ("tag", Column::Text, true),
    ("description", Column::Text, true),
    ("expedited", Column::Flag, false),
    ("confirmation", Column::Text, false),
    ("confirmation_missing", Column::Flag, false),
    ("drone_id", Column::Text, true),
    ("base_id", Column::Text, true),
    ("requested_at", Column::Time, false),
    ("scheduled_at", Column::Time, true),
    ("picked_up_at", Column::Time, true),
    (FINISHED_AT, Column::Time, false),
    ("deadline", Column::Time, false),
    ("end_reason", Column::Text, true),
    ("stages", Column::Text, false),
    (RECORD, Column::Text, false),
];

const POSITIONS: &[ColumnSpec] = &[
    (DELIVERY_ID, Column::Text, false),
    (ATTEMPT, Column::Integer, false),
    (SEQUENCE, Column::Integer, false),
    (CUSTOMER_ID, Column::Text, false),
    ("home_region", Column::Text, false),
    ("drone_id", Column::Text, false),
    ("stage", Column::Text, false),
    ("latitude", Column::Number, false),
    ("longitude", Column::Number, false),
    ("battery", Column::Number, false),
    ("at", Column::Time, false),
    (RECORDED_AT, Column::Time, false),
];

impl TableKind {
    /// The table's folder.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Deliveries => "deliveries",
            Self::Positions => "positions",
        }
    }

    /// The column that the date comes from.
    pub(crate) const fn time_column(self) -> &'static str {
        match self {
            Self::Deliveries => FINISHED_AT,
            Self::Positions => RECORDED_AT,
        }
    }

    /// The columns that make a row unique.
    pub(crate) const fn key_columns(self) -> &'static [&'static str] {
        match self {
            Self::Deliveries => &[DELIVERY_ID],
            Self::Positions => &[DELIVERY_ID, ATTEMPT, SEQUENCE],
        }
    }

    /// The columns with a bloom filter.
    pub(crate) const fn bloom_columns(self) -> &'static [&'static str] {
        match self {
            Self::Deliveries => &[DELIVERY_ID, CUSTOMER_ID],
            Self::Positions => &[DELIVERY_ID],
        }
    }

    /// Columns whose values hardly repeat: a dictionary would only be written in vain.
    pub(crate) const fn plain_columns(self) -> &'static [&'static str] {
        match self {
            Self::Deliveries => &[DELIVERY_ID, "stages", RECORD],
            Self::Positions => &[SEQUENCE],
        }
    }

    const fn columns(self) -> &'static [ColumnSpec] {
        match self {
            Self::Deliveries => DELIVERIES,
            Self::Positions => POSITIONS,
        }
    }

    /// The columns of the files.
    pub(crate) fn schema(self) -> SchemaRef {
        let fields = self.columns().iter().map(|&(name, column, nullable)| {
            let kind = match column {
                Column::Text => DataType::Utf8,
                Column::Integer => DataType::Int64,
                Column::Number => DataType::Float64,
                Column::Flag => DataType::Boolean,
                Column::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            };
            Field::new(name, kind, nullable)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The columns of the table: those of the files, and the date.
    pub(crate) fn delta_columns(self) -> Vec<StructField> {
        let mut fields = Vec::new();
        for &(name, column, nullable) in self.columns() {
            let kind = match column {
                Column::Text => DeltaType::STRING,
                Column::Integer => DeltaType::LONG,
                Column::Number => DeltaType::DOUBLE,
                Column::Flag => DeltaType::BOOLEAN,
                Column::Time => DeltaType::TIMESTAMP,
            };
            fields.push(StructField::new(name, kind, nullable));
        }
        fields.push(StructField::new(DATE, DeltaType::DATE, false));
        fields
    }
}

/// A row of one of the tables.
pub(crate) trait Row: Send + Sync + Sized + 'static {
    /// Which table.
    const TABLE: TableKind;
    /// The row that an event makes; `None` for an event that the lake does not keep.
    fn from_event(event: &CloudEvent) -> Result<Option<Self>, RowFault>;
    /// What makes it unique.
    fn key(&self) -> Key;
    /// Whose it is.
    fn customer(&self) -> &str;
    /// The time that its date comes from.
    fn time(&self) -> Timestamp;
    /// Rows as columns.
    fn batch(rows: &[Arc<Self>]) -> Result<RecordBatch, ArrowError>;

    /// Its partition.
    fn date(&self) -> NaiveDate {
        date_of(self.time())
    }
}

/// What a file of these rows says of itself; `None` without rows.
pub(crate) fn stats_of<R: Row>(rows: &[Arc<R>]) -> Option<FileStats> {
    let first = rows.first()?;
    let mut stats = FileStats::of(first.key().delivery, first.customer(), first.time());
    for row in &rows[1..] {
        stats.merge(&FileStats::of(row.key().delivery, row.customer(), row.time()));
    }
    Some(stats)
}

fn texts<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn owned_texts(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn optional_texts(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn integers(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn numbers(values: impl Iterator<Item = f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter_values(values))
}

fn flags(values: impl Iterator<Item = bool>) -> ArrayRef {
    Arc::new(values.map(Some).collect::<BooleanArray>())
}

fn times(values: impl Iterator<Item = Option<Timestamp>>) -> ArrayRef {
    let array: TimestampMicrosecondArray = values.map(|time| time.map(|time| time.timestamp_micros())).collect();
    Arc::new(array.with_timezone("UTC"))
}

impl Row for DeliveryRow {
    const TABLE: TableKind = TableKind::Deliveries;

    fn from_event(event: &CloudEvent) -> Result<Option<Self>, RowFault> {
        Self::from_event(event)
    }

    fn key(&self) -> Key {
        self.key()
    }

    fn customer(&self) -> &str {
        self.record.customer_id.as_str()
    }

    fn time(&self) -> Timestamp {
        self.finished_at
    }

    fn batch(rows: &[Arc<Self>]) -> Result<RecordBatch, ArrowError> {
        let records = || rows.iter().map(|row| &row.record);
        let mut stages = Vec::with_capacity(rows.len());
        for record in records() {
            stages.push(serde_json::to_string(&record.stages).map_err(|e| ArrowError::ExternalError(Box::new(e)))?);
        }
        let columns = vec![
            owned_texts(records().map(|r| r.delivery_id.to_string())),
            texts(records().map(|r| r.customer_id.as_str())),
            texts(records().map(|r| r.home_region.as_str())),
            integers(records().map(|r| r.version.cast_signed())),
            texts(records().map(|r| r.stage.as_str())),
            integers(records().map(|r| i64::from(r.attempt))),
            numbers(records().map(|r| r.pickup.latitude)),
            numbers(records().map(|r| r.pickup.longitude)),
            numbers(records().map(|r| r.dropoff.latitude)),
            numbers(records().map(|r| r.dropoff.longitude)),
            texts(records().map(|r| r.package.size.as_str())),
            numbers(records().map(|r| r.package.weight_kg)),
            optional_texts(records().map(|r| r.package.tag.clone())),
            optional_texts(records().map(|r| r.package.description.clone())),
            flags(records().map(|r| r.expedited)),
            texts(records().map(|r| r.confirmation.as_str())),
            flags(records().map(|r| r.confirmation_missing)),
            optional_texts(records().map(|r| r.drone.as_ref().map(|drone| drone.drone_id.to_string()))),
            optional_texts(records().map(|r| r.drone.as_ref().map(|drone| drone.base_id.to_string()))),
            times(records().map(|r| Some(r.requested_at))),
            times(rows.iter().map(|row| row.scheduled_at())),
            times(rows.iter().map(|row| row.picked_up_at())),
            times(rows.iter().map(|row| Some(row.finished_at))),
            times(records().map(|r| Some(r.deadline))),
            optional_texts(records().map(|r| r.end_reason.clone())),
            texts(stages.iter().map(String::as_str)),
            texts(rows.iter().map(|row| row.json.as_str())),
        ];
        RecordBatch::try_new(Self::TABLE.schema(), columns)
    }
}

impl Row for PositionRow {
    const TABLE: TableKind = TableKind::Positions;

    fn from_event(event: &CloudEvent) -> Result<Option<Self>, RowFault> {
        Self::from_event(event)
    }

    fn key(&self) -> Key {
        self.key()
    }

    fn customer(&self) -> &str {
        self.0.customer_id.as_str()
    }

    fn time(&self) -> Timestamp {
        self.0.recorded_at
    }

    fn batch(rows: &[Arc<Self>]) -> Result<RecordBatch, ArrowError> {
        let samples = || rows.iter().map(|row| &row.0);
        let columns = vec![
            owned_texts(samples().map(|s| s.delivery_id.to_string())),
            integers(samples().map(|s| i64::from(s.attempt))),
            integers(samples().map(|s| s.fix.sequence.cast_signed())),
            texts(samples().map(|s| s.customer_id.as_str())),
            texts(samples().map(|s| s.home_region.as_str())),
            owned_texts(samples().map(|s| s.drone_id.to_string())),
            texts(samples().map(|s| s.stage.as_str())),
            numbers(samples().map(|s| s.fix.position.latitude)),
            numbers(samples().map(|s| s.fix.position.longitude)),
            numbers(samples().map(|s| s.fix.battery)),
            times(samples().map(|s| Some(s.fix.at))),
            times(samples().map(|s| Some(s.recorded_at))),
        ];
        RecordBatch::try_new(Self::TABLE.schema(), columns)
    }
}
