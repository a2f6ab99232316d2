//! The only subscriber: packages end with their deliveries.

use std::sync::Arc;

use async_trait::async_trait;
use contracts::events::DeliveryEvent;
use messaging::{Delivered, HandleError, Handler, abort_point};

use crate::{
    domain::{Command, PackageEnd},
    store::Store,
};

/// Ends the packages of deliveries that are over. Whatever the order and however often: the first end stands, and an
/// end that comes before its package leaves a tombstone.
pub(crate) struct DeliveryEnds {
    pub(crate) store: Arc<dyn Store>,
}

#[async_trait]
impl Handler for DeliveryEnds {
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>> {
        let mut results = Vec::with_capacity(batch.len());
        let (mut ends, mut places) = (Vec::new(), Vec::new());
        for (place, record) in batch.iter().enumerate() {
            match DeliveryEvent::decode(&record.event) {
                Ok(event) => {
                    if let Some(end) = event.and_then(PackageEnd::of) {
                        ends.push(Command::End(end));
                        places.push(place);
                    }
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error.into())),
            }
        }
        if ends.is_empty() {
            return results;
        }
        let applied = self.store.apply(&ends).await;
        abort_point("package.event_applied");
        for (place, outcome) in places.into_iter().zip(applied) {
            if let Err(error) = outcome {
                results[place] = Err(HandleError::unavailable(error));
            }
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use contracts::{
        Stage,
        commands::PackageOutcome,
        events::{CloudEvent, DeliveryEventKind, PackageEvent, PackageEventKind, PackageState},
    };
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

    use super::*;
    use crate::store::{
        contract::Subject,
        samples::{delivery_event, id, register},
    };

    fn delivered(event: &CloudEvent) -> Delivered {
        Delivered { topic: "delivery.events".into(), partition: 0, offset: 0, event: Arc::new(event.clone()) }
    }

    async fn subject() -> Subject {
        Subject::open(|folder| format!("sqlite:{}", folder.join("package.db").display())).await
    }

    /// The life of the delivery with that number, and how its package ends.
    fn life(number: u128) -> (Vec<CloudEvent>, PackageState) {
        use DeliveryEventKind as Kind;
        let stages = [Stage::Requested, Stage::Scheduled, Stage::HeadedToPickup, Stage::HeadedToDropoff];
        let (last, stages_before, state) = match number % 5 {
            0 => (Kind::DeliveryCompleted, &stages[..], PackageState::Delivered),
            1 => (Kind::DeliveryCancelled, &stages[..3], PackageState::Withdrawn),
            2 => (Kind::DeliveryRejected, &stages[..1], PackageState::Withdrawn),
            3 => (Kind::DeliveryFailed, &stages[..2], PackageState::Withdrawn),
            _ => (Kind::DeliveryFailed, &stages[..], PackageState::Returned),
        };
        let mut events = vec![delivery_event(number, Kind::DeliveryRequested, &stages[..1])];
        if stages_before.len() > 1 {
            events.push(delivery_event(number, Kind::DeliveryScheduled, &stages[..2]));
        }
        events.push(delivery_event(number, last, stages_before));
        (events.iter().map(contracts::events::Event::encode).collect(), state)
    }

    enum Happening {
        Event(CloudEvent),
        Register(Command),
    }

    /// Every delivery's events and its register command, each twice, in an order and in batches that the seed says.
    async fn live_through(seed: u64, deliveries: u128) {
        let subject = subject().await;
        let mut random = StdRng::seed_from_u64(seed);
        let mut happenings = Vec::new();
        for number in 0..deliveries {
            for _ in 0..2 {
                happenings.extend(life(number).0.into_iter().map(Happening::Event));
                happenings.push(Happening::Register(register(number, 1)));
            }
        }
        happenings.shuffle(&mut random);
        let mut handler = DeliveryEnds { store: subject.opened.store.clone() };
        let mut registered: HashMap<_, Vec<PackageOutcome>> = HashMap::new();
        while !happenings.is_empty() {
            let rest = happenings.split_off(random.random_range(1..=20).min(happenings.len()));
            let (mut events, mut commands) = (Vec::new(), Vec::new());
            for happening in std::mem::replace(&mut happenings, rest) {
                match happening {
                    Happening::Event(event) => events.push(delivered(&event)),
                    Happening::Register(command) => commands.push(command),
                }
            }
            assert!(handler.handle(&events).await.iter().all(Result::is_ok), "seed {seed}");
            for (command, outcome) in commands.iter().zip(subject.opened.store.apply(&commands).await) {
                registered.entry(command.delivery_id()).or_default().push(outcome.unwrap());
            }
        }
        let mut told: HashMap<_, Vec<PackageEventKind>> = HashMap::new();
        for row in testkit::outbox::pending(&*subject.opened.outbox).await {
            let event = PackageEvent::decode(&row.event).unwrap().unwrap();
            told.entry(event.data.delivery_id).or_default().push(event.kind);
        }
        for number in 0..deliveries {
            let (_, state) = life(number);
            let found = subject.opened.store.find(id(number)).await.unwrap().unwrap();
            assert_eq!(found.state, state, "seed {seed}, delivery {number}");
            let was_registered = registered[&id(number)][0] == PackageOutcome::Done;
            let end = match state {
                PackageState::Delivered => PackageEventKind::PackageDelivered,
                PackageState::Returned => PackageEventKind::PackageReturned,
                PackageState::Withdrawn | PackageState::Registered => PackageEventKind::PackageWithdrawn,
            };
            let expected = if was_registered { vec![PackageEventKind::PackageRegistered, end] } else { vec![] };
            let heard = told.remove(&id(number)).unwrap_or_default();
            assert_eq!(heard, expected, "seed {seed}, delivery {number}");
        }
    }

    #[tokio::test]
    async fn shuffled_and_doubled_events_come_to_the_same_end() {
        for seed in 0..8 {
            live_through(seed, 40).await;
        }
    }

    #[tokio::test]
    async fn an_event_at_fault_fails_alone() {
        let subject = subject().await;
        let mut handler = DeliveryEnds { store: subject.opened.store.clone() };
        let good = delivery_event(1, DeliveryEventKind::DeliveryCompleted, &[]).encode();
        let bad = CloudEvent { data: b"{}".to_vec(), ..good.clone() };
        let unknown = CloudEvent { kind: "DeliveryPainted".to_owned(), ..bad.clone() };
        let results = handler.handle(&[delivered(&bad), delivered(&unknown), delivered(&good)]).await;
        assert!(matches!(results[..], [Err(HandleError::Poison(_)), Ok(()), Ok(())]), "{results:?}");
        let found = subject.opened.store.find(id(1)).await.unwrap().unwrap();
        assert_eq!(found.state, PackageState::Delivered);
    }
}
