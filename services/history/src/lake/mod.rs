//! The lake: two Delta tables, written exactly once, compacted, vacuumed and read.

mod audit;
mod compaction;
mod durable;
mod files;
mod keys;
mod parquet_file;
mod reader;
mod schema;
mod stores;
mod table;
mod vacuum;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use contracts::Clock;

pub use audit::{AuditRow, PositionKeys, scan_deliveries, scan_positions_keys};
pub(crate) use compaction::{CompactionLimits, compact};
pub(crate) use keys::KeyCache;
pub(crate) use reader::{Reader, belongs_to};
pub(crate) use schema::{Row, TableKind};
pub(crate) use stores::Location;
pub(crate) use table::Table;
pub(crate) use vacuum::vacuum;
pub(crate) use writer::{Flushed, Place, Taken, Writer};

/// Why the lake did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LakeError {
    /// Somebody else committed first: look again, then try again.
    #[error("another writer has committed to the table")]
    Conflict,
    /// The object store, or the table in it, cannot be read or written now.
    #[error("the lake is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The configured URL names no lake.
    #[error("'{0}' is not a lake: expected file:///ABSOLUTE/PATH, a path, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX")]
    Url(String),
    /// The environment has no credentials for the store.
    #[error("a lake at {store}:// needs credentials: {variable} is not set")]
    Credentials {
        /// The URL's scheme.
        store: &'static str,
        /// The environment variable to set.
        variable: String,
    },
}

impl LakeError {
    fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

macro_rules! unavailable_from {
    ($($error:ty),+ $(,)?) => {
        $(impl From<$error> for LakeError {
            fn from(error: $error) -> Self {
                Self::unavailable(error)
            }
        })+
    };
}
unavailable_from!(
    deltalake_core::DeltaTableError,
    object_store::Error,
    parquet::errors::ParquetError,
    arrow::error::ArrowError,
    tokio::task::JoinError,
    serde_json::Error,
);

/// Both tables.
#[derive(Clone)]
pub(crate) struct Lake {
    /// Finished deliveries.
    pub(crate) deliveries: Arc<Table>,
    /// Sampled positions.
    pub(crate) positions: Arc<Table>,
}

impl Lake {
    /// Opens the lake at `url`, making tables that are not there yet.
    pub(crate) async fn open(url: &str, clock: Arc<dyn Clock>) -> Result<Self, LakeError> {
        let location = Location::open(url)?;
        let deliveries = Table::open(TableKind::Deliveries, &location, clock.clone()).await?;
        let positions = Table::open(TableKind::Positions, &location, clock).await?;
        Ok(Self { deliveries: Arc::new(deliveries), positions: Arc::new(positions) })
    }
}
