//! Where finished deliveries lie: the seam between rules and engines.

#[cfg(test)]
pub(crate) mod contract;
mod mongodb;
#[cfg(test)]
pub(crate) mod samples;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use contracts::{CustomerId, DeliveryId, Stage, Timestamp, events::DeliveryRecord};

use crate::domain::{FinishedDelivery, Place};

/// Why the store did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// It cannot be reached, or it failed.
    #[error("the lookup store is unavailable")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The URL names no store.
    #[error("'{0}' is not a lookup store: expected sqlite:PATH or mongodb://HOSTS/DATABASE")]
    UnknownScheme(String),
}

/// A store of finished deliveries, sharded by customer.
#[async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// Keeps each delivery unless it is known in the same or a higher version. Durable before it answers; on an error
    /// any part of the batch may have been written, which repeating it mends.
    async fn upsert(&self, deliveries: &[FinishedDelivery]) -> Result<(), StoreError>;

    /// A customer's deliveries that finished at or after `from`, newest first (by finish, then id, both descending),
    /// only those behind `start`, at most `limit`.
    async fn list(
        &self,
        customer: &CustomerId,
        from: Timestamp,
        start: Place,
        limit: usize,
    ) -> Result<Vec<DeliveryRecord>, StoreError>;

    /// One of a customer's deliveries; without the customer, which only operators leave out, every shard is asked.
    async fn find(
        &self,
        customer: Option<&CustomerId>,
        delivery: DeliveryId,
    ) -> Result<Option<DeliveryRecord>, StoreError>;

    /// Which of these are stored, in the order asked.
    async fn contains(&self, ids: &[DeliveryId]) -> Result<Vec<DeliveryId>, StoreError>;

    /// Forgets deliveries that finished before `finished_before`, oldest first, at most `limit`; answers how many.
    async fn sweep(&self, finished_before: Timestamp, limit: u32) -> Result<u64, StoreError>;

    /// Whether it answers.
    async fn ready(&self) -> Result<(), StoreError>;
}

/// Opens the store that a URL names.
pub(crate) async fn open(url: &str) -> Result<Arc<dyn Store>, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) => sqlite::open(path).await,
        Some(("mongodb" | "mongodb+srv", _)) => mongodb::open(url).await,
        _ => Err(StoreError::UnknownScheme(url.to_owned())),
    }
}

/// A stored delivery as the audit sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditLookup {
    /// The delivery.
    pub delivery_id: DeliveryId,
    /// The stage in the row's own column.
    pub stage: Stage,
    /// The version in the row's own column.
    pub version: u64,
    /// The whole record.
    pub record: DeliveryRecord,
}

/// Every row of the raw table, for the audit.
pub async fn audit_scan(store_url: &str) -> anyhow::Result<Vec<AuditLookup>> {
    match store_url.split_once(':') {
        Some(("sqlite", path)) => Ok(sqlite::audit_scan(path).await?),
        Some(("mongodb" | "mongodb+srv", _)) => Ok(mongodb::audit_scan(store_url).await?),
        _ => Err(StoreError::UnknownScheme(store_url.to_owned()).into()),
    }
}
