//! Where flights are kept: the trait that every engine fits, and the choice of the engine by URL.
//!
//! The seam is a batch of changes, one per flight, each with its own outcome. A change is atomic (state, mission log and
//! outbox together) and conditional on the flight's version; nothing is promised across flights, so that an engine may
//! split a batch by flight: one function call each on a sharded store, one transaction for all on SQLite.

#[cfg(test)]
pub(crate) mod contract;
mod rows;
mod sqlite;

use std::sync::Arc;

use anyhow::{Context, bail};
use async_trait::async_trait;
use contracts::{BaseId, DeliveryId, DroneId, Timestamp, events::CloudEvent};
use messaging::outbox::OutboxSource;

use crate::domain::{Flight, MissionNote};

pub(crate) use rows::AuditRow;
pub(crate) use sqlite::{SqliteStore, audit_rows};

/// The store cannot be reached, or fails. The cause is shared by all that waited for the same statement.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the flight store is unavailable")]
pub(crate) struct Unavailable(#[source] pub(crate) Arc<dyn std::error::Error + Send + Sync>);

impl From<sqlx::Error> for Unavailable {
    fn from(error: sqlx::Error) -> Self {
        Self(Arc::new(error))
    }
}

/// Why a change was not saved.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SaveError {
    /// The flight has changed since it was loaded: load it again and judge anew.
    #[error("the flight has changed since it was loaded")]
    Conflict,
    /// Whether it was saved is unknown.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A flight as it is to be, if it is still at the version before.
#[derive(Debug)]
pub(crate) struct Change {
    /// The new state. Its version is one more than that of the state that it replaces; 1 for a new row.
    pub(crate) flight: Flight,
    /// More than the last fix differs.
    pub(crate) whole: bool,
    /// For the outbox, in order.
    pub(crate) events: Vec<CloudEvent>,
    /// For the mission log, in order.
    pub(crate) missions: Vec<MissionNote>,
}

/// A line of the mission log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoggedMission {
    /// Its number: without gaps, in order of commit.
    pub(crate) number: u64,
    pub(crate) note: MissionNote,
}

/// Whose missions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Audience {
    /// Those of a base's drones.
    Base(BaseId),
    /// Those of one drone.
    Drone(DroneId),
}

/// An open flight that has not changed for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuietFlight {
    pub(crate) delivery_id: DeliveryId,
    pub(crate) attempt: u32,
    pub(crate) changed_at: Timestamp,
}

/// What tracking needs of a store.
#[async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// Answers when the store does.
    async fn ping(&self) -> Result<(), Unavailable>;

    /// Those of the flights that there are, in any order.
    async fn load(&self, ids: &[DeliveryId]) -> Result<Vec<Flight>, Unavailable>;

    /// Those of the flights that are at another version than the one known.
    async fn moved(&self, known: &[(DeliveryId, u64)]) -> Result<Vec<Flight>, Unavailable>;

    /// Saves changes, at most one for each flight: one result for each, in order. An Ok is on disk.
    async fn save(&self, changes: &[Change], now: Timestamp) -> Vec<Result<(), SaveError>>;

    /// The open flights of an audience.
    async fn missions(&self, audience: &Audience) -> Result<Vec<Flight>, Unavailable>;

    /// The number of the mission log's newest line; 0 where there was none yet.
    async fn mission_log_end(&self) -> Result<u64, Unavailable>;

    /// The mission log after line `after`, oldest first.
    async fn mission_log(&self, after: u64, limit: u32) -> Result<Vec<LoggedMission>, Unavailable>;

    /// Open flights unchanged since `changed_before`, whatever their positions did, by id after `after`.
    async fn quiet(
        &self,
        changed_before: Timestamp,
        after: Option<DeliveryId>,
        limit: u32,
    ) -> Result<Vec<QuietFlight>, Unavailable>;

    /// Deletes flights and tombstones that were closed before `closed_before`: how many, at most `limit`.
    async fn forget(&self, closed_before: Timestamp, limit: u32) -> Result<u64, Unavailable>;

    /// Deletes lines of the mission log from before `logged_before`: how many, at most `limit`.
    async fn trim_mission_log(&self, logged_before: Timestamp, limit: u32) -> Result<u64, Unavailable>;
}

/// An open store and the outbox in it.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) outbox: Arc<dyn OutboxSource>,
}

/// Opens the store that a URL names: `sqlite:PATH`.
pub(crate) async fn open(url: &str) -> anyhow::Result<Opened> {
    match url.split_once(':') {
        Some(("sqlite", path)) => {
            let store = SqliteStore::open(path).await.with_context(|| format!("cannot open {path}"))?;
            Ok(Opened { outbox: Arc::new(store.outbox()), store: Arc::new(store) })
        }
        _ => bail!("'{url}' is not a store of flights: expected sqlite:PATH"),
    }
}

/// The flights of a store, read by the audit.
pub(crate) async fn audit(url: &str) -> anyhow::Result<Vec<AuditRow>> {
    match url.split_once(':') {
        Some(("sqlite", path)) => Ok(audit_rows(path).await?),
        _ => bail!("'{url}' is not a store of flights: expected sqlite:PATH"),
    }
}
