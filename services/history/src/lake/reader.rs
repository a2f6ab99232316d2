//! Answers about old deliveries from the lake: dates first, then statistics, then bloom filters, then single columns.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    datatypes::TimestampMicrosecondType,
    error::ArrowError,
};
use chrono::{NaiveDate, NaiveTime};
use contracts::{CustomerId, DeliveryId, Timestamp, api::HistoryQuery, events::DeliveryRecord};
use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::arrow_reader::{ArrowPredicateFn, RowFilter};
use uuid::Uuid;

use super::{
    KeyCache, LakeError, Table, TableKind,
    files::DataFile,
    keys,
    parquet_file::{self, text_column},
    schema::{CUSTOMER_ID, DELIVERY_ID, FINISHED_AT, RECORD},
};
use crate::domain::{Key, date_of, first_possible_date};

/// How old the list of files may be for an answer: other replicas' commits are seen after it.
const MAX_STALENESS: Duration = Duration::from_secs(1);
/// Files that a page may open before it ends with what it has: some hundred milliseconds of an object store, so that a
/// customer of few deliveries hears from years of them page by page, and not too late.
const MAX_FILES: usize = 128;
/// Files read at once for one query: hides the latency of an object store, and bounds memory.
const CONCURRENT_FILES: usize = 4;

/// A delivery found, not yet read whole.
#[derive(Debug, Clone)]
struct Match {
    finished_at: Timestamp,
    id: Uuid,
    file: Arc<DataFile>,
}

/// A page of finished deliveries.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// Newest first.
    pub(crate) records: Vec<DeliveryRecord>,
    /// Where to go on; none at the end.
    pub(crate) next: Option<(Timestamp, DeliveryId)>,
}

/// Reads the deliveries table.
pub(crate) struct Reader {
    table: Arc<Table>,
    cache: Arc<KeyCache>,
    pub(super) max_files: usize,
}

impl Reader {
    /// A reader; `cache` is the writer's, whose newest files it shares.
    pub(crate) fn new(table: Arc<Table>, cache: Arc<KeyCache>) -> Self {
        Self { table, cache, max_files: MAX_FILES }
    }

    /// One customer's finished deliveries, newest first by finish and id. Reads whole dates, the first at least.
    pub(crate) async fn history(&self, query: &HistoryQuery) -> Result<Found, LakeError> {
        let latest = query.after.map_or(query.to, |(at, _)| at.min(query.to));
        let view = self.table.recent_view(MAX_STALENESS).await?;
        let mut found: Vec<Match> = Vec::new();
        let (mut opened, mut next) = (0, None);
        for date in view.dates(date_of(query.from), date_of(latest)).into_iter().rev() {
            if opened >= self.max_files {
                next = end_of(date).filter(|(end, _)| *end >= query.from);
                break;
            }
            opened += self.match_date(query, view.of_date(date), &mut found).await?;
            // Older dates hold older deliveries.
            if found.len() > query.limit {
                found.truncate(query.limit);
                next = found.last().map(|last| (last.finished_at, DeliveryId(last.id)));
                break;
            }
        }
        Ok(Found { records: self.read_matches(&found).await?, next })
    }

    /// One finished delivery.
    pub(crate) async fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>, LakeError> {
        let Some(first) = first_possible_date(id) else { return Ok(None) };
        let view = self.table.recent_view(MAX_STALENESS).await?;
        let ids: HashSet<String> = [id.to_string()].into();
        // Ids are ordered by time: but for a delivery that took very long, no file of a later date has it in its range.
        for date in view.dates(first, NaiveDate::MAX) {
            let files: Vec<_> = view.of_date(date).iter().filter(|file| file.may_hold(id.0)).cloned().collect();
            let mut reads =
                stream::iter(files).map(|file| self.records_of(file, ids.clone())).buffered(CONCURRENT_FILES);
            while let Some(records) = reads.try_next().await? {
                if let Some((_, record)) = records.into_iter().next() {
                    return Ok(Some(record));
                }
            }
        }
        Ok(None)
    }

