//! What is known of a table's files without opening them: date, size, and the ranges of their values.

use std::{collections::BTreeMap, sync::Arc};

use chrono::{NaiveDate, SecondsFormat};
use contracts::Timestamp;
use deltalake_core::kernel::{Add, LogicalFileView, Remove, Version};
use serde_json::{Value, json};
use uuid::Uuid;

use super::schema::{CUSTOMER_ID, DATE, DELIVERY_ID, TableKind};

/// The ranges of a file's values, both ends included.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct FileStats {
    /// Rows.
    pub(crate) rows: u64,
    /// Deliveries.
    pub(crate) ids: (Uuid, Uuid),
    /// Customers.
    pub(crate) customers: (String, String),
    /// Times of the column that the date comes from.
    pub(crate) times: (Timestamp, Timestamp),
}

impl FileStats {
    /// Of one row.
    pub(crate) fn of(id: Uuid, customer: &str, time: Timestamp) -> Self {
        Self { rows: 1, ids: (id, id), customers: (customer.to_owned(), customer.to_owned()), times: (time, time) }
    }

    /// Of a file of which nothing is known: everything may be in it.
    fn unknown() -> Self {
        let customers = (String::new(), char::MAX.to_string());
        let times = (Timestamp::MIN_UTC, Timestamp::MAX_UTC);
        Self { rows: 0, ids: (Uuid::nil(), Uuid::max()), customers, times }
    }

    /// Adds another file's rows.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        self.ids = (self.ids.0.min(other.ids.0), self.ids.1.max(other.ids.1));
        self.times = (self.times.0.min(other.times.0), self.times.1.max(other.times.1));
        if other.customers.0 < self.customers.0 {
            self.customers.0.clone_from(&other.customers.0);
        }
        if other.customers.1 > self.customers.1 {
            self.customers.1.clone_from(&other.customers.1);
        }
    }

    /// As Delta's per-file statistics.
    pub(crate) fn to_json(&self, kind: TableKind) -> String {
        let time = |time: Timestamp| time.to_rfc3339_opts(SecondsFormat::Micros, true);
        let column = kind.time_column();
        json!({
            "numRecords": self.rows,
            "minValues": {DELIVERY_ID: self.ids.0, CUSTOMER_ID: self.customers.0, column: time(self.times.0)},
            "maxValues": {DELIVERY_ID: self.ids.1, CUSTOMER_ID: self.customers.1, column: time(self.times.1)},
            "nullCount": {DELIVERY_ID: 0, CUSTOMER_ID: 0, column: 0},
        })
        .to_string()
    }

    /// Reads Delta's statistics; what is not there may be anything.
    fn from_json(kind: TableKind, text: Option<&str>) -> Self {
        let mut stats = Self::unknown();
        let Some(value) = text.and_then(|text| serde_json::from_str::<Value>(text).ok()) else { return stats };
        let get = |end: &str, column: &str| value[end][column].as_str();
        let id = |end: &str| get(end, DELIVERY_ID).and_then(|text| text.parse().ok());
        let time = |end: &str| get(end, kind.time_column()).and_then(|text| text.parse::<Timestamp>().ok());
        stats.rows = value["numRecords"].as_u64().unwrap_or(0);
        if let (Some(first), Some(last)) = (id("minValues"), id("maxValues")) {
            stats.ids = (first, last);
        }
        if let (Some(first), Some(last)) = (get("minValues", CUSTOMER_ID), get("maxValues", CUSTOMER_ID)) {
            stats.customers = (first.to_owned(), last.to_owned());
        }
        if let (Some(first), Some(last)) = (time("minValues"), time("maxValues")) {
            // Other writers cut the time to milliseconds, the latest one downwards.
            stats.times = (first, last + chrono::Duration::milliseconds(1));
        }
        stats
    }
}

/// A file of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DataFile {
    /// Its path below the table's folder.
    pub(crate) path: String,
    /// Its partition.
    pub(crate) date: NaiveDate,
    /// Bytes.
    pub(crate) bytes: u64,
    /// When it was made, in milliseconds since 1970.
    pub(crate) modified_ms: i64,
    /// What is in it.
    pub(crate) stats: FileStats,
}

impl DataFile {
    /// The file of an Add action; `None` where its date cannot be read.
    pub(crate) fn from_add(kind: TableKind, add: &Add) -> Option<Self> {
        let date = add.partition_values.get(DATE)?.as_deref()?.parse().ok()?;
        Some(Self {
            path: add.path.clone(),
            date,
            bytes: u64::try_from(add.size).ok()?,
            modified_ms: add.modification_time,
            stats: FileStats::from_json(kind, add.stats.as_deref()),
        })
    }

