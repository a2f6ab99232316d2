//! Deletes what nobody can ask for any more: flights and tombstones a day after their end, old lines of the mission log.

use std::{sync::Arc, time::Duration};

use contracts::Clock;
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
    let round = || sweep(&*store, &*clock);
    chassis::janitor("old flights could not be deleted", EVERY, &*clock, &shutdown, round).await;
}

/// One batch of each; true where there may be more.
async fn sweep(store: &dyn Store, clock: &dyn Clock) -> Result<bool, Unavailable> {
    let closed_before = clock.now() - chrono::Duration::hours(KEEP_FLIGHTS_HOURS);
    let flights = store.forget(closed_before, BATCH).await?;
    let logged_before = clock.now() - chrono::Duration::minutes(KEEP_MISSION_LOG_MINUTES);
    let lines = store.trim_mission_log(logged_before, BATCH).await?;
    Ok(flights.max(lines) == u64::from(BATCH))
}
