//! The only subscriber: deliveries that are over, or at a later attempt, end their flights.

use async_trait::async_trait;
use contracts::events::DeliveryEvent;
use messaging::{Delivered, HandleError, Handler};

use crate::{domain::ends_flights, tracker::Tracker};

/// What tracking does about `delivery.events`. Every kind carries the whole record, and the record alone decides.
pub(crate) struct Subscriber {
    pub(crate) tracker: Tracker,
}

/// The store did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the flight could not be saved")]
struct NotSaved;

#[async_trait]
impl Handler for Subscriber {
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        let mut places = Vec::with_capacity(batch.len());
        for delivered in batch {
            match DeliveryEvent::decode(&delivered.event) {
                Ok(Some(event)) if ends_flights(&event.data) => {
                    places.push(results.len());
                    records.push(event.data);
                    results.push(Ok(()));
                }
                Ok(_) => results.push(Ok(())),
                Err(error) => results.push(Err(error.into())),
            }
        }
        let saved = self.tracker.settle(records).await;
        for (place, saved) in places.into_iter().zip(saved) {
            if !saved {
                results[place] = Err(HandleError::unavailable(NotSaved));
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use contracts::{
        Clock, Stage,
        events::{DeliveryEventKind, Event},
    };
    use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

    use super::*;
    use crate::fixtures::{Bench, logged, open, record, sqlite};

    fn delivered(bench: &Bench, number: u128, attempt: u32, kind: DeliveryEventKind, stage: Stage) -> Delivered {
        let (id, time) = (bench.clock.new_id(), bench.clock.now());
        let event = Event { id, time, kind, data: record(number, attempt, stage) }.encode();
        Delivered { topic: "delivery.events".into(), partition: 0, offset: 0, event: Arc::new(event) }
    }

    /// Three deliveries: one completed at its second attempt, one failed, one under way at its second attempt.
    fn story(bench: &Bench) -> Vec<Delivered> {
        use DeliveryEventKind::{DeliveryCompleted, DeliveryFailed, DeliveryRequested, DeliveryScheduled};
        vec![
            delivered(bench, 1, 1, DeliveryRequested, Stage::Requested),
            delivered(bench, 1, 1, DeliveryScheduled, Stage::Scheduled),
            delivered(bench, 1, 2, DeliveryScheduled, Stage::Scheduled),
            delivered(bench, 1, 2, DeliveryCompleted, Stage::Completed),
            delivered(bench, 2, 1, DeliveryScheduled, Stage::Scheduled),
            delivered(bench, 2, 1, DeliveryFailed, Stage::Failed),
            delivered(bench, 3, 1, DeliveryScheduled, Stage::Scheduled),
            delivered(bench, 3, 2, DeliveryRequested, Stage::Requested),
            delivered(bench, 3, 2, DeliveryScheduled, Stage::Scheduled),
        ]
    }

    #[tokio::test]
    async fn shuffled_and_doubled_events_end_the_same_flights() {
        let mut runner = TestRunner::deterministic();
        for round in 0..20 {
            let (_folder, opened) = sqlite().await;
            let bench = Bench::over(&opened);
            let mut position = opened.store.mission_log_end().await.unwrap();
            let attempts = [open(1, 1, 1), open(1, 2, 1), open(2, 1, 1), open(3, 1, 1), open(3, 2, 1)];
            bench.tracker.open(attempts.to_vec()).await;
            let doubled = [story(&bench), story(&bench)].concat();
            let shuffled = Just(doubled).prop_shuffle().new_tree(&mut runner).unwrap().current();
            let mut subscriber = Subscriber { tracker: bench.tracker.clone() };
            for batch in shuffled.chunks(round + 1) {
                assert!(subscriber.handle(batch).await.iter().all(Result::is_ok));
            }
            let mut end = Vec::new();
            for number in 1..=3 {
                let flight = bench.stored(number).await.unwrap();
                end.push((flight.attempt, flight.is_open()));
            }
            assert_eq!(end, [(2, false), (1, false), (2, true)], "round {round}");
            let logged = logged(&*opened.store, &mut position, 100).await;
            let recalled = logged.iter().filter(|note| !note.assigned).count();
            assert_eq!(recalled, 4, "each flight that ended was recalled once");
        }
    }

    #[tokio::test]
    async fn only_what_cannot_be_read_is_at_fault() {
        let (_folder, opened) = sqlite().await;
        let bench = Bench::over(&opened);
        bench.open(open(1, 1, 1)).await;
        let good = delivered(&bench, 1, 1, DeliveryEventKind::DeliveryFailed, Stage::Failed);
        let altered = |kind: &str, data: &[u8]| {
            let event =
                contracts::events::CloudEvent { kind: kind.to_owned(), data: data.to_vec(), ..(*good.event).clone() };
            Delivered { event: Arc::new(event), ..good.clone() }
        };
        let batch = [altered("DeliveryFailed", b"{}"), altered("DeliveryDreamt", b"{}"), good.clone()];
        let results = Subscriber { tracker: bench.tracker.clone() }.handle(&batch).await;
        assert!(matches!(results[0], Err(HandleError::Poison(_))));
        assert!(results[1].is_ok() && results[2].is_ok());
        assert!(!bench.stored(1).await.unwrap().is_open());
    }
}
