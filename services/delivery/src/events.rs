//! The only subscriber: grants and failures of drones, progress of flights.

use std::collections::HashMap;

use async_trait::async_trait;
use contracts::{
    DeliveryId,
    events::{CloudEvent, DecodeError, Event, FleetEvent, FleetEventKind, Topic, TrackingEvent},
};
use messaging::{Delivered, HandleError, Handler, abort_point};

use crate::{
    domain::{Changes, Delivery, Next},
    driver::Driver,
    ledger::Ledger,
    store::{LeaseChange, StoreError, Unreadable},
};

/// What this service listens to.
pub(crate) const TOPICS: &[Topic] = &[Topic::Fleet, Topic::Tracking];

/// How long events wait for a version of this service that can read what they are about: it is being rolled out, and takes
/// their partition over. If it was taken back instead, they go to the dead letters, to be redriven once it is there, since
/// all that comes after them waits as well.
const ROLLOUT: chrono::Duration = chrono::Duration::minutes(10);

/// Rounds against concurrent changes before the batch is handled anew.
const MAX_ROUNDS: usize = 8;

pub(crate) struct Subscriber {
    pub(crate) ledger: Ledger,
    pub(crate) driver: Driver,
}

/// What an event says of one delivery.
enum News {
    Fleet(FleetEvent),
    Flight(TrackingEvent),
}

/// Reads an event; none where it concerns no delivery.
fn read(event: &CloudEvent) -> Result<Option<(DeliveryId, News)>, DecodeError> {
    if event.topic == Topic::Fleet.name() {
        let Some(event) = Event::decode(event)? else { return Ok(None) };
        let event: FleetEvent = event;
        return Ok(event.data.delivery_id.map(|id| (id, News::Fleet(event))));
    }
    let Some(event) = Event::decode(event)? else { return Ok(None) };
    let event: TrackingEvent = event;
    Ok(Some((event.data.delivery_id, News::Flight(event))))
}

#[async_trait]
impl Handler for Subscriber {
    async fn handle(&mut self, batch: &[Delivered]) -> Vec<Result<(), HandleError>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut news: HashMap<DeliveryId, Vec<(usize, News)>> = HashMap::new();
        for (index, record) in batch.iter().enumerate() {
            results.push(Ok(()));
            match read(&record.event) {
                Ok(Some((id, item))) => news.entry(id).or_default().push((index, item)),
                Ok(None) => {}
                Err(error) => results[index] = Err(error.into()),
            }
        }
        match self.take_up(&news).await {
            Ok(unreadable) => {
                let patient_with = self.ledger.clock.now() - ROLLOUT;
                for delivery in unreadable {
                    for (index, _) in news.get(&delivery.id).into_iter().flatten() {
                        let cause = delivery.clone();
                        let waits = batch[*index].event.time > patient_with;
                        results[*index] =
                            Err(if waits { HandleError::unavailable(cause) } else { HandleError::poison(cause) });
                    }
                }
            }
            Err(error) => {
                for (index, _) in news.values().flatten() {
                    results[*index] = Err(HandleError::unavailable(error.clone()));
                }
            }
        }
        abort_point("delivery.event_applied");
        results
    }
}

impl Subscriber {
    /// Applies all news, a change for each delivery; those that met a concurrent change once more on what is there now.
    /// Answers the deliveries that it cannot read.
    async fn take_up(&self, news: &HashMap<DeliveryId, Vec<(usize, News)>>) -> Result<Vec<Unreadable>, StoreError> {
        let mut pending: Vec<DeliveryId> = news.keys().copied().collect();
        let mut unreadable = Vec::new();
        for _ in 0..MAX_ROUNDS {
            if pending.is_empty() {
                return Ok(unreadable);
            }
            let mut writes = Vec::new();
            let mut kicked = Vec::new();
            for read in self.ledger.store.load(&pending).await? {
                let read = match read {
                    Ok(read) => read,
                    Err(delivery) => {
                        unreadable.push(delivery);
                        continue;
                    }
                };
                let id = read.record.delivery_id;
                let items = news.get(&id).map(Vec::as_slice).unwrap_or_default();
                let mut next = read.clone();
                let changes = self.apply(&mut next, items);
                if next == read {
                    continue;
                }
                let change = self.ledger.updated(&read, &mut next, &changes, LeaseChange::Keep);
                if matches!(next.next(self.ledger.clock.now()), Next::Do(_)) {
                    kicked.push(id);
                }
                writes.push(change);
            }
            if writes.is_empty() {
                return Ok(unreadable);
            }
            let written = self.ledger.update_all(&writes).await;
            pending.clear();
            for (change, result) in writes.iter().zip(written) {
                match result {
                    Ok(()) => {}
                    Err(StoreError::Conflict) => pending.push(change.delivery.record.delivery_id),
                    Err(error) => return Err(error),
                }
            }
            for id in kicked {
                self.driver.kick(id);
            }
        }
        Err(StoreError::Conflict)
    }

