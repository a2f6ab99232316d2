//! Hears of what other processes have committed to the same store, and tells this process's watchers.

use std::{collections::HashSet, time::Duration};

use contracts::DeliveryId;
use messaging::{Pace, outbox::chain};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    ledger::Ledger,
    store::{Elsewhere, StoreError},
};

/// The least time between two looks: a busy store's changes come together, and one that changed twice is read once.
const PACE: Duration = Duration::from_millis(10);

/// Deliveries read in one go: a few megabytes, and a statement of milliseconds.
const LOAD: usize = 256;

/// How long to wait after the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `shutdown`.
pub(crate) async fn run(ledger: Ledger, shutdown: CancellationToken) {
    // Whatever it waits for may be given up: nothing here is written.
    let _ = shutdown.run_until_cancelled(hear(&ledger)).await;
}

async fn hear(ledger: &Ledger) {
    let mut pace = Pace::new(PACE);
    loop {
        pace.next().await;
        match ledger.store.changed_elsewhere().await {
            Ok(Elsewhere::Changed(ids)) => tell(ledger, ids).await,
            Ok(Elsewhere::Missed) => ledger.live.missed(),
            Err(error) => {
                warn!(error = %chain(&error), "what other processes change is not heard of for a while");
                ledger.clock.sleep(RETRY).await;
            }
        }
    }
}

/// Tells of those deliveries as they are now; where nobody watches they are not even read.
async fn tell(ledger: &Ledger, ids: HashSet<DeliveryId>) {
    let ids: Vec<DeliveryId> = ids.into_iter().collect();
    for part in ids.chunks(LOAD) {
        while ledger.live.is_watched() {
            match load(ledger, part).await {
                Ok(()) => break,
                Err(error) => {
                    warn!(error = %chain(&error), "what other processes have changed cannot be read for a while");
                    ledger.clock.sleep(RETRY).await;
                }
            }
        }
    }
}

async fn load(ledger: &Ledger, ids: &[DeliveryId]) -> Result<(), StoreError> {
    // One that cannot be read is told by who can.
    for delivery in ledger.store.load(ids).await?.into_iter().flatten() {
        ledger.live.tell(&delivery.record);
    }
    Ok(())
}
