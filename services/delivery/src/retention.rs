//! Forgets finished deliveries once they are old and both the lake and the lookup store have them.

use std::time::Duration;

use chassis::Peer;
use contracts::{
    Timestamp,
    commands::{Ids, MAX_COMMANDS},
};
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;

use crate::ledger::Ledger;

/// How often.
const INTERVAL: Duration = Duration::from_secs(600);

/// How long finished deliveries are kept at least.
const KEEP: chrono::Duration = chrono::Duration::days(7);

/// The lookup store forgets earlier than this: for what is older, the lake alone decides.
const BEYOND_LOOKUP: chrono::Duration = chrono::Duration::days(31);

/// How long an idempotency key holds.
const KEEP_KEYS: chrono::Duration = chrono::Duration::hours(24);

/// Keys forgotten by one statement: some milliseconds.
const KEYS_AT_ONCE: usize = 1_000;

/// Runs until `shutdown`.
pub(crate) async fn run(ledger: Ledger, history: Peer, lookup: Peer, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = ledger.clock.sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        tokio::select! {
            () = forget(&ledger, &history, &lookup) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn forget(ledger: &Ledger, history: &Peer, lookup: &Peer) {
    let now = ledger.clock.now();
    let (by_lake, by_both) = ([history], [history, lookup]);
    // Each has its turn, whatever becomes of the others.
    let kept = [
        ("idempotency keys", forget_keys(ledger, now - KEEP_KEYS).await),
        ("old deliveries", forget_finished(ledger, now - BEYOND_LOOKUP, &by_lake).await),
        ("finished deliveries", forget_finished(ledger, now - KEEP, &by_both).await),
    ];
    for (what, result) in kept {
        if let Err(error) = result {
            tracing::warn!(error = %chain(&*error), "{what} are kept a little longer");
        }
    }
}

/// Forgets keys that no longer hold, some at a time: no statement takes long, and no other waits for it.
async fn forget_keys(ledger: &Ledger, horizon: Timestamp) -> anyhow::Result<()> {
    while ledger.store.forget_keys(horizon, KEYS_AT_ONCE).await? == KEYS_AT_ONCE as u64 {}
    Ok(())
}

/// Forgets what was over before `horizon` and all of `keepers` have.
async fn forget_finished(ledger: &Ledger, horizon: Timestamp, keepers: &[&Peer]) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let mut safe = ledger.store.finished(horizon, after, MAX_COMMANDS).await?;
        let Some(last) = safe.last() else { return Ok(()) };
        after = Some(*last);
        for keeper in keepers {
            let kept: Ids = keeper.post("/queries/contains", &Ids { ids: safe }).await?;
            safe = kept.ids;
        }
        ledger.store.forget(&safe).await?;
    }
}