    fn apply(&self, delivery: &mut Delivery, items: &[(usize, News)]) -> Changes {
        let mut all = Changes::default();
        let now = self.ledger.clock.now();
        for (_, item) in items {
            match item {
                News::Flight(event) => {
                    let changes = delivery.apply_progress(&event.data, now);
                    all.events.extend(changes.events);
                    all.stages.extend(changes.stages);
                    all.steps.extend(changes.steps);
                }
                News::Fleet(event) => {
                    let attempt = event.data.attempt.unwrap_or(0);
                    match event.kind {
                        FleetEventKind::DroneReserved => {
                            all.steps.extend(delivery.grant(attempt, &event.data.drone, now).steps);
                        }
                        FleetEventKind::DroneFailed => {
                            // False means that it changes nothing any more.
                            let _ = delivery.drone_failed(attempt, event.data.reason.as_deref().unwrap_or("failed"));
                        }
                        FleetEventKind::DroneReleased => {}
                    }
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use contracts::{Coordinate, DroneId, commands::AssignedDrone, events::DroneRecord, flight::Airframe};
    use testkit::{ManualClock, World};
    use uuid::Uuid;

    use super::*;
    use crate::{
        live::Live,
        store::{
            self,
            contract::{
                samples::{at, id, new},
                spoil,
            },
        },
    };

    /// A drone was reserved for delivery `number`.
    fn reserved(world: &World, number: u128) -> Delivered {
        let (at, drone_id) = (world.clock.now(), DroneId(Uuid::from_u128(number)));
        let drone = AssignedDrone {
            drone_id,
            base_id: "north".parse().unwrap(),
            airframe: Airframe { payload_kg: 4.0, range_m: 20_000.0, speed_mps: 10.0 },
            position: Coordinate { latitude: 1.0, longitude: 2.0 },
            battery: 1.0,
        };
        let data = DroneRecord {
            drone_id,
            drone,
            delivery_id: Some(id(number)),
            attempt: Some(1),
            customer_id: None,
            home_region: None,
            reason: None,
            at,
        };
        let event = FleetEvent { id: world.clock.new_id(), time: at, kind: FleetEventKind::DroneReserved, data };
        Delivered { topic: "fleet.events".into(), partition: 0, offset: 0, event: Arc::new(event.encode()) }
    }

    #[tokio::test]
    async fn news_of_a_delivery_that_cannot_be_read_waits_for_a_rollout_and_keeps_no_other() {
        let clock = Arc::new(ManualClock::at(at(0)));
        let world = World::with_clock(clock.clone()).await;
        let url = format!("sqlite:{}", world.path("delivery.db").display());
        let store = store::open(&url).await.unwrap();
        assert!(store.save(&[new(1), new(2)]).await.iter().all(Result::is_ok));
        spoil(&url, 2).await;
        let mut tasks = chassis::supervise::Tasks::new();
        let ledger = Ledger::new(store, world.clock.clone(), Live::new(), &mut tasks);
        let (driver, _kicks) = Driver::new("me");
        let mut subscriber = Subscriber { ledger, driver };
        let batch = [reserved(&world, 2), reserved(&world, 1)];
        clock.advance(ROLLOUT.to_std().unwrap() - std::time::Duration::from_secs(1));
        let results = subscriber.handle(&batch).await;
        assert!(matches!(&results[..], [Err(HandleError::Unavailable(_)), Ok(())]), "{results:?}");
        clock.advance(std::time::Duration::from_secs(1));
        let results = subscriber.handle(&batch).await;
        assert!(matches!(&results[..], [Err(HandleError::Poison(_)), Ok(())]), "{results:?}");
    }
}
