//! Forgets finished deliveries once they are old and both the lake and the lookup store have them.

use std::time::Duration;

use chassis::{Peer, janitor};
use contracts::{
    DeliveryId, Timestamp,
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

/// How many pages of deliveries may fail in a round: what the lake cannot answer of one page keeps no other, but where
/// nothing is answered no more is asked. The next round goes on behind them.
const MAX_FAILED_PAGES: usize = 5;

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
    let (by_lake, by_both) = ([history], [history, lookup]);
    let mut rounds = [(BEYOND_LOOKUP, &by_lake[..], None), (KEEP, &by_both[..], None)];
    loop {
        tokio::select! {
            () = ledger.clock.sleep(INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        let now = ledger.clock.now();
        for (age, keepers, after) in &mut rounds {
            let forgotten = tokio::select! {
                result = forget_finished(ledger, now - *age, keepers, after) => result,
                () = shutdown.cancelled() => return,
            };
            if let Err(error) = forgotten {
                tracing::warn!(error = %chain(&*error), "finished deliveries are kept a little longer");
            }
        }
    }
}

/// Forgets what was over before `horizon` and all of `keepers` have, behind `after`, which is where it comes to; none at
/// the end.
async fn forget_finished(
    ledger: &Ledger,
    horizon: Timestamp,
    keepers: &[&Peer],
    after: &mut Option<DeliveryId>,
) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    while failures.len() < MAX_FAILED_PAGES {
        let page = ledger.store.finished(horizon, *after, MAX_COMMANDS).await?;
        *after = page.last().copied();
        if page.is_empty() {
            break;
        }
        if let Err(error) = forget_page(ledger, page, keepers).await {
            failures.push(error);
        }
    }
    failures.pop().map_or(Ok(()), Err)
}

async fn forget_page(ledger: &Ledger, page: Vec<DeliveryId>, keepers: &[&Peer]) -> anyhow::Result<()> {
    let mut safe = page;
    for keeper in keepers {
        let kept: Ids = keeper.post("/queries/contains", &Ids { ids: safe }).await?;
        safe = kept.ids;
    }
    Ok(ledger.store.forget(&safe).await?)
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, http::StatusCode, routing::post};
    use testkit::{World, serving};
    use tokio::task::JoinSet;

    use super::*;
    use crate::{
        live::Live,
        store::{
            self,
            contract::samples::{at, delivery, ended, id, new},
        },
    };

    const PAGE: u128 = MAX_COMMANDS as u128;
    /// More pages than may fail in a round.
    const UNANSWERED: u128 = (MAX_FAILED_PAGES as u128 + 1) * PAGE;

    /// A lake that has everything, and cannot answer of the first pages.
    async fn contains(Json(asked): Json<Ids>) -> Result<Json<Ids>, StatusCode> {
        if asked.ids[0] <= id(UNANSWERED) { Err(StatusCode::INTERNAL_SERVER_ERROR) } else { Ok(Json(asked)) }
    }

    #[tokio::test]
    async fn what_the_lake_cannot_answer_of_some_pages_keeps_no_others() {
        const FINISHED: u128 = UNANSWERED + 3;
        let world = World::new().await;
        let (node, lake) = world.node("history", &[]).await;
        let router = Router::new().route("/queries/contains", post(contains));
        let (mut running, opened) = (JoinSet::new(), node.door.opened());
        let serves = chassis::serve(node.door, router, chassis::Readiness::new(), node.shutdown);
        serving(&mut running, opened, serves).await;
        let (node, _) = world.node("delivery", &[("history", &lake)]).await;
        let store = store::open(&format!("sqlite:{}", world.path("delivery.db").display())).await.unwrap();
        let mut tasks = chassis::supervise::Tasks::new();
        let ledger = Ledger::new(store, world.clock.clone(), Live::new(), &mut tasks);
        let begun: Vec<_> = (1..=FINISHED).map(new).collect();
        let over: Vec<_> = (1..=FINISHED).map(|number| ended(&delivery(number, "alice"), 10)).collect();
        for changes in [begun, over] {
            assert!(ledger.store.save(&changes).await.iter().all(Result::is_ok));
        }
        let (lake, mut after) = (node.peer("history").unwrap(), None);
        for (reached, kept) in [(Some(UNANSWERED - PAGE), FINISHED), (None, UNANSWERED)] {
            assert!(forget_finished(&ledger, at(20), &[&lake], &mut after).await.is_err());
            assert_eq!(after, reached.map(id));
            let finished = ledger.store.finished(at(20), None, usize::MAX).await.unwrap();
            assert_eq!(finished, (1..=kept).map(id).collect::<Vec<_>>());
        }
    }
}
