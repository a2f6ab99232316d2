//! Forgets finished deliveries once they are old and both the lake and the lookup store have them.

use std::{collections::HashSet, time::Duration};

use chassis::Peer;
use contracts::{
    DeliveryId,
    commands::{Ids, MAX_COMMANDS},
};
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;

/// How often.
const INTERVAL: Duration = Duration::from_secs(600);

/// How long finished deliveries are kept at least.
const KEEP: chrono::Duration = chrono::Duration::days(7);

/// How long an idempotency key holds.
const KEEP_KEYS: chrono::Duration = chrono::Duration::hours(24);

/// Runs until `shutdown`.
pub(crate) async fn run(ledger: Ledger, history: Peer, lookup: Peer, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = ledger.clock.sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        if let Err(error) = forget(&ledger, &history, &lookup).await {
            tracing::warn!(error = %chain(&*error), "finished deliveries are kept a little longer");
        }
    }
}

async fn forget(ledger: &Ledger, history: &Peer, lookup: &Peer) -> anyhow::Result<()> {
    let now = ledger.clock.now();
    ledger.store.forget_keys(now - KEEP_KEYS).await?;
    let mut after = None;
    loop {
        let finished = ledger.store.finished(now - KEEP, after, MAX_COMMANDS).await?;
        let Some(last) = finished.last() else { return Ok(()) };
        after = Some(*last);
        let question = Ids { ids: finished.clone() };
        let in_lake: Ids = history.post("/queries/contains", &question).await?;
        let in_lookup: Ids = lookup.post("/queries/contains", &question).await?;
        let in_lookup: HashSet<DeliveryId> = in_lookup.ids.into_iter().collect();
        let safe: Vec<DeliveryId> = in_lake.ids.into_iter().filter(|id| in_lookup.contains(id)).collect();
        ledger.store.forget(&safe).await?;
    }
}
