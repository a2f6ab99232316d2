//! Forgets finished deliveries once they are old and both the lake and the lookup store have them.

use std::time::Duration;

use chassis::{Peer, janitor};
use contracts::{
    Timestamp,
    commands::{Ids, MAX_COMMANDS},
};
use messaging::outbox::chain;
use tokio_util::sync::CancellationToken;

use crate::{ledger::Ledger, store::StoreError};

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
    tokio::join!(forget_keys(&ledger, &shutdown), forget_deliveries(&ledger, &history, &lookup, &shutdown));
}

/// Some at a time: no statement takes long, and no other waits for it.
async fn forget_keys(ledger: &Ledger, shutdown: &CancellationToken) {
    let round = || async {
        let forgotten = ledger.store.forget_keys(ledger.clock.now() - KEEP_KEYS, KEYS_AT_ONCE).await?;
        Ok::<_, StoreError>(forgotten == KEYS_AT_ONCE as u64)
    };
    janitor("idempotency keys are kept a little longer", INTERVAL, &*ledger.clock, shutdown, round).await;
}

async fn forget_deliveries(ledger: &Ledger, history: &Peer, lookup: &Peer, shutdown: &CancellationToken) {
    loop {
        tokio::select! {
            () = ledger.clock.sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        let now = ledger.clock.now();
        let (by_lake, by_both) = ([history], [history, lookup]);
        for (horizon, keepers) in [(now - BEYOND_LOOKUP, &by_lake[..]), (now - KEEP, &by_both[..])] {
            let forgotten = tokio::select! {
                result = forget_finished(ledger, horizon, keepers) => result,
                () = shutdown.cancelled() => return,
            };
            if let Err(error) = forgotten {
                tracing::warn!(error = %chain(&*error), "finished deliveries are kept a little longer");
            }
        }
    }
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
