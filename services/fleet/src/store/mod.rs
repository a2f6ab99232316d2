//! What fleet keeps, as one trait of batches, and the engines behind it.

#[cfg(test)]
mod contract;
mod sql;

use std::sync::Arc;

use async_trait::async_trait;
use contracts::{
    BaseId, Clock, Coordinate, DeliveryId, DroneId, Timestamp,
    commands::{DroneStatus, ReleaseDrone, ReleaseOutcome, ReportOutcome, ReserveDrone, ReserveOutcome},
    flight::Trip,
};
use messaging::outbox::{OutboxSignal, OutboxSource};

use crate::domain::{Drone, Ending, Hold, Registration, RegistrationRefusal};

pub(crate) use sql::raw_reservations;

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It cannot be reached, its disk fails, or a row cannot be read.
    #[error("fleet's store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

/// What was written: an outcome for each item of the batch, and the drones concerned as they stand now (those that
/// were lost to somebody else among them), so that an index can follow.
#[derive(Debug)]
pub(crate) struct Written<T> {
    /// One for each item, in order.
    pub(crate) outcomes: Vec<T>,
    /// In no order; each at most once.
    pub(crate) drones: Vec<Drone>,
}

/// A drone that seems free and able.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pick {
    /// Which.
    pub(crate) drone_id: DroneId,
    /// What its battery must hold for the trip, 0 to 1.
    pub(crate) needed_battery: f64,
}

/// A reserve command with the drone to try.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Proposal<'a> {
    /// The command.
    pub(crate) command: &'a ReserveDrone,
    /// The drone to try; none: wait in the line.
    pub(crate) pick: Option<Pick>,
}

/// What became of a proposal.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reserved {
    /// The command's outcome.
    Outcome(ReserveOutcome),
    /// The drone was not free any more, and nothing was reserved: propose another.
    Lost,
}

/// A place in the waiting line; smaller ones come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// 0 for expedited, 1 for others.
    pub(crate) priority: i64,
    /// The request's time, in milliseconds since 1970.
    pub(crate) requested_ms: i64,
    /// Tells those apart that came at the same time.
    pub(crate) delivery_id: DeliveryId,
}

/// An entry of the waiting line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Waiting {
    /// Where it stands in the line.
    pub(crate) place: Place,
    /// Who waits.
    pub(crate) hold: Hold,
    /// What for.
    pub(crate) trip: Trip,
}

/// A drone for an entry of the waiting line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grant {
    /// Who waits.
    pub(crate) hold: Hold,
    /// The drone to try.
    pub(crate) pick: Pick,
}

/// The latest of a drone's reports in a batch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LatestReport {
    /// Who reports.
    pub(crate) drone_id: DroneId,
    /// Only if it is that base's, which speaks for it; none where it speaks for itself.
    pub(crate) base: Option<BaseId>,
    /// Where it is.
    pub(crate) position: Coordinate,
    /// 0 (empty) to 1 (full).
    pub(crate) battery: f64,
    /// The report's number.
    pub(crate) sequence: u64,
    /// The number of a report in the batch that says the drone is broken.
    pub(crate) failed_at: Option<u64>,
    /// Offer the drone again, where it is failed: it reports without a mission.
    pub(crate) recovers: bool,
    /// Other instances should hear of it: an idle drone that moved or charged.
    pub(crate) announce: bool,
}

/// What must still be true for a removal to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Nothing.
    Always,
    /// The report that says so is news, and of whom it says so.
    ReportIsNews {
        /// The report's number.
        sequence: u64,
        /// As in [`LatestReport`].
        base: Option<BaseId>,
    },
    /// It is reserved, and was neither reserved nor heard since (milliseconds since 1970).
    SilentSince(i64),
    /// It is that base's.
    BasedAt(BaseId),
}

/// A drone to be taken out of service.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Removal {
    /// Which.
    pub(crate) drone_id: DroneId,
    /// Failed or Retired.
    pub(crate) to: DroneStatus,
    /// Why.
    pub(crate) reason: String,
    /// Only if.
    pub(crate) guard: Guard,
}

/// Fleet's store. A batch shares one transaction; a bad item never fails its neighbours. State and events are written
/// together.
#[async_trait]
pub(crate) trait Store: Send + Sync + 'static {
    /// Reserves drones, or puts into the line; each delivery at most once in a batch.
    async fn reserve(&self, batch: &[Proposal<'_>]) -> Result<Written<Reserved>, StoreError>;

    /// Releases, leaving tombstones.
    async fn release(&self, batch: &[ReleaseDrone]) -> Result<Written<ReleaseOutcome>, StoreError>;

    /// Ends reservations as events say.
    async fn end(&self, batch: &[Ending]) -> Result<Written<()>, StoreError>;

    /// The first entries of the line after a place.
    async fn line(&self, after: Option<Place>, limit: usize) -> Result<Vec<Waiting>, StoreError>;

    /// Reserves drones for entries of the line; false where the drone or the entry was gone.
    async fn grant(&self, batch: &[Grant]) -> Result<Written<bool>, StoreError>;

    /// Takes entries whose deadline has passed off the line; how many.
    async fn expire(&self) -> Result<u64, StoreError>;

    /// Stores reports; each drone at most once in a batch.
    async fn report(&self, batch: &[LatestReport]) -> Result<Written<ReportOutcome>, StoreError>;

    /// Registers or changes drones; each at most once in a batch.
    async fn register(&self, batch: &[Registration])
    -> Result<Written<Result<Drone, RegistrationRefusal>>, StoreError>;

    /// Takes drones out of service: an attempt that one was reserved for is lost. Each outcome is the drone as it stands
    /// now, none for one that nobody registered.
    async fn remove(&self, batch: &[Removal]) -> Result<Written<Option<Drone>>, StoreError>;

    /// When any drone was last heard.
    async fn last_heard(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Reserved drones that were neither reserved nor heard since, at most `limit`.
    async fn silent(&self, since: Timestamp, limit: usize) -> Result<Vec<DroneId>, StoreError>;

    /// Those of the drones that exist.
    async fn drones(&self, ids: &[DroneId]) -> Result<Vec<Drone>, StoreError>;

    /// Drones that are not retired, of a base or of all, in the order of their ids, after one of them.
    async fn page(&self, base: Option<&BaseId>, after: Option<DroneId>, limit: usize)
    -> Result<Vec<Drone>, StoreError>;

    /// Every drone whose `changed` is greater.
    async fn changed_since(&self, change: i64) -> Result<Vec<Drone>, StoreError>;

    /// Every drone of which anything, its position too, was written by a change after that one; and the last change.
    async fn touched_since(&self, change: i64) -> Result<(Vec<Drone>, i64), StoreError>;

    /// The number of the last change.
    async fn last_change(&self) -> Result<i64, StoreError>;

    /// Whether it answers; asks it the least that there is.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Deletes reservations that ended before, at most `limit`; how many.
    async fn forget(&self, ended_before: Timestamp, limit: usize) -> Result<u64, StoreError>;
}

/// An opened store and the way its events leave it.
pub(crate) struct Opened {
    /// The store.
    pub(crate) store: Arc<dyn Store>,
    /// Its outbox.
    pub(crate) outbox: Arc<dyn OutboxSource>,
    /// Wakes the outbox's relay.
    pub(crate) signal: OutboxSignal,
}

/// Opens the store that a URL names: `sqlite:PATH` or `postgres://...`.
pub(crate) async fn open(url: &str, clock: Arc<dyn Clock>) -> anyhow::Result<Opened> {
    Ok(sql::open(url, clock).await?)
}
