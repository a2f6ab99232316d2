//! Where flights are kept: the trait that every engine fits, and the choice of the engine by URL.
//!
//! The seam is a batch of changes, one per flight, each with its own outcome. A change is atomic (state, mission log and
//! outbox together) and conditional on the flight's version; nothing is promised across flights, so that an engine may
//! split a batch by flight: one function call each on a sharded store, one transaction for all on SQLite.

#[cfg(test)]
pub(crate) mod contract;
mod redis;
mod rows;
mod sqlite;

use std::{collections::HashSet, sync::Arc};

use anyhow::{Context, bail};
use async_trait::async_trait;
use contracts::{BaseId, DeliveryId, DroneId, Timestamp, events::CloudEvent};
use messaging::outbox::OutboxSource;

use crate::domain::{Flight, MissionNote, Version};

use self::redis::RedisStore;
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
    /// The version of the state that it replaces; 0 for a new row.
    pub(crate) replaces: Version,
    /// The new state, of the version after that.
    pub(crate) flight: Flight,
    /// More than the last fix differs.
    pub(crate) whole: bool,
    /// For the outbox, in order.
    pub(crate) events: Vec<CloudEvent>,
    /// For the mission log, in order.
    pub(crate) missions: Vec<MissionNote>,
}

impl Change {
    /// The write of a flight that has been altered since it was loaded: of its last position, or of more.
    pub(crate) fn new(mut flight: Flight, whole: bool) -> Self {
        let replaces = flight.version;
        flight.version = if whole { replaces.next_era(rand::random()) } else { replaces.next_position() };
        Self { replaces, flight, whole, events: Vec::new(), missions: Vec::new() }
    }

    /// Whether a store that has used up its budget takes it all the same: a stage, without which a parcel that was
    /// delivered would count as not delivered, and an end, which makes room. Neither a new flight, which can wait, nor a
    /// mere position, of which the next one says more. A flight has a handful of such changes, so they need little.
    pub(crate) fn is_owed(&self) -> bool {
        self.whole && self.missions.iter().all(|note| !note.assigned)
    }
}

/// Where a reader of the mission log is: the number of the last line that it has seen, of each part that the engine
/// keeps apart. A part's lines are numbered without gaps, in order of commit, and a flight's lie in one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogPosition(pub(crate) Vec<u64>);

/// Where to look for new lines of the mission log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Everywhere.
    Everywhere,
    /// At least where this instance has written, or heard that another one has, since the last look.
    WhereHeard,
}

/// Some lines of the mission log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogPage {
    /// In order of commit within each flight.
    pub(crate) lines: Vec<MissionNote>,
    /// Where the reader is after them.
    pub(crate) position: LogPosition,
    /// Lines after the former position are gone: trimmed, or lost with a store that was not synced.
    pub(crate) gap: bool,
    /// There may be more where this looked.
    pub(crate) more: bool,
}

/// What other instances have done, as far as an engine tells. Hints: a lost one costs time, never truth.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Elsewhere {
    /// Flights that were changed.
    pub(crate) flights: HashSet<DeliveryId>,
    /// Any flight may have changed: something was missed.
    pub(crate) missed: bool,
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
    async fn moved(&self, known: &[(DeliveryId, Version)]) -> Result<Vec<Flight>, Unavailable>;

    /// Saves changes, at most one for each flight: one result for each, in order. An Ok is on disk.
    async fn save(&self, changes: &[Change], now: Timestamp) -> Vec<Result<(), SaveError>>;

    /// The open flights of an audience.
    async fn missions(&self, audience: &Audience) -> Result<Vec<Flight>, Unavailable>;

    /// The end of the mission log.
    async fn mission_log_end(&self) -> Result<LogPosition, Unavailable>;

    /// The mission log after a position, at most `limit` lines of each part.
    async fn mission_log(&self, after: &LogPosition, limit: u32, look: Look) -> Result<LogPage, Unavailable>;

    /// Returns once other instances have changed flights or written to the mission log; never on an engine that does not
    /// tell. For one caller at a time; cancel-safe.
    async fn changed_elsewhere(&self) -> Elsewhere {
        std::future::pending().await
    }

    /// Open flights unchanged since `changed_before`, whatever their positions did: those after `after`, in an order of
    /// the engine's own.
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

/// Opens the store that a URL names: `sqlite:PATH`, or `redis:` and its kin as `redis::Address` says.
pub(crate) async fn open(url: &str) -> anyhow::Result<Opened> {
    match url.split_once(':') {
        Some(("sqlite", path)) => {
            let store = SqliteStore::open(path).await.with_context(|| format!("cannot open {path}"))?;
            Ok(Opened { outbox: Arc::new(store.outbox()), store: Arc::new(store) })
        }
        Some(("redis" | "rediss" | "redis+cluster" | "rediss+cluster", _)) => {
            let store = RedisStore::open(url).await.context("cannot open the Redis store")?;
            Ok(Opened { outbox: store.outbox(), store: Arc::new(store) })
        }
        _ => bail!(
            "this is not a store of flights: expected sqlite:PATH, redis://HOST:PORT or redis+cluster://HOST:PORT,..."
        ),
    }
}

/// The flights of a store, read by the audit.
pub(crate) async fn audit(url: &str) -> anyhow::Result<Vec<AuditRow>> {
    match url.split_once(':') {
        Some(("sqlite", path)) => Ok(audit_rows(path).await?),
        _ => Ok(RedisStore::open(url).await?.audit_rows().await?),
    }
}
