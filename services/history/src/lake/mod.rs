//! The lake: two Delta tables, written exactly once, compacted, vacuumed and read.

mod audit;
mod compaction;
mod durable;
mod files;
mod keys;
mod parquet_file;
mod reader;
mod schema;
mod table;
mod vacuum;
mod writer;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use contracts::Clock;
use url::Url;

pub use audit::{AuditRow, PositionKeys, scan_deliveries, scan_positions_keys};
pub(crate) use compaction::{CompactionLimits, compact};
pub(crate) use keys::KeyCache;
pub(crate) use reader::{Reader, belongs_to};
pub(crate) use schema::{Row, TableKind};
pub(crate) use table::Table;
pub(crate) use vacuum::vacuum;
pub(crate) use writer::{Place, Taken, Writer};

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
    #[error("'{0}' is not a lake: expected file:///ABSOLUTE/PATH or a path")]
    Url(String),
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

/// The lake's URL as one that ends in a slash.
pub(crate) fn parse_url(text: &str) -> Result<Url, LakeError> {
    let wrong = || LakeError::Url(text.to_owned());
    let path = match text.split_once(':') {
        Some(("file", _)) => {
            let url = Url::parse(text).map_err(|_| wrong())?;
            url.to_file_path().map_err(|()| wrong())?
        }
        Some((scheme, _)) if scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            return Err(wrong());
        }
        _ => PathBuf::from(text),
    };
    let path = std::path::absolute(path).map_err(|_| wrong())?;
    Url::from_directory_path(path).map_err(|()| wrong())
}

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
        let url = parse_url(url)?;
        let deliveries = Table::open(TableKind::Deliveries, &url, clock.clone()).await?;
        let positions = Table::open(TableKind::Positions, &url, clock).await?;
        Ok(Self { deliveries: Arc::new(deliveries), positions: Arc::new(positions) })
    }
}
