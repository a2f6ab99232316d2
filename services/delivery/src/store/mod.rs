//! Where deliveries are kept: rows with their saga, the stage log, the saga's log, idempotency keys, the outbox.

#[cfg(test)]
pub(crate) mod contract;
mod sql;

use std::{collections::HashSet, sync::Arc};

use async_trait::async_trait;
use contracts::{
    CustomerId, DeliveryId, Timestamp,
    api::StepEntry,
    events::{CloudEvent, StageEntry},
};
use messaging::outbox::{OutboxSignal, OutboxSource};

use crate::domain::Delivery;

/// Why the store did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The row has changed since it was read, or its lease has gone to another.
    #[error("the delivery has changed since it was read")]
    Conflict,
    /// The idempotency key was used before.
    #[error("the idempotency key was used before")]
    KeyUsed {
        /// For that delivery.
        delivery_id: DeliveryId,
        /// With the same body.
        same_body: bool,
    },
    /// The store failed; nothing was changed.
    #[error("the delivery store is unavailable")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(Arc::new(error))
    }
}

/// A delivery that is there, written by a version of this service that wrote what this one does not know.
#[derive(Debug, Clone, thiserror::Error)]
#[error("delivery {id} cannot be read by this version of the service")]
pub struct Unreadable {
    /// Which one.
    pub id: DeliveryId,
    /// Why.
    #[source]
    pub cause: Arc<serde_json::Error>,
}

impl From<Unreadable> for StoreError {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unavailable(Arc::new(unreadable))
    }
}

/// An idempotency key with what it was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// As the customer gave it.
    pub key: String,
    /// SHA-256 of the body, in hexadecimal.
    pub body_hash: String,
}

/// What a change does to the row's lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseChange {
    /// Nothing: the change is no lease holder's.
    Keep,
    /// The holder goes on; refused where the fence is not the row's.
    Hold {
        /// The fence that the holder was given.
        fence: u64,
        /// Who.
        owner: Arc<str>,
        /// Until when.
        until: Timestamp,
    },
    /// The holder is through; refused where the fence is not the row's.
    Release {
        /// The fence that the holder was given.
        fence: u64,
    },
}

/// A delivery to be written with everything that belongs to the change, or not at all.
#[derive(Debug, Clone)]
pub struct Change {
    /// As it shall be.
    pub delivery: Delivery,
    /// The version that it was read at; 0 for a new one.
    pub expected_version: u64,
    /// New lines of the stage log.
    pub stages: Vec<StageEntry>,
    /// New lines of the saga's log.
    pub steps: Vec<StepEntry>,
    /// For the outbox.
    pub events: Vec<CloudEvent>,
    /// When somebody must look at it though nothing happens; none for what is over.
    pub due: Option<Timestamp>,
    /// The lease.
    pub lease: LeaseChange,
    /// For a new delivery.
    pub key: Option<IdempotencyKey>,
}

/// A delivery whose lease was got.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// As it is.
    pub delivery: Delivery,
    /// The lease's fence, higher than any before.
    pub fence: u64,
}

/// Counts for the operator.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Deliveries that are not over.
    pub open: u64,
    /// Deliveries whose time has come.
    pub due: u64,
}

/// What is known of changes that other processes have committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elsewhere {
    /// These have changed, some perhaps several times.
    Changed(HashSet<DeliveryId>),
    /// Changes may have been missed before now; from now on none is.
    Missed,
}

/// The store of deliveries.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes changes, each whole or not at all; they share a transaction, and a bad one fails no other. Durable once
    /// answered.
    async fn save(&self, changes: &[Change]) -> Vec<Result<(), StoreError>>;

    /// What a customer's idempotency key was used for: the delivery, and the hash of the body.
    async fn key_use(&self, customer: &CustomerId, key: &str) -> Result<Option<(DeliveryId, String)>, StoreError>;

    /// Those of the deliveries that exist, in no order. One that cannot be read keeps nobody from the others.
    async fn load(&self, ids: &[DeliveryId]) -> Result<Vec<Result<Delivery, Unreadable>>, StoreError>;

    /// Leases deliveries whose time has come, the oldest first: those that nobody holds, those whose lease has ended, and
    /// the owner's own. What a change makes due while another holds it stays due: that holder's next save meets the
    /// change and it looks again, its release makes it anybody's, and if it does neither, its lease ends.
    async fn claim_due(
        &self,
        owner: &str,
        now: Timestamp,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Claimed>, StoreError>;

    /// Leases those of the deliveries that nobody else holds, due or not.
    async fn claim(
        &self,
        ids: &[DeliveryId],
        owner: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<Claimed>, StoreError>;

    /// Makes everything that `owner` had leased due: for an owner that has just started anew.
    async fn release_all(&self, owner: &str, now: Timestamp) -> Result<u64, StoreError>;

    /// A customer's deliveries, newest first, those before `before`.
    async fn list(
        &self,
        customer: &CustomerId,
        before: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError>;

    /// The saga's log of one delivery, oldest first.
    async fn steps(&self, id: DeliveryId) -> Result<Vec<StepEntry>, StoreError>;

    /// Open deliveries after `after` that have not changed since `quiet_since`, in order of their ids.
    async fn quiet(
        &self,
        quiet_since: Timestamp,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Result<Delivery, Unreadable>>, StoreError>;

    /// Deliveries that were over before `finished_before`, in order of their ids.
    async fn finished(
        &self,
        finished_before: Timestamp,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<DeliveryId>, StoreError>;

    /// Forgets deliveries with their logs.
    async fn forget(&self, ids: &[DeliveryId]) -> Result<(), StoreError>;

    /// Forgets idempotency keys used before `horizon`: how many, at most `limit`.
    async fn forget_keys(&self, horizon: Timestamp, limit: usize) -> Result<u64, StoreError>;

    /// What other processes have changed since the last answer, once it is committed; the first answer, and that after an
    /// error, is [`Elsewhere::Missed`]. Never answers on an engine that tells nothing of other processes. For one caller
    /// at a time; cancel-safe.
    async fn changed_elsewhere(&self) -> Result<Elsewhere, StoreError>;

    /// Whether it answers; asks it the least that there is.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Counts.
    async fn summary(&self, now: Timestamp) -> Result<Summary, StoreError>;

    /// The outbox.
    fn outbox(&self) -> Arc<dyn OutboxSource>;

    /// Rung after every commit that put something into the outbox.
    fn outbox_signal(&self) -> OutboxSignal;
}

/// Opens the store that a URL names: `sqlite:PATH` or `postgres://...`.
pub async fn open(url: &str) -> anyhow::Result<Arc<dyn Store>> {
    Ok(Arc::new(sql::SqlStore::open(url).await?))
}

/// A delivery as the audit finds it.
#[derive(Debug, Clone)]
pub struct AuditDelivery {
    /// The row.
    pub delivery: Delivery,
    /// The stage log, oldest first: not what the row says of itself.
    pub stages: Vec<StageEntry>,
}

/// Every delivery in the store, with its stage log, and the number of events that were not relayed.
pub async fn audit_scan(url: &str) -> anyhow::Result<(Vec<AuditDelivery>, u64)> {
    sql::audit_scan(url).await
}
