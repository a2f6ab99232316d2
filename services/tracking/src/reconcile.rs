//! Ends flights whose delivery is over although its event was lost, by asking `delivery` about those that stay as they are.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chassis::{Peer, PeerError};
use contracts::{
    Clock,
    commands::{DeliveryStatus, Ids, MAX_COMMANDS},
};
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;

use crate::{
    store::{QuietFlight, Store, Unavailable},
    tracker::Tracker,
};

/// How often both sides compare: far above the time that an event takes, far below a flight's patience.
const EVERY: Duration = Duration::from_secs(60);

/// A flight that changed less than this long ago, in seconds, is not asked about: its event may be on its way.
const QUIET_S: i64 = 60;

/// A delivery that its owner has not known for this long, in minutes, is worth a line in the log.
const UNKNOWN_MINUTES: i64 = 10;

/// Flights asked about in one request.
const PAGE: u32 = MAX_COMMANDS as u32;

/// Why a comparison was cut short. The next one begins anew.
#[derive(Debug, thiserror::Error)]
enum CompareError {
    #[error(transparent)]
    Store(#[from] Unavailable),
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// Compares open flights with their deliveries.
pub(crate) struct Reconciler {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tracker: Tracker,
    pub(crate) delivery: Peer,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Reconciler {
    /// Compares every minute until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                () = self.clock.sleep(EVERY) => {}
                () = shutdown.cancelled() => return,
            }
            if let Err(error) = self.compare(&shutdown).await {
                tracing::warn!(error = %chain(&error), "flights could not be compared with deliveries");
            }
        }
    }

    /// Goes once through the open flights that have not changed for a while.
    async fn compare(&self, shutdown: &CancellationToken) -> Result<(), CompareError> {
        let changed_before = self.clock.now() - chrono::Duration::seconds(QUIET_S);
        let mut after = None;
        while !shutdown.is_cancelled() {
            let quiet = self.store.quiet(changed_before, after, PAGE).await?;
            let Some(last) = quiet.last() else { return Ok(()) };
            after = Some(last.delivery_id);
            let asked = Ids { ids: quiet.iter().map(|flight| flight.delivery_id).collect() };
            let statuses: Vec<DeliveryStatus> = self.delivery.post("/queries/statuses", &asked).await?;
            self.mend(&quiet, statuses).await;
        }
        Ok(())
    }

    async fn mend(&self, quiet: &[QuietFlight], statuses: Vec<DeliveryStatus>) {
        let quiet: HashMap<_, _> = quiet.iter().map(|flight| (flight.delivery_id, flight)).collect();
        let unknown_since = self.clock.now() - chrono::Duration::minutes(UNKNOWN_MINUTES);
        let mut over = Vec::new();
        for status in statuses {
            let Some(flight) = quiet.get(&status.delivery_id) else { continue };
            match status.record {
                Some(record) if record.stage.is_terminal() || record.attempt > flight.attempt => over.push(record),
                Some(_) => {}
                // A flight without a delivery is no flight to end on a guess: a drone may carry a package.
                None if flight.changed_at < unknown_since => {
                    tracing::warn!(delivery_id = %status.delivery_id, "an open flight's delivery is unknown");
                }
                None => {}
            }
        }
        if !over.is_empty() {
            tracing::info!(flights = over.len(), "ending flights whose delivery had moved on");
            self.tracker.settle(over).await;
        }
    }
}
