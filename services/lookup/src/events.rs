//! The only subscriber: keeps every delivery that is over.

use std::sync::Arc;

use async_trait::async_trait;
use contracts::Clock;
use messaging::{Delivered, HandleError, Handler, abort_point};

use crate::{domain::FinishedDelivery, store::Store};

/// Stores finished deliveries. Whatever the order and however often: the highest version stays.
pub(crate) struct FinishedDeliveries {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
}

#[async_trait]
impl Handler for FinishedDeliveries {
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>> {
        let now = self.clock.now();
        let mut results = Vec::with_capacity(batch.len());
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for (place, record) in batch.iter().enumerate() {
            match FinishedDelivery::of(&record.event) {
                Ok(Some(row)) if row.is_recent(now) => {
                    rows.push(row);
                    places.push(place);
                    results.push(Ok(()));
                }
                Ok(_) => results.push(Ok(())),
                Err(fault) => results.push(Err(HandleError::poison(fault))),
            }
        }
        if rows.is_empty() {
            return results;
        }
        let stored = self.store.upsert(&rows).await;
        abort_point("lookup.stored");
        if let Err(error) = stored {
            for place in places {
                results[place] = Err(HandleError::unavailable(error.clone()));
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use contracts::events::{CloudEvent, DeliveryEventKind, DeliveryRecord};
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
    use testkit::ManualClock;

    use super::*;
    use crate::{
        domain::RETENTION,
        store::{
            contract::Subject,
            samples::{at, event, finished, id},
        },
    };

    fn delivered(event: &CloudEvent) -> Delivered {
        Delivered { topic: "delivery.events".into(), partition: 0, offset: 0, event: Arc::new(event.clone()) }
    }

    async fn subject() -> (Subject, FinishedDeliveries) {
        let subject = Subject::open(|folder| format!("sqlite:{}", folder.join("lookup.db").display())).await;
        let handler = FinishedDeliveries { store: subject.store.clone(), clock: Arc::new(ManualClock::at(at(0))) };
        (subject, handler)
    }

    #[tokio::test]
    async fn shuffled_and_doubled_events_leave_each_delivery_once_as_its_highest_version_tells() {
        const DELIVERIES: u128 = 60;
        for seed in 0..8u64 {
            let (subject, mut handler) = subject().await;
            let mut random = StdRng::seed_from_u64(seed);
            let mut events = Vec::new();
            for number in 1..=DELIVERIES {
                let end = finished(number, "alice", at(0));
                let open = DeliveryRecord { version: 1, finished_at: None, ..end.clone() };
                // A later version of a finished delivery, as a late correction by its owner would be.
                let later =
                    DeliveryRecord { version: end.version + 1, end_reason: Some("later".into()), ..end.clone() };
                for _ in 0..2 {
                    events.push(event(DeliveryEventKind::DeliveryRequested, &open).encode());
                    events.push(event(DeliveryEventKind::DeliveryCompleted, &end).encode());
                    events.push(event(DeliveryEventKind::DeliveryCompleted, &later).encode());
                }
            }
            events.shuffle(&mut random);
            while !events.is_empty() {
                let rest = events.split_off(random.random_range(1..=50).min(events.len()));
                let batch: Vec<_> = std::mem::replace(&mut events, rest).iter().map(delivered).collect();
                assert!(handler.handle(&batch).await.iter().all(Result::is_ok), "seed {seed}");
            }
            let stored = crate::audit_scan(&subject.url).await.unwrap();
            assert_eq!(stored.len() as u128, DELIVERIES, "seed {seed}");
            for row in stored {
                assert_eq!(row.record.end_reason.as_deref(), Some("later"), "seed {seed}");
                assert_eq!(row.version, row.record.version, "seed {seed}");
            }
        }
    }

    #[tokio::test]
    async fn an_event_at_fault_fails_alone_and_an_old_one_is_passed_over() {
        let (subject, mut handler) = subject().await;
        let good = event(DeliveryEventKind::DeliveryCompleted, &finished(1, "alice", at(0))).encode();
        let bad = CloudEvent { data: b"{}".to_vec(), ..good.clone() };
        let unknown = CloudEvent { kind: "DeliveryPainted".to_owned(), ..bad.clone() };
        let long_ago = finished(2, "alice", at(-1) - RETENTION);
        let old = event(DeliveryEventKind::DeliveryFailed, &long_ago).encode();
        let batch = [delivered(&bad), delivered(&unknown), delivered(&old), delivered(&good)];
        let results = handler.handle(&batch).await;
        assert!(matches!(results[..], [Err(HandleError::Poison(_)), Ok(()), Ok(()), Ok(())]), "{results:?}");
        assert_eq!(subject.store.contains(&[id(1), id(2)]).await.unwrap(), [id(1)]);
    }
}