    /// Those of `ids` that the lake has.
    pub(crate) async fn contains(&self, ids: &[DeliveryId]) -> Result<Vec<DeliveryId>, LakeError> {
        let view = self.table.recent_view(MAX_STALENESS).await?;
        let mut by_date: BTreeMap<NaiveDate, Vec<Key>> = BTreeMap::new();
        for id in ids {
            let Some(first) = first_possible_date(*id) else { continue };
            for date in view.dates(first, NaiveDate::MAX) {
                if view.of_date(date).iter().any(|file| file.may_hold(id.0)) {
                    by_date.entry(date).or_default().push(Key { delivery: id.0, attempt: 0, sequence: 0 });
                }
            }
        }
        let mut held: HashSet<Uuid> = HashSet::new();
        for (date, mut wanted) in by_date {
            wanted.retain(|key| !held.contains(&key.delivery));
            wanted.sort_unstable();
            wanted.dedup();
            let store = self.table.store();
            let files = view.of_date(date);
            // Old files are asked for once: remembering their keys would push out those that the writer needs.
            let found = keys::held(TableKind::Deliveries, &store, files, &wanted, &self.cache, false).await?;
            held.extend(found.into_iter().map(|key| key.delivery));
        }
        Ok(ids.iter().copied().filter(|id| held.contains(&id.0)).collect())
    }

    /// Adds a date's matches to the newest `limit` + 1 found so far; answers how many files were opened.
    async fn match_date(
        &self,
        query: &HistoryQuery,
        files: &[Arc<DataFile>],
        found: &mut Vec<Match>,
    ) -> Result<usize, LakeError> {
        let customer = query.customer_id.as_str();
        let possible = |file: &&Arc<DataFile>| {
            let (stats, latest) = (&file.stats, query.after.map_or(query.to, |(at, _)| at));
            stats.times.1 >= query.from
                && stats.times.0 <= latest.min(query.to)
                && stats.customers.0.as_str() <= customer
                && customer <= stats.customers.1.as_str()
        };
        let mut files: Vec<Arc<DataFile>> = files.iter().filter(possible).cloned().collect();
        files.sort_by_key(|file| std::cmp::Reverse(file.stats.times.1));
        let mut opened = 0;
        for group in files.chunks(CONCURRENT_FILES) {
            let newest = group.first().map(|file| file.stats.times.1);
            let enough = found.get(query.limit).map(|last| last.finished_at);
            if enough.zip(newest).is_some_and(|(enough, newest)| newest < enough) {
                break;
            }
            let reads =
                stream::iter(group.to_vec()).map(|file| self.matches_of(file, query)).buffered(CONCURRENT_FILES);
            let matches: Vec<Vec<Match>> = reads.try_collect().await?;
            opened += group.len();
            found.extend(matches.into_iter().flatten());
            found.sort_by_key(|one| std::cmp::Reverse((one.finished_at, one.id)));
            found.truncate(query.limit + 1);
        }
        Ok(opened)
    }

