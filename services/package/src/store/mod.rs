//! Where packages lie: the seam between rules and engines. Atomic per package; the batch is only for speed.

#[cfg(test)]
pub(crate) mod contract;
mod mongodb;
#[cfg(test)]
pub(crate) mod samples;
mod sqlite;

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use clap::ValueEnum;
use contracts::{
    Clock, DeliveryId, Timestamp,
    api::PackageSize,
    commands::PackageOutcome,
    events::{PackageRecord, PackageState},
};
use messaging::{
    Batcher,
    batch::Limits,
    outbox::{OutboxSignal, OutboxSource},
};

use crate::domain::Command;

/// Requests that share a transaction.
const INGEST_LIMITS: Limits = Limits {
    // Each carries at most 512 commands: a full house is some 16,000 rows, written in a fraction of a second.
    max_batch: 32,
    // Requests of a few dozen replicas' sagas; past that, callers wait.
    queue: 128,
    // At least; a store says how many it takes. Where that is one, what waits for it becomes the next batch.
    concurrency: 1,
    // Requests come as batches already.
    pace: Duration::ZERO,
};

/// Why the store did not do as asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// It cannot be reached, or it failed; nothing is known to have happened.
    #[error("the package store is unavailable")]
    Unavailable(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The URL names no store.
    #[error("'{0}' is not a package store: expected sqlite:PATH or mongodb://HOSTS/DATABASE")]
    UnknownScheme(String),
    /// Its events cannot leave like that.
    #[error("PACKAGE_RELAY=changes needs a store on MongoDB")]
    NoChanges,
}

/// How events leave a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Relaying {
    /// The relay asks the store what waits, again and again.
    #[default]
    Poll,
    /// The relay hears of changes as they are committed: MongoDB's change streams, from a stored position on.
    Changes,
}

/// A command's outcome, or why there is none.
pub(crate) type Applied = Result<PackageOutcome, StoreError>;

/// A store of packages.
#[async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// Carries out commands in order: one outcome for each. A package's new state and the event that tells it are
    /// durable together before the outcome; a command that fails does not fail those about other packages.
    async fn apply(&self, commands: &[Command]) -> Vec<Applied>;

    /// The package, or its tombstone.
    async fn find(&self, delivery_id: DeliveryId) -> Result<Option<PackageRecord>, StoreError>;

    /// Forgets packages that ended before `ended_before` and whose events have all left, at most `limit`; answers how
    /// many.
    async fn sweep(&self, ended_before: Timestamp, limit: u32) -> Result<u64, StoreError>;

    /// Whether it answers.
    async fn ready(&self) -> Result<(), StoreError>;
}

/// A store, and where its events leave.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) outbox: Arc<dyn OutboxSource>,
    pub(crate) signal: OutboxSignal,
    /// Batches of ingestion that it takes at once.
    pub(crate) writers: usize,
}

/// Opens the store that a URL names.
pub(crate) async fn open(url: &str, relaying: Relaying, clock: Arc<dyn Clock>) -> Result<Opened, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", _)) if relaying == Relaying::Changes => Err(StoreError::NoChanges),
        Some(("sqlite", path)) => sqlite::open(path, clock).await,
        Some(("mongodb" | "mongodb+srv", _)) => mongodb::open(url, relaying, clock).await,
        _ => Err(StoreError::UnknownScheme(url.to_owned())),
    }
}

/// Every state, as an engine may have stored its name.
const STATES: [PackageState; 4] =
    [PackageState::Registered, PackageState::Withdrawn, PackageState::Delivered, PackageState::Returned];

/// Every size, as an engine may have stored its name.
const SIZES: [PackageSize; 3] = [PackageSize::Small, PackageSize::Medium, PackageSize::Large];

fn state_named(name: &str) -> Option<PackageState> {
    STATES.into_iter().find(|state| state.as_str() == name)
}

fn size_named(name: &str) -> Option<PackageSize> {
    SIZES.into_iter().find(|size| size.as_str() == name)
}

/// The queue in front of a store: concurrent requests share a transaction.
pub(crate) type Ingest = Batcher<Vec<Command>, Vec<Applied>>;

/// The queue in front of `store`, which takes batches of `writers` at once, and the worker to run.
pub(crate) fn ingest(store: Arc<dyn Store>, writers: usize) -> (Ingest, impl Future<Output = ()> + Send + 'static) {
    let limits = Limits { concurrency: writers, ..INGEST_LIMITS };
    Batcher::new(limits, move |requests: Vec<Vec<Command>>| {
        let store = store.clone();
        async move {
            let sizes: Vec<_> = requests.iter().map(Vec::len).collect();
            let commands: Vec<_> = requests.into_iter().flatten().collect();
            let mut outcomes = store.apply(&commands).await.into_iter();
            sizes.into_iter().map(|size| outcomes.by_ref().take(size).collect()).collect()
        }
    })
}

/// A package as the audit sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPackage {
    /// The package's id is its delivery's.
    pub delivery_id: DeliveryId,
    /// Where it stands.
    pub state: PackageState,
}

/// Every row of the raw table, for the audit.
pub async fn audit_scan(store_url: &str) -> anyhow::Result<Vec<AuditPackage>> {
    match store_url.split_once(':') {
        Some(("sqlite", path)) => Ok(sqlite::audit_scan(path).await?),
        Some(("mongodb" | "mongodb+srv", _)) => Ok(mongodb::audit_scan(store_url).await?),
        _ => Err(StoreError::UnknownScheme(store_url.to_owned()).into()),
    }
}

#[cfg(test)]
mod tests {
    use contracts::SystemClock;

    use super::*;

    #[tokio::test]
    async fn an_embedded_store_has_no_changes_to_hear() {
        let opened = open("sqlite:package.db", Relaying::Changes, Arc::new(SystemClock)).await;
        assert!(matches!(opened, Err(StoreError::NoChanges)));
    }
}
