//! Deletes what nobody can ask for any more: flights and tombstones a day after their end, old lines of the mission log.

use std::{sync::Arc, time::Duration};

use contracts::Clock;
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, Unavailable};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(60);

/// How long an ended flight is kept, in hours: fences and step deadlines have refused every late command long before.
const KEEP_FLIGHTS_HOURS: i64 = 24;

/// How long a line of the mission log is kept, in minutes: a thousand times what a feed lags behind.
const KEEP_MISSION_LOG_MINUTES: i64 = 10;

/// Rows deleted in one transaction: some milliseconds of the only writer.
const BATCH: u32 = 1_000;

/// Keeps the store small until `shutdown`.
pub(crate) async fn run(store: Arc<dyn Store>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = clock.sleep(EVERY) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = sweep(&*store, &*clock, &shutdown).await {
            tracing::warn!(error = %chain(&error), "old flights could not be deleted");
        }
    }
}

async fn sweep(store: &dyn Store, clock: &dyn Clock, shutdown: &CancellationToken) -> Result<(), Unavailable> {
    let closed_before = clock.now() - chrono::Duration::hours(KEEP_FLIGHTS_HOURS);
    while !shutdown.is_cancelled() && store.forget(closed_before, BATCH).await? == u64::from(BATCH) {}
    let logged_before = clock.now() - chrono::Duration::minutes(KEEP_MISSION_LOG_MINUTES);
    while !shutdown.is_cancelled() && store.trim_mission_log(logged_before, BATCH).await? == u64::from(BATCH) {}
    Ok(())
}
