//! Upkeep: the index follows other instances' writes, and old reservations are forgotten.

use std::{sync::Arc, time::Duration};

use contracts::Clock;
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{fleet::Fleet, index::last_change, store::StoreError};

/// How often the index follows: a drone that another instance freed is known here within half a second.
const FOLLOW: Duration = Duration::from_millis(500);

/// How often old reservations are looked for.
const SWEEP: Duration = Duration::from_secs(60);

/// How long ended reservations and tombstones are kept, in hours: no command is younger than its step's deadline.
const KEEP_HOURS: i64 = 24;

/// Reservations deleted in one statement: a few milliseconds of the one writer.
const FORGET_BATCH: usize = 1_000;

/// Waits; false once `shutdown`.
pub(crate) async fn pause(clock: &dyn Clock, duration: Duration, shutdown: &CancellationToken) -> bool {
    if !duration.is_zero() {
        tokio::select! {
            () = clock.sleep(duration) => {}
            () = shutdown.cancelled() => {}
        }
    }
    !shutdown.is_cancelled()
}

/// Fills the index; the change from which [`follow`] goes on.
pub(crate) async fn fill(fleet: &Fleet, after: i64) -> Result<i64, StoreError> {
    let drones = fleet.store.changed_since(after).await?;
    fleet.index.apply(&drones);
    Ok(last_change(&drones, after))
}

/// Keeps the index in line with the store until `shutdown`.
pub(crate) async fn follow(fleet: Arc<Fleet>, mut change: i64, shutdown: CancellationToken) {
    while pause(&*fleet.clock, FOLLOW, &shutdown).await {
        match fill(&fleet, change).await {
            Ok(last) => change = last,
            Err(error) => warn!(error = %chain(&error), "the index follows later"),
        }
    }
}

/// Forgets what ended a day ago, until `shutdown`.
pub(crate) async fn sweep(fleet: Arc<Fleet>, shutdown: CancellationToken) {
    while pause(&*fleet.clock, SWEEP, &shutdown).await {
        if let Err(error) = forget_old(&fleet).await {
            warn!(error = %chain(&error), "old reservations are swept later");
        }
    }
}

/// Forgets what ended a day ago; how many reservations.
pub(crate) async fn forget_old(fleet: &Fleet) -> Result<u64, StoreError> {
    let ended_before = fleet.clock.now() - chrono::Duration::hours(KEEP_HOURS);
    let mut forgotten = 0;
    loop {
        let some = fleet.store.forget(ended_before, FORGET_BATCH).await?;
        forgotten += some;
        if usize::try_from(some).is_ok_and(|count| count < FORGET_BATCH) {
            return Ok(forgotten);
        }
    }
}
