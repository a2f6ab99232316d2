//! Saga commands and telemetry share the store, not a queue.

use std::sync::Arc;

use async_trait::async_trait;
use contracts::{
    DeliveryId, Stage, Timestamp,
    commands::{CloseOutcome, OpenOutcome, ReportOutcome},
};
use tokio::sync::Semaphore;

use super::REPORTS_PER_PLACE;
use crate::{
    domain::{Flight, Version},
    fixtures::{Bench, close, open, report, sqlite},
    store::{Audience, Change, LogPage, LogPosition, Look, Opened, QuietFlight, SaveError, Store, Unavailable},
};

/// A store in which positions are not saved before the test lets them.
struct HeldUp {
    store: Arc<dyn Store>,
    /// Permits for batches of nothing but positions.
    let_through: Semaphore,
}

#[async_trait]
impl Store for HeldUp {
    async fn ping(&self) -> Result<(), Unavailable> {
        self.store.ping().await
    }

    async fn load(&self, ids: &[DeliveryId]) -> Result<Vec<Flight>, Unavailable> {
        self.store.load(ids).await
    }

    async fn moved(&self, known: &[(DeliveryId, Version)]) -> Result<Vec<Flight>, Unavailable> {
        self.store.moved(known).await
    }

    async fn save(&self, changes: &[Change], now: Timestamp) -> Vec<Result<(), SaveError>> {
        if !changes.is_empty() && changes.iter().all(|change| !change.whole) {
            self.let_through.acquire().await.unwrap().forget();
        }
        self.store.save(changes, now).await
    }

    async fn missions(&self, audience: &Audience) -> Result<Vec<Flight>, Unavailable> {
        self.store.missions(audience).await
    }

    async fn mission_log_end(&self) -> Result<LogPosition, Unavailable> {
        self.store.mission_log_end().await
    }

    async fn mission_log(&self, after: &LogPosition, limit: u32, look: Look) -> Result<LogPage, Unavailable> {
        self.store.mission_log(after, limit, look).await
    }

    async fn quiet(
        &self,
        changed_before: Timestamp,
        after: Option<DeliveryId>,
        limit: u32,
    ) -> Result<Vec<QuietFlight>, Unavailable> {
        self.store.quiet(changed_before, after, limit).await
    }

    async fn forget(&self, closed_before: Timestamp, limit: u32) -> Result<u64, Unavailable> {
        self.store.forget(closed_before, limit).await
    }

    async fn trim_mission_log(&self, logged_before: Timestamp, limit: u32) -> Result<u64, Unavailable> {
        self.store.trim_mission_log(logged_before, limit).await
    }
}

#[tokio::test]
async fn commands_do_not_wait_for_the_reports_before_them() {
    let (_folder, opened) = sqlite().await;
    let held_up = Arc::new(HeldUp { store: opened.store.clone(), let_through: Semaphore::new(0) });
    let bench = Bench::over(&Opened { store: held_up.clone(), outbox: opened.outbox.clone() });
    for number in 1..=2 {
        assert_eq!(bench.open(open(number, 1, 1)).await, OpenOutcome::Opened);
    }
    let reporting = bench.report(vec![report(1, 1, None), report(2, 1, None)]);
    let commanding = async {
        assert_eq!(bench.open(open(3, 1, 1)).await, OpenOutcome::Opened);
        let closed = bench.close(close(1, 1, 1, Stage::Completed)).await;
        assert!(matches!(closed, CloseOutcome::Closed { .. }), "{closed:?}");
        held_up.let_through.add_permits(1);
    };
    let limit = std::time::Duration::from_secs(20);
    let (outcomes, ()) = tokio::time::timeout(limit, async { futures::join!(reporting, commanding) })
        .await
        .expect("commands are held up");
    // The report that was judged before the close meets it when it is saved, and is judged anew.
    assert_eq!(outcomes, [ReportOutcome::Stale, ReportOutcome::Accepted]);
    let flight = bench.stored(1).await.unwrap();
    assert!(!flight.is_open() && flight.last.is_none(), "nothing changes a closed flight");
}

#[tokio::test]
async fn a_large_request_is_taken_in_parts_and_answered_whole_and_in_order() {
    let (_folder, opened) = sqlite().await;
    let bench = Bench::over(&opened);
    bench.open(open(1, 1, 1)).await;
    let count = 2 * REPORTS_PER_PLACE + 1;
    let mut reports: Vec<_> = (1..).take(count).map(|sequence| report(1, sequence, None)).collect();
    for report in &mut reports {
        report.fix.at = crate::fixtures::start();
    }
    assert_eq!(bench.report(reports).await, vec![ReportOutcome::Accepted; count]);
    assert_eq!(bench.stored(1).await.unwrap().last.unwrap().sequence, u64::try_from(count).unwrap());
}
