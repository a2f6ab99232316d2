//! Data files: how they are written, and how little of them is read.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::Int64Type,
};
use bytes::Bytes;
use chrono::NaiveDate;
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use parquet::{
    arrow::{
        ArrowWriter, ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
        async_reader::AsyncFileReader,
    },
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader},
        properties::WriterProperties,
    },
    schema::types::ColumnPath,
};
use uuid::Uuid;

use super::{
    LakeError,
    files::{DataFile, FileStats},
    schema::{ATTEMPT, DELIVERY_ID, SEQUENCE, TableKind},
};
use crate::domain::Key;

/// Rows in a row group: with an id's bloom filter a look-up decodes one group, so groups are small.
const ROW_GROUP_ROWS: usize = 16 * 1024;
/// Share of wrong "maybe" answers of a bloom filter: at one in a hundred it costs ten bits a row.
const BLOOM_FALSE_POSITIVES: f64 = 0.01;
/// Bytes of a file's end that are read at once: footer and page index of a file of this service fit.
const FOOTER_HINT_BYTES: usize = 64 * 1024;

/// Writes rows as a Parquet file. Costs CPU: not for a runtime worker.
pub(crate) fn encode(kind: TableKind, batches: &[RecordBatch]) -> Result<Bytes, LakeError> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_created_by(concat!("drone-delivery history ", env!("CARGO_PKG_VERSION")).to_owned());
    for column in kind.bloom_columns() {
        let path = ColumnPath::from(*column);
        properties = properties
            .set_column_bloom_filter_enabled(path.clone(), true)
            .set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES)
            .set_column_bloom_filter_max_ndv(path, rows.clamp(1, ROW_GROUP_ROWS) as u64);
    }
    for column in kind.plain_columns() {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(*column), false);
    }
    let mut writer = ArrowWriter::try_new(Vec::new(), kind.schema(), Some(properties.build()))?;
    for batch in batches {
        writer.write(batch)?;
    }
    Ok(writer.into_inner()?.into())
}

/// Puts a file into the table's folder, where nothing refers to it yet.
pub(crate) async fn put(
    store: &dyn ObjectStore,
    id: Uuid,
    date: NaiveDate,
    bytes: Bytes,
    stats: FileStats,
) -> Result<DataFile, LakeError> {
    let path = format!("{}={date}/part-{id}.zstd.parquet", super::schema::DATE);
    let size = bytes.len() as u64;
    store.put(&Path::parse(&path).map_err(LakeError::unavailable)?, bytes.into()).await?;
    // A UUIDv7 tells when the file was made.
    let modified_ms = made_at_ms(&path).unwrap_or(0);
    Ok(DataFile { path, date, bytes: size, modified_ms, stats })
}

/// When a file of this service was made, in milliseconds since 1970, by its name.
pub(crate) fn made_at_ms(path: &str) -> Option<i64> {
    let name = path.rsplit('/').next()?.strip_prefix("part-")?.strip_suffix(".zstd.parquet")?;
    let (seconds, nanoseconds) = Uuid::parse_str(name).ok()?.get_timestamp()?.to_unix();
    Some(i64::try_from(seconds).ok()? * 1_000 + i64::from(nanoseconds / 1_000_000))
}

/// A file, read in ranges.
pub(crate) struct RangedFile {
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
}

impl AsyncFileReader for RangedFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move { Ok(self.store.get_range(&self.path, range).await?) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { Ok(self.store.get_ranges(&self.path, &ranges).await?) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        async move {
            let bytes = self.bytes;
            let reader = ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Optional)
                .with_prefetch_hint(Some(FOOTER_HINT_BYTES));
            Ok(Arc::new(reader.load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}

/// A file whose footer has been read.
pub(crate) type OpenFile = ParquetRecordBatchStreamBuilder<RangedFile>;

/// Reads a file's footer.
pub(crate) async fn open(store: Arc<dyn ObjectStore>, file: &DataFile) -> Result<OpenFile, LakeError> {
    let path = Path::parse(&file.path).map_err(LakeError::unavailable)?;
    let reader = RangedFile { store, path, bytes: file.bytes };
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    Ok(ParquetRecordBatchStreamBuilder::new_with_options(reader, options).await?)
}

/// The row groups that may hold one of `values` in a column, by its bloom filters.
pub(crate) async fn groups_with(file: &mut OpenFile, column: &str, values: &[&str]) -> Result<Vec<usize>, LakeError> {
    let index = file.parquet_schema().columns().iter().position(|c| c.name() == column);
    let groups = file.metadata().num_row_groups();
    let Some(index) = index else { return Ok((0..groups).collect()) };
    let mut possible = Vec::new();
    for group in 0..groups {
        let filter = file.get_row_group_column_bloom_filter(group, index).await?;
        if filter.is_none_or(|filter| values.iter().any(|value| filter.check(*value))) {
            possible.push(group);
        }
    }
    Ok(possible)
}

/// The columns of that name.
pub(crate) fn projection(file: &OpenFile, columns: &[&str]) -> ProjectionMask {
    ProjectionMask::columns(file.parquet_schema(), columns.iter().copied())
}

/// The keys of a file's rows, sorted.
pub(crate) async fn read_keys(kind: TableKind, file: OpenFile) -> Result<Vec<Key>, LakeError> {
    let mask = projection(&file, kind.key_columns());
    let mut batches = file.with_projection(mask).build()?;
    let mut keys = Vec::new();
    while let Some(batch) = batches.try_next().await? {
        keys_of(&batch, &mut keys)?;
    }
    keys.sort_unstable();
    Ok(keys)
}

/// Every row of a file, from its bytes. Costs CPU: not for a runtime worker.
pub(crate) fn decode(bytes: Bytes, columns: Option<&[&str]>) -> Result<Vec<RecordBatch>, LakeError> {
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    if let Some(columns) = columns {
        let mask = ProjectionMask::columns(reader.parquet_schema(), columns.iter().copied());
        reader = reader.with_projection(mask);
    }
    let mut batches = Vec::new();
    for batch in reader.build()? {
        batches.push(batch?);
    }
    Ok(batches)
}

/// Adds the keys of a batch's rows.
pub(crate) fn keys_of(batch: &RecordBatch, keys: &mut Vec<Key>) -> Result<(), LakeError> {
    let ids = text_column(batch, DELIVERY_ID)?;
    let numbers = |name: &str| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
    // Deliveries have an attempt, too, but it is not in their key: only a table with sequences has keys of three.
    let parts = numbers(SEQUENCE).zip(numbers(ATTEMPT));
    for row in 0..batch.num_rows() {
        let delivery = Uuid::parse_str(ids.value(row)).map_err(LakeError::unavailable)?;
        let (attempt, sequence) = match parts {
            Some((sequences, attempts)) => {
                let attempt = u32::try_from(attempts.value(row)).map_err(LakeError::unavailable)?;
                (attempt, sequences.value(row).cast_unsigned())
            }
            None => (0, 0),
        };
        keys.push(Key { delivery, attempt, sequence });
    }
    Ok(())
}

/// A column of texts.
pub(crate) fn text_column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a arrow::array::StringArray, LakeError> {
    let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    column
        .filter(|column| column.null_count() == 0)
        .ok_or_else(|| LakeError::unavailable(format!("no column '{name}'")))
}