    /// A file's matches: only ids and times are read.
    async fn matches_of(&self, file: Arc<DataFile>, query: &HistoryQuery) -> Result<Vec<Match>, LakeError> {
        let customer = query.customer_id.as_str().to_owned();
        let mut open = parquet_file::open(self.table.store(), &file).await?;
        let groups = parquet_file::groups_with(&mut open, CUSTOMER_ID, &[&customer]).await?;
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let customers = parquet_file::projection(&open, &[CUSTOMER_ID]);
        let theirs = ArrowPredicateFn::new(customers, move |batch| matching(&batch, CUSTOMER_ID, |id| id == customer));
        let columns = parquet_file::projection(&open, &[DELIVERY_ID, FINISHED_AT]);
        let filter = RowFilter::new(vec![Box::new(theirs)]);
        let mut batches = open.with_row_groups(groups).with_row_filter(filter).with_projection(columns).build()?;
        let mut matches = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            let ids = text_column(&batch, DELIVERY_ID)?;
            let times =
                batch.column_by_name(FINISHED_AT).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
            let times = times.ok_or_else(|| LakeError::unavailable("no column 'finished_at'"))?;
            for row in 0..batch.num_rows() {
                let id = Uuid::parse_str(ids.value(row)).map_err(LakeError::unavailable)?;
                let Some(finished_at) = Timestamp::from_timestamp_micros(times.value(row)) else { continue };
                if in_question(query, finished_at, id) {
                    matches.push(Match { finished_at, id, file: file.clone() });
                }
            }
        }
        matches.sort_by_key(|one| std::cmp::Reverse((one.finished_at, one.id)));
        matches.truncate(query.limit + 1);
        Ok(matches)
    }

    /// The records of the matches, in their order.
    async fn read_matches(&self, found: &[Match]) -> Result<Vec<DeliveryRecord>, LakeError> {
        let mut by_file: HashMap<&str, (Arc<DataFile>, HashSet<String>)> = HashMap::new();
        for one in found {
            let (_, ids) = by_file.entry(&one.file.path).or_insert_with(|| (one.file.clone(), HashSet::new()));
            ids.insert(one.id.to_string());
        }
        let wanted: Vec<_> = by_file.into_values().collect();
        let reads = stream::iter(wanted).map(|(file, ids)| self.records_of(file, ids)).buffered(CONCURRENT_FILES);
        let mut records: HashMap<Uuid, DeliveryRecord> = reads.try_concat().await?.into_iter().collect();
        Ok(found.iter().filter_map(|one| records.remove(&one.id)).collect())
    }

    /// The records of these deliveries in a file: only pages that may hold them are read.
    async fn records_of(
        &self,
        file: Arc<DataFile>,
        ids: HashSet<String>,
    ) -> Result<Vec<(Uuid, DeliveryRecord)>, LakeError> {
        let mut open = parquet_file::open(self.table.store(), &file).await?;
        let texts: Vec<&str> = ids.iter().map(String::as_str).collect();
        let groups = parquet_file::groups_with(&mut open, DELIVERY_ID, &texts).await?;
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let id_column = parquet_file::projection(&open, &[DELIVERY_ID]);
        let columns = parquet_file::projection(&open, &[DELIVERY_ID, RECORD]);
        let asked = ArrowPredicateFn::new(id_column, move |batch| matching(&batch, DELIVERY_ID, |id| ids.contains(id)));
        let filter = RowFilter::new(vec![Box::new(asked)]);
        let mut batches = open.with_row_groups(groups).with_row_filter(filter).with_projection(columns).build()?;
        let mut records = Vec::new();
        while let Some(batch) = batches.try_next().await? {
            let (ids, texts) = (text_column(&batch, DELIVERY_ID)?, text_column(&batch, RECORD)?);
            for row in 0..batch.num_rows() {
                let id = Uuid::parse_str(ids.value(row)).map_err(LakeError::unavailable)?;
                records.push((id, serde_json::from_str(texts.value(row))?));
            }
        }
        Ok(records)
    }
}

/// What a page begins after that begins with a date's last delivery.
fn end_of(date: NaiveDate) -> Option<(Timestamp, DeliveryId)> {
    let midnight = date.succ_opt()?.and_time(NaiveTime::MIN).and_utc();
    Some((midnight - chrono::Duration::microseconds(1), DeliveryId(Uuid::max())))
}

/// Whether a query asks for a delivery that its customer finished.
fn in_question(query: &HistoryQuery, finished_at: Timestamp, id: Uuid) -> bool {
    let after = query.after.is_none_or(|(at, last)| (finished_at, id) < (micros(at), last.0));
    finished_at >= query.from && finished_at < query.to && after
}

/// The lake keeps microseconds: a cursor made elsewhere may have more.
fn micros(time: Timestamp) -> Timestamp {
    Timestamp::from_timestamp_micros(time.timestamp_micros()).unwrap_or(time)
}

fn matching(batch: &RecordBatch, column: &str, wanted: impl Fn(&str) -> bool) -> Result<BooleanArray, ArrowError> {
    let texts = text_column(batch, column).map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
    Ok(texts.iter().map(|text| Some(text.is_some_and(&wanted))).collect())
}

/// Whether a record belongs to the customer that is asked for.
pub(crate) fn belongs_to(record: &DeliveryRecord, customer: Option<&CustomerId>) -> bool {
    customer.is_none_or(|customer| *customer == record.customer_id)
}