    /// The file of a loaded snapshot; `None` where its date cannot be read.
    pub(crate) fn from_snapshot(kind: TableKind, file: &LogicalFileView) -> Option<Self> {
        let date = file.partition_values_map().get(DATE)?.as_deref()?.parse().ok()?;
        Some(Self {
            path: file.path().into_owned(),
            date,
            bytes: u64::try_from(file.size()).ok()?,
            modified_ms: file.modification_time(),
            stats: FileStats::from_json(kind, file.stats().as_deref()),
        })
    }

    /// As an Add action.
    pub(crate) fn add(&self, kind: TableKind, data_change: bool) -> Add {
        Add {
            path: self.path.clone(),
            partition_values: self.partition(),
            size: self.bytes.cast_signed(),
            modification_time: self.modified_ms,
            data_change,
            stats: Some(self.stats.to_json(kind)),
            tags: None,
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
            clustering_provider: None,
        }
    }

    /// As a Remove action whose rows another file has.
    pub(crate) fn remove(&self, now: Timestamp) -> Remove {
        Remove {
            path: self.path.clone(),
            data_change: false,
            deletion_timestamp: Some(now.timestamp_millis()),
            extended_file_metadata: Some(true),
            partition_values: Some(self.partition()),
            size: Some(self.bytes.cast_signed()),
            ..Remove::default()
        }
    }

    fn partition(&self) -> std::collections::HashMap<String, Option<String>> {
        [(DATE.to_owned(), Some(self.date.to_string()))].into()
    }

    /// Whether it may hold a delivery.
    pub(crate) fn may_hold(&self, id: Uuid) -> bool {
        self.stats.ids.0 <= id && id <= self.stats.ids.1
    }
}

/// The files of one version of a table, by date.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The table's version.
    pub(crate) version: Version,
    dates: BTreeMap<NaiveDate, Arc<Vec<Arc<DataFile>>>>,
}

impl View {
    /// An empty view of a version.
    pub(crate) fn new(version: Version) -> Self {
        Self { version, dates: BTreeMap::new() }
    }

    /// Adds a file; one that is there already stays once.
    pub(crate) fn add(&mut self, file: DataFile) {
        let files = Arc::make_mut(self.dates.entry(file.date).or_default());
        files.retain(|other| other.path != file.path);
        files.push(Arc::new(file));
    }

    /// Takes a file away.
    pub(crate) fn remove(&mut self, path: &str) {
        for files in self.dates.values_mut() {
            if files.iter().any(|file| file.path == path) {
                Arc::make_mut(files).retain(|file| file.path != path);
                break;
            }
        }
        self.dates.retain(|_, files| !files.is_empty());
    }

    /// The files of a date, oldest first.
    pub(crate) fn of_date(&self, date: NaiveDate) -> &[Arc<DataFile>] {
        self.dates.get(&date).map_or(&[], |files| files.as_slice())
    }

    /// The dates from `first` to `last` that have files, oldest first.
    pub(crate) fn dates(&self, first: NaiveDate, last: NaiveDate) -> Vec<NaiveDate> {
        if first > last {
            return Vec::new();
        }
        self.dates.range(first..=last).map(|(date, _)| *date).collect()
    }

    /// Every date with its files.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NaiveDate, &[Arc<DataFile>])> {
        self.dates.iter().map(|(date, files)| (*date, files.as_slice()))
    }

    /// Every file.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Arc<DataFile>> {
        self.dates.values().flat_map(|files| files.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::at;

    fn file(path: &str) -> DataFile {
        let mut stats = FileStats::of(Uuid::from_u128(5), "bob", at(1, 3));
        stats.merge(&FileStats::of(Uuid::from_u128(2), "carol", at(1, 1)));
        let date = at(1, 0).date_naive();
        DataFile { path: path.to_owned(), date, bytes: 10, modified_ms: 7, stats }
    }

    #[test]
    fn a_file_survives_the_way_through_the_log() {
        let file = file("date=2025-03-01/a.parquet");
        for kind in [TableKind::Deliveries, TableKind::Positions] {
            let mut back = DataFile::from_add(kind, &file.add(kind, true)).unwrap();
            assert!(back.stats.times.1 >= file.stats.times.1);
            back.stats.times.1 = file.stats.times.1;
            assert_eq!(back, file);
        }
    }

    #[test]
    fn a_file_without_statistics_may_hold_anything() {
        let mut add = file("x").add(TableKind::Deliveries, true);
        add.stats = None;
        let back = DataFile::from_add(TableKind::Deliveries, &add).unwrap();
        assert!(back.may_hold(Uuid::max()) && back.may_hold(Uuid::nil()));
    }

    #[test]
    fn a_view_keeps_each_file_once() {
        let mut view = View::new(0);
        view.add(file("a"));
        view.add(file("a"));
        view.add(file("b"));
        assert_eq!(view.files().count(), 2);
        view.remove("a");
        view.remove("b");
        assert_eq!(view.iter().count(), 0);
    }
}
