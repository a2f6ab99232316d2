//! Compares open deliveries with tracking's flights every minute, and mends what has come apart.

use std::time::Duration;

use chassis::Peer;
use contracts::commands::{FlightStatus, Ids, MAX_COMMANDS};
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{Changes, Delivery, Part},
    driver::Driver,
    ledger::Ledger,
    store::LeaseChange,
};

/// How often.
const INTERVAL: Duration = Duration::from_secs(60);

/// A delivery that changed within this is left alone: its events are on their way.
const QUIET: chrono::Duration = chrono::Duration::seconds(60);

/// Runs until `shutdown`.
pub(crate) async fn run(ledger: Ledger, driver: Driver, tracking: Peer, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = ledger.clock.sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = compare(&ledger, &driver, &tracking).await {
            tracing::warn!(error = %chain(&*error), "deliveries and flights were not compared");
        }
    }
}

async fn compare(ledger: &Ledger, driver: &Driver, tracking: &Peer) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let quiet = ledger.store.quiet(ledger.clock.now() - QUIET, after, MAX_COMMANDS).await?;
        if quiet.is_empty() {
            return Ok(());
        }
        let mut flying = Vec::with_capacity(quiet.len());
        for delivery in quiet {
            match delivery {
                Ok(delivery) => {
                    after = Some(delivery.record.delivery_id);
                    if delivery.saga.flight == Part::Done {
                        flying.push(delivery);
                    }
                }
                Err(unreadable) => {
                    after = Some(unreadable.id);
                    tracing::error!(error = %chain(&unreadable), "not compared with its flight");
                }
            }
        }
        if flying.is_empty() {
            continue;
        }
        let ids = flying.iter().map(|delivery| delivery.record.delivery_id).collect();
        let flights: Vec<FlightStatus> = tracking.post("/queries/flights", &Ids { ids }).await?;
        for (delivery, flight) in flying.iter().zip(&flights) {
            mend(ledger, driver, delivery, flight).await?;
        }
    }
}

/// Takes up progress whose events were lost, and opens a flight again that tracking does not know.
async fn mend(ledger: &Ledger, driver: &Driver, delivery: &Delivery, flight: &FlightStatus) -> anyhow::Result<()> {
    let mut next = delivery.clone();
    let changes = match &flight.progress {
        Some(progress) => next.apply_progress(progress, ledger.clock.now()),
        None => Changes::default(),
    };
    let known = flight.progress.as_ref().is_some_and(|progress| progress.attempt == delivery.record.attempt);
    let flies = known && flight.open;
    if !next.record.stage.is_terminal() && !flies {
        // Opening is idempotent. A flight that was closed refuses it, and the saga goes on from there.
        next.saga.flight = Part::Todo;
    }
    if next == *delivery {
        return Ok(());
    }
    tracing::info!(delivery = %delivery.record.delivery_id, "mended by comparison with its flight");
    // A conflict means that it has just changed: the next comparison sees to it.
    if ledger.update(delivery, &mut next, &changes, LeaseChange::Keep).await.is_ok() {
        driver.kick(delivery.record.delivery_id);
    }
    Ok(())
}
